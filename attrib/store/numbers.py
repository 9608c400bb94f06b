"""Whole numbers that a caller gives, of prompts or of latents: checked under the argument's name, before anything is read."""

import operator
from collections.abc import Collection
from typing import Any

from attrib.core.types import InputError

LIMIT = 1 << 63
"""What a column of integers holds is below."""
LATENTS = "a latent's number, a vocabulary id, or -1; or several, as a list or a tensor of integers"
LISTED = 12
"""Numbers that an error lists, where some between them are not there."""
PROMPTS = "a prompt's number, or several, as a slice, a list or a tensor of integers"


def checked_number(argument: str, given: Any, expected: str) -> int:
    """One number: Python's or numpy's, or an array or a tensor without dimensions. A bool is none. Raises InputError."""
    value = given.tolist() if hasattr(given, "tolist") else given
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InputError(f"{argument}: {given!r:.60}; expected {expected}.") from None


def checked_numbers(argument: str, given: Any, expected: str) -> list[int]:
    """One number, or several: a sequence, a set, or an array or a tensor of one dimension. Raises InputError."""
    value = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(value, Collection) or isinstance(value, str | bytes):
        return [checked_number(argument, given, expected)]
    if {*map(type, value)} <= {int}:  # a million prompts are not gone through one by one
        return list(value)
    return [checked_number(argument, each, expected) for each in value]


def told(numbers: Collection[int]) -> str:
    """Which prompts there are, as an error says it: those that follow one another by the first and the last, others one by one."""
    found = sorted(numbers)
    if not found:
        return "none"
    if found[-1] - found[0] == len(found) - 1:
        return f"numbers {found[0]} to {found[-1]}" if len(found) > 1 else f"number {found[0]}"
    if len(found) <= LISTED:
        return f"numbers {', '.join(map(str, found))}"
    return f"numbers {', '.join(map(str, found[: LISTED - 1]))}, and more up to {found[-1]}"


def checked_latents(argument: str, given: Any) -> list[int] | None:
    """Numbers of latents; None for all of them. Raises InputError."""
    if given is None:
        return None
    found = checked_numbers(argument, given, LATENTS)
    if outside := [latent for latent in found if not -1 <= latent < LIMIT]:
        raise InputError(f"{argument}: {outside[0]}; expected {LATENTS}.")
    return found


def checked_slice(argument: str, given: slice) -> slice:
    """A slice of numbers or None. Raises InputError, for a step of 0 too."""
    expected = f"a step other than 0, and bounds that are whole numbers, in {given!r:.60}"
    ends = [None if end is None else checked_number(argument, end, expected) for end in (given.start, given.stop, given.step)]
    if ends[2] == 0:
        raise InputError(f"{argument}: 0; expected {expected}.")
    return slice(*ends)
