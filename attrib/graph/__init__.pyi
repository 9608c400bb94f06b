from .building import build
from .graph import Graph
from .nodes import Nodes, NodeSet
from .outputs import Custom, Span
from .pruning import Pruned, prune
from .scoring import CONSTANTS, Scores, influence, scores

__all__ = [
    "CONSTANTS",
    "Custom",
    "Graph",
    "NodeSet",
    "Nodes",
    "Pruned",
    "Scores",
    "Span",
    "build",
    "influence",
    "prune",
    "scores",
]
