"""How nodes are called in Neuronpedia's JSON: as circuit-tracer calls them, but so that no two nodes share a name.

latent  {layer}_{index}_{position}          of a layer's first dictionary; of a further one with _1, _2, … behind
error   {layer}_-1_{position}               of a layer's first; circuit-tracer's 0_{layer}_{position} is also a latent of layer 0
token   E_{id}_{position}
logit   {layers + 1}_{id}_{position}
others  {layer}_{-2, -3, …}_{position}      constants, MLPs, further errors, heads, directions; E for a layer of position embeddings
"""

from collections import Counter
from typing import NamedTuple

from attrib.core.types import InputError
from attrib.graph.files.foreign import labels_of, layer_of
from attrib.graph.nodes import NodeKind, Nodes

FEATURE_TYPES: dict[NodeKind, str] = {
    "token": "embedding", "position": "bias", "bias": "bias", "mlp": "unknown", "error": "mlp reconstruction error",
    "latent": "cross layer transcoder", "head": "unknown", "logit": "logit", "target": "logit",
}  # fmt: skip
"""What Neuronpedia calls a kind of nodes."""


class Named(NamedTuple):
    """What a node of the JSON is called."""

    node_id: str
    feature: int
    layer: str
    js: str
    """What nodes of other prompts share, where they are of the same latent."""


def cantor(layer: int, index: int) -> int:
    """One number for a layer and a latent's index, by Cantor's pairing: Neuronpedia's `feature` since schema version 1."""
    return (layer + index) * (layer + index + 1) // 2 + index


def names_of(nodes: Nodes, layers: int) -> list[Named]:
    """The names of all nodes of a model of so many layers. Raises InputError where two would be called the same."""
    named: list[Named] = []
    dictionaries: Counter[str] = Counter()
    errors: set[str] = set()
    others: Counter[str] = Counter()
    position, latent = nodes.position.tolist(), nodes.latent.tolist()
    for number, each in enumerate(nodes.sets):
        rows = range(nodes.first[number], nodes.first[number + 1])
        # a set counts that nothing is left of: what is known under an id stays that node's where others are taken out
        layer = "E" if each.kind in ("token", "position") else str(layers + 1 if each.kind in ("logit", "target") else layer_of(each))
        is_first_error = each.kind == "error" and layer not in errors
        for node in rows:
            at, index = position[node], latent[node]
            if each.kind == "latent":
                if index < 0:
                    raise InputError(f"graph: latent {index} of {each.site}; expected numbers from 0.")
                behind = f"_{dictionaries[layer]}" if dictionaries[layer] else ""
                named.append(Named(f"{layer}_{index}_{at}{behind}", cantor(int(layer), index), layer, f"{layer}_{index}-0{behind}"))
            elif each.kind == "token":
                named.append(Named(f"E_{index}_{at}", at, layer, f"E_{index}-{at}"))
            elif each.kind == "logit" and index >= 0:
                named.append(Named(f"{layer}_{index}_{at}", index, layer, f"L_{index}-{at}"))
            else:
                others[layer] += not is_first_error
                own = -1 if is_first_error else -1 - others[layer]
                named.append(Named(f"{layer}_{own}_{at}", own, layer, f"{layer}_{own}-{at}"))
        dictionaries[layer] += each.kind == "latent"
        errors |= {layer} if each.kind == "error" else set()
    again = [name for name, count in Counter(each.node_id for each in named).items() if count > 1]
    if again:
        raise InputError(f"graph: two nodes are {again[0]!r}; expected each latent, token and logit once at a position.")
    return named


def clerps_of(nodes: Nodes, probabilities: dict[int, float]) -> list[str]:
    """What is shown of each node. A frontend finds a logit's probability in it."""
    labels, clerps = labels_of(nodes), []
    for number, each in enumerate(nodes.sets):
        for node in range(nodes.first[number], nodes.first[number + 1]):
            match each.kind:
                case "logit" | "target":
                    clerps.append(f'Output "{labels[node]}" (p={probabilities.get(node, 0.0):.3f})')
                case "bias" | "mlp" | "position":
                    clerps.append(f"{each.kind} {each.site}")
                case "head":
                    clerps.append(f"{nodes.short(node)}, on the way to {each.name}")
                case _:
                    clerps.append("")
    return clerps
