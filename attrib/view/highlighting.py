"""A text with its tokens coloured by a number each, as a page that any browser and notebook shows."""

from collections.abc import Iterable, Sequence
from html import escape
from numbers import Integral, Real
from typing import Any

from attrib.adapters.given import takes
from attrib.core.sealed import sealed
from attrib.core.shown import harmless
from attrib.core.types import InputError
from attrib.view.columns import Numbers, column
from attrib.view.pages import Page

LEVELS = 20
"""Depths of a colour, beside none: a page may have classes of style, and no style of its own on an element."""
DEEPEST = 0.75
LONGEST = 200
"""Characters of a token that are shown."""
_COLOURS = {"p": (0, 114, 178), "n": (199, 78, 0)}
"""Above zero, and below."""
COLOURED = "".join(
    f".{sign}{level}{{background:rgba({red},{green},{blue},{DEEPEST * level / LEVELS:.4g})}}"
    for sign, (red, green, blue) in _COLOURS.items()
    for level in range(1, LEVELS + 1)
)
"""The style of all classes that `sequence` gives tokens."""
TOKENS = ".tokens{white-space:pre-wrap;overflow-wrap:anywhere}.tokens span{border-radius:3px;padding:2px 0}.tokens u{font-weight:600}"
_STYLE = ":root{color-scheme:light dark}body{font:14px/2 system-ui,sans-serif;margin:8px}small{color:GrayText}p{margin:0 0 6px}"


def _as_strings(given: Any, argument: str) -> list[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InputError(f"{argument}: a {type(given).__name__}; expected a list of tokens as text.")
    found = list(given)
    if wrong := [place for place, each in enumerate(found) if not isinstance(each, str)]:
        what = type(found[wrong[0]]).__name__
        raise InputError(f"{argument}: number {wrong[0]} is a {what}; expected tokens as text, such as the `prompts.strings` of a result.")
    return found


@takes(strings=_as_strings)
def highlighted(
    strings: Sequence[str], values: Numbers, *, largest: float | None = None, title: str = "", marked: int | None = None
) -> Page:
    """A text whose tokens are coloured: blue above zero, orange below, the deeper the larger. The pointer on a token says its number.

    Args:
        strings: of the tokens.
        values: one for each.
        largest: the size that has the deepest colour; None is the largest here.
        title: what stands above.
        marked: the place of a token that is underlined.

    Raises:
        InputError: for tokens that are no text, and where there are not as many values as tokens, or one is not finite; for a largest
            size that is none, and for a place that is none.
    """
    numbers = column("values", values)
    if len(numbers) != len(strings):
        raise InputError(f"values: {len(numbers)} of them for {len(strings)} tokens; expected one for each.")
    if wrong := [place for place, number in enumerate(numbers) if not abs(number) < float("inf")]:
        raise InputError(f"values: {numbers[wrong[0]]} of token {wrong[0]}; expected finite numbers.")
    if largest is not None and not (isinstance(largest, Real) and 0 < largest < float("inf")):
        raise InputError(f"largest: {largest!r}; expected a finite number above 0, or None for the largest of the values.")
    if marked is not None and not (isinstance(marked, Integral) and 0 <= marked < len(strings)):
        raise InputError(f"marked: {marked!r}; expected a token's place, 0 to {len(strings) - 1}.")
    body = sequence(strings, numbers.tolist(), largest, marked, of_zero=True)
    head = f"<p><small>{escape(harmless(title))}</small></p>" if title else ""
    return Page(
        sealed(harmless(title) or "tokens", f'{head}<p class="tokens">{body}</p>', style=_STYLE + TOKENS + COLOURED),
        height=120 + 24 * (sum(map(len, strings)) // 110),
    )


def sequence(
    strings: Sequence[str], values: Sequence[float], largest: float | None = None, marked: int | None = None, *, of_zero: bool = False
) -> str:
    """The same as a run of HTML that stands within a page with the style `COLOURED` and, around it, the class of `TOKENS`.

    Args:
        of_zero: whether tokens of value zero say that too; else they are plain text, which keeps a page of many sequences small.
    """
    most = largest if largest is not None else max(map(abs, values), default=0.0)
    tokens = enumerate(zip(strings, values, strict=True))
    return "".join(_token(string, value, most, place == marked, of_zero) for place, (string, value) in tokens)


def level_of(value: float, most: float) -> int:
    """The depth of a value's colour, of `LEVELS`; at least 1 of what is not zero."""
    return max(1, round(LEVELS * min(1.0, abs(value) / most))) if value and most > 0 else 0


def shown_token(string: str) -> str:
    """A token as text of a page: line ends as a sign, what is too long cut, nothing that could act."""
    found = harmless(string.replace("\n", "⏎"))
    return escape(found if len(found) <= LONGEST else f"{found[: LONGEST - 1]}…")


def _token(string: str, value: float, most: float, is_marked: bool, of_zero: bool) -> str:
    text = f"<u>{shown_token(string)}</u>" if is_marked else shown_token(string)
    if not value and not of_zero:
        return text
    level = level_of(value, most)
    kind = f' class="{"p" if value > 0 else "n"}{level}"' if level else ""
    return f'<span{kind} title="{value:.4g}">{text}</span>'
