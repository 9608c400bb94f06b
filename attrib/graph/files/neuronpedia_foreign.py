"""Graphs of other programs in Neuronpedia's JSON.

circuit-tracer calls the error of layer l at position p `0_l_p`, as it calls latent l of layer 0 at p. Which of the two a link comes from
is found from what an edge can be, since it comes from below, and from circuit-tracer's order: nodes, the targets of links, and the
sources of a target all rise by (latents, errors, tokens, logits), then layer, position and index.

Neuronpedia's other generator, which puts dictionaries in for attention too (`lorsa`), has ids of its own that say the kind, and logits one
layer above the last, where circuit-tracer has them two above it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, Literal, NamedTuple

import torch

from attrib.core.types import InputError
from attrib.graph.files.foreign import Found, arranged, graph_of
from attrib.graph.files.ids import names_of
from attrib.graph.files.neuronpedia_document import Document
from attrib.graph.files.neuronpedia_own import KEY
from attrib.graph.graph import Graph
from attrib.graph.nodes import NodeKind

Ambiguous = Literal["refuse", "latent", "error"]
_MOST_LAYERS = 1 << 16
_KINDS: dict[str, NodeKind] = {
    "cross layer transcoder": "latent", "mlp reconstruction error": "error", "embedding": "token", "logit": "logit", "lorsa": "latent",
    "lorsa error": "error",
}  # fmt: skip
_IDS = {
    "latent": re.compile(r"(\d{1,9})_(?:cro_|lor_)?(\d{1,18})_(\d{1,9})"),
    "token": re.compile(r"(E)_(\d{1,18})_(\d{1,9})"),
    "logit": re.compile(r"(\d{1,9})_(\d{1,18})_(\d{1,9})"),
}
_LOGIT = re.compile(r'[^"]*"(.*)" \(p=([0-9.eE+-]+)\)', re.DOTALL)
"""What circuit-tracer shows of a logit: its text and probability."""
_ORDER = ("latent", "error", "token", "logit")
_SAYS_ITS_KIND = re.compile(r"\d+_(cro|lor|error)_.*")


class _Node(NamedTuple):
    node_id: str
    kind: NodeKind
    layer: int
    """-1 of tokens; what the file says of logits."""
    position: int
    latent: int
    activation: float
    label: str
    is_attention: bool
    probability: float
    influence: float | None
    clerp: str

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """Where circuit-tracer has it. Logits stay as they are."""
        return _ORDER.index(self.kind), *((0, 0, 0) if self.kind == "logit" else (self.layer, self.position, self.latent))


def read_foreign(document: Document, hooks: tuple[str, str], ambiguous: Ambiguous) -> Graph:
    """The graph of a file of another program's. Raises FormatError, and InputError where nothing tells which node is meant."""
    strings = document.strings("prompt_tokens")
    listed = [_node(document, document.node(node), strings) for node in document.nodes]
    parsed = sorted(listed, key=lambda node: node.kind == "logit")  # arranged() takes logits last, in their order
    keys = Counter((node.kind, node.layer, node.position, node.latent, node.is_attention) for node in parsed)
    again = [key[:4] for key, count in keys.items() if count > 1]
    if again:
        raise document.error("nodes: two {} nodes of layer {}, position {}, number {}".format(*again[0]))
    above = 0 if any(_SAYS_ITS_KIND.fullmatch(node.node_id) for node in parsed) else 1  # how far logits stand above the last layer and one
    layers = max((node.layer - above if node.kind == "logit" else node.layer + 1 for node in parsed), default=0)
    if not 0 < layers < _MOST_LAYERS:
        raise document.error(f"nodes: of {layers} layers, and not 1 to {_MOST_LAYERS:,}")
    dictionaries = document.strings("transcoder_list")
    columns = [[getattr(node, name) for node in parsed] for name in Found.__annotations__]
    nodes, order = arranged(Found(*columns), layers, hooks, dictionaries if len(dictionaries) == layers else [""] * layers, torch.float64)
    ours = [parsed[at] for at in order.tolist()]
    tokens = torch.full((len(strings),), -1)
    tokens[nodes.position[nodes.of_kind("token")]] = nodes.latent[nodes.of_kind("token")]
    is_in_order = all(a.rank <= b.rank for a, b in pairwise(listed))
    edges = sorted(_edges(document, ours, is_in_order, ambiguous))
    if twice := [(a, b) for a, b in pairwise(edges) if a[:2] == b[:2]]:
        target, source, _ = twice[0][0]
        raise document.error(f"links: two from {ours[source].node_id!r} to {ours[target].node_id!r}")
    targets, sources = (torch.tensor([edge[end] for edge in edges], dtype=torch.int64) for end in (0, 1))
    rows = nodes.of_kind("latent", "logit")
    return graph_of(
        nodes,
        torch.bincount(targets, minlength=len(nodes))[rows],
        sources,
        torch.tensor([weight for *_, weight in edges], dtype=torch.float64),
        torch.tensor([ours[row].probability for row in rows.tolist()], dtype=torch.float64),
        tokens,
        strings,
        {KEY: _beside(document, ours, [each.node_id for each in names_of(nodes, layers)])},
    )


def _node(document: Document, found: dict[str, Any], strings: Sequence[str]) -> _Node:
    name, shown, position = found["node_id"], found["clerp"], found["ctx_idx"]
    where = f"nodes: {name[:60]!r}: "
    kind = _KINDS.get(found["feature_type"])
    if kind is None:
        raise document.error(f"{where}feature_type: {found['feature_type'][:40]!r}, and attrib reads {', '.join(map(repr, _KINDS))}")
    if not 0 <= position < len(strings):
        raise document.error(f"{where}ctx_idx: {position}, which is outside the {len(strings)} tokens of metadata: prompt_tokens")
    layer, latent = found["layer"], -1
    if kind in _IDS:
        match = _IDS[kind].fullmatch(name)
        if match is None or int(match[3]) != position or (kind == "latent" and match[1] != str(layer)):
            raise document.error(f"{where}not the id of a {kind} in layer {layer!s:.20} at position {position}")
        layer, latent = -1 if kind == "token" else int(match[1]), int(match[2])
    elif re.fullmatch(r"\d{1,9}", str(layer)) is None:
        raise document.error(f"{where}layer: {layer!r:.40}, and not a number from 0")
    said = {part: document.number(found, part, where) for part in ("activation", "influence", "token_prob") if found.get(part) is not None}
    text = _LOGIT.fullmatch(shown)
    probability = said.get("token_prob", float(text[2]) if text else math.nan) if kind == "logit" else 0.0
    if not math.isfinite(probability):
        raise document.error(f"{where}neither token_prob nor its clerp says its probability")
    return _Node(
        name, kind, int(layer), position, latent, {"latent": said.get("activation", math.nan), "logit": math.nan}.get(kind, 1.0),
        strings[position] if kind == "token" else text[1] if kind == "logit" and text else shown if kind == "logit" else "",
        found["feature_type"].startswith("lorsa"), probability, said.get("influence"), shown,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ which nodes links are of


def _edges(document: Document, ours: Sequence[_Node], is_in_order: bool, ambiguous: Ambiguous) -> list[tuple[int, int, float]]:
    """Target, source and weight of each link."""
    called: dict[str, list[int]] = {}
    for node, each in enumerate(ours):
        called.setdefault(each.node_id, []).append(node)
    links = [document.link(number) for number in range(len(document.links))]
    targets = [_target(document, ours, called, name) for _, name, _ in links]
    sources = [_sources(document, ours, called, name, target) for (name, _, _), target in zip(links, targets, strict=True)]
    if is_in_order and any(len(nodes) > 1 for nodes in sources):
        sources = _by_order(ours, targets, sources)
    if left := [number for number, nodes in enumerate(sources) if len(nodes) > 1]:
        if ambiguous == "refuse":
            raise InputError(
                f"ambiguous: {len(left):,} of {len(links):,} links of {document.path} come from an error or a latent of one id, as number "
                f"{left[0]} from {links[left[0]][0]!r}, and nothing tells from which; expected ambiguous='latent' or 'error' to take one."
            )
        sources = [[node for node in nodes if len(nodes) == 1 or ours[node].kind == ambiguous] for nodes in sources]
    return [(target, nodes[0], weight) for target, nodes, (_, _, weight) in zip(targets, sources, links, strict=True)]


def _target(document: Document, ours: Sequence[_Node], called: Mapping[str, list[int]], name: str) -> int:
    found = [node for node in called.get(name, []) if ours[node].kind in ("latent", "logit")]
    if len(found) != 1:
        what = "a latent and a logit" if found else "no latent or logit of the file"
        raise document.error(f"links: the target {name[:60]!r} is {what}")
    return found[0]


def _sources(document: Document, ours: Sequence[_Node], called: Mapping[str, list[int]], name: str, target: int) -> list[int]:
    """The nodes of this id that an edge to the target can come from: those before it."""
    found = [node for node in called.get(name, []) if node < target and ours[node].kind != "logit"]
    if not found:
        what = "not before it" if name in called else "no node of the file"
        raise document.error(f"links: the source {name[:60]!r} of {ours[target].node_id!r} is {what}")
    return found


def _by_order(ours: Sequence[_Node], targets: Sequence[int], sources: list[list[int]]) -> list[list[int]]:
    """The sources that are left where those of each target rise; all of them where the links are not in circuit-tracer's order."""
    kept: list[list[int]] = []
    runs = [(target, [number for number, _ in run]) for target, run in groupby(enumerate(targets), key=lambda pair: pair[1])]
    if any(ours[a].rank > ours[b].rank for (a, _), (b, _) in pairwise(runs)) or len({target for target, _ in runs}) < len(runs):
        return sources
    for _, numbers in runs:
        run = [sources[number] for number in numbers]
        for sign in (1, -1):  # each is above the lowest that the one before can be, and below the highest of the one behind
            run.reverse() if sign < 0 else None
            bound: tuple[int, ...] | None = None
            for at, nodes in enumerate(run):
                ranks = {node: tuple(sign * part for part in ours[node].rank) for node in nodes}
                run[at] = [node for node in nodes if bound is None or ranks[node] > bound]
                if not run[at]:
                    return sources
                bound = min(ranks[node] for node in run[at])
        kept += reversed(run)
    return kept


def _traced(document: Document, node: dict[str, Any], renamed: Callable[[Any], Any]) -> dict[str, list[Any]]:
    """Who is in the queries and keys of a latent that stands for attention: lists of ids and a number."""
    found = node["qk_tracing_results"]
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(entries, list) and all(isinstance(entry, list) for entry in entries) for entries in lists):
        raise document.error(f"nodes: {node['node_id'][:60]!r}: qk_tracing_results: not an object of lists of lists")
    return {side: renamed(entries) for side, entries in found.items()}


def _beside(document: Document, ours: Sequence[_Node], ids: Sequence[str]) -> dict[str, Any]:
    """What the file says beside the graph, under the ids that attrib gives."""
    new = {node.node_id: name for node, name in sorted(zip(ours, ids, strict=True), key=lambda pair: pair[0].kind == "latent")}

    def renamed(value: Any) -> Any:
        return [renamed(each) for each in value] if isinstance(value, list) else new.get(value, value) if isinstance(value, str) else value

    beside = {
        "metadata": document.metadata,
        "qParams": {name: renamed(value) for name, value in document.query.items()},
        "clerps": {name: node.clerp for node, name in zip(ours, ids, strict=True) if node.clerp and node.kind == "latent"},
    }
    traced = {
        new[node["node_id"]]: _traced(document, node, renamed) for node in document.nodes if node.get("qk_tracing_results") is not None
    }
    if traced:
        beside |= {"qk_tracing_results": traced, "qk_only_nodes": document.others}
    shares = [node.influence for node in ours]
    return beside | ({} if all(share is None for share in shares) else {"influence": shares})
