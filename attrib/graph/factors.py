"""What an edge counts on a path: a path's value is the product of its edges' factors.

Let w[t, s] be the attribution of s to t: the derivative of t by s, times the activation a_s of s. On a path t <- m <- s, m stands between:

    w[t, m] · w[m, s] / a_m  =  dt/dm · dm/ds · a_s

is what s does to t through m. So the edge into the node asked about has the factor w, and every other w / a, with a its target's
activation: the part of m that s makes. All such paths from s to t add up to the total effect of s on t.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.graph import Graph

Contribution = Literal["raw", "capped", "share"]
"""How edges count on a path.

"raw": w / a, as above; a path's value is in units of the node asked about. "capped": the same, but an edge into a latent counts at most
as the whole of it. Taking a source away leaves a latent that only can fall to zero, so that it does no more than to take the latent away;
an edge of more than the latent's value says that others hold it down. "share": w / l1, the part of all that goes into the target, sizes
added up, kept or not; a path's value is then a number between -1 and 1.
"""


def factors(graph: Graph, contribution: Contribution) -> Float[Tensor, " edges"]:
    """The factor of each edge that does not go into the node asked about, in float64.

    Raises:
        InputError: where `contribution` is none, or a factor is not finite.
    """
    if contribution not in get_args(Contribution):
        raise InputError(f"contribution: {contribution!r}; expected one of {', '.join(get_args(Contribution))}.")
    unit = graph.l1 if contribution == "share" else graph.nodes.activation[graph.targets]
    found = _over(graph.weight.double(), unit.double()[graph.row])
    if contribution == "capped":
        found = torch.where(_is_latent(graph)[graph.row], found.clamp_max(1.0), found)
    if not bool(found.isfinite().all()):
        edge = int((~found.isfinite()).nonzero()[0, 0])
        raise InputError(f"graph: the edge into node {int(graph.target[edge])} from {int(graph.indices[edge])} has no finite factor.")
    return found


def last_factors(graph: Graph, contribution: Contribution, between: Float[Tensor, " edges"]) -> Float[Tensor, " edges"]:
    """The factor of each edge where its target is the node asked about. `between` is what `factors` gives."""
    if contribution == "share":
        return between
    weight = graph.weight.double()
    if contribution == "raw":
        return weight
    whole = graph.nodes.activation[graph.target].double()
    return torch.where(_is_latent(graph)[graph.row], whole * between, weight)


def _is_latent(graph: Graph) -> Tensor:
    return torch.isin(graph.targets, graph.nodes.of_kind("latent"))


def _over(weight: Float[Tensor, " edges"], unit: Float[Tensor, " edges"]) -> Float[Tensor, " edges"]:
    """Weights in units of their targets; nothing goes on from a node that is zero, so there the factor is zero."""
    return torch.where(unit == 0, 0.0, weight / torch.where(unit == 0, 1.0, unit))
