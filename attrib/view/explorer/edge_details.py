"""What a page tells of edges: through which heads each goes, why these look there, and what an intervention makes of it."""

from collections.abc import Mapping
from math import isfinite

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.causal.agreement import Agreement
from attrib.causal.lost import why_lost, why_too_large
from attrib.core.slices import ptr_of
from attrib.core.types import InputError
from attrib.graph.again import places_among
from attrib.graph.graph import Graph
from attrib.graph.heads import HeadLoadings
from attrib.graph.layer_scores import OWN
from attrib.graph.qk import QKAttribution
from attrib.view.explorer.details import Columns, Details, Strings
from attrib.view.explorer.fitting import Fitted
from attrib.view.explorer.limits import WAYS

OWN_NODE = -1
"""What a query or a key reads with, where a page has a node's number; below, what the page does not hold: -2 - its number in `others`."""


def edge_columns(part: Fitted, details: Details) -> Columns:
    """What is told of the edges that a page holds.

    Raises:
        InputError: for what is of another graph.
    """
    found = Columns({}, {}, {})
    if details.heads is not None:
        found |= _heads(part, details.heads)
    if details.scores is not None:
        found |= _scores(part, details.scores)
    if details.verified is not None:
        found |= _verified(part, details.verified)
    return found


def _heads(part: Fitted, heads: HeadLoadings) -> Columns:
    """The largest loadings of each edge that is here."""
    edge = _checked("heads", part.whole, heads.edge)
    same = torch.equal(part.whole.indices[edge], heads.source) and torch.equal(part.whole.weight[edge], heads.weight)
    if not same or heads.strings != part.whole.strings:
        raise InputError("heads: their edges are not those of the graph; expected what `attrib.graph.head_loadings` gives of this one.")
    place = part.places("edges")[edge]
    here = (place >= 0).nonzero()[:, 0]
    entries = _strongest(heads.indptr, heads.loading, here)
    counts = torch.bincount(heads.row[entries], minlength=len(heads))[here]
    integers = {"heads edge": place[here], "heads ptr": ptr_of(counts)}
    integers |= {f"heads {name}": getattr(heads, name)[entries] for name in ("layer", "head", "position")}
    floats = {"heads direct": heads.direct[here], "heads total": heads.total[here], "heads loading": heads.loading[entries]}
    return Columns({}, integers, floats)


def _scores(part: Fitted, scores: QKAttribution) -> Columns:
    """The largest pairs of nodes of each score."""
    if scores.strings != part.whole.strings or [each[:3] for each in scores.nodes.sets] != [each[:3] for each in part.graph.nodes.sets]:
        raise InputError("scores: are of another prompt or other nodes; expected what `attrib.graph.qk_attribution` gives of this graph.")
    number, names = places_among(scores.nodes, part.graph.nodes), Strings()
    entries = _strongest(scores.indptr, scores.weight, torch.arange(len(scores)))

    def ends(node: Int[Tensor, " pairs"]) -> Int[Tensor, " pairs"]:
        found = [
            OWN_NODE if one == OWN else here if (here := int(number[one])) >= 0 else -2 - names.number(scores.label(one))
            for one in node.tolist()
        ]
        return torch.tensor(found, dtype=torch.int64)

    integers = {f"scores {name}": getattr(scores, name) for name in ("layer", "head", "query", "key")}
    integers |= {"scores ptr": ptr_of(torch.bincount(scores.row[entries], minlength=len(scores))), "scores pairs": scores.indptr.diff()}
    integers |= {"scores query node": ends(scores.query_node[entries]), "scores key node": ends(scores.key_node[entries])}
    floats = {f"scores {name}": getattr(scores, name) for name in ("pattern", "value", "total")}
    return Columns({"others": names.all}, integers, floats | {"scores weight": scores.weight[entries]})


def _verified(part: Fitted, verified: Agreement) -> Columns:
    """What was measured of the edges that are here, a line for each edge and step."""
    table = verified.table
    edge = _checked("verified", part.whole, torch.from_numpy(table["edge"].to_numpy(dtype="int64", copy=True)))
    predicted = torch.from_numpy(table["predicted"].to_numpy(dtype=float, copy=True))
    labels = part.whole.nodes.label
    same = torch.equal(part.whole.weight[edge].double(), predicted) and table["prompt"].nunique() <= 1
    if not same or any(labels(int(part.whole.indices[at])) != name for at, name in zip(edge.tolist(), table["source"], strict=True)):
        raise InputError("verified: is not of the graph's edges; expected what `attrib.causal.verify` gives of this graph alone.")
    place = part.places("edges")[edge]
    here = (place >= 0).nonzero()[:, 0]
    step, measured = (torch.from_numpy(table[name].to_numpy(dtype=float, copy=True))[here] for name in ("step", "measured"))
    policy = part.whole.call.get("policy")
    held, dtype = isinstance(policy, Mapping) and policy.get("norm") == "frozen", str(verified.call["dtype"])

    def why(value: float, at: str) -> str:
        if abs(value) <= torch.finfo(torch.float32).max:
            return ""
        return why_too_large(norms_are_held=held) if isfinite(value) else why_lost(at, dtype, norms_are_held=held)

    told = [why(value, at) for value, at in zip(measured.tolist(), table["lost"].iloc[here.numpy()], strict=True)]
    reasons = [each for each in dict.fromkeys(told) if each]
    number = torch.tensor([reasons.index(each) if each else -1 for each in told], dtype=torch.int64)
    integers = {"verified edge": place[here], "verified why": number}
    return Columns({"reasons": reasons}, integers, {"verified step": step, "verified measured": measured.where(number < 0, 0.0)})


def _checked(argument: str, graph: Graph, edge: Int[Tensor, " edges"]) -> Int[Tensor, " edges"]:
    if len(edge) and not 0 <= int(edge.min()) <= int(edge.max()) < len(graph):
        raise InputError(f"{argument}: has edges up to {int(edge.max())}, but the graph has {len(graph)}; expected what was made of it.")
    return edge


def _strongest(ptr: Tensor, weight: Tensor, parts: Int[Tensor, " parts"]) -> Int[Tensor, " entries"]:
    """The entries of chosen parts, of each at most so many as a page tells, the largest first."""
    found = [
        begin + weight[begin:end].abs().sort(descending=True, stable=True).indices[:WAYS]
        for begin, end in zip(ptr[parts].tolist(), ptr[parts + 1].tolist(), strict=True)
    ]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *found])
