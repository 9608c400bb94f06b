"""Prompts from Arrow's columns, of Parquet and of data sets: a row at a time, each no larger than a line may be.

A value in Arrow may take far more memory in Python than in its file: a text that stands there once for many rows, a
run of one number. So each is measured before it is taken out.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from attrib.core.types import FormatError, InputError
from attrib.runs.prompts import given
from attrib.runs.prompts.given import FIELDS, Given, beside, chosen, of_row

ROWS, ROWS_A_BYTE = 1 << 16, 64
"""Rows of a source, at most, and as many more for each of its bytes: a row that says anything takes a bit or two."""
GIVEN, GIVEN_A_BYTE = 1 << 28, 1024
"""Bytes that all rows of a source may come to, and as many more for each of its bytes; gzip gives no more than these."""
_PART = 64
"""Bytes that a value of a list takes, whatever it is."""


class TooLargeError(Exception):
    """A row that is larger than a line may be."""


class UnknownTypeError(Exception):
    """A row with a value that is no prompt's; names its type."""


def columns(names: Sequence[str], field: str | None, source: str) -> list[str]:
    """The columns to read: that of the prompts first, then those that change what it says."""
    key = chosen(names, field)
    if key is None:
        wanted = repr(field) if field else " or ".join(map(repr, FIELDS))
        shown = ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        raise InputError(f"prompts: {source} has the columns {shown}, and not {wanted}. Name one with `field`.")
    found = [key, *(name for name in beside(key) if name in names)]
    if twice := next((name for name in found if names.count(name) > 1), None):
        raise InputError(f"prompts: {source} has two columns {twice!r}; give each a name of its own.")
    return found


class Limits:
    """What a source may still give, of what its bytes account for."""

    def __init__(self, source: str, size: int) -> None:
        self.source, self._size = source, size
        self._rows, self._room = ROWS + ROWS_A_BYTE * size, GIVEN + GIVEN_A_BYTE * size

    def take_rows(self, rows: int) -> None:
        """Count rows that a source says it has, before they are read. Raises FormatError where they are too many."""
        self._rows -= rows
        if self._rows < 0:
            raise FormatError(f"prompts: {self.source} says to have {ROWS_A_BYTE} rows and more for each of its {self._size:,} bytes.")

    def take(self, taken: int) -> None:
        """Count bytes that a row came to. Raises FormatError where they are too many."""
        self._room -= taken
        if self._room < 0:
            raise FormatError(f"prompts: {self.source} comes to {GIVEN_A_BYTE} bytes and more for each of its {self._size:,}.")


def of_batch(batch: Any, limits: Limits, before: int, field: str | None) -> Iterator[Given]:
    """Prompts from the rows of a record batch; `before` of the source's rows are gone by."""
    columns = {name: batch.column(number) for number, name in enumerate(batch.schema.names)}
    for number in range(batch.num_rows):
        where, room = f"{limits.source}, row {before + number + 1}", _Room(given.LONGEST_LINE)
        try:
            row = {name: _plain(column[number], room) for name, column in columns.items()}
        except UnicodeDecodeError:
            yield Given(where, None, "is not UTF-8")
        except TooLargeError:
            yield Given(where, None, f"is longer than {given.LONGEST_LINE:,} bytes")
        except UnknownTypeError as error:
            yield Given(where, None, f"is {error}; expected a string, a list of token ids or of messages")
        else:
            yield of_row(row, where, field)
        limits.take(given.LONGEST_LINE - max(0, room.left))


class _Room:
    """Bytes that a row may still take."""

    def __init__(self, bytes: int) -> None:
        self.left = bytes

    def take(self, bytes: int) -> None:
        self.left -= bytes
        if self.left < 0:
            raise TooLargeError


def _plain(scalar: Any, room: _Room) -> Any:
    """What Arrow's scalar holds: text, numbers, an array of numbers, a list or a dict. Bytes are text where they are UTF-8."""
    if not scalar.is_valid:
        return None
    match _kind(scalar.type):
        case "dictionary":
            return _plain(scalar.value, room)
        case "text":
            buffer = scalar.as_buffer()
            room.take(len(buffer))
            return buffer.to_pybytes().decode()
        case "numbers" if not scalar.values.null_count:
            room.take(2 * len(scalar.values))  # as much as the shortest has in a line of JSON
            return np.asarray(scalar.values)
        case "numbers" | "list":
            room.take(_PART * len(scalar.values))
            return [_plain(value, room) for value in scalar.values]
        case "object":
            room.take(_PART * len(scalar))
            found = {name: _plain(value, room) for name, value in scalar.items()}
            return {name: value for name, value in found.items() if value is not None}  # a key that other rows have, and this one not
        case "single":
            return scalar.as_py()
    raise UnknownTypeError(f"of type {str(scalar.type)[:80]}")


@lru_cache(maxsize=64)
def _kind(of: Any) -> str:
    """What a type of Arrow is here; nothing for those that no prompt has."""
    import pyarrow.types as kinds

    if kinds.is_list(of) or kinds.is_large_list(of) or kinds.is_fixed_size_list(of):
        return "numbers" if kinds.is_integer(of.value_type) or kinds.is_boolean(of.value_type) else "list"
    return next((kind for kind, tests in _KINDS.items() if any(getattr(kinds, f"is_{test}")(of) for test in tests)), "")


_KINDS = {
    "text": ("string", "large_string", "string_view", "binary", "large_binary", "binary_view"),
    "dictionary": ("dictionary",),
    "object": ("struct",),
    "single": ("null", "boolean", "integer", "floating"),
}
