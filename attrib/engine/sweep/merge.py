"""Rows of several ways put together in one cone, with what waits of them in dictionaries: for the way down and the way up.

The rows of all ways are numbered together, prompt by prompt, in order of position, and each way knows the numbers of its own.
So however rows have come together, they are sorted by position, which is what a cone asks for (cells.py).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.engine.sweep.cells import Cells, Cone, cells_of
from attrib.engine.sweep.primal import Primal, Seeds
from attrib.engine.sweep.steps import Flat
from attrib.engine.sweep.waiting import Waiting

Numbers = tuple[Int[Tensor, " _"], ...]
"""The numbers of some rows among all of their prompt, ascending; for every prompt."""


class Group(NamedTuple):
    """Rows that go together."""

    rows: Numbers
    cone: Cone
    waits: Sequence[Waiting]


def numbers_of(primal: Primal, sets: Sequence[Seeds]) -> list[Numbers]:
    """Number the rows of several sets together: by position, and at one position set by set."""
    found: list[list[Tensor]] = [[] for _ in sets]
    for prompt in range(len(primal.lengths)):
        tokens = [each.token[(first := each.first(prompt)) : first + each.counts[prompt]] for each in sets]
        place = torch.cat(tokens).argsort(stable=True).argsort()
        for numbers, part in zip(found, place.split([len(token) for token in tokens]), strict=True):
            numbers.append(part)
    return [tuple(numbers) for numbers in found]


def joined(groups: Sequence[Group]) -> Numbers:
    """The numbers of the rows of several groups."""
    return tuple(torch.cat(parts).sort().values for parts in zip(*(group.rows for group in groups), strict=True))


class Merge:
    """Several groups that become one."""

    def __init__(self, primal: Primal, groups: Sequence[Group], rows: Numbers, whole: Cone, *, is_up: bool) -> None:
        """Make one.

        Args:
            rows, whole: the numbers of the rows of all, and their cone.
            is_up: whether the rows are tangents: of those that live at a position the last have come there first, else the first.
        """
        self.primal, self.whole, self.is_up = primal, whole, is_up
        self.cells = [cells_of(whole, prompt, length, rows[prompt].device) for prompt, length in enumerate(primal.lengths)]
        self.moves = [_Move(primal, group, rows, self.cells) for group in groups]
        self.waits = [group.waits for group in groups]

    def rows(self, parts: Sequence[Flat | None]) -> Flat | None:
        """What each group has, in the cone of all; None are zeros."""
        there = [(move, flat) for move, flat in zip(self.moves, parts, strict=True) if flat is not None]
        if not there:
            return None
        out = there[0][1].new_empty(self.whole.cells, there[0][1].shape[1])
        if sum(len(move.cells) for move, _ in there) < len(out):  # the cells of all groups are those of the whole
            out.zero_()
        for move, flat in there:
            out.index_copy_(0, move.cells, flat)
        return out

    def waiting(self, into: Sequence[Waiting]) -> None:
        """What waits of all of them, put where one of them has its own."""
        for number, waits in enumerate(into):
            theirs = [waits_of[number] for waits_of in self.waits]
            skip, terms = self.rows([each.skip for each in theirs]), dict(self._terms(theirs))
            waits.skip, waits.terms = skip, terms

    def _terms(self, parts: Sequence[Waiting]) -> Iterator[tuple[int, Tensor]]:
        """What waits at each token in one dictionary: some of the rows that live there have come to it."""
        for prompt, length in enumerate(self.primal.lengths):
            for t in range(length):
                token, (first, end) = self.primal.first(prompt) + t, self.cells[prompt].alive[t]
                there = [
                    (move, terms) for move, each in zip(self.moves, parts, strict=True) if (terms := each.terms.get(token)) is not None
                ]
                if not there:
                    continue
                out = there[0][1].new_zeros(end - first, there[0][1].shape[1])
                for move, terms in there:
                    low, high = move.alive[prompt][t]
                    begin = high - len(terms) if self.is_up else low
                    out.index_copy_(0, move.place[prompt][begin : begin + len(terms)] - first, terms)
                yield token, out


class _Move:
    """Where the rows of one group, and their cells, are among those of all."""

    def __init__(self, primal: Primal, group: Group, rows: Numbers, cells: Sequence[Cells]) -> None:
        self.place = [torch.searchsorted(merged, own) for merged, own in zip(rows, group.rows, strict=True)]
        self.alive = [cells_of(group.cone, prompt, length, rows[prompt].device).alive for prompt, length in enumerate(primal.lengths)]
        found = []
        for band in group.cone.bands:
            place, there = self.place[band.prompt][band.row : band.row + band.rows], cells[band.prompt]
            at = torch.arange(band.begin, band.end, device=place.device)[:, None]
            found.append((there.start[place] + there.step[place] * at).flatten())
        self.cells = torch.cat(found)
        """The new place of each of its cells."""
