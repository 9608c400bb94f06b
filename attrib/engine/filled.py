"""Prompts filled up to a common shape, so that the operations of one sweep do for all of them (replay.py).

A sweep does the same operations for two prompts only if both have as many rows at each position. Dictionaries of k active latents have;
of others, positions are filled up with rows of zeros, whose derivatives are zeros, and which are taken out of the result.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import ge
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.devices import Copies
from attrib.core.types import BudgetError
from attrib.engine.path import Path
from attrib.engine.plan.choose import plan_pack
from attrib.engine.plan.task import Opened, Task
from attrib.engine.tiles import order_of
from attrib.engine.transforms import Tile

FILLED = 4
"""How many times as many rows a filled end may have, at most. Beyond, a path is swept as it is: so many zeros would be multiplied for
longer than asking takes, wherever the GPU has anything to do."""


class Filled(NamedTuple):
    """A prompt whose path may have been filled up."""

    ids: Int[Tensor, " positions"]
    own: Path
    """As it was opened."""
    own_task: Task
    path: Path
    """As it is swept."""
    task: Task
    rows: Int[Tensor, " targets"] | None = None
    """Where the prompt's own targets are among those that are swept, ascending, on the host; None where there are no others."""
    columns: Int[Tensor, " sources"] | None = None
    """The same of the sources."""

    def taken(self, tile: Tile) -> Tile:
        """The prompt's own rows and columns of a tile, in memory of their own where there are others."""
        first, gradient = tile
        if self.columns is not None:
            gradient = gradient.index_select(1, self.columns.to(gradient.device, non_blocking=True))
        if self.rows is not None:
            begin, end = torch.searchsorted(self.rows, torch.tensor([first, first + len(gradient)])).tolist()
            gradient = gradient.index_select(0, (self.rows[begin:end] - first).to(gradient.device, non_blocking=True))
            first = begin
        return Tile(first, gradient)


def as_opened(ids: Int[Tensor, " positions"], path: Path, task: Task) -> Filled:
    """A prompt that is swept as it is."""
    return Filled(ids, path, task, path, task)


def bucket(counts: Sequence[int]) -> tuple[int, ...]:
    """How many rows each position is filled up to.

    All positions from the first to the last at which there are any have as many as that which has most, rounded up, so that few different
    shapes come out. The very first position is apart: models rest their attention there, and its active latents are many, or few.
    Where several have the same number already, as by a dictionary of k active latents, they keep it.
    """
    used = [position for position, count in enumerate(counts) if count]
    if not used:
        return tuple(counts)
    first, last = max(used[0], 1), used[-1] + 1
    if used[0] == 0 and len(counts[:last]) > 1 and len(set(counts[:last])) == 1:
        return tuple(counts)
    rest = counts[first:last]
    most = rest[0] if len(rest) > 1 and len(set(rest)) == 1 else _rounded(max(rest, default=0))
    return (_rounded(counts[0]), *(most if first <= position < last else 0 for position in range(1, len(counts))))


def _rounded(count: int) -> int:
    """The next larger number of three binary digits."""
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step


def _places(counts: Sequence[int], filled: Sequence[int]) -> list[int]:
    """Where rows that go by position are once each position is filled up: before what it is filled up with."""
    begins = accumulate(filled, initial=0)
    return [begin + number for begin, count in zip(begins, counts, strict=False) for number in range(count)]


Shape = tuple[tuple[int, ...], tuple[int, ...]]
"""How many targets and sources there are at each position."""


def shape_for(ends: Shape, known: Sequence[Shape]) -> Shape:
    """To what both ends are filled up: the smallest known shape that has room for them, within `FILLED`; else one of their own."""

    def has_room(shape: Shape) -> bool:
        ours = list(zip(shape, ends, strict=True))
        return all(len(more) == len(counts) and all(map(ge, more, counts)) and sum(more) <= FILLED * sum(counts) for more, counts in ours)

    fitting = [shape for shape in known if has_room(shape)]
    if fitting:
        return min(fitting, key=lambda shape: sum(map(sum, shape)))
    own = bucket(ends[0]), bucket(ends[1])
    return own if has_room(own) else ends


def filled(ids: Int[Tensor, " positions"], path: Path, task: Task, want: Shape, opened: Callable[[Path], Task], budget: int) -> Filled:
    """The prompt with both its ends filled up; or as it is, where it is in no order of position, or no sweep alone does.

    Args:
        task: of the path.
        want: how many rows each position of either end is to have.
        opened: the task of a path, with what opening it takes.
        budget: bytes of working memory.
    """
    ends = task.targets[0], task.sources[0]
    here = path.copies.of([path.targets.position, path.sources.position])
    if ends == want or any(order_of(at) is not None for at in here):
        return as_opened(ids, path, task)
    device, copies = path.x.device, path.copies

    def end_of(end: Any, counts: Sequence[int], more: Sequence[int]) -> tuple[Any, Tensor | None]:
        nonlocal copies
        if counts == more:
            return end, None
        places, at = torch.tensor(_places(counts, more)), torch.arange(len(more)).repeat_interleave(torch.tensor(more))
        there, into = at.to(device, non_blocking=True), places.to(device, non_blocking=True)
        copies = copies | Copies([there], [at])
        zeros = (column.new_zeros(len(at), *column.shape[1:]) for column in end[1:])
        return type(end)(there, *(none.index_copy_(0, into, column) for none, column in zip(zeros, end[1:], strict=True))), places

    (targets, rows), (sources, columns) = map(end_of, (path.targets, path.sources), ends, want)
    swept = replace(path, targets=targets, sources=sources, copies=copies)
    grown = opened(swept)
    own = sum(column.nbytes for end in (path.targets, path.sources) for column in end)
    grown = replace(grown, opened=Opened(*(_rounded(each + own) for each in grown.opened)))
    try:
        is_one = len(plan_pack(grown, budget).sweeps) == 1
    except BudgetError:
        is_one = False
    return Filled(ids, path, task, swept, grown, rows, columns) if is_one else as_opened(ids, path, task)
