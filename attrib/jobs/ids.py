"""The token ids of a job's prompts, of texts of any length: no more of a text is tokenised than is asked for.

A tokenizer takes some hundred times the memory of its text. Where only the first tokens are wanted, or whether there are
more of them than may be, the text's beginning does.
"""

from typing import Any

import torch
from torch import Tensor

from attrib.core.types import InputError
from attrib.jobs.told import PromptsOf
from attrib.models.tokens import check_ids, to_ids
from attrib.models.transformer import Model
from attrib.runs.prompts import Given

LONGEST_TEXT = 1 << 21
"""Characters that are tokenised at once, at most."""
CHARACTERS = 16
"""How many characters of a text's beginning are tokenised at first, for each token that is wanted of it."""
BEYOND = 64
"""Tokens behind those that are taken, and as many as those: so far from where a text is cut, the cut changes nothing."""


def parts_of(model: Model, number: int, found: Given, of: PromptsOf) -> tuple[list[Tensor], str]:
    """A prompt's token ids, in several parts where it is split; or none, and why."""
    if found.prompt is None:
        return [], found.fault
    longest = of.max_tokens or model.config.n_ctx
    try:
        ids, is_whole = _ids(model, number, found.prompt, longest, of.long == "split")
        if len(ids) > longest and of.long == "refuse":
            return [], f"has {len(ids)} tokens, more than {longest}" if is_whole else f"has more than {longest} tokens"
        parts = [ids[:longest]] if of.long == "truncate" else split(ids, longest, model.tokenizer.around if model.tokenizer else ([], []))
        for part in parts:
            check_ids(model, number, part)
    except InputError as error:
        return [], str(error).removeprefix(f"tokens: prompt {number} ")
    return parts, ""


def split(ids: Tensor, longest: int, around: tuple[list[int], list[int]]) -> list[Tensor]:
    """A document's tokens, so many at a time; each part has around it what the tokenizer puts there, where the document has."""
    if len(ids) <= longest:
        return [ids]
    before, behind = (ids.new_tensor(side) for side in around)
    before = before if torch.equal(ids[: len(before)], before) else before[:0]
    behind = behind if torch.equal(ids[len(ids) - len(behind) :], behind) else behind[:0]
    if (room := longest - len(before) - len(behind)) < 1:
        raise InputError(f"cannot be split: the tokenizer puts {longest - room} tokens around each part, and max_tokens is {longest}")
    inside = ids[len(before) : len(ids) - len(behind)]
    return [torch.cat([before, part, behind]) for part in inside.split(room)]


def _ids(model: Model, number: int, prompt: Any, longest: int, needs_all: bool) -> tuple[Tensor, bool]:
    """Token ids, and whether they are all: else their first `longest` are, and there are more."""
    if isinstance(prompt, Tensor):
        return to_ids(model, number, prompt), True
    if not isinstance(prompt, str):
        _check_length(sum(len(message["content"]) for message in prompt))
        return to_ids(model, number, prompt), True
    enough = 2 * longest + BEYOND
    taken = CHARACTERS * enough
    while taken < len(prompt) and not needs_all:
        _check_length(taken, "that its first tokens follow from")
        ids, other = (to_ids(model, number, prompt[:length]) for length in (taken, taken * 7 // 8))
        if min(len(ids), len(other)) >= enough and ids[:longest].equal(other[:longest]):
            return ids, False
        taken *= 4  # of tokens that are long, or hang on what stands far behind them
    _check_length(len(prompt))
    return to_ids(model, number, prompt), True


def _check_length(length: int, which: str = "") -> None:
    if length > LONGEST_TEXT:
        raise InputError(f"has {length:,} characters {which}".rstrip() + f"; at most {LONGEST_TEXT:,} are tokenised at once. Cut it up.")
