from .building import build
from .graph import Graph
from .neurons import Neurons
from .nodes import Nodes, NodeSet
from .outputs import Custom, Span
from .ov import OVNorms, ov_norms
from .pruning import Pruned, prune
from .scoring import CONSTANTS, Scores, influence, scores
from .vocabulary import TokenWeights, de_embeddings, logit_weights
from .weights import VirtualWeights, global_weights, virtual_weights

__all__ = [
    "CONSTANTS",
    "Custom",
    "Graph",
    "Neurons",
    "NodeSet",
    "Nodes",
    "OVNorms",
    "Pruned",
    "Scores",
    "Span",
    "TokenWeights",
    "VirtualWeights",
    "build",
    "de_embeddings",
    "global_weights",
    "influence",
    "logit_weights",
    "ov_norms",
    "prune",
    "scores",
    "virtual_weights",
]
