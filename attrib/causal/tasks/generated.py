"""Tasks that are made rather than read: subject-verb agreement, and indirect objects (attrib/causal/generators.py has the prompts).

Where all prompts share two answers, as agreement has " is" and " are", the label says which is right; else each prompt has its own.
"""

from attrib.adapters.given import as_model, takes
from attrib.causal import generators
from attrib.causal.tasks.examples import Example, Task
from attrib.core.types import InputError
from attrib.models.transformer import Model

GENERATED = {"agreement": generators.subject_verb_agreement, "indirect-objects": generators.indirect_objects}
"""By the name that `generated_task` takes."""


@takes(model=as_model)
def generated_task(name: str, model: Model, n: int = 64, *, seed: int = 0) -> Task:
    """A task whose words are single tokens of the model's tokenizer.

    Args:
        name: "agreement" or "indirect-objects".
        n: how many examples, all different.
        seed: which ones; the same seed gives the same.

    Raises:
        InputError: for another name, a model without a tokenizer or with too few of the words as single tokens, and more examples than
            there are.
    """
    if name not in GENERATED:
        raise InputError(f"name: {name!r}; expected {', '.join(map(repr, GENERATED))}.")
    return of_generated(GENERATED[name](model, n, 1, seed=seed), name)


def of_generated(made: generators.Contrasts, name: str) -> Task:
    """The first part of a generator's prompts, as a task."""
    shared = sorted({token for each in made.train for token in (each.answer, each.distractor)})
    if len(shared) > 2:
        return Task(name, [Example(each.text, (each.answer, each.distractor), where=each.label) for each in made.train])
    return Task(name, [Example(each.text, tuple(shared), shared.index(each.answer), each.label) for each in made.train])
