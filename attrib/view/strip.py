"""A text with a bar under each of its tokens, as high as the token's number is large, in as many columns as there are.

Where there is colour the tokens have it, too: the deeper the larger. The bars say the same without.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from attrib.core.shown import BARS
from attrib.core.types import InputError
from attrib.view.sparks import NOT_FINITE, bar, level
from attrib.view.terminal import isolated, own, plain

MOST_LINES = 12
"""Lines of a text that are shown. Of a longer one they are those with the largest numbers, and what lies between is counted."""
_DEEPEST = (0, 114, 178)


class _Piece(NamedTuple):
    """A token, or what of it stands on one line."""

    text: str
    cells: int
    value: float


def strip(strings: Sequence[str], values: Sequence[float | int], width: int) -> Text:
    r"""Lines of tokens, with a line of bars under each.

    A token is text of any origin: control characters become escapes such as \x1b, what is written from right to left is kept apart, so
    that it turns nothing else around, and what takes no room becomes an escape. A bar is as wide as its token.

    Args:
        strings: of the tokens.
        values: a number of at least zero for each. What is not finite is a question mark.
        width: columns of a line; at least two, which a character may take.

    Raises:
        InputError: where there are not as many values as tokens.
    """
    if len(values) != len(strings):
        raise InputError(f"values: {len(values)} of them for {len(strings)} tokens; expected one for each.")
    numbers = list(map(float, values))
    largest = max(filter(math.isfinite, numbers), default=0.0)
    lines = list(_lines(strings, numbers, max(2, width)))
    found = Text()
    last = -1
    for number in _shown(lines):
        found.append(_left_out(number - last - 1))
        for text, _, value in lines[number]:
            found.append(text, _style(_height(value, largest)))
        bars = "".join((bar(_height(value, largest)) if math.isfinite(value) else NOT_FINITE) * cells for _, cells, value in lines[number])
        found.append(f"\n{own(bars).rstrip()}\n")
        last = number
    found.append(_left_out(len(lines) - last - 1))
    return found


def _lines(strings: Sequence[str], values: Sequence[float], width: int) -> Iterator[list[_Piece]]:
    """Tokens side by side; one for which there is too little room goes on in the next line."""
    line: list[_Piece] = []
    column = 0
    for string, value in zip(strings, values, strict=True):
        piece, cells = "", 0
        for char in _visible(string):
            size = cell_len(char)
            if column + cells + size > width:
                if piece:
                    line.append(_Piece(isolated(piece), cells, value))
                yield line
                line, column, piece, cells = [], 0, "", 0
            piece, cells = piece + char, cells + size
        line.append(_Piece(isolated(piece), cells, value))
        column += cells
    if line:
        yield line


def _visible(string: str) -> str:
    """A token as it is shown, which takes at least one column: a mark alone would stand on the token before it."""
    text = plain(string)
    if not text:
        return "''"
    if unicodedata.combining(text[0]) or not cell_len(text):
        return text[0].encode("unicode_escape").decode() + text[1:]
    return text


def _shown(lines: Sequence[Sequence[_Piece]]) -> list[int]:
    """The numbers of the lines that are shown, ascending."""
    weight = [max((piece.value if math.isfinite(piece.value) else math.inf for piece in line), default=0.0) for line in lines]
    return sorted(sorted(range(len(lines)), key=lambda number: -weight[number])[:MOST_LINES])


def _left_out(lines: int) -> str:
    return f"[{lines:,} more {'lines' if lines > 1 else 'line'}]\n" if lines else ""


def _height(value: float, largest: float) -> int:
    return level(value, largest) if math.isfinite(value) else 0


def _style(height: int) -> Style:
    """Dark on a light ground, or light on the deepest one."""
    if not height:
        return Style.null()
    red, green, blue = (round(255 + (deep - 255) * height / len(BARS)) for deep in _DEEPEST)
    return Style.parse(f"{'white' if height == len(BARS) else 'black'} on rgb({red},{green},{blue})")
