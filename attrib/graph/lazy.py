"""A graph whose edges are not in memory: rows of it are read when they are asked for, as a graph of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.edges import concatenated
from attrib.core.slices import ptr_of
from attrib.graph.graph import Accounts, Graph
from attrib.graph.nodes import Nodes


@runtime_checkable
class EdgesOfRows(Protocol):
    """Where edges lie."""

    @property
    def dtype(self) -> torch.dtype:
        """Of their weights."""

    def sources(self, first: int, end: int) -> Int[Tensor, " edges"]:
        """The numbers of the nodes that the edges of the rows `first:end` come from."""

    def weights(self, first: int, end: int) -> Float[Tensor, " edges"]:
        """Their weights."""


@dataclass(frozen=True, repr=False)
class LazyGraph(Accounts):
    """All of a `Graph` but its edges, which lie in a file. Its fields are those of a graph.

    One that was opened reads as long as its file is open. What is said here of edges takes memory for as many as are asked for.
    """

    nodes: Nodes
    targets: Int[Tensor, " targets"]
    indptr: Int[Tensor, " targets_plus_1"]
    value: Float[Tensor, " targets"]
    own: Float[Tensor, " targets"]
    total: Float[Tensor, " targets"]
    l1: Float[Tensor, " targets"]
    importance: Float[Tensor, " targets"]
    tokens: Int[Tensor, " positions"]
    strings: tuple[str, ...]
    call: Mapping[str, Any]
    edges: EdgesOfRows

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.edges.dtype

    def sources_of(self, first: int, end: int) -> Int[Tensor, " edges"]:
        """The numbers of the nodes that the edges of the rows `first:end` come from."""
        return self.edges.sources(first, end)

    def weights_of(self, first: int, end: int) -> Float[Tensor, " edges"]:
        """Their weights."""
        return self.edges.weights(first, end)

    def rows(self, first: int, end: int) -> Graph:
        """The rows `first:end` with their edges, and all nodes."""
        indptr, rows = self.indptr[first : end + 1], slice(first, end)
        return Graph(
            self.nodes, self.targets[rows], indptr - indptr[0], self.sources_of(first, end), self.weights_of(first, end),
            self.value[rows], self.own[rows], self.total[rows], self.l1[rows], self.importance[rows], self.tokens, self.strings, self.call,
        )  # fmt: skip

    def sets(self) -> list[tuple[int, int]]:
        """The rows of each set of nodes: between them there is no edge."""
        return list(pairwise(torch.searchsorted(self.targets, torch.tensor(self.nodes.first)).tolist()))

    def between(self, nodes: Bool[Tensor, " nodes"]) -> Graph:
        """The edges between some nodes, with all nodes and rows, in memory."""
        counts, indices, weight = list[Tensor](), list[Tensor](), list[Tensor]()
        for first, end in self.blocks():
            block = self.rows(first, end)
            chosen = nodes[block.indices] & nodes[block.target]
            counts.append(torch.bincount(block.row[chosen], minlength=end - first))
            indices.append(block.indices[chosen])
            weight.append(block.weight[chosen])
        return self._with(torch.cat([torch.zeros(0, dtype=torch.int64), *counts]), indices, weight)

    def whole(self) -> Graph:
        """All of it in memory."""
        return self.rows(0, len(self.targets))

    def _with(self, counts: Int[Tensor, " targets"], indices: list[Tensor], weight: list[Tensor]) -> Graph:
        """The same rows with these edges, so many of each."""
        return Graph(
            self.nodes, self.targets, ptr_of(counts), concatenated(indices or [torch.zeros(0, dtype=torch.int64)]),
            concatenated(weight or [torch.zeros(0, dtype=self.dtype)]), self.value, self.own, self.total, self.l1, self.importance,
            self.tokens, self.strings, self.call,
        )  # fmt: skip
