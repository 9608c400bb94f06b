"""A graph's edges in order of computation: all edges into one set of nodes at once, since none goes from a set to itself."""

from collections.abc import Iterator
from numbers import Integral

import torch

from attrib.core.types import InputError
from attrib.graph.graph import Graph


def levels(graph: Graph, below: int) -> list[slice]:
    """The edges into each set that has any, up to that of the node `below`, lowest first.

    Raises:
        InputError: where an edge goes from a set to itself or to a lower one, as none does in a graph that attrib has made.
    """
    own, source = graph.nodes.set_of[graph.target], graph.nodes.set_of[graph.indices]
    if bool((source >= own).any()):
        edge = int((source >= own).nonzero()[0, 0])
        raise InputError(
            f"graph: node {int(graph.target[edge])} has an edge from node {int(graph.indices[edge])}, whose set is not below its own; "
            "expected sets of nodes in order of computation, as `Nodes` lays them out."
        )
    last = int(graph.nodes.set_of[below])
    return [each for each in _slices(graph, last) if each.start < each.stop]


def _slices(graph: Graph, last: int) -> Iterator[slice]:
    firsts = torch.searchsorted(graph.targets, torch.tensor(graph.nodes.first[: last + 2]))
    ends = graph.indptr[firsts].tolist()
    return map(slice, ends[:-1], ends[1:])


def edges_of(graph: Graph, row: int) -> slice:
    """The edges of a row."""
    return slice(int(graph.indptr[row]), int(graph.indptr[row + 1]))


def check_node(graph: Graph, node: object, name: str = "node") -> int:
    """The row of a node that was asked about.

    Raises:
        InputError: where it is none of the graph's, or no row was computed of it.
    """
    if isinstance(node, bool) or not isinstance(node, Integral) or not 0 <= int(node) < len(graph.nodes):
        raise InputError(f"{name}: {node!r}; expected the number of one of the graph's {len(graph.nodes):,} nodes.")
    row = int(torch.searchsorted(graph.targets, int(node)))
    if row == len(graph.targets) or int(graph.targets[row]) != int(node):
        raise InputError(
            f"{name}: no row was computed of {graph.nodes.label(int(node))}, node {node}; expected one of `graph.targets`, which have rows."
        )
    return row
