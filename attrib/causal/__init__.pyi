from .edits import Ablate, Add, Edit, Head, Latents, Scale, Set, parse_edit, text_of

__all__ = [
    "Ablate",
    "Add",
    "Edit",
    "Head",
    "Latents",
    "Scale",
    "Set",
    "parse_edit",
    "text_of",
]
