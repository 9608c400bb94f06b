from .build import build
from .graph import Graph
from .heads import HeadLoadings, head_loadings
from .nodes import Nodes, NodeSet
from .outputs import Custom, Span
from .qk import OWN, Attended, Marginals, QKAttribution, qk_attribution

__all__ = [
    "OWN", "Attended", "Custom", "Graph", "HeadLoadings", "Marginals", "NodeSet", "Nodes", "QKAttribution", "Span", "build",
    "head_loadings", "qk_attribution",
]  # fmt: skip
