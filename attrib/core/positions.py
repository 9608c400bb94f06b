"""At which positions of a prompt something is read: what callers write becomes one plain form, which JSON can hold.

That form is None, a number, a tuple of numbers, or a slice as text such as "1:" or "::2", since what a slice means
depends on each prompt's length.
"""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.devices import to_device
from attrib.core.types import InputError

Positions = None | int | tuple[int, ...] | str
"""The plain form."""
PositionsLike = Any
"""What callers give: None, a number, "last" or "all", a slice, or numbers in a list, tuple, range, array or tensor; or a mask, true
where a position is chosen, for prompts of its own length."""

EXPECTED = 'expected whole numbers, a mask of booleans as long as the prompt, a slice, "last" or "all"'


def plain_positions(given: PositionsLike, lengths: Sequence[int]) -> Positions:
    """The plain form of what was given, checked against the lengths of all prompts.

    Raises:
        InputError: for what is no choice of positions, and where a prompt has none of them; names the prompt and its length.
    """
    positions, masked = _plain(given)
    for number, length in enumerate(lengths):
        _in_prompt(positions, masked, length, number)
    return positions


def positions_in(given: PositionsLike, length: int, number: int) -> list[int]:
    """The positions of one prompt of several. Raises InputError where that is no choice, or the prompt has none of them, and names it."""
    return _in_prompt(*_plain(given), length, number)


def _in_prompt(positions: Positions, masked: int | None, length: int, number: int) -> list[int]:
    if masked is not None and length != masked:
        raise InputError(f"positions: a mask of {masked} for prompt {number}, which has {length} tokens; expected one for each token.")
    return list(numbers_of(positions, length, number))


def least_length(given: PositionsLike, most: int) -> int:
    """The least length up to `most` of a prompt that has all these positions; or `most`, where none of them is enough."""
    positions, masked = _plain(given)

    def has_them(length: int) -> bool:
        try:
            return bool(numbers_of(positions, length))
        except InputError:
            return False

    return min(masked, most) if masked else next(filter(has_them, range(1, most)), most)


def chosen_positions(positions: Positions, length: int, device: torch.device) -> Int[Tensor, " chosen"]:
    """Chosen positions, ascending and each once; negative ones count from the end, None is all."""
    return to_device(sorted(set(numbers_of(positions, length))), device)


def numbers_of(positions: Positions, length: int, prompt: int | None = None) -> Iterable[int]:
    """The positions as numbers from 0, as given. Raises InputError where a prompt of this length lacks one, or has none of them."""
    if positions is None:
        return range(length)
    of = f"a prompt of {length} tokens" if prompt is None else f"prompt {prompt}, which has {length} tokens"
    if isinstance(positions, str):
        if not (found := range(length)[_slice(positions)]):
            raise InputError(f"positions: {positions!r} chooses none of {of}.")
        return found
    wanted = (positions,) if isinstance(positions, int) else positions
    if not wanted or any(not -length <= p < length for p in wanted):
        shown = ", ".join(map(str, wanted[:8])) + (", ..." if len(wanted) > 8 else "")
        raise InputError(f"positions: [{shown}] for {of}; expected numbers from {-length} to {length - 1}.")
    return [p % length for p in wanted]


def _plain(given: PositionsLike) -> tuple[Positions, int | None]:
    """The plain form, and the length of the mask where it was one."""
    if given is None:
        return None, None
    if isinstance(given, str):
        if given in ("last", "all"):
            return (-1 if given == "last" else ":"), None
        _slice(given)
        return given, None
    if isinstance(given, slice):
        parts = given.start, given.stop, *(() if given.step is None else (given.step,))
        text = ":".join("" if part is None else str(_whole(part)) for part in parts)
        _slice(text)
        return text, None
    if isinstance(given, Tensor | np.ndarray):
        if given.ndim > 1:
            raise InputError(f"positions: of shape {list(given.shape)}; {EXPECTED}, and one choice for all prompts.")
        given = given.tolist()
    if isinstance(given, Iterable) and not isinstance(given, bytes | dict | set):
        numbers = [one.item() if isinstance(one, Tensor | np.generic) and one.ndim == 0 else one for one in given]
        if numbers and all(isinstance(one, bool) for one in numbers):
            return tuple(number for number, chosen in enumerate(numbers) if chosen), len(numbers)
        plain = tuple(map(_whole, numbers))
        if len(plain) > 2 and set(plain) <= {0, 1}:  # an attention mask has these; as numbers they say 0 and 1, again and again
            raise InputError(f"positions: {len(plain)} numbers that are all 0 or 1, as of a mask; give a mask as booleans, mask.bool().")
        return plain, None
    return _whole(given), None


def _whole(one: Any) -> int:
    if isinstance(one, bool) or not isinstance(one, Integral):
        raise InputError(f"positions: {one!r}; {EXPECTED}.")
    if abs(int(one)) >> 63:
        raise InputError("positions: a number of more than 64 bits; expected one that a prompt's length could have.")
    return int(one)


def _slice(text: str) -> slice:
    """A slice from its text."""
    parts = text.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] == 0):
        raise InputError(f"positions: {text!r}; {EXPECTED}; a slice as text is such as '1:' or '::2'.")
    return slice(*numbers)
