"""How objects are shown: in one line, with shapes in place of tensors' numbers; in a notebook, as a small table beside that line."""

import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd

Kind = TypeVar("Kind", bound=type)
SHOWN = 8
"""Rows of a table that a notebook shows of an object that has many."""
LONGEST_CELL, LONGEST_LINE = 200, 1_000
"""Characters that a notebook shows of a cell, and of a line above a table: a notebook keeps what it showed in its file."""
BARS = "▁▂▃▄▅▆▇█"
"""From the lowest to the highest. Where a terminal's encoding has them not, they are the digits 1 to 8."""
_JOINERS = "\u200c\u200d"
"""They turn nothing around, and Persian and emoji are written with them."""


def harmless(text: object) -> str:
    r"""Text of any origin on one line.

    Control characters (an ESC could move a cursor or rename a window), marks that turn the direction of writing, and halves of
    surrogate pairs, become escapes such as \x1b.
    """
    return "".join(char if _is_shown(char) else char.encode("unicode_escape").decode() for char in str(text))


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


def in_html(said: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """What a notebook shows of an object: what is said of it, and a small table. No text of it is read as markup, and long text is cut.

    Args:
        said: one line, or several.
        head: names of the columns; where there are none, the first cell of each row is its name.
    """
    lines = "<br>".join(escape(_cut(harmless(line), LONGEST_LINE)) for line in said.split("\n"))
    names = "".join(f'<th scope="col">{escape(harmless(name))}</th>' for name in head)
    first = "td" if head else 'th scope="row"'
    cells = [[_cell(value) for value in row] for row in rows]
    body = "".join(f"<tr><{first}>{row[0]}</{first[:2]}>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in cells)
    table = f"<table>{f'<thead><tr>{names}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>" if cells else ""
    return f"<div><p>{lines}</p>{table}</div>"


def frame_in_html(said: str, frame: "pd.DataFrame") -> str:
    """The same of a frame of pandas, all of whose rows are shown."""
    return in_html(said, [str(name) for name in frame.columns], frame.itertuples(index=False, name=None))


def _cell(value: object) -> str:
    return escape(_cut(harmless(f"{value:.4g}" if isinstance(value, float) else value), LONGEST_CELL))


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def shown(value: Any) -> str:
    """A tensor as its dtype and shape, a run of alike objects as how many of what, a function by its name; else as Python does."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        kinds = {type(each).__name__ for each in value}
        if len(value) > 3 and len(kinds) == 1:
            return f"{len(value)} of {kinds.pop()}"
        return f"({', '.join(map(shown, value))})"
    if hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return repr(value)


def record(self: Any) -> str:
    """`__repr__` of a named tuple of tensors."""
    return f"{type(self).__name__}({', '.join(f'{name}={shown(value)}' for name, value in zip(self._fields, self, strict=True))})"


def in_one_line(kind: Kind) -> Kind:
    """A class of named tuples of tensors, each of which is shown in one line."""
    kind.__repr__ = record  # type: ignore[assignment]
    return kind
