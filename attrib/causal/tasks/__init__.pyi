from .answering import Answers, logit_differences
from .effects import Effects, latent_effects
from .examples import Example, Item, Task, encoded, pairs
from .figures import effects_figure, parity_figure
from .generated import generated_task
from .memory import parameter_memory
from .operations import OPERATIONS, Batch
from .readers import Fields, read_task, task_named
from .results import TaskResults, faults, open_results
from .running import run_task
from .tables import (
    activation_summary,
    base_against_spliced,
    classification,
    correctness,
    effects_of_latents,
    one_against_another,
    top_latents,
)
from .templates import BOOLQ, RTE, Template, filled, template_named

__all__ = [
    "BOOLQ",
    "OPERATIONS",
    "RTE",
    "Answers",
    "Batch",
    "Effects",
    "Example",
    "Fields",
    "Item",
    "Task",
    "TaskResults",
    "Template",
    "activation_summary",
    "base_against_spliced",
    "classification",
    "correctness",
    "effects_figure",
    "effects_of_latents",
    "encoded",
    "faults",
    "filled",
    "generated_task",
    "latent_effects",
    "logit_differences",
    "one_against_another",
    "open_results",
    "pairs",
    "parameter_memory",
    "parity_figure",
    "read_task",
    "run_task",
    "task_named",
    "template_named",
    "top_latents",
]
