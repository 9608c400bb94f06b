"""The plain reference beside the sweeps: torch.func over the segment alone, one prompt and one chunk of rows at a time."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp, vjp, vmap

from attrib.core.types import BudgetError, Site
from attrib.engine.path import Path, Sources
from attrib.models.transformer import ModelConfig

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
        end = path.through.model.config.seen(int(position.max()), len(path.x)).stop
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


class WorkingMemory(NamedTuple):
    """Bytes of working memory: what a sweep holds whatever its width, and what each row adds."""

    fixed: int
    row: int


def working_memory(config: ModelConfig, start: Site, stop: Site, positions: int, d_sae: int, itemsize: int) -> WorkingMemory:
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
    return WorkingMemory(itemsize * (tape + 3 * positions * d_sae), itemsize * row)


def chunk_size(working: WorkingMemory, budget: int, prompt: int) -> int:
    """How many rows a sweep may hold. Raises BudgetError, with the smallest that would do, where not one fits."""
    if budget < working.fixed + working.row:
        raise BudgetError.of(budget, prompt, working.fixed + working.row)
    return min(MAX_CHUNK, (budget - working.fixed) // working.row)


def with_writes(working: WorkingMemory, path: Path) -> WorkingMemory:
    """Working memory for a path whose rows each hold, beside the rest, what every source writes."""
    if not path.is_cut:
        return working
    return working._replace(row=working.row + path.x.dtype.itemsize * path.sources.direction.numel())
