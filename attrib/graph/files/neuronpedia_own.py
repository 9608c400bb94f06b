"""What attrib knows of a graph that Neuronpedia's JSON has no place for, under a key of its own that other readers pass over.

It holds the table of nodes and the facts of rows. Edges are the links, in the order of rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.files.foreign import n_layers_of
from attrib.graph.files.ids import names_of
from attrib.graph.graph import Graph
from attrib.graph.nodes import Nodes, NodeSet
from attrib.graph.wellformed import fault, fault_of_sets

KEY = "neuronpedia"
"""Where a graph's call keeps what a file of another program says beside the graph."""
OWN = "attrib"
"""The key of the JSON."""
VERSION = 1
ROWS = ("value", "own", "total", "l1", "importance")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def written_own(graph: Graph) -> dict[str, Any]:
    """All of the graph but its links and weights."""
    columns = {name: getattr(graph, name) for name in ROWS}
    floats = columns | {"activation": graph.nodes.activation}
    return {
        "format_version": VERSION,
        "sets": [list(each) for each in graph.nodes.sets],
        **{name: getattr(graph.nodes, name).tolist() for name in ("position", "latent")},
        "labels": list(graph.nodes.labels),
        **{name: getattr(graph, name).tolist() for name in ("targets", "indptr", "tokens")},
        **{name: numbers(name, column) for name, column in floats.items()},
        "strings": list(graph.strings),
        "dtypes": {name: str(column.dtype).removeprefix("torch.") for name, column in (floats | {"weight": graph.weight}).items()},
        "call": dict(graph.call),
    }


def numbers(name: str, column: Float[Tensor, " n"]) -> list[float | None]:
    """Numbers as JSON can hold them, which has no NaN; -0.0 is a number of its own."""
    if column.isinf().any():
        raise InputError(f"graph: {name} has an infinite number; expected finite ones, or NaN for what is not known.")
    return [None if value != value else value for value in column.tolist()]


def read_own(own: Any, ids: Sequence[str], links: Sequence[tuple[str, str, float]]) -> Graph:
    """The graph that was written. Raises InputError, TypeError, ValueError or LookupError where the parts do not fit together."""
    if own["format_version"] != VERSION:
        raise InputError(f"format version {own['format_version']!r}; this attrib reads version {VERSION}")
    sets = tuple(_set(each) for each in own["sets"])
    position, latent = (_integers(name, own[name]) for name in ("position", "latent"))
    labels = _texts("labels", own["labels"])
    if wrong := fault_of_sets(sets, len(position), len(labels)):
        raise InputError(f"{wrong[0]}: {wrong[1]}")
    nodes = Nodes(sets, position, latent, _floats("activation", own, own["activation"]), labels)
    targets, indptr, tokens = (_integers(name, own[name]) for name in ("targets", "indptr", "tokens"))
    number = {name: node for node, name in enumerate(ids)}
    named = [each.node_id for each in names_of(nodes, n_layers_of(nodes))]
    if named != list(ids):
        raise InputError(f"{len(named)} nodes, which are not the {len(ids)} of the file")
    weight = _floats("weight", own, [weight for *_, weight in links])
    if not isinstance(own["call"], dict):
        raise InputError("call: it is no object")
    indices = torch.tensor([number[source] for source, *_ in links], dtype=torch.int64)
    value, own_part, total, l1, importance = (_floats(name, own, own[name]) for name in ROWS)
    strings = _texts("strings", own["strings"])
    graph = Graph(nodes, targets, indptr, indices, weight, value, own_part, total, l1, importance, tokens, strings, own["call"])
    if wrong := fault(graph):
        raise InputError(f"{wrong[0]}: {wrong[1]}")
    if [number[target] for _, target, _ in links] != graph.target.tolist():
        raise InputError("indptr: the links go to other nodes than those of the rows")
    return graph


def _set(given: Any) -> NodeSet:
    kind, site, name = _texts("sets", given[:3])
    (size,) = _integers("sets", given[3:]).tolist()
    return NodeSet(kind, site, name, size)  # type: ignore[arg-type]


def _integers(name: str, values: Any) -> Tensor:
    if not isinstance(values, list) or {*map(type, values)} - {int}:
        raise InputError(f"{name}: not a list of whole numbers")
    return torch.tensor(values, dtype=torch.int64)


def _floats(name: str, own: Any, values: Any) -> Tensor:
    """Numbers in the dtype that they had; None is NaN."""
    if not isinstance(values, list) or {*map(type, values)} - {int, float, type(None)}:
        raise InputError(f"{name}: not a list of numbers")
    return torch.tensor([torch.nan if value is None else value for value in values], dtype=_DTYPES[own["dtypes"][name]])


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or {*map(type, values)} - {str}:
        raise InputError(f"{name}: not a list of texts")
    return tuple(values)
