from .building import build
from .comparing import Average, Comparison, EdgeTable, Stability, average, compare, stability, union
from .graph import Graph
from .keys import Key, KeyTable, key_of
from .merging import MergedGraph, merge, merge_positions
from .neurons import Neurons
from .nodes import Nodes, NodeSet
from .outputs import Custom, Span
from .ov import OVNorms, ov_norms
from .pruning import Pruned, prune
from .scoring import CONSTANTS, Scores, influence, scores
from .supernodes import read_supernodes, write_supernodes
from .vocabulary import TokenWeights, de_embeddings, logit_weights
from .weights import VirtualWeights, global_weights, virtual_weights

__all__ = [
    "CONSTANTS",
    "Average",
    "Comparison",
    "Custom",
    "EdgeTable",
    "Graph",
    "Key",
    "KeyTable",
    "MergedGraph",
    "Neurons",
    "NodeSet",
    "Nodes",
    "OVNorms",
    "Pruned",
    "Scores",
    "Span",
    "Stability",
    "TokenWeights",
    "VirtualWeights",
    "average",
    "build",
    "compare",
    "de_embeddings",
    "global_weights",
    "influence",
    "key_of",
    "logit_weights",
    "merge",
    "merge_positions",
    "ov_norms",
    "prune",
    "read_supernodes",
    "scores",
    "stability",
    "union",
    "virtual_weights",
    "write_supernodes",
]
