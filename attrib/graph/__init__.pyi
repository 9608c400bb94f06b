from .comparing import Average, Comparison, EdgeTable, Stability, average, compare, stability, union
from .graph import Graph
from .keys import Key, KeyTable, key_of
from .merging import MergedGraph, merge, merge_positions
from .nodes import Nodes, NodeSet
from .pruning import Pruned, prune
from .scoring import CONSTANTS, Scores, influence, scores
from .supernodes import read_supernodes, write_supernodes

__all__ = [
    "CONSTANTS",
    "Average",
    "Comparison",
    "EdgeTable",
    "Graph",
    "Key",
    "KeyTable",
    "MergedGraph",
    "NodeSet",
    "Nodes",
    "Pruned",
    "Scores",
    "Stability",
    "average",
    "compare",
    "influence",
    "key_of",
    "merge",
    "merge_positions",
    "prune",
    "read_supernodes",
    "scores",
    "stability",
    "union",
    "write_supernodes",
]
