"""What reaches a terminal: text from files and prompts made harmless, signs that its encoding has, and tables that cut no number.

Nothing here is markup: a bracket in a prompt is a bracket.
"""

import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from attrib.core.shown import BARS, harmless

_SIGNS = {"→": "->", "Σ": "sum ", "≥": ">=", "≤": "<=", "±": "+-"}
_SIGNS |= dict(zip(BARS, "12345678", strict=True))
_ISOLATED = "\u2068{}\u2069"
"""Between the two, text is turned as its own first letter asks, and what stands around it is not."""
_SIGNS |= dict.fromkeys(_ISOLATED.format(""), "")
_LEFTWARD = ("R", "AL", "AN")


def so_many(count: int, name: str, several: str | None = None) -> str:
    """So many of a name: "1 block", "2,000 blocks", "3 dictionaries"."""
    return f"{count:,} {name if count == 1 else several or name + 's'}"


def plain(text: object) -> str:
    r"""Text of any origin on one line, as the output can show it: `harmless`, with escapes also for what its encoding has not."""
    found = harmless(text)
    encoding = _encoding()
    return found.encode(encoding, "backslashreplace").decode(encoding)


def message(text: object) -> str:
    """Text of several lines, such as an error that names several keys, each as `plain` has it."""
    return "\n".join(map(plain, str(text).split("\n")))


def own(text: str) -> str:
    """attrib's own words, with ASCII in place of signs that the output's encoding has not."""
    for sign, ascii_sign in _SIGNS.items():
        try:
            sign.encode(_encoding())
        except UnicodeEncodeError:
            text = text.replace(sign, ascii_sign)
    return text


def isolated(text: str) -> str:
    """Text that `plain` gave, kept apart if it is written from right to left, so that what stands beside it stays where it is."""
    return own(_ISOLATED.format(text)) if any(unicodedata.bidirectional(char) in _LEFTWARD for char in text) else text


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def console() -> Console:
    """Standard output: as wide as the terminal; where there is none, as wide as what is printed. NO_COLOR is no style at all."""
    is_plain = bool(os.environ.get("NO_COLOR"))
    found = Console(markup=False, highlight=False, emoji=False, color_system=None if is_plain else "auto")
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = 1 << 14
    return found


def columns() -> int:
    """How many columns a text is to be broken into: those of the terminal, and 80 where there is none."""
    on = console()
    return on.width if on.is_terminal or "COLUMNS" in os.environ else 80


def table(title: str, labels: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]], *, header: bool = True) -> Table:
    """A table whose first columns are labels, folded where room is short, and whose others are numbers, which are never cut.

    Args:
        title: all of it ready to be shown; so are the cells.
    """
    made = Table(title=Text(title) if title else None, title_justify="left", show_header=header)
    cells = [list(map(Text, row)) for row in rows]
    lines = max(name.count("\n") for name in (*labels, *numbers))
    heads = ["\n" * (lines - name.count("\n")) + name for name in (*labels, *numbers)]
    for place, head in enumerate(heads):
        if place < len(labels):
            made.add_column(Text(head), overflow="fold")
            continue
        widest = max((row[place].cell_len for row in cells), default=0)
        width = max(widest, *(Text(line).cell_len for line in head.split("\n")), 0)
        made.add_column(Text(head), justify="right", no_wrap=True, min_width=width)
    for row in cells:
        made.add_row(*row)
    return made


def facts(rows: Mapping[str, object]) -> Table:
    """Names and what is said of each, without a header."""
    return table("", ("", ""), (), [(name, message(value)) for name, value in rows.items()], header=False)


def show(printed: RenderableType) -> None:
    """Print a table, a line, or text that is in lines already.

    Where room is short a table gives up its frame, then folds its labels, then goes over the edge. Its title has all the room there is.
    """
    on = console()
    if isinstance(printed, Table):
        if printed.title:
            on.print(printed.title, style="table.title")
            printed.title = None
        if _widths(on, printed).maximum > on.width:
            printed.box, printed.show_edge, printed.padding = box.SIMPLE_HEAD, False, (0, 0, 0, 0)
        on.width = max(on.width, _widths(on, printed).minimum)
    on.print(printed, soft_wrap=isinstance(printed, Text))


def _widths(on: Console, printed: Table) -> Measurement:
    """With its labels folded as far as they go, and not at all."""
    return Measurement.get(on, on.options.update(width=1 << 14), printed)
