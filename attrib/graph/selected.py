"""What is kept of a graph's rows: written down as rows come, and put in order once all have come.

Sets of targets come in turns, and chosen rows in any order. What lies together when it comes is copied together, so that nothing is
sorted but the rows themselves, and memory holds one column twice at most.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.devices import to_host
from attrib.core.edges import Growing
from attrib.core.keep import kept
from attrib.core.scratch import Column
from attrib.core.slices import ptr_of
from attrib.core.sparse import places, to_csr
from attrib.core.types import Keep, TopK
from attrib.engine.outgoing import Outgoing


class Selected:
    """What is kept of rows, in the order in which they come."""

    def __init__(
        self, dtype: torch.dtype, column: Callable[[torch.dtype], Column] = lambda _: Growing(), node: torch.dtype = torch.int64,
        outgoing: Outgoing | None = None,
    ) -> None:  # fmt: skip
        """None yet.

        Args:
            column: makes what the edges are written down in; usually memory has them.
            node: a type that every node's number fits.
            outgoing: on what way edges come to the host; by default those of each call of `add` are waited for.
        """
        self.rows, self.counts, self.sources = list[Tensor](), list[Tensor](), _Sources(column(node))
        self.weight, self.total, self.l1 = column(dtype), Growing(), Growing()
        self.none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=dtype)
        self.outgoing = outgoing or Outgoing()

    def add(
        self, rows: Int[Tensor, " rows"], weight: Float[Tensor, "rows columns"], node: Int[Tensor, " columns"], keep: Keep
    ) -> Float[Tensor, " rows"]:
        """Select from complete rows, whose columns are these nodes, ascending. Returns the sums of their sizes, where the rows lie."""
        mask, l1, total = kept(keep, weight, weight), weight.abs().sum(1), weight.sum(1)
        there = mask.any(0)
        is_whole, columns, entries = _extent(mask, there, keep)
        if is_whole:
            column = places(there, columns)
            self.outgoing.send([column, weight.index_select(1, column).flatten(), total, l1], partial(self._take_whole, rows, node))
        else:
            indptr, source, place = to_csr(mask, in_all=entries)
            chosen = weight.flatten().index_select(0, place)
            self.outgoing.send([indptr.diff(), source, chosen, total, l1], partial(self._take_chosen, rows, node))
        return l1

    def _take_whole(self, rows: Int[Tensor, " rows"], node: Int[Tensor, " columns"], found: list[Tensor]) -> None:
        """Write down rows of which whole columns are kept."""
        columns, chosen, total, l1 = found
        self.sources.add_all(node[columns], len(rows))
        self._take(rows, torch.full((len(rows),), len(columns)), chosen, total, l1)

    def _take_chosen(self, rows: Int[Tensor, " rows"], node: Int[Tensor, " columns"], found: list[Tensor]) -> None:
        """Write down rows of which each keeps its own."""
        counts, source, chosen, total, l1 = found
        entries = int(counts.sum())  # what lies behind them means nothing; see `to_csr`
        self.sources.add(node[source[:entries]])
        self._take(rows, counts.clone(), chosen[:entries], total, l1)

    def _take(self, rows: Tensor, counts: Tensor, chosen: Tensor, total: Tensor, l1: Tensor) -> None:
        self.rows.append(rows)
        self.counts.append(counts)
        for column, part in ((self.weight, chosen), (self.total, total), (self.l1, l1)):
            column.add(part)

    def ordered(self) -> "Ordered":
        """All rows by their nodes, ascending. Edges stay where they are. Once."""
        self.outgoing.finish()
        (whole, real), counts = self.none, torch.cat([self.none[0], *self.counts])
        node = torch.cat([whole, *self.rows])
        order = node.argsort()
        runs = runs_of(order)
        total, l1 = self.total.in_order(runs, real), self.l1.in_order(runs, real)
        return Ordered(node[order], ptr_of(counts[order]), total, l1, real.dtype, order, ptr_of(counts), self.sources, self.weight)


def _extent(mask: Bool[Tensor, "rows columns"], there: Bool[Tensor, " columns"], keep: Keep) -> tuple[bool, int | None, int | None]:
    """Whether whole columns are kept; and of a device how many columns, and how many entries at most. It is waited for once, or not at all.

    Of columns that are nothing, as errors of a first position, no row has any.
    """
    if mask.device.type == "cpu":
        return bool((mask.all(0) == there).all()), None, None
    if isinstance(keep, TopK):
        return False, None, len(mask) * min(keep.k, mask.shape[1])
    is_whole, *counts = to_host([(mask.all(0) == there).all(), there.sum(), mask.sum()])
    return bool(is_whole), int(counts[0]), int(counts[1])


class Ordered(NamedTuple):
    """Rows in order of their nodes, with edges that are read when they are asked for."""

    targets: Int[Tensor, " rows"]
    indptr: Int[Tensor, " rows_plus_1"]
    total: Float[Tensor, " rows"]
    l1: Float[Tensor, " rows"]
    dtype: torch.dtype
    """Of the weights."""
    came: Int[Tensor, " rows"]
    """As which each of them came."""
    ptr: Int[Tensor, " rows_plus_1"]
    """Where the edges of each begin, in the order in which they came."""
    columns: "_Sources"
    weight: Column

    def sources(self, first: int, end: int) -> Int[Tensor, " edges"]:
        """The sources of the edges of some rows."""
        found = torch.empty(self._count(first, end), dtype=torch.int64)
        self.columns.read(self._entries(first, end), found)
        return found

    def weights(self, first: int, end: int) -> Float[Tensor, " edges"]:
        """The weights of the edges of some rows."""
        found = torch.empty(self._count(first, end), dtype=self.dtype)
        self.weight.read(self._entries(first, end), found)
        return found

    def whole(self) -> tuple[Int[Tensor, " edges"], Float[Tensor, " edges"]]:
        """The sources and the weights of all edges, once: one column is there twice at most."""
        weights = self.weights(0, len(self.targets))
        self.weight.clear()
        sources = self.sources(0, len(self.targets))
        self.columns.clear()
        return sources, weights

    def _count(self, first: int, end: int) -> int:
        return int(self.indptr[end] - self.indptr[first])

    def _entries(self, first: int, end: int) -> list[tuple[int, int]]:
        """Where these rows' edges lie, as runs."""
        return [(int(self.ptr[begin]), int(self.ptr[upto])) for begin, upto in runs_of(self.came[first:end])]


class _Sources:
    """The source of each entry. Of rows that keep everything it is written down once for all of them."""

    def __init__(self, chosen: Column) -> None:
        self.chosen, self.parts = chosen, list[_Part]()

    def add(self, sources: Int[Tensor, " entries"]) -> None:
        """Of entries that were chosen."""
        self.parts.append(_Part(self.end, len(sources), self.chosen.size, 0))
        self.chosen.add(sources)

    def add_all(self, sources: Int[Tensor, " columns"], rows: int) -> None:
        """Of so many rows that have the same."""
        if rows and len(sources):
            self.parts.append(_Part(self.end, len(sources) * rows, self.chosen.size, len(sources)))
            self.chosen.add(sources)

    @property
    def end(self) -> int:
        """How many entries there are."""
        return self.parts[-1].first + self.parts[-1].size if self.parts else 0

    def read(self, runs: Sequence[tuple[int, int]], into: Int[Tensor, " entries"]) -> None:
        """Copy those of runs of entries, one behind the other, each of whole rows."""
        at, begins = 0, [part.first for part in self.parts]
        for start, end in runs:
            first, number = start, bisect_right(begins, start) - 1
            while first < end:
                part = self.parts[number]
                upto = min(end, part.first + part.size)
                found = into[at : at + upto - first]
                if part.columns:
                    same = into.new_empty(part.columns)
                    self.chosen.read([(part.chosen, part.chosen + part.columns)], same)
                    found.view(-1, part.columns).copy_(same)
                else:
                    begin = part.chosen + first - part.first
                    self.chosen.read([(begin, begin + upto - first)], found)
                at, first, number = at + upto - first, upto, number + 1

    def clear(self) -> None:
        """Let go of all of it."""
        self.chosen.clear()
        self.parts.clear()


class _Part(NamedTuple):
    """Entries that were added together."""

    first: int
    size: int
    chosen: int
    """Where their sources begin."""
    columns: int
    """How many sources each row has, where all have the same, which are written down once; else 0."""


def runs_of(numbers: Int[Tensor, " numbers"]) -> list[tuple[int, int]]:
    """Runs `[first, end)` of numbers that follow each other."""
    if not len(numbers):
        return []
    breaks = (numbers.diff() != 1).nonzero()[:, 0] + 1
    firsts, ends = (
        numbers[torch.cat([breaks.new_zeros(1), breaks])],
        numbers[torch.cat([breaks - 1, breaks.new_tensor([len(numbers) - 1])])],
    )
    return list(zip(firsts.tolist(), (ends + 1).tolist(), strict=True))
