"""Edits over a prompt and what is generated behind it: what stands at each place, while the prompt is read and at every step.

An edit's positions are those of the prompt. One without positions, and one whose positions are a slice that is open to the right
("2:", "-1:"), go on over all that is generated. There all prompts of a batch have one new position each, and what an edit makes of it
depends on that position alone, so a batch changes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from attrib.causal.changes import Change, changes_of
from attrib.causal.edits import Ablate, Edit, EditsLike, Set, as_edits, text_of
from attrib.causal.references import OfPrompt, settled
from attrib.causal.splicing import NOTHING, Pass, Splice, by_place, splice
from attrib.core.positions import PositionsLike, plain_positions
from attrib.core.types import InputError, Site
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model, Put

Edited = Literal["all", "prompt", "generated"]
"""Where edits are made: at their positions in the prompt and onward, or in one of the two alone."""


@dataclass(frozen=True)
class Onward:
    """A model with dictionaries in it, and edits of prompts and of what is generated behind them."""

    splice: Splice
    of_prompt: OfPrompt
    generated: tuple[Change, ...]
    """Of a position behind the prompt."""
    edited: str

    def in_prompt(self, number: int, length: int) -> tuple[Change, ...]:
        """The edits of one prompt. Raises InputError for those that cannot be made in it."""
        edits = () if self.edited == "generated" else self.of_prompt(number, length)
        return changes_of(self.splice.model, self.splice.dictionaries, edits, length, number)

    def put(self, changes: Sequence[Change]) -> Put | None:
        """What stands at each place of one pass under changes; None where that is what the model itself has."""
        if not changes and not any(errors is False for errors in self.splice.errors):
            return None
        under_way = Pass(NOTHING, by_place(changes))

        def stands(at: Site, value: Tensor) -> Tensor:
            return self.splice.stands(under_way, at, value)

        return stands


def onward(model: Model, dictionaries: Sequence[Dictionary], edits: EditsLike, errors: Any, edited: str) -> Onward:
    """Edits found good for generation.

    Args:
        errors: "live" or False; one for all dictionaries, or one for each.

    Raises:
        InputError: for edits, dictionaries and errors that cannot be, and for edits without effect.
    """
    if edited not in get_args(Edited):
        raise InputError(f"edited: {edited!r}; expected {', '.join(map(repr, get_args(Edited)))}.")
    given = as_edits(edits)
    if edited != "all" and not given:
        raise InputError(f"edited: {edited!r} without edits; give some, or leave it out.")
    made = splice(model, dictionaries, "total", errors)
    if any(of_each is True for of_each in made.errors):
        raise InputError(
            "errors: True holds what stands there without edits, and without edits other tokens would be generated; expected 'live' or "
            "False."
        )
    going_on = [] if edited == "prompt" else [edit for nth, edit in enumerate(given) if _goes_on(edit, _argument(nth, given), edited)]
    of_prompt = settled(made, given)
    fixed = settled(made, going_on)(0, 1) if going_on else ()
    generated = changes_of(model, made.dictionaries, [_of_rows(edit) for edit in fixed], 1)
    return Onward(made, of_prompt, generated, edited)


def _argument(nth: int, given: Sequence[Edit]) -> str:
    return "edits" if len(given) == 1 else f"edits[{nth}]"


def _goes_on(edit: Edit, argument: str, edited: str) -> bool:
    """Whether an edit is made at generated positions too. Raises InputError where nobody could say at which, or to what."""
    if not is_open(edit.positions, f"{argument}: {text_of(edit)}"):
        if edited == "generated":
            raise InputError(
                f"{argument}: {text_of(edit)} is at positions of the prompt, where edited='generated' makes none; leave its positions out."
            )
        return False
    if isinstance(edit, Ablate) and edit.how == "resample":
        raise InputError(
            f"{argument}: {text_of(edit)} has no values for positions that are generated; say edited='prompt', or which positions of the "
            "prompt it is for."
        )
    return True


def is_open(positions: PositionsLike, named: str) -> bool:
    """Whether positions go on behind a prompt: all, and slices that are open to the right. Raises InputError for those in steps."""
    plain = plain_positions(positions, ())
    if plain is None:
        return True
    if not isinstance(plain, str):
        return False
    _, stop, *step = plain.split(":")
    if stop.strip():
        return False
    if step and step[0].strip() not in ("", "1"):
        raise InputError(f"{named}: positions in steps do not go on behind the prompt; give them as numbers, or take a slice without step.")
    return True


def _of_rows(edit: Edit) -> Edit:
    """The edit of one position of every row, each by itself."""
    edit = edit._replace(positions=None)
    if isinstance(edit, Set) and callable(edit.value):
        return edit._replace(value=_row_by_row(edit.value))
    return edit


def _row_by_row(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """A function of one prompt's positions, for rows that are prompts of one position each."""

    def of_rows(v: Tensor) -> Tensor:
        return torch.stack([torch.as_tensor(function(row)).to(row).expand(row.shape) for row in v])

    return of_rows
