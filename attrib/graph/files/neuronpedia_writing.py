"""Neuronpedia's graph JSON, which circuit-tracer's frontend shows too, with all that attrib knows beside it under a key of its own.

Other readers pass over the key `attrib`. It holds the table of nodes and the facts of rows; edges are the links, in the order of rows.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.files import check_free, whole
from attrib.core.types import InputError
from attrib.graph.files.foreign import n_layers_of
from attrib.graph.files.ids import FEATURE_TYPES, clerps_of, names_of
from attrib.graph.files.neuronpedia_own import KEY, OWN, numbers, written_own
from attrib.graph.graph import Graph
from attrib.graph.wellformed import checked

LISTING = "graph-metadata.json"
"""The file beside the graphs by which circuit-tracer's frontend finds them."""
_QUERY = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}


def to_neuronpedia(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    scan: str | None = None,
    prompt: str | None = None,
    influence: Float[Tensor, " nodes"] | None = None,
    cumulative: Float[Tensor, " nodes"] | None = None,
    threshold: float | None = None,
    labels: Mapping[int, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a graph as `FOLDER/SLUG.json`, and its metadata to the listing `graph-metadata.json` of the folder. Returns the path.

    `from_neuronpedia` gives the same graph again, in every bit; integers come back as int64, and tuples of a call as lists.

    Args:
        graph: the graph, whole or pruned: a frontend shows some thousand nodes.
        path: the new file; its name without `.json` is the graph's slug.
        scan: the model's name at Neuronpedia. Default: as the file that the graph was read from says, or the model's in the call.
        prompt: the text. Default: as that file says, or the tokens' labels, joined.
        influence: each node's influence on the logits, from 0. The file has its cumulative share: that of all nodes with at least as
            much, by which a frontend prunes.
        cumulative: that share itself, where it is of a larger graph, of which this one is what pruning left; see `cumulative_influence`.
        threshold: the cumulative influence to which a frontend shows nodes at first.
        labels: what is shown of nodes, by their numbers: what a latent stands for.
        metadata: further entries, as `info`, `feature_details`, `generation_settings`, `pruning_settings`.
        overwrite: replace a graph of this name.

    Raises:
        InputError: the path cannot be used, or the listing is not one; the graph is malformed, or two of its nodes would have one id;
            a number is infinite; what is given does not fit the graph, or is not what JSON can hold.
    """
    path = Path(path)
    check_free("path", path, overwrite=overwrite)
    if path.suffix != ".json" or path.name == LISTING:
        raise InputError(f"path: {path.name}; expected a name that ends in .json, other than {LISTING}.")
    checked("graph", graph)
    known = graph.call.get(KEY, {})
    known = known if isinstance(known, Mapping) else {}
    listing = _listing(path.parent / LISTING)
    about = _metadata(graph, known.get("metadata", {}), path.stem, scan, prompt, threshold, metadata or {})
    if influence is not None and cumulative is not None:
        raise InputError("cumulative: given beside influence, from which it follows; expected one of them.")
    if influence is not None:
        cumulative = cumulative_influence(_of_nodes("influence", influence, graph))
    shares = known.get("influence") if cumulative is None else _of_nodes("cumulative", cumulative, graph).clamp_max(1).tolist()
    nodes = _nodes(graph, shares, labels or {}, known.get("clerps", {}))
    ids = [node["node_id"] for node in nodes]
    links = [
        {"source": ids[source], "target": ids[target], "weight": weight}
        for source, target, weight in zip(graph.indices.tolist(), graph.target.tolist(), graph.weight.tolist(), strict=True)
    ]
    document = {
        "metadata": about,
        "qParams": _QUERY | dict(known.get("qParams", {})),
        "nodes": nodes,
        "links": links,
        OWN: written_own(graph),
    } | _queries(known, nodes)
    listing["graphs"] = [each for each in listing["graphs"] if each.get("slug") != path.stem] + [about]
    texts = {path: _as_json(document), path.parent / LISTING: _as_json(listing)}
    for file, text in texts.items():
        with whole(file) as partial:
            partial.write_text(text, encoding="ascii")
    return path


def _queries(known: Mapping[str, Any], nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the file that the graph was read from said of queries and keys, put to the nodes again: the nodes that are none besides.

    A node of whose contributors some have been taken out since has none: a frontend looks all of them up.
    """
    others, found = known.get("qk_only_nodes", {}), known.get("qk_tracing_results", {})
    if not found:
        return {}
    there = {node["node_id"] for node in nodes} | set(others)
    for node in nodes:
        result = found.get(node["node_id"], {})
        named = {part for entries in result.values() for entry in entries for part in entry if isinstance(part, str)}
        if result and named <= there:
            node["qk_tracing_results"] = result
    return {"qk_only_nodes": others}


def _as_json(document: dict[str, Any]) -> str:
    try:
        return json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"graph: it cannot be written as JSON ({error}); expected dicts, lists, strings and finite numbers alone."
        ) from error


def _listing(path: Path) -> dict[str, Any]:
    """The listing that is there, or a new one. One that attrib does not understand is not written over."""
    if not path.exists():
        return {"graphs": []}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(
            f"path: {path} is no listing of graphs ({error}); expected JSON. Move it elsewhere, or write to a new folder."
        ) from error
    graphs = found.get("graphs") if isinstance(found, dict) else None
    if not isinstance(graphs, list) or not all(isinstance(each, dict) for each in graphs):
        raise InputError(f"path: {path} is no listing of graphs; expected an object with a list `graphs`. Write to a new folder.")
    return found


def _metadata(
    graph: Graph,
    known: Mapping[str, Any],
    slug: str,
    scan: str | None,
    prompt: str | None,
    threshold: float | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    if wrong := [name for name in ("slug", "scan", "prompt", "prompt_tokens", "node_threshold", "schema_version") if name in more]:
        raise InputError(f"metadata: {wrong[0]!r} follows from the graph and the other arguments; expected further entries.")
    model = graph.call.get("model")
    name = model.get("name", "") if isinstance(model, Mapping) else ""
    about = {
        "slug": slug, "scan": str(name), "transcoder_list": [each.name for each in graph.nodes.sets if each.kind == "latent" and each.name],
        "prompt_tokens": list(graph.strings), "prompt": "".join(graph.strings), "schema_version": 1,
    }  # fmt: skip
    said = {"scan": scan, "prompt": prompt, "node_threshold": threshold}
    return about | {**known, "slug": slug} | {key: value for key, value in said.items() if value is not None} | dict(more)


def cumulative_influence(influence: Float[Tensor, " nodes"]) -> Float[Tensor, " nodes"]:
    """The share of all influence that nodes with at least as much have together."""
    order = influence.double().argsort(descending=True, stable=True)
    sums = influence.double()[order].cumsum(0)
    shares = torch.empty_like(sums)
    shares[order] = (sums / sums[-1:].clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1)
    return shares


def _of_nodes(argument: str, given: Float[Tensor, " n"], graph: Graph) -> Float[Tensor, " nodes"]:
    """What was given of each node. Raises InputError where it is not of these nodes."""
    if given.shape != (len(graph.nodes),) or not given.isfinite().all() or (given < 0).any():
        raise InputError(
            f"{argument}: {given.dtype} {list(given.shape)}; expected a finite number from 0 for each of {len(graph.nodes)} nodes."
        )
    return given


def _nodes(graph: Graph, shares: list[float | None] | None, labels: Mapping[int, str], clerps: Mapping[str, str]) -> list[dict[str, Any]]:
    if outside := [node for node in labels if not 0 <= node < len(graph.nodes)]:
        raise InputError(f"labels: node {outside[0]}; expected numbers below {len(graph.nodes)}.")
    if shares is not None and len(shares) != len(graph.nodes):
        shares = None  # of a graph of which nodes were taken since it was read
    found, position, activation = [], graph.nodes.position.tolist(), numbers("activation", graph.nodes.activation)
    probability = {int(node): float(p) for node, p in zip(graph.targets, graph.importance, strict=True)}
    shown = clerps_of(graph.nodes, probability)
    kinds = [each.kind for each in graph.nodes.sets for _ in range(each.size)]
    first_output = next((kinds.index(kind) for kind in ("logit", "target") if kind in kinds), -1)
    for node, (name, kind) in enumerate(zip(names_of(graph.nodes, n_layers_of(graph.nodes)), kinds, strict=True)):
        is_logit = kind in ("logit", "target")
        found.append(
            {
                "node_id": name.node_id, "feature": name.feature, "layer": name.layer, "ctx_idx": position[node],
                "feature_type": FEATURE_TYPES[kind], "token_prob": probability.get(node, 0.0) if is_logit else 0.0,
                "is_target_logit": node == first_output, "run_idx": 0, "reverse_ctx_idx": 0, "jsNodeId": name.js,
                "clerp": shown[node] if is_logit else labels.get(node, clerps.get(name.node_id, shown[node])),
                "influence": None if shares is None or is_logit else shares[node],
                "activation": activation[node] if kind == "latent" else None,
            }
        )  # fmt: skip
    return found
