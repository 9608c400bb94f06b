"""Rows of a graph as a sweep gives them: what is kept of each is selected where it lies, and the whole of them is never held."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.edges import Growing
from attrib.core.fingerprints import sha256_of
from attrib.core.finite import require_finite
from attrib.core.keep import kept
from attrib.core.slices import ptr_of
from attrib.core.types import Keep
from attrib.engine.bundle import Found
from attrib.engine.sweep.cells import pieces_of
from attrib.graph.columns import Columns
from attrib.graph.ends import Opened
from attrib.graph.graph import Graph
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model

LEAST = 64
"""Rows that are selected from together, however long they are: of fewer, the calls would take longer than what they do."""
FEW = 16
"""Rows of several positions are selected from together where a position has fewer: then some of what the first of them see is zero."""


Watching = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Is told of whole rows: their nodes, their attributions [rows, seen], the sums of their sizes, and the nodes seen, ascending."""


class GraphRows:
    """One prompt's rows, as sweeps give them."""

    def __init__(self, opened: Opened, keep: Keep, watching: Watching | None = None) -> None:
        self.opened, self.keep, self.watching = opened, keep, watching
        self.columns, self.select = Columns(opened), pieces_of(opened.bundle.model.device).select
        self.selected = Selected(self.columns.activation.dtype)

    def add(self, found: Found, chosen: Bool[Tensor, " rows"] | None = None) -> None:
        """Take rows that a sweep has found.

        Args:
            chosen: which of them; None is all.
        """
        of_set, place = found.order
        for target in of_set.unique().tolist():
            rows = ((of_set == target) if chosen is None else (of_set == target) & chosen).nonzero()[:, 0]
            nodes = self.opened.rows[target][place[rows]]
            position = self.opened.nodes.position[nodes]
            for first, end in self._together(position):
                self._take(found, target, rows[first:end], nodes[first:end], int(position[end - 1]))

    def _together(self, position: Int[Tensor, " rows"]) -> Iterator[tuple[int, int]]:
        """Runs of rows that are selected from together: those of one position, or of several that have few."""
        most, first, end = max(LEAST, self.select // max(1, len(self.columns.node))), 0, 0
        for count in position.unique_consecutive(return_counts=True)[1].tolist():
            end += count
            if end - first >= FEW:
                yield from ((begin, min(end, begin + most)) for begin in range(first, end, most))
                first = end
        if end > first:
            yield first, end

    def _take(self, found: Found, target: int, rows: Int[Tensor, " rows"], nodes: Int[Tensor, " rows"], last: int) -> None:
        """Select from rows, by their numbers in the sweep, up to a position."""
        seen = self.columns.seen(target, last)
        side_by_side = self.columns.activation.new_empty(len(rows), len(seen.node))
        found.fill(_runs(rows), seen.counts, side_by_side)
        weight = side_by_side.index_select(1, seen.order).mul_(seen.activation)
        l1 = self.selected.add(nodes, weight, seen.node, self.keep)
        if self.watching:
            self.watching(nodes, weight, l1, seen.node)

    def graph(self, model: Model, ids: Tensor, call: dict[str, Any]) -> Graph:
        """All of them, once."""
        opened = self.opened
        targets, indptr, indices, weight, total, l1 = self.selected.in_order()
        require_finite({"the gradients of a graph": l1}, position=opened.nodes.position[targets])
        call = call | {"tokens": {"sha256": sha256_of([ids])}}
        value, own, importance = (column[targets] for column in (opened.value, opened.own, opened.importance))
        return Graph(
            opened.nodes, targets, indptr, indices, weight, value, own, total, l1, importance, ids.cpu(), token_strings(model, ids), call
        )  # fmt: skip


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
        mask, l1 = kept(keep, weight, weight), weight.abs().sum(1).cpu()
        counts = mask.sum(1).cpu()
        if int(counts.sum()) == mask.numel():
            self.sources.add_all(node, len(rows))
            chosen = weight.flatten()
        else:
            place = mask.flatten().nonzero()[:, 0]
            self.sources.add(node[(place % mask.shape[1]).cpu()])
            chosen = weight.flatten().index_select(0, place)
        self.rows.append(rows)
        self.counts.append(counts)
        for column, part in ((self.weight, chosen), (self.total, weight.sum(1)), (self.l1, l1)):
            column.add(part.cpu())
        return l1

    def in_order(self) -> tuple[Tensor, ...]:
        """The nodes of all rows, ascending; where the edges of each begin; their sources and weights; the totals. Nothing stays."""
        (whole, real), counts = self.none, torch.cat([self.none[0], *self.counts])
        node = torch.cat([whole, *self.rows])
        order, ptr = node.argsort(), ptr_of(counts)
        runs = _runs(order)
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
        return found


class _Part(NamedTuple):
    """Entries that were added together."""

    first: int
    size: int
    chosen: int
    """Where those that were chosen begin."""
    same: Int[Tensor, " columns"] | None
    """The sources of each row, where all are the same."""


def _runs(numbers: Int[Tensor, " numbers"]) -> list[tuple[int, int]]:
    """Runs `[first, end)` of numbers that follow each other."""
    if not len(numbers):
        return []
    breaks = (numbers.diff() != 1).nonzero()[:, 0] + 1
    firsts, ends = (
        numbers[torch.cat([breaks.new_zeros(1), breaks])],
        numbers[torch.cat([breaks - 1, breaks.new_tensor([len(numbers) - 1])])],
    )
    return list(zip(firsts.tolist(), (ends + 1).tolist(), strict=True))
