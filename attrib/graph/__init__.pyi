from .graph import Graph
from .nodes import Nodes, NodeSet
from .pruning import Pruned, prune
from .scoring import CONSTANTS, Scores, influence, scores

__all__ = ["CONSTANTS", "Graph", "NodeSet", "Nodes", "Pruned", "Scores", "influence", "prune", "scores"]
