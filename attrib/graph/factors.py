"""What an edge counts on a path: a path's value is the product of its edges' factors.

Let w[t, s] be the attribution of s to t: the derivative of t by s, times the activation a_s of s. On a path t <- m <- s, m stands between:

    w[t, m] · w[m, s] / a_m  =  dt/dm · dm/ds · a_s

is what s does to t through m. So the edge into the node asked about has the factor w, and every other w / a, with a its target's
activation: the part of m that s makes. All such paths from s to t add up to the total effect of s on t.
"""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.levels import edges_of

Contribution = Literal["raw", "capped", "share"]
"""How edges count on a path.

"raw": as above; a path's value is in units of the node asked about. "share": w / l1, the part of all that goes into the target, sizes added
up, kept or not; a path's value is then a number between -1 and 1. "capped": raw, but no latent counts as more than the whole of it. Where a
source is taken away, the first latent on the path loses w, the next w / a times that, and so on; but a latent whose activation is positive
falls to zero and no further, so each loses at most its activation, and only that is gone on with. (What a source holds down has no bound.)
"""


class Factors(NamedTuple):
    """What is multiplied along the paths into one node, and the bounds."""

    edge: Float[Tensor, " edges"]
    cap: Float[Tensor, " nodes"]
    """The most that the product from a path's source up to a node may be, if it is positive."""


def factors_into(graph: Graph, node: int, row: int, contribution: Contribution) -> Factors:
    """The factors of paths into one node, whose row is given.

    Raises:
        InputError: as of `factors`.
    """
    edge, own = factors(graph, contribution), edges_of(graph, row)
    cap = torch.full((len(graph.nodes),), torch.inf, dtype=torch.float64)
    if contribution != "share":
        edge[own] = graph.weight[own].double()
    if contribution == "capped":
        activation, latents = graph.nodes.activation.double(), graph.nodes.of_kind("latent")
        latents = latents[activation[latents] > 0]
        cap[latents] = torch.where(latents == node, activation[latents], 1.0)
    return Factors(edge, cap)


def factors(graph: Graph, contribution: Contribution) -> Float[Tensor, " edges"]:
    """The factor of each edge that does not go into the node asked about, in float64.

    Raises:
        InputError: where `contribution` is none, or a factor is not finite.
    """
    if contribution not in get_args(Contribution):
        raise InputError(f"contribution: {contribution!r}; expected one of {', '.join(get_args(Contribution))}.")
    unit = graph.l1 if contribution == "share" else graph.nodes.activation[graph.targets]
    found = _over(graph.weight.double(), unit.double()[graph.row])
    if not bool(found.isfinite().all()):
        number = int((~found.isfinite()).nonzero()[0, 0])
        raise InputError(f"graph: the edge into node {int(graph.target[number])} from {int(graph.indices[number])} has no finite factor.")
    return found


def _over(weight: Float[Tensor, " edges"], unit: Float[Tensor, " edges"]) -> Float[Tensor, " edges"]:
    """Weights in units of their targets; nothing goes on from a node that is zero, so there the factor is zero."""
    return torch.where(unit == 0, 0.0, weight / torch.where(unit == 0, 1.0, unit))
