"""A label for each token of a vocabulary: its text as it stands behind other text, spaces shown, no two alike."""

from collections.abc import Callable, Container, Mapping

_BEFORE = "a"
"""What stands before a token when it is asked how it reads in context."""


def labels_of(pieces: Mapping[int, str], join: Callable[[list[str]], str], verbatim: Container[int]) -> dict[int, str]:
    """Labels by token id.

    `▁Paris`, `ĠParis` and, where words have no mark, `Paris` read " Paris"; a continuation reads without a space. Bytes that are no
    character by themselves are written `<0xE2>`. Of tokens that read alike all but one are written as the vocabulary has them,
    and, if need be, with their id.

    Args:
        pieces: the vocabulary as the tokenizer writes it.
        join: the text of several pieces.
        verbatim: ids of added tokens, whose text is their piece.
    """
    labels: dict[int, str] = {}
    taken: set[str] = set()
    order = sorted(pieces)
    added = [number for number in order if number in verbatim]
    others = [number for number in order if not pieces[number].startswith("<0x")]
    for number in (*added, *others, *order):  # where some read alike, the first keeps its text: added tokens, and bytes last
        if number in labels:
            continue
        piece = pieces[number]
        label = piece if number in verbatim else _in_context(piece, join)
        if not label or label in taken:
            label = piece
        while not label or label in taken:
            label = f"{label}{unnamed(number)}"
        taken.add(label)
        labels[number] = label
    return labels


def unnamed(number: int) -> str:
    """The label of an id for which the vocabulary has no text."""
    return f"<id {number}>"


def _in_context(piece: str, join: Callable[[list[str]], str]) -> str:
    together = join([_BEFORE, piece])
    if not together.startswith(_BEFORE):  # a tokenizer that changes what stands before
        return piece
    text = together[len(_BEFORE) :]
    if "\ufffd" not in text or "\ufffd" in piece:
        return text
    if any(character not in _BYTES for character in piece):
        return piece  # such as <0xE2> of a tokenizer with a piece for each byte
    raw = bytes(_BYTES[character] for character in piece)
    return raw.decode("utf-8", "surrogateescape").translate(_NO_CHARACTER)


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies: itself where it prints, else the next beyond Latin-1."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in prints]
    return {chr(byte): byte for byte in prints} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTES = _byte_alphabet()
_NO_CHARACTER = {0xDC00 + byte: f"<0x{byte:02X}>" for byte in range(0x80, 0x100)}
