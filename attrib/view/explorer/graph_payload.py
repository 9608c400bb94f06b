"""What the page of a graph is given: its nodes and edges, and what is known of them beside the graph."""

from collections.abc import Mapping
from typing import Any

import torch

from attrib.core.types import Site
from attrib.graph.graph import Graph
from attrib.graph.nodes import NodeSet
from attrib.graph.scoring import scores
from attrib.latents.labels import Labels
from attrib.view.explorer.details import Columns, Details
from attrib.view.explorer.edge_details import edge_columns
from attrib.view.explorer.fitting import Fitted, Most, fitted
from attrib.view.explorer.latent_details import latent_columns
from attrib.view.explorer.payload import left_out, pack

FORMAT = "attrib explorer"
NOTHING = Details()
_EMBEDDINGS, _OUTPUTS = ("token", "position"), ("logit", "target")


def packed(
    graph: Graph, most: Most, labels: Labels | None = None, links: Mapping[str, str] | None = None, details: Details = NOTHING
) -> bytes:
    """A graph for a page.

    Args:
        graph: of what is beyond `most`, the nodes and edges of least influence are left out, and the page says so.
        labels: what latents are called.
        links: by a dictionary's name, the address at which Neuronpedia shows its latents, up to the latent's number.
        details: what else is known of its nodes and edges.

    Raises:
        InputError: for limits below what cannot be left out, for details of another graph, and as `attrib.graph.influence`.
    """
    return pack(FORMAT, *columns_of(fitted(graph, most), labels, links, details, last_layer(graph)))


def columns_of(part: Fitted, labels: Labels | None, links: Mapping[str, str] | None, details: Details, last: int) -> Columns:
    """What a page is told of what it holds of a graph.

    Args:
        last: the highest layer that the page has a place for.
    """
    graph, nodes = part.graph, part.graph.nodes
    integers = {"position": nodes.position, "latent": nodes.latent, "targets": graph.targets}
    integers |= {"indptr": graph.indptr, "indices": graph.indices}
    floats = {name: getattr(graph, name) for name in ("weight", "value", "own", "total", "l1", "importance")}
    header = _header(part.whole, graph, labels or Labels(()), links or {}, last)
    of_graph = Columns(header, integers, floats | {"activation": nodes.activation})
    header["facts"] += _told(details)
    return of_graph | latent_columns(graph, details) | edge_columns(part, details)


def last_layer(*graphs: Graph) -> int:
    """The highest layer at which one of the graphs has a place; -1 where none has."""
    layers = [_layer(each) for graph in graphs for each in graph.nodes.sets]
    return max((layer for layer in layers if layer is not None), default=-1)


def _header(whole: Graph, graph: Graph, labels: Labels, links: Mapping[str, str], last: int) -> dict[str, Any]:
    counts = ("nodes", len(whole.nodes), len(graph.nodes)), ("edges", len(whole), len(graph))
    levels = ["embed", *(f"layer {layer}" for layer in range(last + 1)), "logits"]
    sets = [each._asdict() | {"level": _level(each, len(levels)), "link": links.get(each.name, "")} for each in graph.nodes.sets]
    return {
        "title": "".join(graph.strings), "facts": _facts(whole), "tokens": graph.strings,
        "sets": sets, "levels": levels, "labels": graph.nodes.labels, "explanations": _explanations(graph, labels),
        "epsilon": torch.finfo(graph.l1.dtype).eps, "left_out": left_out("graph", "those of largest influence", *counts),
    }  # fmt: skip


def _told(details: Details) -> list[tuple[str, str]]:
    """How many edges and scores more is told of."""
    counts = {
        "edges by heads": details.heads and len(details.heads),
        "attention scores": details.scores and len(details.scores),
        "edges intervened on": details.verified and details.verified.table["edge"].nunique(),
    }
    return [(name, f"{count:,}") for name, count in counts.items() if count is not None]


def _level(each: NodeSet, levels: int) -> int:
    """Embeddings below, then layers, outputs above."""
    layer = _layer(each)
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
    call: Any = graph.call.get("graph", graph.call)  # a graph with heads names the one that it was made of
    said += [(name, _said(call[name])) for name in ("model", "policy", "keep") if call.get(name)]
    return said


def _said(value: Any) -> str:
    """What a call says of itself: of what has a name that, and of a policy each of its rules."""
    if not isinstance(value, Mapping):
        return str(value)
    return str(value["name"]) if "name" in value else ", ".join(f"{part} {rule}" for part, rule in value.items())
