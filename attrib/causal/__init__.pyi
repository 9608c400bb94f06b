from .ablating import ablate_each
from .ablations import Ablations
from .continuing import Piece
from .edits import Ablate, Add, Edit, Head, Latents, Scale, Set, parse_edit, text_of
from .generating import Continuation, generate
from .intervening import PreActivations, intervene
from .losses import loss
from .sampling import Sampling, probabilities

__all__ = [
    "Ablate",
    "Ablations",
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
    "ablate_each",
    "generate",
    "intervene",
    "loss",
    "parse_edit",
    "probabilities",
    "text_of",
]
