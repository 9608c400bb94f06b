"""Paths through a graph as plain values: how they read, the graph that they make together, and what they add up to."""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.nodes import Nodes


class Path(NamedTuple):
    """A way through a graph, from the node that was asked about down to where it begins: effects go from the last node to the first."""

    nodes: tuple[int, ...]
    weights: tuple[float, ...]
    """The attribution of each edge: `weights[i]` is that of `nodes[i + 1]` to `nodes[i]`."""
    value: float
    """The product of the edges' factors; see `attrib.graph.Contribution`."""

    def text(self, nodes: Nodes, *, short: bool = False) -> str:
        """The path in one line: `+0.31  logit ' Paris' @4 <- blocks.2.mlp.hook_in[17] @3 <- token ' France' @3`.

        Args:
            short: in fewest words: `+0.31  logit ' Paris'@4 ← mlp2[17]@3 ← attn1[5]@2 ← token ' France'@2`.
        """
        way = " ← ".join(map(nodes.short, self.nodes)) if short else " <- ".join(map(nodes.label, self.nodes))
        return f"{self.value:+.3g}  {way}"


class Pattern(NamedTuple):
    """Paths that are one but for their positions."""

    steps: tuple[str, ...]
    value: float
    """The sum of the paths' values."""
    paths: int
    """How many they are."""

    def text(self) -> str:
        """The pattern in one line."""
        return f"{self.value:+.3g}  {' <- '.join(self.steps)}  ({self.paths})"


def graph_of(graph: Graph, paths: Iterable[Path]) -> Graph:
    """The graph of these paths' nodes and edges, numbered anew. Totals stay, so that what is on no path counts as dropped.

    It may have more paths than were given, where two of them meet and part.

    Raises:
        InputError: where a path has an edge that the graph has not.
    """
    paths = list(paths)
    edges = sorted({(target, source) for path in paths for target, source in pairwise(path.nodes)})
    known = graph.only(_edges_among(graph, edges))
    return known.take(torch.tensor(sorted({node for path in paths for node in path.nodes}), dtype=torch.int64))


def _edges_among(graph: Graph, edges: list[tuple[int, int]]) -> Tensor:
    """Which edges of the graph are among these, (target, source) each, ascending."""
    count = len(graph.nodes)
    there = graph.target * count + graph.indices  # ascending, as rows and what is in them are
    asked = torch.tensor([target * count + source for target, source in edges], dtype=torch.int64)
    missing = (~torch.isin(asked, there)).nonzero()[:, 0]
    if len(missing):
        target, source = edges[int(missing[0])]
        raise InputError(f"paths: one has an edge into node {target} from {source}, which the graph has not; expected paths of this graph.")
    return torch.isin(there, asked)


def without_positions(paths: Iterable[Path], nodes: Nodes) -> list[Pattern]:
    """Paths summed over positions: those that differ in nothing else are one pattern. The largest sizes stand first."""
    return _summed((tuple(step_of(nodes, node) for node in path.nodes), path.value) for path in paths)


def where_paths_begin(paths: Iterable[Path], nodes: Nodes, *, positions: bool = True) -> list[Pattern]:
    """The nodes that paths begin at, each with the sum of its paths' values; without positions, nodes of all positions as one."""
    named = nodes.label if positions else lambda node: step_of(nodes, node)
    return _summed(((named(path.nodes[-1]),), path.value) for path in paths)


def _summed(found: Iterable[tuple[tuple[str, ...], float]]) -> list[Pattern]:
    sums: dict[tuple[str, ...], tuple[float, int]] = {}
    for steps, value in found:
        before, count = sums.get(steps, (0.0, 0))
        sums[steps] = (before + value, count + 1)
    return sorted((Pattern(steps, *sums[steps]) for steps in sums), key=lambda pattern: -abs(pattern.value))


def step_of(nodes: Nodes, node: int) -> str:
    """A node's label without its position."""
    each = nodes.sets[int(nodes.set_of[node])]
    if each.kind == "position":  # it is its position
        return f"{each.kind} {each.site}"
    # two dictionaries may read one site; what a head is on the way to has its position in it, and stands before it on a path
    name = f" of {each.name}" if each.name and each.kind != "head" else ""
    return nodes.label(node).rpartition(" @")[0] + name
