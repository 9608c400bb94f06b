"""What the page of a graph is given: the graph, or of one that is larger the parts through which most of its outputs is reached."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from attrib.core.types import InputError, Site
from attrib.graph.graph import Graph
from attrib.graph.nodes import NodeSet
from attrib.graph.pruning import ALWAYS
from attrib.graph.scoring import edge_influence, influence, of_kinds, scores, shares
from attrib.latents.labels import Labels
from attrib.view.explorer.limits import EDGES, NODES
from attrib.view.explorer.payload import left_out, pack

FORMAT = "attrib explorer"
_EMBEDDINGS, _OUTPUTS = ("token", "position"), ("logit", "target")


class Most(NamedTuple):
    """How much of a graph a page holds at most."""

    nodes: int = NODES
    edges: int = EDGES


def packed(graph: Graph, most: Most, labels: Labels | None = None, links: Mapping[str, str] | None = None) -> bytes:
    """A graph for a page.

    Args:
        graph: of what is beyond `most`, the nodes and edges of least influence are left out, and the page says so.
        labels: what latents are called.
        links: by a dictionary's name, the address at which Neuronpedia shows its latents, up to the latent's number.

    Raises:
        InputError: for limits below what cannot be left out, and as `attrib.graph.influence`.
    """
    small = fitted(graph, most)
    nodes = small.nodes
    integers = {"position": nodes.position, "latent": nodes.latent, "targets": small.targets}
    integers |= {"indptr": small.indptr, "indices": small.indices}
    floats = {name: getattr(small, name) for name in ("weight", "value", "own", "total", "l1", "importance")}
    header = _header(graph, small, labels or Labels(()), links or {})
    return pack(FORMAT, header, integers, floats | {"activation": nodes.activation})


def fitted(graph: Graph, most: Most) -> Graph:
    """The graph, or of one that is larger the nodes and then the edges of largest influence. Tokens, logits and targets stay."""
    always = of_kinds(graph, "ALWAYS", ALWAYS)
    if most.nodes < int(always.sum()):
        raise InputError(f"max_nodes: {most.nodes}; expected at least the {int(always.sum())} tokens, logits and targets, which stay.")
    if most.edges < 0:
        raise InputError(f"max_edges: {most.edges}; expected at least 0.")
    if len(graph.nodes) > most.nodes:
        score = influence(graph).masked_fill(always, torch.inf)
        graph = graph.take(_largest(score, most.nodes).nonzero()[:, 0])
    if len(graph) > most.edges:
        graph = graph.only(_largest(edge_influence(graph, shares(graph)), most.edges))
    return graph


def _largest(score: Tensor, count: int) -> Bool[Tensor, " items"]:
    kept = torch.zeros(len(score), dtype=torch.bool)
    kept[score.sort(descending=True, stable=True).indices[:count]] = True
    return kept


def _header(whole: Graph, graph: Graph, labels: Labels, links: Mapping[str, str]) -> dict[str, Any]:
    counts = ("nodes", len(whole.nodes), len(graph.nodes)), ("edges", len(whole), len(graph))
    layers = [_layer(each) for each in graph.nodes.sets]
    last = max((layer for layer in layers if layer is not None), default=-1)
    levels = ["embed", *(f"layer {layer}" for layer in range(last + 1)), "logits"]
    sets = [
        each._asdict() | {"level": _level(each, layer, len(levels)), "link": links.get(each.name, "")}
        for each, layer in zip(graph.nodes.sets, layers, strict=True)
    ]
    return {
        "title": "".join(graph.strings), "facts": _facts(whole), "tokens": graph.strings,
        "sets": sets, "levels": levels, "labels": graph.nodes.labels, "explanations": _explanations(graph, labels),
        "epsilon": torch.finfo(graph.l1.dtype).eps, "left_out": left_out("graph", "those of largest influence", *counts),
    }  # fmt: skip


def _level(each: NodeSet, layer: int | None, levels: int) -> int:
    """Embeddings below, then layers, outputs above."""
    return levels - 1 if each.kind in _OUTPUTS else 0 if layer is None else layer + 1


def _layer(each: NodeSet) -> int | None:
    return None if each.kind in (*_EMBEDDINGS, *_OUTPUTS) else Site.parse(each.site).layer


def _explanations(graph: Graph, labels: Labels) -> list[tuple[int, int, str, str]]:
    found = []
    for number, each in enumerate(graph.nodes.sets):
        if each.kind == "latent":
            for latent in graph.nodes.latent[graph.nodes.rows(number)].unique().tolist():
                found += [(number, latent, label.text, label.source) for label in labels.of(each.name, latent)[:1]]
    return found


def _facts(graph: Graph) -> list[tuple[str, str]]:
    """What is said about the whole graph."""
    said = [("tokens", f"{len(graph.tokens):,}"), ("nodes", f"{len(graph.nodes):,}"), ("rows", f"{len(graph.targets):,}")]
    said += [("edges", f"{len(graph):,}"), ("largest remainder", f"{graph.worst:.1e} of its row's scale")]
    if bool(graph.importance.any()):
        found = scores(graph)
        said += [("replacement score", f"{found.replacement:.3f}"), ("completeness score", f"{found.completeness:.3f}")]
    said += [(name, str(graph.call[name])) for name in ("model", "policy", "keep") if isinstance(graph.call.get(name), str)]
    return said
