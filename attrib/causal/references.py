"""Where ablations take their values from: what other prompts have there, on the model's own pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.causal.changes import Edited, edited_by
from attrib.causal.edits import Ablate, Edit, Set, text_of
from attrib.causal.splicing import BUDGET, Splice
from attrib.core.positions import positions_in
from attrib.core.types import ErrorAt, InputError, Site
from attrib.dictionaries.dictionary import encode
from attrib.models.tokens import to_prompts
from attrib.models.transformer import place

Rows = Float[Tensor, "_ *of_each"]
OfPrompt = Callable[[int, int], tuple[Edit, ...]]
"""The edits of a prompt, by its number and its length."""


def settled(splice: Splice, edits: Sequence[Edit], budget: int = BUDGET) -> OfPrompt:
    """Put values in the place of ablations that take theirs from other prompts, each of which is passed once.

    Args:
        budget: bytes that prompts may take that go together.

    Returns:
        The edits of each prompt: all alike, but for a resampling without seed.

    Raises:
        InputError: for `of` that is no prompt, what is edited and is not there; and, as a prompt's edits are asked for, where
            the prompt to be resampled from is missing or has another length.
    """
    asked: dict[int, list[tuple[int, Ablate, Edited]]] = {}
    for nth, edit in enumerate(edits):
        if isinstance(edit, Ablate) and edit.how != "zero" and not _is_value(edit.of):
            argument = "edits" if len(edits) == 1 else f"edits[{nth}]"
            edited = edited_by(splice.model, splice.dictionaries, edit.what, argument)
            asked.setdefault(id(edit.of), []).append((nth, edit, edited))
    found: dict[int, Callable[[int, int], Edit]] = {}
    for several in asked.values():
        rows = _rows(splice, several[0][1].of, [edited for _, _, edited in several], budget)
        found |= {nth: _settle(edit, of_each) for (nth, edit, _), of_each in zip(several, rows, strict=True)}

    def of_prompt(number: int, length: int) -> tuple[Edit, ...]:
        return tuple(found[nth](number, length) if nth in found else _with_mean(edit) for nth, edit in enumerate(edits))

    return of_prompt


def _is_value(of: Any) -> bool:
    return isinstance(of, Tensor) and of.is_floating_point()


def _with_mean(edit: Edit) -> Edit:
    """An ablation to a mean that was given, as what it is."""
    return Set(edit.what, edit.of, edit.positions) if isinstance(edit, Ablate) and edit.how == "mean" else edit


def _settle(edit: Ablate, rows: Sequence[Rows]) -> Callable[[int, int], Edit]:
    if edit.how == "mean":
        mean = torch.cat([*rows]).mean(0)
        return lambda number, length: Set(edit.what, mean, edit.positions)
    return lambda number, length: Set(edit.what, _resampled(edit, rows, number, length), edit.positions)


def _resampled(edit: Ablate, rows: Sequence[Rows], number: int, length: int) -> Rows:
    """The values of a prompt's edited positions, ascending."""
    at = torch.tensor(sorted({*positions_in(edit.positions, length, number)}), device=rows[0].device)
    if edit.seed is not None:
        # which are drawn depends on no other prompt, and edits of one seed draw the same: they are resampled together
        drawn: Int[Tensor, " drawn"] = torch.randint(sum(map(len, rows)), (length,), generator=torch.Generator().manual_seed(edit.seed))
        return torch.cat([*rows]).index_select(0, drawn.to(at.device).index_select(0, at))
    if len(rows) > 1 and number >= len(rows):
        raise InputError(
            f"edits: {text_of(edit)} has {len(rows)} prompts to take values from, and prompt {number} has none; expected one for all, one "
            "for each, or a seed by which positions are drawn."
        )
    of = rows[0] if len(rows) == 1 else rows[number]
    if len(of) != length:
        raise InputError(
            f"edits: {text_of(edit)} takes the values of prompt {number}, of {length} tokens, from one of {len(of)}, position by position; "
            "expected as many. Give a prompt of that length, or a seed by which positions are drawn."
        )
    return of.index_select(0, at)


@torch.no_grad()
def _rows(splice: Splice, of: Any, what: Sequence[Edited], budget: int) -> list[list[Rows]]:
    """For everything that is edited, what stands there in each prompt."""
    model = splice.model
    found: list[list[Rows]] = [[] for _ in what]
    prompts, also = to_prompts(model, of), [edited.place for edited in what if isinstance(edited.place, Site)]
    for some, packed, embedded in splice.side_by_side(prompts, budget):
        with packed.named(some.start):
            clean = splice.clean(embedded, also, packed)
            for of_each, (at, columns, shape) in zip(found, what, strict=True):
                match at:
                    case int():
                        dictionary = splice.dictionaries[at]
                        value = encode(dictionary, clean.recorded.values[place(model, dictionary.site)])
                    case ErrorAt(site=site):
                        value = clean.errors[Site.parse(site)]
                    case _:
                        value = clean.recorded.values[at]
                chosen = value if columns is None else value[:, list(columns)]
                of_each.extend(packed.each(chosen.reshape(len(chosen), *shape)))
    return found
