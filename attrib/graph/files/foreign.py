"""What other programs' files tell of a graph, put in attrib's order: tokens, then each layer's latents and errors, then logits.

They tell less than attrib does: not what a row's target reads with, nor its value. Those columns are NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import InputError, Site
from attrib.graph.graph import Graph
from attrib.graph.nodes import NAMED_KINDS, TARGET_KINDS, NodeKind, Nodes, NodeSet

HOOKS = ("mlp.hook_in", "hook_mlp_out")
"""Where transcoders read and write by default; files of graphs do not say it."""
ATTENTION_HOOKS = ("hook_resid_pre", "hook_attn_out")
"""Where dictionaries that stand for attention do: the stream before its norm, and what it adds."""


@dataclass
class Found:
    """Nodes as a file lists them, one entry of each list for a node."""

    kind: list[NodeKind]
    layer: list[int]
    """Of latents and errors; of others it is not looked at."""
    position: list[int]
    latent: list[int]
    activation: list[float]
    label: list[str]
    """Of tokens, logits and targets."""
    is_attention: list[bool]
    """Of latents and errors, whether they are of a dictionary that stands for attention, which comes before its layer's MLP."""


def layer_of(each: NodeSet) -> int:
    """The layer that a set's place is in. Raises InputError where its site is not in one."""
    try:
        return Site.parse(each.site).layer
    except InputError as error:
        raise InputError(
            f"graph: {each.kind} nodes at {each.site!r}, which is in no layer; expected a hook of a layer, as TransformerLens names it."
        ) from error


def n_layers_of(nodes: Nodes) -> int:
    """How many layers the model has at least, from the sites of all sets. Logits may be of no layer."""
    placed = [each for each in nodes.sets if each.kind not in ("token", "position", "logit", "target") or each.site.startswith("blocks.")]
    return 1 + max(map(layer_of, placed), default=-1)


def labels_of(nodes: Nodes) -> dict[int, str]:
    """The labels of tokens, logits and targets, by their nodes' numbers."""
    return dict(zip(nodes.of_kind(*NAMED_KINDS).tolist(), nodes.labels, strict=True))


def check_hooks(hooks: tuple[str, str]) -> None:
    """Raises InputError where these are no hooks of a layer."""
    for hook in hooks:
        Site.parse(f"blocks.0.{hook}")


def arranged(
    found: Found, layers: int, hooks: tuple[str, str], names: Sequence[str], dtype: torch.dtype
) -> tuple[Nodes, Int[Tensor, " nodes"]]:
    """Nodes in attrib's order, and which of those found each one is. `names` are the dictionaries' of each layer."""
    count = len(found.kind)
    rank, position, latent = (np.zeros(count, np.int64) for _ in range(3))
    for node, kind in enumerate(found.kind):
        if kind in ("latent", "error"):
            rank[node] = 1 + 4 * found.layer[node] + 2 * (not found.is_attention[node]) + (kind == "error")
        position[node], latent[node] = found.position[node], found.latent[node]
        if kind in ("logit", "target"):  # they stay in their order; a set has one kind
            after = node and found.kind[node - 1] in ("logit", "target")
            rank[node] = (rank[node - 1] + (found.kind[node - 1] != kind)) if after else 4 * layers + 1
            position[node], latent[node] = node, 0
    order = np.lexsort((latent, position, rank))
    sets: list[NodeSet] = []
    for _, first, size in zip(*np.unique(rank[order], return_index=True, return_counts=True), strict=True):
        node = int(order[first])
        kind, layer = found.kind[node], found.layer[node]
        reads, writes = ATTENTION_HOOKS if found.is_attention[node] else hooks
        site, name = {
            "token": ("embed", ""),
            "latent": (f"blocks.{layer}.{reads}", names[layer] if kind == "latent" and not found.is_attention[node] else ""),
            "error": (f"blocks.{layer}.{writes}", ""),
        }.get(kind, (f"blocks.{layers - 1}.hook_resid_post", ""))
        sets.append(NodeSet(kind, site, name, int(size)))
    listed = order.tolist()
    nodes = Nodes(
        tuple(sets),
        torch.tensor([found.position[node] for node in listed], dtype=torch.int64),
        torch.tensor([found.latent[node] for node in listed], dtype=torch.int64),
        torch.tensor([found.activation[node] for node in listed], dtype=dtype),
        tuple(found.label[node] for node in listed if found.kind[node] in NAMED_KINDS),
    )
    return nodes, torch.from_numpy(order)


def graph_of(
    nodes: Nodes,
    counts: Int[Tensor, " targets"],
    indices: Int[Tensor, " edges"],
    weight: Float[Tensor, " edges"],
    importance: Float[Tensor, " targets"],
    tokens: Int[Tensor, " positions"],
    strings: Sequence[str],
    call: Mapping[str, Any],
) -> Graph:
    """A graph with a row for each latent, logit and target, of so many edges. `total` and `l1` are sums of the edges that there are."""
    targets = nodes.of_kind(*TARGET_KINDS)
    row = torch.arange(len(targets)).repeat_interleave(counts)
    total, l1 = (weight.new_zeros(len(targets)).index_add(0, row, each) for each in (weight, weight.abs()))
    unsaid = torch.full_like(total, torch.nan)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Graph(nodes, targets, indptr, indices, weight, unsaid, unsaid, total, l1, importance, tokens, tuple(strings), call)
