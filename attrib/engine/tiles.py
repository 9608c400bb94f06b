"""The engine: the Jacobian of paths, tile by tile, within a memory budget.

`adjoint` runs the written sweeps of sweep/meet.py over a pack of prompts, as its plan says. transforms.py has the plain way beside it.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import or_
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.rates import asking
from attrib.core.types import Site
from attrib.engine.blocks.kernels import Impl
from attrib.engine.blocks.passing import Between, in_float64, passed_of, place_of, together
from attrib.engine.halves import in_halves
from attrib.engine.path import Path, Targets
from attrib.engine.plan.choose import PackPlan, part_of, plan_pack
from attrib.engine.plan.memory import Way
from attrib.engine.plan.task import NOTHING_OPENED, Task
from attrib.engine.precision import Error, Precision, error_of, precision_of, products
from attrib.engine.sweep.cells import cone_of, pieces_of
from attrib.engine.sweep.meet import Lifted, empty, lift, meet, reverse
from attrib.engine.sweep.primal import Primal, Seeds, cast_blocks, primal, seeds, walked
from attrib.engine.transforms import Tile
from attrib.models.transformer import Model, width

DEFAULT_BUDGET = 1 << 30

Rows = slice | Int[Tensor, " rows"]
"""Which rows of a prompt."""


def task_of(paths: Sequence[Path], precision: Precision | None = None) -> Task:
    """What a pack of paths, which differ in their prompts alone, asks of the engine.

    Args:
        precision: of the sweep's products, beside which asking a device for them is weighed; None is the path's own dtype.
    """
    run, x = paths[0].through, paths[0].x
    copies = reduce(or_, (path.copies for path in paths))
    at = copies.of([rows.position for p in paths for rows in (p.targets, p.sources)])  # waited for once at most, and not for each count
    lengths = [len(p.x) for p in paths for _ in ("targets", "sources")]
    counts = [tuple(torch.bincount(each, minlength=length).tolist()) for each, length in zip(at, lengths, strict=True)]
    targets, sources = tuple(counts[::2]), tuple(counts[1::2])
    precision = precision or precision_of(run.model, None)
    walks, pieces = any(p.streams is None for p in paths), pieces_of(x.device, precision.products)
    pieces = pieces.narrow if paths[0].between.passing else pieces  # what waits in dictionaries goes position by position
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
        impl: of the attention maps and of reading out.

    Warns:
        UserWarning: where the device ran out of memory and a sweep is done in halves.
    """
    precision = precision or precision_of(paths[0].through.model, None)
    scattered = dict[int, Tensor]()
    copies = reduce(or_, (path.copies for path in paths))
    orders = [order_of(at) for at in copies.of([path.targets.position for path in paths])]
    device = paths[0].x.device
    there = [None if order is None else order.to(device, non_blocking=True) for order in orders]

    def chosen(first: int, end: int) -> list[Rows]:
        some = slice(first, end) if len(paths) == 1 else slice(None)
        return [some if order is None else order[some] for order in there]

    swept = in_halves(
        plan.sweeps,
        partial(_share, paths, plan, precision, impl),
        lambda shared, first, end: _sweep(shared, plan, precision, paths, chosen(first, end), part_of(plan.task, first, end).targets),
        lambda is_shared: len(paths) > 1 or (is_shared and plan.way in ("forward", "both")),
    )
    for done in swept:
        if done is None:
            yield from _smaller(paths, plan, precision, impl)
            return
        (first, end, is_last), found = done
        for number, (rows, gradient) in enumerate(zip(chosen(first, end), found, strict=True)):
            if orders[number] is None:
                yield number, Tile(first if len(paths) == 1 else 0, gradient)
                continue
            # targets that are not sorted by position: their rows go back to their places
            whole = scattered.setdefault(number, gradient.new_zeros(len(paths[number].targets.position), gradient.shape[1]))
            whole[rows] = gradient
            if len(paths) > 1 or is_last:
                yield number, Tile(0, whole)
        del done, found, gradient  # before the next sweep fills another tile


def at_once(paths: Sequence[Path], plan: PackPlan, precision: Precision, impl: Impl = "torch") -> list[Float[Tensor, "targets sources"]]:
    """The Jacobians of a pack whose plan has one sweep, and whose targets go by position: what a device does between two looks of the host.

    The arguments are those of `adjoint`. Nothing is done where memory does not suffice.
    """
    shared = _share(paths, plan, precision, impl)
    return _sweep(shared, plan, precision, paths, [slice(None)] * len(paths), plan.task.targets)


def order_of(position: Int[Tensor, " rows"]) -> Int[Tensor, " rows"] | None:
    """In which order rows come that go by position; None where they do already. On the host, which is waited for elsewhere."""
    return None if bool((position.diff() >= 0).all()) else position.argsort(stable=True)


def _smaller(paths: Sequence[Path], plan: PackPlan, precision: Precision, impl: Impl) -> Iterator[tuple[int, Tile]]:
    """What takes less memory than a pack, or than tangents of all sources: cotangents, prompt by prompt."""
    warnings.warn(f"out of memory with {len(paths)} prompt(s) going {plan.way}; going on in reverse, one at a time.", stacklevel=3)
    for number, path in enumerate(paths):
        whole = ((0, len(path.targets.position)),)
        task = replace(task_of([path]), pieces=plan.task.pieces.smaller)
        way: Way = "through" if task.is_through else "reverse" if task.layers else "local"
        alone = replace(plan, task=task, way=way, layer=None, sweeps=plan.sweeps if len(paths) == 1 else whole)
        for _, tile in adjoint([path], alone, precision, impl):
            yield number, tile
            del tile  # before the next is filled


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


def sampled_task(task: Task, rows: int, precision: Precision, device: torch.device) -> Task:
    """The task of the sampled rows of one prompt, computed in a precision."""
    (targets,) = task.targets
    position = torch.arange(len(targets)).repeat_interleave(torch.tensor(targets))
    at = torch.bincount(position[sampled(len(position), rows)], minlength=len(targets))
    pieces = task.pieces._replace(asking=asking(device, precision.products))
    return replace(task, targets=(tuple(at.tolist()),), itemsize=precision.path.itemsize, pieces=pieces, opened=NOTHING_OPENED)


def _matrix(path: Path, precision: Precision | None, impl: Impl, budget: int) -> Float[Tensor, "targets sources"]:
    """The whole Jacobian of a path with few targets."""
    plan = plan_pack(task_of([path], precision), max(budget, LEAST_FOR_SAMPLES))
    tiles = [tile.gradient for _, tile in adjoint([path], plan, precision, impl)]
    return torch.cat([path.x.new_zeros(0, len(path.sources.value)), *tiles])


def in_float64_between(model: Model, start: Site, stop: Site) -> Model:
    """The model with the blocks between two sites in float64, and no others."""
    model = cast_blocks(model, start, stop, torch.float64)
    params = model.params._replace(rotary_cos=model.params.rotary_cos.double(), rotary_sin=model.params.rotary_sin.double())
    return replace(model, params=params)


def _in_float64(path: Path) -> Path:
    """Put a path into float64, at the same point; only the blocks that it passes are converted."""
    run = path.through

    def double(columns: Any) -> Any:
        return type(columns)(*(c.double() if c.is_floating_point() else c for c in columns))

    return replace(
        path,
        through=replace(run, model=in_float64_between(run.model, run.start, run.stop)),
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
    sources: Mapping[Site, Seeds]
    """What they write, by the place."""
    between: Between
    lifted: Lifted | None
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
    counts = plan.task.sources
    sources = {place_of(at): seeds(on, positions, list(rows), counts) for at, rows in zip(paths[0].writes, directions, strict=True)}
    between = together([path.between for path in paths], lengths)
    if plan.way not in ("forward", "both"):
        return _Shared(on, sources, between, None)
    up = cone_of(next(iter(sources.values())).at, "up", on.pieces.band, causal=run.model.config.causal, span=on.pieces.span)
    with products(precision):
        return _Shared(on, sources, between, lift(on, run.start, sources, up, plan.task.meeting(plan.layer).up, between))


@torch.no_grad()
def _sweep(
    shared: _Shared,
    plan: PackPlan,
    precision: Precision,
    paths: Sequence[Path],
    chosen: Sequence[Rows],
    counts: Sequence[Sequence[int]],
) -> list[Float[Tensor, "_ _"]]:
    """One sweep over the chosen targets of each path, of which there are so many at each position."""
    on, sources, between, lifted = shared
    stop, positions = paths[0].through.stop, [path.targets.position[rows] for path, rows in zip(paths, chosen, strict=True)]
    with products(precision):
        targets = seeds(on, positions, [path.targets.cotangent[rows] for path, rows in zip(paths, chosen, strict=True)], counts)
        down = cone_of(targets.at, "down", on.pieces.band, causal=on.model.config.causal, span=on.pieces.span)
        if lifted is not None:
            return meet(on, stop, targets, down, sources, lifted, plan.task.meeting(plan.layer).down, between)
        found = empty(on, targets, next(iter(sources.values())))
        reverse(on, stop, targets, down, sources, dict.fromkeys(sources, found), between)
        return found
