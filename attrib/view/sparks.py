"""Sizes as bars of one character each, so that a distribution, or what a text's tokens are worth, stands in a line of a terminal."""

import math
from collections.abc import Iterable

from attrib.core.shown import BARS
from attrib.view.terminal import own

NOT_FINITE = "?"


def level(value: float, largest: float | int) -> int:
    """How high a number's bar is, 0 to 8: none for zero, at least the lowest for any other size, the highest from `largest` on."""
    size = abs(value)
    if size == 0 or not largest > 0:
        return 0
    return max(1, min(len(BARS), math.ceil(len(BARS) * min(1.0, size / largest))))


def spark(values: Iterable[float | int], largest: float | int | None = None) -> str:
    """A bar for the size of each number, and a space for zero; what is not finite is a question mark.

    Args:
        largest: the size that has the highest bar; None is the largest here.
    """
    found = list(map(float, values))
    most = max((abs(value) for value in found if math.isfinite(value)), default=0.0) if largest is None else largest
    return own("".join(bar(level(value, most)) if math.isfinite(value) else NOT_FINITE for value in found))


def in_cells(values: Iterable[float | int]) -> str:
    """`spark` for the cell of a table, beside others that it stands under: a point for zero, since blanks at a cell's end are cut."""
    return spark(values).replace(" ", ".")


def bar(height: int) -> str:
    """The bar of this height, 0 to 8."""
    return BARS[height - 1] if height else " "
