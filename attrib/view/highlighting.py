"""A text with its tokens coloured by a number each, as a page that any browser and notebook shows."""

from collections.abc import Sequence
from html import escape

from attrib.core.types import InputError
from attrib.view.figures import Numbers, column
from attrib.view.pages import Page
from attrib.view.terminal import plain

_POSITIVE, _NEGATIVE = (0, 114, 178), (199, 78, 0)
_STYLE = (
    ":root{color-scheme:light dark}body{font:14px/2 system-ui,sans-serif;margin:8px}"
    "span{white-space:pre-wrap;border-radius:3px;padding:2px 0}small{color:GrayText}p{margin:0 0 6px}"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


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
        InputError: where there are not as many values as tokens, or one is not finite; for a place that is none.
    """
    numbers = column("values", values)
    if len(numbers) != len(strings):
        raise InputError(f"values: {len(numbers)} of them for {len(strings)} tokens.")
    if wrong := [place for place, number in enumerate(numbers) if not abs(number) < float("inf")]:
        raise InputError(f"values: {numbers[wrong[0]]} of token {wrong[0]}; expected finite numbers.")
    if marked is not None and not 0 <= marked < len(strings):
        raise InputError(f"marked: {marked}; expected a token's place, 0 to {len(strings) - 1}.")
    body = sequence(strings, numbers.tolist(), largest, marked)
    head = f"<p><small>{escape(plain(title))}</small></p>" if title else ""
    return Page(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(plain(title)) or 'tokens'}</title><style>{_STYLE}</style>{head}<p>{body}</p></html>",
        height=120 + 24 * (sum(map(len, strings)) // 110),
    )


def sequence(strings: Sequence[str], values: Sequence[float], largest: float | None = None, marked: int | None = None) -> str:
    """The same as a run of HTML that stands within a page."""
    most = largest if largest is not None else max(map(abs, values), default=0.0)
    return "".join(_token(string, value, most, place == marked) for place, (string, value) in enumerate(zip(strings, values, strict=True)))


def _token(string: str, value: float, most: float, is_marked: bool) -> str:
    red, green, blue = _POSITIVE if value > 0 else _NEGATIVE
    opacity = 0.75 * min(1.0, abs(value) / most) if most > 0 else 0.0
    line = ";text-decoration:underline" if is_marked else ""
    text = escape(plain(string.replace("\n", "⏎")))
    return f'<span style="background:rgba({red},{green},{blue},{opacity:.3f}){line}" title="{value:.4g}">{text}</span>'
