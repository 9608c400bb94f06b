"""Graphs for NetworkX, and for what reads GraphML: Gephi, Cytoscape, yEd, igraph."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from attrib.core.files import check_free, whole
from attrib.core.optional import needed
from attrib.core.types import InputError
from attrib.graph.graph import Graph

if TYPE_CHECKING:
    import networkx

_ROWS = ("value", "own", "total", "l1", "importance")
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold."""


def to_networkx(graph: Graph) -> "networkx.DiGraph[int]":
    """A `networkx.DiGraph` whose nodes are the graph's numbers, with edges from sources to targets.

    Nodes have `label`, `kind`, `site`, `dictionary`, `position`, `latent` and `activation`, and those that rows were computed of `value`,
    `own`, `total`, `l1` and `importance`; edges have `weight`; the graph has `tokens`, `strings` and `call`.

    Raises:
        InputError: networkx is not installed.
    """
    networkx = needed("networkx", "to_networkx", "graph")
    nodes, found = graph.nodes, networkx.DiGraph(tokens=graph.tokens.tolist(), strings=list(graph.strings), call=dict(graph.call))
    columns = {name: getattr(nodes, name).tolist() for name in ("position", "latent", "activation")}
    for number, each in enumerate(nodes.sets):
        for node in range(nodes.first[number], nodes.first[number + 1]):
            numbers = {name: column[node] for name, column in columns.items()}
            found.add_node(node, label=nodes.label(node), kind=each.kind, site=each.site, dictionary=each.name, **numbers)
    rows = {name: getattr(graph, name).tolist() for name in _ROWS}
    for row, node in enumerate(graph.targets.tolist()):
        found.nodes[node].update({name: column[row] for name, column in rows.items()})
    found.add_weighted_edges_from(zip(graph.indices.tolist(), graph.target.tolist(), graph.weight.tolist(), strict=True))
    return found


def write_graphml(graph: Graph, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write what `to_networkx` gives as GraphML, and return the path.

    Numbers that are not known (NaN) are left out. Characters that XML cannot hold are written as `<U+0000>`; tokens, their strings and
    the call are JSON.

    Raises:
        InputError: networkx is not installed, the path cannot be used, or the call holds what JSON cannot.
    """
    path = Path(path)
    check_free("path", path, overwrite=overwrite)
    found = to_networkx(graph)
    try:
        found.graph = {name: json.dumps(value) for name, value in found.graph.items()}
    except (TypeError, ValueError) as error:
        raise InputError(f"graph: `call` cannot be written as JSON ({error}); expected dicts, lists, strings and numbers alone.") from error
    for _, facts in found.nodes(data=True):
        for name, value in [*facts.items()]:
            if value != value:
                del facts[name]
            elif isinstance(value, str):
                facts[name] = _NO_XML.sub(_named, value)
    with whole(path) as partial:
        needed("networkx", "write_graphml", "graph").write_graphml_xml(found, partial)
    return path


def _named(character: re.Match[str]) -> str:
    return f"<U+{ord(character[0]):04X}>"
