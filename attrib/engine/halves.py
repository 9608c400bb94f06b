"""A pack's sweeps, one after the other; and what is done where the device has less memory free than was planned with."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch

Shared = TypeVar("Shared")
"""What all sweeps of a pack share."""
Found = TypeVar("Found")
"""What one of them finds."""


class Run(NamedTuple):
    """Which rows a sweep took."""

    first: int
    end: int
    is_last: bool


def in_halves(
    sweeps: Sequence[tuple[int, int]],
    share: Callable[[], Shared],
    sweep: Callable[[Shared, int, int], Found],
    gives_up: Callable[[bool], bool],
) -> Iterator[tuple[Run, Found] | None]:
    """What each sweep finds, in order. None where memory did not suffice and all is to be done another way; nothing follows it.

    Args:
        sweeps: runs of rows `[first, end)`.
        share: makes what they share, before the first.
        sweep: does one.
        gives_up: whether there is another way, told whether it was `share` that ran out of memory. Where there is none, a sweep
            is done in halves, as far as its rows go.

    Warns:
        UserWarning: where a sweep is done in halves.
    """
    todo, shared, is_given_up = list(reversed(sweeps)), None, False
    while todo and not is_given_up:
        first, end = todo.pop()
        try:
            shared = share() if shared is None else shared
            found = [sweep(shared, first, end)]
        except torch.OutOfMemoryError:
            # nothing is tried again in here: an exception at hand holds the frames that it came from, and all their tensors
            if gives_up(shared is None):
                is_given_up = True
                continue
            if shared is None or end - first < 2:
                raise
            middle = (first + end) // 2
            warnings.warn(f"out of memory with {end - first} targets in one sweep; going on with halves of it.", stacklevel=3)
            todo += [(middle, end), (first, middle)]
            continue
        yield Run(first, end, not todo), found.pop()  # and keep none of it while the next is filled
    if is_given_up:
        del shared
        yield None
