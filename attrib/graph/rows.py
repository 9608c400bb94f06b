"""Rows of a graph as a sweep gives them: what is kept of each is selected where it lies, and the whole of them is never held."""

from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from attrib.core.fingerprints import sha256_of
from attrib.core.finite import require_finite
from attrib.core.scratch import Scratch
from attrib.core.types import Keep
from attrib.engine.bundle import Found
from attrib.engine.outgoing import Outgoing
from attrib.engine.sweep.cells import pieces_of
from attrib.graph.columns import Columns
from attrib.graph.ends import Opened
from attrib.graph.graph import Graph
from attrib.graph.lazy import LazyGraph
from attrib.graph.selected import Ordered, Selected, runs_of
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

    def __init__(
        self, opened: Opened, keep: Keep, watching: Watching | None = None, scratch: Scratch | None = None, outgoing: Outgoing | None = None
    ) -> None:
        """None yet.

        Args:
            scratch: where edges are written down; None is memory.
            outgoing: on what way edges come to the host; by default those of each call of `add` are waited for.
        """
        self.opened, self.keep, self.watching = opened, keep, watching
        self.columns, self.select = Columns(opened), pieces_of(opened.bundle.model.device).within(0).select
        dtype = self.columns.activation.dtype
        if scratch is None:
            self.selected = Selected(dtype, outgoing=outgoing)
        else:
            self.selected = Selected(dtype, scratch.column, opened.nodes.number_type, outgoing)

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
        seen = self.columns.seen(target, last).on(found.device)
        side_by_side = seen.activation.new_empty(len(rows), len(seen.node))
        found.fill(runs_of(rows), seen.counts, side_by_side)
        weight = side_by_side.index_select(1, seen.order).mul_(seen.activation)
        l1 = self.selected.add(nodes, weight, seen.node, self.keep)
        if self.watching:
            self.watching(nodes, weight, l1, seen.node)

    def graph(self, model: Model, ids: Tensor, call: dict[str, Any]) -> Graph:
        """All of them, once."""
        ordered, columns = self._ordered()
        indices, weight = ordered.whole()
        return Graph(
            self.opened.nodes, ordered.targets, ordered.indptr, indices, weight, tokens=ids.cpu(), strings=token_strings(model, ids),
            call=_of_prompt(call, ids), **columns,
        )  # fmt: skip

    def lazy(self, model: Model, ids: Tensor, call: dict[str, Any]) -> LazyGraph:
        """The same with edges that stay where they were written down."""
        ordered, columns = self._ordered()
        return LazyGraph(
            self.opened.nodes, ordered.targets, ordered.indptr, tokens=ids.cpu(), strings=token_strings(model, ids),
            call=_of_prompt(call, ids), edges=ordered, **columns,
        )  # fmt: skip

    def _ordered(self) -> tuple[Ordered, dict[str, Tensor]]:
        """The rows in order, and what is known of each. Raises NotFiniteError."""
        opened, ordered = self.opened, self.selected.ordered()
        targets = ordered.targets
        require_finite({"the gradients of a graph": ordered.l1}, position=opened.nodes.position[targets])
        columns = {name: getattr(opened, name)[targets] for name in ("value", "own", "importance")}
        return ordered, columns | {"total": ordered.total, "l1": ordered.l1}


def _of_prompt(call: dict[str, Any], ids: Tensor) -> dict[str, Any]:
    return call | {"tokens": {"sha256": sha256_of([ids])}}
