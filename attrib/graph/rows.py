"""Rows of a graph as a sweep gives them: what is kept of each is selected where it lies, as soon as it is complete."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.edges import Growing
from attrib.core.fingerprints import sha256_of
from attrib.core.finite import require_finite
from attrib.core.keep import kept
from attrib.core.slices import entries_of, ptr_of
from attrib.core.sparse import to_csr
from attrib.core.types import Keep
from attrib.engine.bundle import Piece
from attrib.engine.sweep.cells import pieces_of
from attrib.graph.ends import Opened
from attrib.graph.graph import Graph
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model

LEAST = 64
"""Rows that are selected from together, however long they are: of fewer, the calls would take longer than what they do."""


class GraphRows:
    """One prompt's rows, as pieces of them come. A row is selected as soon as it has been read out for all sources."""

    def __init__(self, opened: Opened, keep: Keep) -> None:
        self.opened, self.keep = opened, keep
        self.waiting: dict[tuple[int, int], list[Piece]] = {}
        self.node = torch.cat(opened.columns)
        self.activation = torch.cat([end.sources.value for end in opened.bundle.sources])
        self.selected = Selected(self.activation.dtype)

    def add(self, piece: Piece, nodes: Sequence[Int[Tensor, " _"]]) -> None:
        """Take some rows of one set of targets by one set of sources.

        Args:
            nodes: the nodes of each set of targets.
        """
        key = piece.target, int(piece.place[0])
        there = self.waiting.setdefault(key, [])
        there.append(piece)
        if len(there) == len(self.opened.columns):
            there.sort(key=lambda each: each.source)
            del self.waiting[key]
            self._select(nodes[piece.target][piece.place], [each.gradient for each in there])

    def _select(self, rows: Int[Tensor, " rows"], gradients: list[Float[Tensor, "rows _"]]) -> None:
        width = sum(gradient.shape[1] for gradient in gradients)
        at_once = max(LEAST, pieces_of(gradients[0].device).select // max(1, width))
        for first in range(0, len(rows), at_once):
            whole = torch.cat([gradient[first : first + at_once] for gradient in gradients], dim=1)
            self.selected.add(rows[first : first + at_once], whole, self.activation, self.node, self.keep)

    def graph(self, model: Model, ids: Tensor, call: dict[str, Any]) -> Graph:
        """All of them."""
        opened = self.opened
        assert not self.waiting  # every sweep reads out every source
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
        self.columns = [Growing() for _ in range(6)]
        self.none = [torch.zeros(0, dtype=torch.int64)] * 3 + [torch.zeros(0, dtype=dtype)] * 3

    def add(
        self,
        rows: Int[Tensor, " rows"],
        gradient: Float[Tensor, "rows columns"],
        activation: Float[Tensor, " columns"],
        node: Int[Tensor, " columns"],
        keep: Keep,
    ) -> None:
        """Select from complete rows, whose columns are these nodes."""
        weight = gradient.mul_(activation)
        mask = kept(keep, weight, weight)
        indptr, chosen, place = to_csr(mask)
        found = node[chosen.cpu()]
        row = torch.arange(len(rows)).repeat_interleave(indptr.diff().cpu())
        order = (row * (int(node.max()) + 1 if len(node) else 1) + found).argsort()
        kept_weight = weight.flatten().index_select(0, place).cpu()[order]
        parts = (rows, indptr.diff().cpu(), found[order], kept_weight, weight.sum(1).cpu(), weight.abs().sum(1).cpu())
        for column, part in zip(self.columns, parts, strict=True):
            column.add(part)

    def in_order(self) -> tuple[Tensor, ...]:
        """Nodes of the rows so far, ascending; where the edges of each begin; their sources and weights; the totals."""
        parts = [column.so_far(none) for column, none in zip(self.columns, self.none, strict=True)]
        node, counts, indices, weight, total, l1 = parts
        order = node.argsort()
        entries = entries_of(ptr_of(counts), order)
        return node[order], ptr_of(counts[order]), indices[entries], weight[entries], total[order], l1[order]
