"""The engine: the Jacobian of paths, tile by tile, within a memory budget.

`adjoint` runs the written sweeps of meet.py over a pack of prompts, as its plan says. `by_vjp` and `by_jvp` are
the plain reference beside it: torch.func over the segment alone, one prompt and one chunk of rows at a time.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jvp, vjp, vmap

from attrib.between import Between, in_float64, passed_of, station, together
from attrib.cone import Cone, cone, pieces_of
from attrib.meet import both, empty, forward, lift, reverse
from attrib.memory import Way
from attrib.model import ModelConfig, width
from attrib.ops import Impl
from attrib.packing import PackPlan, plan_pack
from attrib.paths import Path, Sources, Targets
from attrib.precision import Error, Precision, error_of, precision_of, products
from attrib.primal import Primal, Seeds, cast_blocks, primal, seeds, walked
from attrib.seeded import push_seeded
from attrib.task import NOTHING_OPENED, Task
from attrib.through import through
from attrib.types import BudgetError, Site

DEFAULT_BUDGET = 1 << 30
MAX_CHUNK = 128
"""Cotangents of one sweep at most: more do not make the products faster."""


class Tile(NamedTuple):
    """Rows `first:first+len` of the Jacobian, columns from 0; sources beyond its width have no gradient."""

    first: int
    gradient: Float[Tensor, "targets sources"]


def contract(cotangents: Float[Tensor, "rows positions width"], sources: Sources, count: int) -> Float[Tensor, "rows count"]:
    """g[row, q_i] · D_i for the first `count` sources, position by position."""
    out = cotangents.new_zeros(len(cotangents), count)
    at = torch.searchsorted(sources.position, torch.arange(cotangents.shape[1] + 1, device=cotangents.device)).tolist()
    for q, (begin, end) in enumerate(pairwise(at)):
        out[:, begin:end] = cotangents[:, q] @ sources.direction[begin:end].T
    return out


@torch.no_grad()
def by_vjp(path: Path, chunk: int) -> Iterator[Tile]:
    """Tiles of rows by vmap(vjp), `chunk` targets at a time, each on the prefix that it can see."""
    targets = path.targets
    for first in range(0, len(targets.position), chunk):
        rows = slice(first, first + chunk)
        position, cotangent = targets.position[rows], targets.cotangent[rows]
        end = int(position.max()) + 1
        base = None if path.base is None else path.base[:end]
        _, pull, *_ = vjp(lambda x, base=base: path.through.plain(x, base), path.x[:end])
        seeds = cotangent.new_zeros(len(position), end, cotangent.shape[1])
        seeds[torch.arange(len(position), device=seeds.device), position] = cotangent
        (pulled,) = vmap(pull)(seeds)
        count = int(torch.searchsorted(path.sources.position, end))
        yield Tile(first, contract(pulled, path.sources, count))


@torch.no_grad()
def by_jvp(path: Path, chunk: int) -> Iterator[Tile]:
    """All rows as one tile by vmap(jvp), `chunk` sources at a time: for few sources and many targets."""
    sources, targets = path.sources, path.targets
    gradient = path.x.new_zeros(len(targets.position), len(sources.position))
    order = targets.position.argsort(stable=True)
    at = torch.searchsorted(targets.position[order], torch.arange(len(path.x) + 1, device=path.x.device)).tolist()
    for first in range(0, len(sources.position), chunk):
        position, direction = sources.position[first : first + chunk], sources.direction[first : first + chunk]
        seeds = direction.new_zeros(len(position), *path.x.shape)
        seeds[torch.arange(len(position), device=seeds.device), position] = direction
        pushed = vmap(lambda seed: jvp(lambda x: path.through.plain(x, path.base), (path.x,), (seed,))[1])(seeds)
        for p, (begin, end) in enumerate(pairwise(at)):
            rows = order[begin:end]
            gradient[rows, first : first + chunk] = targets.cotangent[rows] @ pushed[:, p].T
    yield Tile(0, gradient)


@torch.no_grad()
def by_function(path: Path, chunk: int) -> Iterator[Tile]:
    """Tiles of rows by vmap(vjp) of the path's whole function, `chunk` targets at a time: where there are cuts."""
    value, pull, *_ = vjp(path.function, path.sources.value)
    for first in range(0, len(value), chunk):
        count = min(chunk, len(value) - first)
        seeds = value.new_zeros(count, len(value))
        seeds.diagonal(offset=first).fill_(1)
        yield Tile(first, vmap(pull)(seeds)[0])


# ------------------------------------------------------------------------------------------ adjoint


def task_of(paths: Sequence[Path]) -> Task:
    """What a pack of paths, which differ in their prompts alone, asks of the engine."""
    run, x = paths[0].through, paths[0].x
    targets = tuple(tuple(torch.bincount(p.targets.position, minlength=len(p.x)).tolist()) for p in paths)
    sources = tuple(tuple(torch.bincount(p.sources.position, minlength=len(p.x)).tolist()) for p in paths)
    walks, pieces = any(p.streams is None for p in paths), pieces_of(x.device)
    between = together([p.between for p in paths], [len(p.x) for p in paths])
    passed = tuple(passed_of(passing, [len(p.x) for p in paths]) for passing in between.passing)
    return Task(
        run.model.config, run.policy, run.start, run.stop, targets, sources, x.dtype.itemsize, walks=walks, pieces=pieces,
        writes=paths[0].writes, held=between.held, passed=passed,
    )  # fmt: skip


def adjoint(paths: Sequence[Path], plan: PackPlan, precision: Precision | None = None, impl: Impl = "torch") -> Iterator[tuple[int, Tile]]:
    """Tiles of a pack of paths by the written sweeps, with the number of the path that each is of, in order.

    Args:
        precision: of the sweep's products; None is the path's own dtype.
        impl: of the attention maps.

    Warns:
        UserWarning: where the device ran out of memory and a sweep is done in halves.
    """
    precision = precision or precision_of(paths[0].through.model, None)
    orders = [path.targets.position.argsort(stable=True) for path in paths]
    todo, scattered, shared = list(reversed(plan.sweeps)), dict[int, Tensor](), None
    is_out_of_memory = False
    while todo and not is_out_of_memory:
        first, end = todo.pop()
        chosen = [order[first:end] if len(paths) == 1 else order for order in orders]
        try:
            shared = shared or _share(paths, plan, precision, impl)
            found = _sweep(shared, plan, precision, paths, chosen)
        except torch.OutOfMemoryError:
            if len(paths) > 1 or (shared is None and plan.way in ("forward", "both")):
                is_out_of_memory = True
                continue
            if shared is None or end - first < 2:
                raise
            middle = (first + end) // 2
            warnings.warn(f"out of memory with {end - first} targets in one sweep; going on with halves of it.", stacklevel=2)
            todo += [(middle, end), (first, middle)]
            continue
        for number, (rows, gradient) in enumerate(zip(chosen, found, strict=True)):
            if bool((orders[number].diff() == 1).all()):
                yield number, Tile(first if len(paths) == 1 else 0, gradient)
                continue
            # targets that are not sorted by position: their rows go back to their places
            whole = scattered.setdefault(number, gradient.new_zeros(len(orders[number]), gradient.shape[1]))
            whole[rows] = gradient
            if len(paths) > 1 or not todo:
                yield number, Tile(0, whole)
        del found, gradient  # before the next sweep fills another tile
    if is_out_of_memory:
        # not in the handler: an exception at hand holds the frames that it came from, and all their tensors
        del shared
        yield from _smaller(paths, plan, precision, impl)


def _smaller(paths: Sequence[Path], plan: PackPlan, precision: Precision, impl: Impl) -> Iterator[tuple[int, Tile]]:
    """What takes less memory than a pack, or than tangents of all sources: cotangents, prompt by prompt."""
    warnings.warn(f"out of memory with {len(paths)} prompt(s) going {plan.way}; going on in reverse, one at a time.", stacklevel=3)
    for number, path in enumerate(paths):
        whole = ((0, len(path.targets.position)),)
        way: Way = "through" if plan.way == "through" else "reverse" if plan.task.layers else "local"
        task = replace(task_of([path]), pieces=plan.task.pieces.smaller)
        alone = replace(plan, task=task, way=way, layer=None, sweeps=plan.sweeps if len(paths) == 1 else whole)
        for _, tile in adjoint([path], alone, precision, impl):
            yield number, tile


def sampled_error(path: Path, rows: int, precision: Precision, impl: Impl, budget: int, seed: int = 0) -> Error:
    """The error of randomly chosen rows against float64, at the same primal point and with the same active latents.

    Both are computed anew, for these rows alone: the same arithmetic as in the whole, in smaller sweeps.
    """
    chosen = sampled(len(path.targets.position), rows, seed).to(path.targets.position.device)
    part = replace(path, targets=Targets(*(column[chosen] for column in path.targets)))
    found, exact = _matrix(part, precision, impl, budget), _matrix(_in_float64(part), None, "torch", budget)
    return error_of(found, exact, path.sources.value)


LEAST_FOR_SAMPLES = 1 << 30
"""Bytes that sampled rows may take in any case."""


def sampled(count: int, rows: int, seed: int = 0) -> Int[Tensor, " chosen"]:
    """Which of a path's targets are computed again, ascending."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:rows].sort().values


def sampled_task(task: Task, rows: int, itemsize: int) -> Task:
    """The task of the sampled rows of one prompt, in numbers of `itemsize` bytes."""
    (targets,) = task.targets
    position = torch.arange(len(targets)).repeat_interleave(torch.tensor(targets))
    at = torch.bincount(position[sampled(len(position), rows)], minlength=len(targets))
    return replace(task, targets=(tuple(at.tolist()),), itemsize=itemsize, opened=NOTHING_OPENED)


def _matrix(path: Path, precision: Precision | None, impl: Impl, budget: int) -> Float[Tensor, "targets sources"]:
    """The whole Jacobian of a path with few targets."""
    tiles = [tile.gradient for _, tile in adjoint([path], plan_pack(task_of([path]), max(budget, LEAST_FOR_SAMPLES)), precision, impl)]
    return torch.cat([path.x.new_zeros(0, len(path.sources.value)), *tiles])


def _in_float64(path: Path) -> Path:
    """The same path, at the same point, in float64; only the blocks that it passes are converted."""
    run = path.through
    model = cast_blocks(run.model, run.start, run.stop, torch.float64)
    params = model.params._replace(rotary_cos=model.params.rotary_cos.double(), rotary_sin=model.params.rotary_sin.double())

    def double(columns: Any) -> Any:
        return type(columns)(*(c.double() if c.is_floating_point() else c for c in columns))

    return replace(
        path,
        through=replace(run, model=replace(model, params=params)),
        x=path.x.double(),
        base=None if path.base is None else path.base.double(),
        streams=None if path.streams is None or not path.is_cut else {at: value.double() for at, value in path.streams.items()},
        sources=double(path.sources),
        targets=double(path.targets),
        between=in_float64(path.between),
    )


class _Shared(NamedTuple):
    """What all sweeps of a pack share."""

    on: Primal
    start: Site
    sources: Mapping[Site, Seeds]
    """What they write, by the place."""
    between: Between
    up: Cone
    lifted: Float[Tensor, "cells d_model"] | None
    """The sources' tangents, where they are lifted."""


@torch.no_grad()
def _share(paths: Sequence[Path], plan: PackPlan, precision: Precision, impl: Impl) -> _Shared:
    """The primal, the sources, and their tangents where the plan wants them."""
    run, lengths = paths[0].through, [len(path.x) for path in paths]
    streams = [path.streams or walked(run.model, run.start, run.stop, path.x, path.base) for path in paths]
    on = primal(
        run.model, run.policy, run.start, run.stop, streams, lengths, dtype=precision.sweep, impl=impl, pieces=plan.task.pieces,
        shut_mlps=plan.task.shut_mlps,
    )  # fmt: skip
    widths = [width(run.model.config, site) for site in paths[0].writes]
    directions = zip(*(path.sources.direction.split(widths, dim=1) for path in paths), strict=True)
    positions = [path.sources.position for path in paths]
    sources = {station(at): seeds(on, positions, list(rows)) for at, rows in zip(paths[0].writes, directions, strict=True)}
    up = cone([position.tolist() for position in positions], lengths, "up", on.pieces.band)
    start, between = station(run.start), together([path.between for path in paths], lengths)
    if plan.way not in ("forward", "both"):
        return _Shared(on, start, sources, between, up, None)
    with products(precision):
        start, pushed = push_seeded(on, run.start, sources[start])
        lifted = lift(on, start, pushed, up, plan.task.layers[-1] if plan.layer is None else plan.layer)
        return _Shared(on, start, {start: pushed}, between, up, lifted)


@torch.no_grad()
def _sweep(
    shared: _Shared, plan: PackPlan, precision: Precision, paths: Sequence[Path], chosen: Sequence[Int[Tensor, " _"]]
) -> list[Float[Tensor, "_ _"]]:
    """One sweep over the chosen targets of each path."""
    on, start, sources, between, up, lifted = shared
    stop, positions = paths[0].through.stop, [path.targets.position[rows] for path, rows in zip(paths, chosen, strict=True)]
    with products(precision):
        targets = seeds(on, positions, [path.targets.cotangent[rows] for path, rows in zip(paths, chosen, strict=True)])
        if plan.way == "forward":
            assert lifted is not None
            return forward(on, stop, targets, sources[start], up, lifted)
        down = cone([position.tolist() for position in positions], on.lengths, "down", on.pieces.band)
        if plan.way == "both":
            assert lifted is not None
            assert plan.layer is not None
            return both(on, stop, targets, down, sources[start], up, lifted, plan.layer)
        if plan.way == "through":
            return through(on, between, stop, targets, down, start, sources)
        found = empty(on, targets, sources[start])
        reverse(on, stop, targets, down, sources, dict.fromkeys(sources, found))
        return found


# ------------------------------------------------------------------------------------------ memory


class Working(NamedTuple):
    """Bytes of working memory: what a sweep holds whatever its width, and what each row adds."""

    fixed: int
    row: int


def working_memory(config: ModelConfig, start: Site, stop: Site, positions: int, d_sae: int, itemsize: int) -> Working:
    """An upper estimate for `by_vjp` or `by_jvp` over one prompt of this length.

    Fixed: the primal's tape, layer by layer, and one dense encoding [positions, d_sae], made once outside
    the differentiated path. A row: the widest moment of its way through one layer, which is the MLP's or
    the attention's, plus the cotangent itself at both ends.
    """
    layers = stop.depth[0] - start.depth[0] + 1
    stream = positions * config.d_model
    hidden = positions * config.d_mlp * (3 if config.gated else 2)
    pattern = config.n_heads * positions * positions
    tape = layers * (13 * stream + 2 * hidden + 3 * pattern)  # 3 of them the path's own streams
    row = 4 * stream + max(hidden, 4 * pattern + 6 * stream)
    return Working(itemsize * (tape + 3 * positions * d_sae), itemsize * row)


def chunk_size(working: Working, budget: int, prompt: int) -> int:
    """How many rows a sweep may hold. Raises BudgetError, with the smallest that would do, where not one fits."""
    if budget < working.fixed + working.row:
        raise BudgetError.of(budget, prompt, working.fixed + working.row)
    return min(MAX_CHUNK, (budget - working.fixed) // working.row)


def with_writes(working: Working, path: Path) -> Working:
    """The same for a path whose rows each hold, once more, what every source writes."""
    if not path.is_cut:
        return working
    return working._replace(row=working.row + path.x.dtype.itemsize * path.sources.direction.numel())
