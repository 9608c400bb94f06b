from .build import build
from .graph import Graph
from .nodes import Nodes, NodeSet
from .outputs import Custom, Span

__all__ = ["Custom", "Graph", "NodeSet", "Nodes", "Span", "build"]
