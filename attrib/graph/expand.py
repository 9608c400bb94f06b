"""The rows that matter: latents' rows are computed block by block, those first through which most of the outputs is reached.

How much of the outputs is reached through a latent follows from the rows at hand, whole, whatever is kept of them. The rows of the
next block may change that, so it is asked again.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.devices import to_host
from attrib.graph.nodes import Nodes

BLOCK = 512
"""Rows between two rankings, where none is asked for."""

More = Callable[[Int[Tensor, " nodes"]], None]
"""Computes the rows of some more nodes, by their numbers, ascending, and tells `Reach` of them."""


class _Part(NamedTuple):
    """Rows of one set of targets by latents: each edge's size as a share of its row."""

    rows: Int[Tensor, " rows"]
    share: Float[Tensor, "rows latents"]
    latents: Int[Tensor, " latents"]


class Reach:
    """Whole rows, as far as latents are their sources: through others nothing is reached that has a row."""

    def __init__(self, nodes: Nodes, importance: Float[Tensor, " nodes"]) -> None:
        self.latents, self.parts = nodes.of_kind("latent"), list[_Part]()
        self.is_latent = torch.zeros(len(nodes), dtype=torch.bool).index_fill(0, self.latents, True)
        self.importance = importance.double()

    def add(
        self, rows: Int[Tensor, " rows"], weight: Float[Tensor, "rows seen"], l1: Float[Tensor, " rows"], node: Int[Tensor, " seen"]
    ) -> None:
        """Some rows of one set of targets; see `Watching`."""
        chosen = self.is_latent[node].nonzero()[:, 0]
        size, l1 = to_host([weight.index_select(1, chosen.to(weight.device, non_blocking=True)).abs_(), l1])
        self.parts.append(_Part(rows, size.div_(l1.clamp_min(torch.finfo(l1.dtype).tiny)[:, None]), node[chosen]))

    def influence(self) -> Float[Tensor, " latents"]:
        """How much of the outputs is reached through each latent, along the rows so far, in float64 (scoring.py)."""
        found = torch.zeros_like(self.importance)
        # an edge goes to a later set, so all that is reached through rows is known before they are asked
        for rows, share, latents in sorted(self.parts, key=lambda part: -int(part.rows[0])):
            reached = found[rows] + self.importance[rows]
            found.index_add_(0, latents, (reached.to(share.dtype) @ share).double())
        return found[self.latents]


def reach_bytes(nodes: Nodes, max_nodes: int, itemsize: int) -> int:
    """What `Reach` holds when all is done."""
    latents, outputs = (len(nodes.of_kind(*kinds)) for kinds in (("latent",), ("logit", "target")))
    return itemsize * (min(max_nodes, latents) + outputs) * latents


def expand(reach: Reach, more: More, max_nodes: int, block: int) -> Int[Tensor, " chosen"]:
    """Have the rows computed of the latents that matter most. Returns these, ascending.

    Args:
        reach: knows the rows of the outputs.
        max_nodes: how many latents are chosen at most. One through which nothing is reached is none of them.
        block: how many rows are computed between two rankings.
    """
    latents, is_left, found = reach.latents, torch.ones(len(reach.latents), dtype=torch.bool), 0
    while found < max_nodes:
        score = reach.influence().where(is_left, 0.0)
        order = score.argsort(descending=True, stable=True)[: min(block, max_nodes - found)]
        chosen = order[score[order] > 0].sort().values
        if not len(chosen):
            break
        is_left[chosen] = False
        found += len(chosen)
        more(latents[chosen])
    return latents[~is_left]
