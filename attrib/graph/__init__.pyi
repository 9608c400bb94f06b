from .build import build
from .graph import Graph
from .nodes import Nodes, NodeSet
from .outputs import Custom, Span
from .qk import OWN, Attended, Marginals, QKAttribution, qk_attribution

__all__ = [
    "OWN", "Attended", "Custom", "Graph", "Marginals", "NodeSet", "Nodes", "QKAttribution", "Span", "build", "qk_attribution",
]  # fmt: skip
