from .ov import OVNorms, ov_norms
from .vocabulary import TokenWeights, de_embeddings, logit_weights
from .weights import VirtualWeights, global_weights, virtual_weights

__all__ = [
    "OVNorms",
    "TokenWeights",
    "VirtualWeights",
    "de_embeddings",
    "global_weights",
    "logit_weights",
    "ov_norms",
    "virtual_weights",
]
