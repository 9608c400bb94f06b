"""How much of a graph a page holds: all of it, or of one that is larger the parts through which most of its outputs is reached."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.pruning import ALWAYS
from attrib.graph.scoring import edge_influence, influence, of_kinds, shares
from attrib.view.explorer.limits import EDGES, NODES


class Most(NamedTuple):
    """How much of a graph a page holds at most."""

    nodes: int = NODES
    edges: int = EDGES


class Fitted(NamedTuple):
    """What a page holds of a graph, and which of the whole graph's nodes and edges these are."""

    whole: Graph
    graph: Graph
    nodes: Int[Tensor, " nodes"]
    """The number in the whole graph of each node, ascending."""
    edges: Int[Tensor, " edges"]
    """The number in the whole graph of each edge, ascending."""

    def places(self, of: str) -> Int[Tensor, " whole"]:
        """For each of the whole graph's "nodes" or "edges" its number here, or -1 where it is left out."""
        kept, count = (self.nodes, len(self.whole.nodes)) if of == "nodes" else (self.edges, len(self.whole))
        return torch.full((count,), -1).index_put((kept,), torch.arange(len(kept)))


def fitted(graph: Graph, most: Most) -> Fitted:
    """The graph, or of one that is larger the nodes and then the edges of largest influence. Tokens, logits and targets stay.

    Raises:
        InputError: for limits below what cannot be left out, and as `attrib.graph.influence`.
    """
    always = of_kinds(graph, "ALWAYS", ALWAYS)
    if most.nodes < int(always.sum()):
        raise InputError(f"max_nodes: {most.nodes}; expected at least the {int(always.sum())} tokens, logits and targets, which stay.")
    if most.edges < 0:
        raise InputError(f"max_edges: {most.edges}; expected at least 0.")
    small, nodes, edges = graph, torch.arange(len(graph.nodes)), torch.arange(len(graph))
    if len(nodes) > most.nodes:
        kept = largest(influence(graph).masked_fill(always, torch.inf), most.nodes)
        small, nodes = graph.take(kept.nonzero()[:, 0]), kept.nonzero()[:, 0]
        edges = (kept[graph.indices] & kept[graph.target]).nonzero()[:, 0]
    if len(edges) > most.edges:
        kept = largest(edge_influence(small, shares(small)), most.edges)
        small, edges = small.only(kept), edges[kept]
    return Fitted(graph, small, nodes, edges)


def largest(score: Tensor, count: int) -> Bool[Tensor, " items"]:
    """So many items, those of the largest scores; of equal ones the first."""
    kept = torch.zeros(len(score), dtype=torch.bool)
    kept[score.sort(descending=True, stable=True).indices[:count]] = True
    return kept
