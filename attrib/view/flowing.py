"""Text that comes bit by bit, in lines that are broken between words."""

from typing import NamedTuple

from rich.cells import cell_len

from attrib.view.terminal import message

TAB = "    "


class Flow(NamedTuple):
    """What has been printed of a line, and what waits for the end of its word."""

    width: int | None
    """Columns; None breaks no line."""
    column: int = 0
    gap: str = ""
    word: str = ""


def flowed(flow: Flow, text: str) -> tuple[Flow, str]:
    """The flow with more text, and what is printed now: all words that have ended. Control characters become escapes."""
    printed: list[str] = []
    for char in message(text.replace("\t", TAB)):
        if char not in " \n":
            flow = flow._replace(word=flow.word + char)
            continue
        flow = _put(flow, printed)
        if char == "\n":
            printed.append("\n" if flow.width else flow.gap + "\n")
            flow = flow._replace(column=0, gap="")
        else:
            flow = flow._replace(gap=flow.gap + char)
    if flow.width is None:
        flow = _put(flow, printed)
    return flow, "".join(printed)


def ended(flow: Flow) -> str:
    """What still waits."""
    printed: list[str] = []
    flow = _put(flow, printed)
    return "".join(printed) + ("" if flow.width else flow.gap)


def _put(flow: Flow, printed: list[str]) -> Flow:
    """The word that waits, on this line or the next."""
    if not flow.word:
        return flow
    size = cell_len(flow.word)
    breaks = flow.width is not None and flow.column > 0 and flow.column + len(flow.gap) + size > flow.width
    printed += ["\n", flow.word] if breaks else [flow.gap, flow.word]
    return flow._replace(column=size if breaks else flow.column + len(flow.gap) + size, gap="", word="")
