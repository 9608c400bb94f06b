"""What a dictionary's own files say of how it was trained and where it is shown. Nothing is computed by it, and none of it is trusted."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

LONGEST = 500
"""Characters of a text that is kept."""
MOST = 64
"""Other facts that are kept."""
_NAME = r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,119}"
_NEURONPEDIA = re.compile(rf"{_NAME}/{_NAME}")


@dataclass(frozen=True)
class Metadata:
    """Facts as a dictionary's config has them; None where it does not say, or says what is of another type."""

    context_size: int | None = None
    """Tokens of the texts that it was trained on."""
    dataset_path: str | None = None
    prepend_bos: bool | None = None
    """Whether each of these texts began with the token that begins a text."""
    neuronpedia_id: str | None = None
    """What Neuronpedia calls it, "MODEL/DICTIONARY"."""
    sae_lens_version: str | None = None
    others: tuple[tuple[str, str], ...] = ()
    """All else, as text, by name."""

    def __bool__(self) -> bool:
        """Whether anything is said."""
        return self != NOTHING

    def table(self) -> dict[str, Any]:
        """What is said, by name."""
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "others"}
        return {name: value for name, value in said.items() if value is not None} | dict(self.others)


def metadata_of(given: Mapping[Any, Any]) -> Metadata:
    """The facts of a config from anywhere: those that are known by type, and the others as short text."""
    known: dict[str, Any] = {}
    others: dict[str, str] = {}
    for key, value in given.items():
        if not isinstance(key, str) or not key.isprintable() or len(key) > LONGEST or value is None:
            continue
        if key in _KNOWN and _KNOWN[key](value):
            known[key] = value
        elif len(others) < MOST and key not in ("others",):
            others[key] = _text(value)
    return Metadata(**known, others=tuple(sorted(others.items())))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()


_KNOWN = {
    "context_size": lambda value: type(value) is int and 0 < value < 1 << 31,
    "dataset_path": _is_text,
    "prepend_bos": lambda value: type(value) is bool,
    "neuronpedia_id": lambda value: isinstance(value, str) and _NEURONPEDIA.fullmatch(value) is not None,
    "sae_lens_version": _is_text,
}
"""What each of the known facts may be."""


def _text(value: Any) -> str:
    """A value in one line of printable characters."""
    text = (value if isinstance(value, str) else repr(value))[: LONGEST + 1]
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


NOTHING = Metadata()
"""Of a dictionary whose files say nothing."""
