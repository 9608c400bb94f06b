"""Paths into one node of a graph as a tree: what they have in common at their end stands once."""

from collections.abc import Sequence

from rich.text import Text
from rich.tree import Tree

from attrib.graph.graph import Graph
from attrib.graph.nodes import NAMED_KINDS
from attrib.graph.paths import Path
from attrib.view.terminal import isolated, own, plain


def tree(graph: Graph, paths: Sequence[Path], title: str = "") -> Tree:
    """The node that all paths end at, beneath it the nodes that they come from, and so on down to where they begin.

    Before each node stands the attribution of its edge to the node above it, and behind one at which a path of several edges begins, that
    path's value.
    Branches stand in the order of the paths.

    Args:
        paths: into one node, at least one, as `attrib.graph.strongest` finds them.
        title: what stands behind the node at the top.
    """
    root = Tree(Text(f"{name(graph, paths[0].nodes[0])}{plain(title)}"))
    branches, labels = {paths[0].nodes[:1]: root}, dict[tuple[int, ...], Text]()
    for path in paths:
        for length, (node, weight) in enumerate(zip(path.nodes[1:], path.weights, strict=True), start=2):
            way = path.nodes[:length]
            if way not in branches:
                labels[way] = Text.assemble((f"{weight:+.3g}", _style(weight)), f" {name(graph, node)}")
                branches[way] = branches[way[:-1]].add(labels[way])
        if path.weights not in ((), (path.value,)):  # of one edge, the value stands there
            labels[path.nodes].append(f"  (path {path.value:+.3g})", "dim")
    return root


def name(graph: Graph, node: int) -> str:
    """A node in few words, and the token that it stands at: `mlp8[355]@4 ' is'`."""
    position, nodes = int(graph.nodes.position[node]), graph.nodes
    label = isolated(own(plain(nodes.short(node))))
    if nodes.kind(node) in NAMED_KINDS or not 0 <= position < len(graph.strings):
        return label
    return f"{label} {isolated(plain(repr(graph.strings[position])))}"


def _style(weight: float) -> str:
    return "bright_blue" if weight > 0 else "dark_orange"
