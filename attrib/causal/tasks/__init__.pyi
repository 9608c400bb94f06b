from .answering import Answers, logit_differences
from .effects import Effects, latent_effects
from .examples import Example, Item, Task, encoded, pairs

__all__ = ["Answers", "Effects", "Example", "Item", "Task", "encoded", "latent_effects", "logit_differences", "pairs"]
