from .continuing import Piece
from .edits import Ablate, Add, Edit, Head, Latents, Scale, Set, parse_edit, text_of
from .generating import Continuation, generate
from .intervening import PreActivations, intervene
from .sampling import Sampling, probabilities

__all__ = [
    "Ablate",
    "Add",
    "Continuation",
    "Edit",
    "Head",
    "Latents",
    "Piece",
    "PreActivations",
    "Sampling",
    "Scale",
    "Set",
    "generate",
    "intervene",
    "parse_edit",
    "probabilities",
    "text_of",
]
