from .building import build
from .comparing import Average, Comparison, EdgeTable, Stability, average, compare, stability, union
from .files.circuit_tracer_reading import from_circuit_tracer
from .files.circuit_tracer_writing import to_circuit_tracer
from .files.networks import to_networkx, write_graphml
from .files.neuronpedia_reading import from_neuronpedia
from .files.neuronpedia_writing import to_neuronpedia
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
    "from_circuit_tracer",
    "from_neuronpedia",
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
    "to_circuit_tracer",
    "to_networkx",
    "to_neuronpedia",
    "union",
    "virtual_weights",
    "write_graphml",
    "write_supernodes",
]
