"""Pruning: the fewest nodes, and between them the fewest edges, that carry a given share of a graph's influence."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.lazy import LazyGraph
from attrib.graph.nodes import NodeKind
from attrib.graph.scoring import edge_influence, influence, of_kinds, shares

ALWAYS: tuple[NodeKind, ...] = ("token", "logit", "target")
"""Kinds that stay whatever their influence is: what the prompt says, and what was asked of it."""

ASKED: tuple[NodeKind, ...] = ("latent",)
"""Kinds that go where nothing leads to them."""


class Pruned(NamedTuple):
    """A smaller graph, and where its nodes were."""

    graph: Graph
    nodes: Int[Tensor, " kept"]
    """The numbers that the nodes which stayed had before, ascending."""


def prune(
    graph: Graph | LazyGraph,
    nodes: float = 0.8,
    edges: float = 0.98,
    pinned: Sequence[int] = (),
    *,
    normalise: str = "all",
    without: Collection[str] = (),
) -> Pruned:
    """Keep what carries most of the influence, by the rules of circuit-tracer.

    1. Of all nodes, those of largest influence stay, the fewest that have the share `nodes` of the sum. So do all tokens, logits
       and other targets, and what is pinned.
    2. Between these, each row is divided by what is left of it, and influence is asked again, along each edge: those of largest
       influence stay, the fewest that have the share `edges` of the sum.
    3. Nodes that lead nowhere now, and latents that nothing leads to, go with their edges, and again until there are none. A latent
       of which no row was computed is not asked what leads to it.

    Nodes or edges that tie with the last to stay, stay too. What has no influence goes even at a share of 1. Totals of rows stay as they
    are, so that what is pruned counts as dropped.

    Args:
        graph: of a lazy one memory holds the edges between the nodes of step 1; others are read, block by block, and let go of.
        nodes, edges: shares between 0 and 1.
        pinned: numbers of nodes that stay, even without edges.
        normalise, without: see `influence`; `normalise` is asked in the first step alone. Nodes of kinds in `without` go, unless pinned.

    Raises:
        InputError: for shares and numbers beyond these bounds, for rows none of which has importance, and as `influence`.
    """
    _check(graph, nodes, edges)
    is_pinned = _pinned(graph, pinned)
    always = of_kinds(graph, "ALWAYS", ALWAYS) | is_pinned
    chosen = most(influence(graph, normalise=normalise, without=without), nodes) | always
    between = graph.only(chosen[graph.indices] & chosen[graph.target]) if isinstance(graph, Graph) else graph.between(chosen)
    strong = most(edge_influence(between, shares(between, normalise="kept", without=without)), edges)
    stays = _connected(between, chosen, strong, always).nonzero()[:, 0]
    return Pruned(between.only(strong).take(stays), stays)


def most(score: Float[Tensor, " items"], share: float) -> Bool[Tensor, " items"]:
    """The fewest items, largest first, whose scores have this share of the sum, and what ties with the last; none that is zero."""
    ordered = score.sort(descending=True).values
    sums = ordered.cumsum(0)
    if share == 0 or not len(sums) or sums[-1] == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if share == 1:  # the sum swallows what is smaller than its rounding
        return score > 0
    return score >= ordered[int(torch.searchsorted(sums / sums[-1], share))]


def _connected(
    graph: Graph, chosen: Bool[Tensor, " nodes"], kept: Bool[Tensor, " edges"], always: Bool[Tensor, " nodes"]
) -> Bool[Tensor, " nodes"]:
    """The chosen nodes less those that lead nowhere, and latents that nothing leads to, again and again."""
    source, target = graph.indices[kept], graph.target[kept]
    is_asked = of_kinds(graph, "kinds", ASKED) & (graph.row_of >= 0)
    while True:
        leads, is_led_to = torch.zeros_like(chosen), ~is_asked
        leads[source], is_led_to[target] = True, True
        stays = chosen & (always | (leads & is_led_to))
        if torch.equal(stays, chosen):
            return stays
        still = stays[source] & stays[target]
        source, target, chosen = source[still], target[still], stays


def _pinned(graph: Graph | LazyGraph, pinned: Sequence[int]) -> Bool[Tensor, " nodes"]:
    count, found = len(graph.nodes), torch.zeros(len(graph.nodes), dtype=torch.bool)
    for node in pinned:
        if isinstance(node, bool) or int(node) != node or not 0 <= node < count:
            raise InputError(f"pinned: {node!r}; expected numbers of nodes, from 0 to {count - 1}.")
        found[int(node)] = True
    return found


def _check(graph: Graph | LazyGraph, nodes: float, edges: float) -> None:
    for name, share in (("nodes", nodes), ("edges", edges)):
        if not 0 <= share <= 1:  # nor is NaN
            raise InputError(f"{name}: {share}; expected a share of the influence, between 0 and 1.")
    if len(graph.targets) and not bool((graph.importance != 0).any()):
        raise InputError(
            "graph: no row has importance, so that no node has influence, and all but tokens and targets would be pruned; expected the "
            "probability of each logit, or 1 for another target, in `importance`."
        )
