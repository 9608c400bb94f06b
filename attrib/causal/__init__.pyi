from .edits import Ablate, Add, Edit, Head, Latents, Scale, Set, parse_edit, text_of
from .intervening import PreActivations, intervene

__all__ = [
    "Ablate",
    "Add",
    "Edit",
    "Head",
    "Latents",
    "PreActivations",
    "Scale",
    "Set",
    "intervene",
    "parse_edit",
    "text_of",
]
