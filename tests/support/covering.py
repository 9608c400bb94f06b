"""Few combinations of many choices, in which any two choices still meet.

A fault of a combination is nearly always one of two choices that do not go together: whoever tries every pair finds it, with a small
part of the combinations. Which those are is chosen greedily and always alike, so that a test has the same name in every process.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Row = dict[str, Any]


def pairs_of(row: Mapping[str, Any]) -> list[tuple[tuple[str, Any], ...]]:
    """Every two choices of a combination."""
    return [*combinations(row.items(), 2)]


def pairwise(choices: Mapping[str, Sequence[Any]], is_possible: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Combinations of one value for each name, such that any two values that can meet do so in one of them.

    Args:
        is_possible: whether a whole combination can be asked for.
    """
    every = [row for values in product(*choices.values()) if is_possible(row := dict(zip(choices, values, strict=True)))]
    numbers: dict[tuple[tuple[str, Any], ...], int] = {}
    masks = [sum(1 << numbers.setdefault(pair, len(numbers)) for pair in pairs_of(row)) for row in every]
    left, found = (1 << len(numbers)) - 1, []
    queue = [(-mask.bit_count(), at) for at, mask in enumerate(masks)]
    heapq.heapify(queue)
    while left:  # what a combination still brings only ever falls, so the best is one that brings what it was last found to bring
        promised, at = heapq.heappop(queue)
        brings = -(masks[at] & left).bit_count()
        if brings == promised:
            found.append(every[at])
            left &= ~masks[at]
        elif brings:
            heapq.heappush(queue, (brings, at))
    return found


def named(row: Row) -> str:
    """A combination as the name of a test."""
    return "-".join(str(value).replace("Policy", "") for value in row.values())


def each_pair(is_possible: Callable[[Row], bool] = lambda row: True, **choices: Sequence[Any]) -> pytest.MarkDecorator:
    """A test of combinations in which any two of the choices meet, each choice as the argument of its name."""
    rows = pairwise(choices, is_possible)
    return pytest.mark.parametrize(",".join(choices), [tuple(row.values()) for row in rows], ids=[named(row) for row in rows])
