from .continuing import Piece
from .generating import Continuation, generate
from .sampling import Sampling, probabilities

__all__ = ["Continuation", "Piece", "Sampling", "generate", "probabilities"]
