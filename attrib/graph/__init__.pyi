from .graph import Graph
from .nodes import Nodes, NodeSet

__all__ = ["Graph", "NodeSet", "Nodes"]
