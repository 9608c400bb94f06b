"""Several graphs side by side: which edges they share, what they weigh on average, and which survive in most of them.

Nodes are matched by their keys (see keys.py): the same kind, site and number, at the same position or wherever they are. Without positions,
what one graph has at several is added up first, as `merge_positions` does. An edge that a graph lacks may be zero there, may have
been dropped, or may have an end that is not active there; to a mean it counts as zero, and counts are given beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.slices import Chosen, entries_of, ptr_of
from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.keys import KeyTable, align
from attrib.graph.scoring import edge_named

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class EdgeTable:
    """The edges of several graphs, each once, by target and source; and for each edge the graphs that have it, with its weight there."""

    nodes: KeyTable
    graphs: int
    """How many graphs there are."""
    target: Int[Tensor, " edges"]
    source: Int[Tensor, " edges"]
    ptr: Int[Tensor, " edges_plus_1"]
    graph: Int[Tensor, " entries"]
    """The graphs of edge e are `graph[ptr[e]:ptr[e + 1]]`, ascending."""
    weight: Float[Tensor, " entries"]

    def __len__(self) -> int:
        return self.target.shape[0]

    def __repr__(self) -> str:
        return f"EdgeTable({self.graphs:,} graphs, {len(self.nodes):,} nodes, {len(self):,} edges)"

    @property
    def count(self) -> Int[Tensor, " edges"]:
        """How many graphs have each edge."""
        return self.ptr.diff()

    @property
    def share(self) -> Float[Tensor, " edges"]:
        """The share of graphs that have each edge."""
        return self.count.double() / self.graphs

    @property
    def sum(self) -> Float[Tensor, " edges"]:
        """The sum of each edge's weights, in float64."""
        edge = torch.arange(len(self)).repeat_interleave(self.count)
        return torch.zeros(len(self), dtype=torch.float64).index_add(0, edge, self.weight.double())

    @property
    def mean(self) -> Float[Tensor, " edges"]:
        """The mean weight over all graphs: zero where a graph lacks the edge."""
        return self.sum / self.graphs

    @property
    def mean_where_present(self) -> Float[Tensor, " edges"]:
        """The mean weight over the graphs that have the edge."""
        return self.sum / self.count

    def in_graph(self, number: int) -> tuple[Bool[Tensor, " edges"], Float[Tensor, " edges"]]:
        """Which edges a graph has, and their weights there; zero for the others. Raises InputError for a graph that is not there."""
        if not 0 <= number < self.graphs:
            raise InputError(f"number: {number}; expected a graph, from 0 to {self.graphs - 1}.")
        entry = (self.graph == number).nonzero()[:, 0]
        edge = torch.searchsorted(self.ptr, entry, right=True) - 1
        is_in, weight = torch.zeros(len(self), dtype=torch.bool), self.weight.new_zeros(len(self))
        is_in[edge], weight[edge] = True, self.weight[entry]
        return is_in, weight

    def only(self, kept: Bool[Tensor, " edges"]) -> "EdgeTable":
        """Some of the edges, by a mask; nodes stay."""
        edges: Chosen = kept.nonzero()[:, 0]
        entries = entries_of(self.ptr, edges)
        return replace(
            self, target=self.target[edges], source=self.source[edges], ptr=ptr_of(self.count[edges]), graph=self.graph[entries],
            weight=self.weight[entries],
        )  # fmt: skip

    def to_pandas(self) -> "pd.DataFrame":
        """One row per edge: labels of both ends, in how many graphs it is, its mean, and its mean where it is."""
        import pandas as pd

        labels = self.nodes.labels
        ends = {name: [labels[node] for node in column.tolist()] for name, column in (("source", self.source), ("target", self.target))}
        figures = {name: getattr(self, name).numpy() for name in ("count", "share", "mean", "mean_where_present")}
        return pd.DataFrame(ends | figures)


@dataclass(frozen=True, repr=False)
class Comparison:
    """The edges of two graphs, with the weight of each in both."""

    nodes: KeyTable
    target: Int[Tensor, " edges"]
    source: Int[Tensor, " edges"]
    weight: Float[Tensor, "edges 2"]
    """Zero where a graph lacks the edge."""
    is_in: Bool[Tensor, "edges 2"]

    def __len__(self) -> int:
        return self.target.shape[0]

    def __repr__(self) -> str:
        counts = (int(mask.sum()) for mask in (self.both, self.only_first, self.only_second))
        return "Comparison({:,} edges in both, {:,} in the first alone, {:,} in the second alone)".format(*counts)

    @property
    def both(self) -> Bool[Tensor, " edges"]:
        """Which edges both have."""
        return self.is_in.all(1)

    @property
    def only_first(self) -> Bool[Tensor, " edges"]:
        """Which edges the first alone has."""
        return self.is_in[:, 0] & ~self.is_in[:, 1]

    @property
    def only_second(self) -> Bool[Tensor, " edges"]:
        """Which edges the second alone has."""
        return self.is_in[:, 1] & ~self.is_in[:, 0]

    @property
    def change(self) -> Float[Tensor, " edges"]:
        """The second's weight less the first's."""
        return self.weight[:, 1] - self.weight[:, 0]


@dataclass(frozen=True, repr=False)
class Average:
    """The mean over several graphs of edges and of rows. What a graph lacks counts as zero, so that mean rows add up as rows do."""

    edges: EdgeTable
    nodes_in: Int[Tensor, " nodes"]
    """How many graphs have each node of `edges.nodes`."""
    targets: Int[Tensor, " targets"]
    """The nodes that have a row in some graph, ascending."""
    rows_in: Int[Tensor, " targets"]
    """How many graphs have a row of each; without positions a graph with several counts once."""
    value: Float[Tensor, " targets"]
    own: Float[Tensor, " targets"]
    total: Float[Tensor, " targets"]
    l1: Float[Tensor, " targets"]
    importance: Float[Tensor, " targets"]

    def __repr__(self) -> str:
        return f"Average({self.edges.graphs:,} graphs, {len(self.nodes_in):,} nodes, {len(self.targets):,} rows, {len(self.edges):,} edges)"

    @property
    def remainder(self) -> Float[Tensor, " targets"]:
        """What the nodes of mean rows do not account for."""
        return self.value - self.own - self.total


@dataclass(frozen=True, repr=False)
class Stability:
    """How many of several variants of a graph each edge survives in."""

    edges: EdgeTable
    variants: tuple[Graph, ...]
    edge_of: tuple[Int[Tensor, " _"], ...]
    """For each variant, which of `edges` each of its edges is."""

    def __repr__(self) -> str:
        return (
            f"Stability({len(self.variants):,} variants, {len(self.edges):,} edges, of which {int(self.is_stable(1.0).sum()):,} are in all)"
        )

    @property
    def share(self) -> Float[Tensor, " edges"]:
        """The share of variants that each edge survives in."""
        return self.edges.share

    def is_stable(self, share: float) -> Bool[Tensor, " edges"]:
        """Which edges survive in at least this share of the variants. Raises InputError for a share that is none."""
        if not 0 <= share <= 1:
            raise InputError(f"share: {share}; expected a share of the variants, between 0 and 1.")
        return self.edges.count.double() >= share * len(self.variants) - 1e-9  # 7 of 25 are a share of 0.28, however it is rounded

    def core(self, share: float) -> EdgeTable:
        """The edges that survive in at least this share of the variants, with their weights in each."""
        return self.edges.only(self.is_stable(share))

    def core_of(self, variant: int, share: float) -> Graph:
        """One variant with those of its edges alone that survive in at least this share; its nodes stay."""
        if not 0 <= variant < len(self.variants):
            raise InputError(f"variant: {variant}; expected a number from 0 to {len(self.variants) - 1}.")
        return self.variants[variant].only(self.is_stable(share)[self.edge_of[variant]])


def union(graphs: Sequence[Graph], *, positions: bool = True) -> EdgeTable:
    """All edges that any of the graphs has, in an order that does not depend on theirs.

    Args:
        positions: whether nodes must be at the same position to be the same.

    Raises:
        InputError: for no graphs, for a weight that is no number, and, by position, where two nodes of one graph have one key.
    """
    return _union(graphs, *_aligned(graphs, positions))[0]


def compare(first: Graph, second: Graph, *, positions: bool = True) -> Comparison:
    """Which edges two graphs share, and which one alone has. Arguments and errors are those of `union`."""
    edges = union([first, second], positions=positions)
    is_in, weight = zip(*(edges.in_graph(number) for number in range(2)), strict=True)
    return Comparison(edges.nodes, edges.target, edges.source, torch.stack(weight, 1), torch.stack(is_in, 1))


def average(graphs: Sequence[Graph], *, positions: bool = False) -> Average:
    """The mean graph over several prompts. Arguments and errors are those of `union`."""
    table, at = _aligned(graphs, positions)
    targets, row = torch.cat([where[graph.targets] for graph, where in zip(graphs, at, strict=True)]).unique(return_inverse=True)
    columns = {
        name: torch.zeros(len(targets), dtype=torch.float64).index_add(
            0, row, torch.cat([getattr(graph, name) for graph in graphs]).double()
        )
        / len(graphs)
        for name in ("value", "own", "total", "l1", "importance")
    }
    nodes_in, rows_in = torch.zeros(len(table), dtype=torch.int64), torch.zeros(len(targets), dtype=torch.int64)
    for where, rows in zip(at, row.split([len(graph.targets) for graph in graphs]), strict=True):
        nodes_in[where] += 1  # once, however often a node is named
        rows_in[rows] += 1
    return Average(_union(graphs, table, at)[0], nodes_in, targets, rows_in, **columns)


def stability(variants: Sequence[Graph], *, positions: bool = True) -> Stability:
    """In which share of variants of a graph each edge survives: rephrasings, resampled contexts, thresholds.

    By position only where variants have the same tokens at the same positions. Arguments and errors are those of `union`.
    """
    edges, edge_of = _union(variants, *_aligned(variants, positions))
    return Stability(edges, tuple(variants), edge_of)


def _aligned(graphs: Sequence[Graph], positions: bool) -> tuple[KeyTable, tuple[Int[Tensor, " _"], ...]]:
    if not len(graphs):
        raise InputError("graphs: none; expected at least one graph.")
    for number, graph in enumerate(graphs):
        if len(wrong := (~graph.weight.isfinite()).nonzero()):
            edge = int(wrong[0, 0])
            raise InputError(
                f"graphs: the edge {edge_named(graph, edge)} of graph {number} weighs {float(graph.weight[edge])}; expected finite numbers."
            )
    return align(graphs, positions=positions)


def _union(graphs: Sequence[Graph], nodes: KeyTable, at: Sequence[Int[Tensor, " _"]]) -> tuple[EdgeTable, tuple[Int[Tensor, " _"], ...]]:
    """The table of all edges, and for each graph where its edges are in it."""
    count, lengths = max(1, len(nodes)), [len(graph) for graph in graphs]
    codes = [where[graph.target] * count + where[graph.indices] for graph, where in zip(graphs, at, strict=True)]
    edges, edge = torch.cat(codes).unique(return_inverse=True)
    number = torch.arange(len(graphs)).repeat_interleave(torch.tensor(lengths))
    entries, entry = (edge * len(graphs) + number).unique(return_inverse=True)  # without positions, a graph may have an edge several times
    weight = torch.cat([graph.weight for graph in graphs])
    summed = torch.zeros(len(entries), dtype=torch.float64).index_add(0, entry, weight.double()).to(weight.dtype)
    ptr = ptr_of(torch.bincount(entries // len(graphs), minlength=len(edges)))
    table = EdgeTable(nodes, len(graphs), edges // count, edges % count, ptr, entries % len(graphs), summed)
    return table, edge.split(lengths)
