"""The rows that matter: latents' rows are computed block by block, those first through which most of the outputs is reached.

Influence over the rows at hand says which latents matter; the rows of the next block may change that, so it is asked again. The order is
the same whether rows are computed as they are wanted or all at once, so what is found does not depend on how.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.types import warn
from attrib.graph.graph import Graph
from attrib.graph.scoring import influence

BLOCK = 512
"""Rows between two rankings, where none is asked for."""

More = Callable[[Int[Tensor, " nodes"]], Graph]
"""The graph with the rows of some more nodes, by their numbers, ascending."""


def expand(graph: Graph, more: More, max_nodes: int, block: int) -> Graph:
    """The graph of the latents that matter most, with everything that is no latent.

    Args:
        graph: of all nodes, with the rows of the outputs alone.
        more: computes rows.
        max_nodes: how many latents stay at most. A latent through which nothing is reached is none of them.
        block: how many rows are computed between two rankings.
    """
    latents = graph.nodes.of_kind("latent")
    is_left, found = torch.ones(len(latents), dtype=torch.bool), 0
    while found < max_nodes:
        score = influence(graph)[latents].where(is_left, torch.zeros(()).double())
        order = score.argsort(descending=True, stable=True)[: min(block, max_nodes - found)]
        chosen = order[score[order] > 0].sort().values
        if not len(chosen):
            warn(
                f"max_nodes: {found} of {max_nodes} latents are reached along the edges that are kept, so no rows of others were computed. "
                "Keep more of each row, as keep=Mass(0.98) or a larger TopK(k) does."
            )
            break
        is_left[chosen] = False
        found += len(chosen)
        graph = more(latents[chosen])
    others = torch.ones(len(graph.nodes), dtype=torch.bool)
    others[latents[is_left]] = False
    return graph.take(others.nonzero()[:, 0])
