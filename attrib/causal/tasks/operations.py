"""What is asked of each batch of a task, by name: functions from a batch to rows of samples and rows of latents.

base       the model's own answers
spliced    answers with the dictionaries in the pass, and the activations of their latents there
gradient   what each latent does for the difference, by gradient at that pass
ablation   the same by taking it out; the answer counts as correct where it is with most of the latents out, one at a time
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from attrib.causal.tasks.answering import Answers, answers_of, base_logits
from attrib.causal.tasks.effects import By, Effects, effects_of
from attrib.causal.tasks.examples import Item
from attrib.causal.tasks.frames import FRAMES, LATENTS, check_frame, frame, joined_frames, latents_frame, samples_frame
from attrib.causal.tasks.memory import Phases
from attrib.causal.tasks.spliced import BUDGET, Spliced, spliced
from attrib.core.finite import of_prompts
from attrib.core.positions import Positions
from attrib.core.types import InputError
from attrib.models.transformer import Model, unembed
from attrib.passes.replacement import Replacement

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Batch:
    """A few examples, and what they are asked with."""

    model: Model
    replaced: Replacement
    names: Sequence[str]
    """Of the dictionaries."""
    items: Sequence[Item]
    numbers: Sequence[int]
    """Of the examples, in the data set."""
    errors: bool = False
    positions: Positions = -1
    budget: int = BUDGET

    @cached_property
    def passes(self) -> list[Spliced]:
        """Each example's pass with the dictionaries in it: made once for all operations."""
        with of_prompts(self.numbers):
            return spliced(self.replaced, [item.ids for item in self.items], errors=self.errors)

    @cached_property
    def answers(self) -> Answers:
        """What those passes say."""
        return answers_of(unembed(self.model, torch.stack([each.last for each in self.passes])), self.items, self.numbers)

    def effects(self, by: By | None) -> Effects:
        """What each latent does, or, with None, its activation alone."""
        with of_prompts(self.numbers):
            return effects_of(self.replaced, self.passes, self.items, by, self.positions, self.budget)


Rows = tuple["pd.DataFrame", "pd.DataFrame"]
"""Samples and latents, as frames.py has them."""
Operation = Callable[[Batch], Rows]


def base(batch: Batch) -> Rows:
    """The model's own answers; no rows of latents."""
    answers = answers_of(base_logits(batch.model, batch.items), batch.items, batch.numbers)
    return samples_frame(batch.model, batch.items, batch.numbers, "base", answers), frame(LATENTS)


def in_the_pass(batch: Batch) -> Rows:
    """Answers with the dictionaries in the pass, and which latents are active."""
    return _with("spliced", batch, batch.answers, batch.effects(None))


def by_gradient(batch: Batch) -> Rows:
    """Effects by gradient; the answers are those of the pass."""
    return _with("gradient", batch, batch.answers, batch.effects("gradient"))


def by_ablation(batch: Batch) -> Rows:
    """Effects by ablation; the answers are those of the pass, and correct is what most of the ablations leave right."""
    effects, correct = batch.effects("ablation"), batch.answers.correct.clone()
    for number in range(len(batch.items)):
        kept = effects.kept[effects.prompt == number]
        if len(kept):
            correct[number] = 2 * int(kept.sum()) > len(kept)
    return _with("ablation", batch, batch.answers._replace(correct=correct), effects)


def _with(name: str, batch: Batch, answers: Answers, effects: Effects) -> Rows:
    samples = samples_frame(batch.model, batch.items, batch.numbers, name, answers)
    return samples, latents_frame(batch.numbers, batch.names, name, effects)


OPERATIONS: dict[str, Operation] = {"base": base, "spliced": in_the_pass, "gradient": by_gradient, "ablation": by_ablation}
"""By name; all but "base" need dictionaries."""


def operations_of(given: Sequence[str] | dict[str, Operation], has_dictionaries: bool) -> dict[str, Operation]:
    """The operations that are asked for: by their names, or functions of one's own by theirs.

    Raises:
        InputError: for none, an unknown name, and those that need dictionaries where there are none.
    """
    known = ", ".join(OPERATIONS)
    if isinstance(given, str) or not given:
        raise InputError(f"operations: {given!r}; expected a list of at least one of {known}.")
    if unknown := [name for name in given if not isinstance(given, dict) and name not in OPERATIONS]:
        raise InputError(f"operations: {unknown[0]!r}; expected {known}, or a dict from a name to a function of a Batch.")
    found: dict[str, Any] = dict(given) if isinstance(given, dict) else {name: OPERATIONS[name] for name in given}
    if not has_dictionaries and (needing := [name for name in found if name in OPERATIONS and name != "base"]):
        raise InputError(f"operations: {needing[0]!r} is about dictionaries, and none is given; give one, or ask for base alone.")
    return found


def rows_of(batch: Batch, chosen: Mapping[str, Operation], phases: Phases) -> "dict[str, pd.DataFrame]":
    """All rows of a batch, by "samples" and "latents".

    Args:
        phases: measures what memory the pass and each operation take.

    Raises:
        InputError: for an operation that gives other columns.
    """
    if any(name in chosen for name in OPERATIONS if name != "base"):
        with phases.phase("pass"):
            batch.passes  # noqa: B018  so that its memory counts towards no operation
    parts = []
    for name, operation in chosen.items():
        with phases.phase(name):
            parts.append(dict(zip(FRAMES, operation(batch), strict=True)))
    for part in parts:
        for kind, columns in FRAMES.items():
            check_frame(part[kind], columns, "operations")
    return {kind: joined_frames(columns, [part[kind] for part in parts]) for kind, columns in FRAMES.items()}


def names_of(replaced: Replacement) -> list[str]:
    """What dictionaries are called in tables: their names, with the place that they read where a name is there twice."""
    names = [dictionary.name for dictionary in replaced.dictionaries]
    return [name if names.count(name) == 1 else f"{name} at {d.site}" for name, d in zip(names, replaced.dictionaries, strict=True)]
