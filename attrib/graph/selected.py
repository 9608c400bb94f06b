"""What is kept of a graph's rows: written down as rows come, and put in order once all have come.

Sets of targets come in turns, and chosen rows in any order. What lies together when it comes is copied together, so that nothing is
sorted but the rows themselves, and memory holds one column twice at most.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.edges import Growing
from attrib.core.keep import kept
from attrib.core.slices import ptr_of
from attrib.core.sparse import to_csr
from attrib.core.types import Keep


class Selected:
    """What is kept of rows, in the order in which they come."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.rows, self.counts, self.sources = list[Tensor](), list[Tensor](), _Sources()
        self.weight, self.total, self.l1 = (Growing() for _ in range(3))
        self.none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=dtype)

    def add(
        self, rows: Int[Tensor, " rows"], weight: Float[Tensor, "rows columns"], node: Int[Tensor, " columns"], keep: Keep
    ) -> Float[Tensor, " rows"]:
        """Select from complete rows, whose columns are these nodes, ascending. Returns the sums of their sizes."""
        mask, l1, total = kept(keep, weight, weight), weight.abs().sum(1).cpu(), weight.sum(1)
        there = mask.any(0)
        if bool((mask.all(0) == there).all()):  # whole columns: of those that are nothing, as errors of a first position, no row has any
            columns = there.nonzero()[:, 0]
            node = node[columns.cpu()]
            counts, chosen = torch.full((len(rows),), len(node)), weight.index_select(1, columns).flatten()
            self.sources.add_all(node, len(rows))
        else:
            indptr, source, place = to_csr(mask)
            counts, chosen = indptr.diff().cpu(), weight.flatten().index_select(0, place)
            self.sources.add(node[source.cpu()])
        self.rows.append(rows)
        self.counts.append(counts)
        for column, part in ((self.weight, chosen), (self.total, total), (self.l1, l1)):
            column.add(part.cpu())
        return l1

    def in_order(self) -> tuple[Tensor, ...]:
        """The nodes of all rows, ascending; where the edges of each begin; their sources and weights; the totals. No edges stay."""
        (whole, real), counts = self.none, torch.cat([self.none[0], *self.counts])
        node = torch.cat([whole, *self.rows])
        order, ptr = node.argsort(), ptr_of(counts)
        runs = runs_of(order)
        entries = [(int(ptr[first]), int(ptr[end])) for first, end in runs]
        weight, indices = self.weight.in_order(entries, real), self.sources.in_order(entries)
        return node[order], ptr_of(counts[order]), indices, weight, self.total.in_order(runs, real), self.l1.in_order(runs, real)


class _Sources:
    """The source of each entry. Of rows that keep everything it is written down once for all of them."""

    def __init__(self) -> None:
        self.chosen, self.parts = Growing(), list[_Part]()

    def add(self, sources: Int[Tensor, " entries"]) -> None:
        """Of entries that were chosen."""
        self.parts.append(_Part(self.end, len(sources), self.chosen.size, None))
        self.chosen.add(sources)

    def add_all(self, sources: Int[Tensor, " columns"], rows: int) -> None:
        """Of so many rows that have the same."""
        if rows and len(sources):
            self.parts.append(_Part(self.end, len(sources) * rows, 0, sources))

    @property
    def end(self) -> int:
        """How many entries there are."""
        return self.parts[-1].first + self.parts[-1].size if self.parts else 0

    def in_order(self, runs: Sequence[tuple[int, int]]) -> Int[Tensor, " entries"]:
        """Those of runs of entries, one behind the other, each of whole rows. It is empty afterwards."""
        found, at, begins = torch.empty(sum(end - first for first, end in runs), dtype=torch.int64), 0, [part.first for part in self.parts]
        for start, end in runs:
            first, number = start, bisect_right(begins, start) - 1
            while first < end:
                part = self.parts[number]
                upto = min(end, part.first + part.size)
                into = found[at : at + upto - first]
                if part.same is None:
                    begin = part.chosen + first - part.first
                    self.chosen.read([(begin, begin + upto - first)], into)
                else:
                    into.view(-1, len(part.same)).copy_(part.same)
                at, first, number = at + upto - first, upto, number + 1
        self.chosen, self.parts = Growing(), []
        return found


class _Part(NamedTuple):
    """Entries that were added together."""

    first: int
    size: int
    chosen: int
    """Where those that were chosen begin."""
    same: Int[Tensor, " columns"] | None
    """The sources of each row, where all are the same."""


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
