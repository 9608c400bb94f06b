from . import tasks as tasks
from .ablating import ablate_each
from .ablations import Ablations
from .edits import Ablate, Add, Edit, Head, Latents, Scale, Set, parse_edit, text_of
from .intervening import PreActivations, intervene

__all__ = [
    "Ablate",
    "Ablations",
    "Add",
    "Edit",
    "Head",
    "Latents",
    "PreActivations",
    "Scale",
    "Set",
    "ablate_each",
    "intervene",
    "parse_edit",
    "tasks",
    "text_of",
]
