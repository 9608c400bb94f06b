"""Which prompts of a data set were read: intervals of their numbers, so that nothing is counted twice."""

from collections.abc import Iterable

import numpy as np

from attrib.core.types import InputError

Spans = tuple[tuple[int, int], ...]
"""Ascending intervals, each from its first number to the one behind its last; they neither meet nor touch."""


def spans_of(numbers: Iterable[int]) -> Spans:
    """The intervals of some numbers. Raises InputError where one is there twice."""
    return united([(number, number + 1) for number in numbers])


def united(spans: Iterable[tuple[int, int]]) -> Spans:
    """Intervals put together. Raises InputError where two have a number in common."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first < found[-1][1]:
            raise InputError(f"prompts: number {first} is there twice; expected each prompt once. Number those of another source anew.")
        if found and first == found[-1][1]:
            found[-1] = found[-1][0], last
        else:
            found.append((first, last))
    return tuple(found)


def count(spans: Spans) -> int:
    """How many numbers there are."""
    return sum(last - first for first, last in spans)


def fault(spans: np.ndarray) -> str | None:
    """What keeps pairs of numbers [spans, 2] from being intervals as above."""
    flat = spans.ravel()
    if len(flat) and (flat[0] < 0 or (np.diff(flat) <= 0).any()):
        return "the intervals of prompts do not ascend from 0"
    return None
