"""What a Parquet file says of itself, read here before Arrow does: its row groups, and the headers of its pages.

Arrow ends the process where two parts of the footer do not agree. And what the footer says of sizes need not be so, and Arrow
does not ask: it unpacks a page to the size that the page's own header has. So these are read first.
"""

import struct
from collections.abc import Iterator, Sequence
from io import BufferedIOBase, BytesIO
from typing import Any, NamedTuple

from attrib.runs.prompts.thrift import read_struct

MAGIC = b"PAR1"
DICTIONARIES = {2, 8}
"""Encodings by a dictionary, by their numbers in Parquet."""

_FACTS = {2: [None]}
_CHUNK = {1: bytes, 3: _FACTS}
"""What is asked for of a column in a row group: the name of another file where its values are, and facts with its encodings."""


class Chunk(NamedTuple):
    """One column of one row group."""

    values: int
    packed: int
    """Bytes in the file."""
    start: int
    """The first byte of its pages, a dictionary's among them."""
    is_in_dictionary: bool
    """Whether some of its values stand in a dictionary."""
    elsewhere: str
    """The file with its values; empty where that is this one."""


class Group(NamedTuple):
    """A row group."""

    rows: int
    chunks: list[Chunk]
    """One for each of the columns that were asked for."""


def groups_of(file: BufferedIOBase, size: int, columns: int, chosen: Sequence[int]) -> list[Group]:
    """The row groups of a file of so many bytes.

    Args:
        columns: how many the schema has.
        chosen: places of columns in it.

    Raises:
        ValueError: where the footer does not say what it must.
    """
    file.seek(max(0, size - 8))
    length, magic = struct.unpack("<I4s", file.read(8).rjust(8, b"\0"))
    if magic != MAGIC or length > size - 8:
        raise ValueError("there is no footer")
    file.seek(size - 8 - length)
    asked = {4: [({1: [(_CHUNK, _chunk)]}, lambda group: _group(group, columns, chosen))]}
    found = read_struct(BytesIO(file.read(length)), asked).get(4)
    if not isinstance(found, list):
        raise ValueError("the footer has no row groups")
    return found


def _group(fields: Any, columns: int, chosen: Sequence[int]) -> Group:
    chunks, rows = (fields.get(field) if isinstance(fields, dict) else None for field in (1, 3))
    if not isinstance(chunks, list) or not isinstance(rows, int) or rows < 0 or len(chunks) != columns:
        raise ValueError(f"a row group does not have the {columns} columns of the schema, or no number of rows")
    return Group(rows, [_required(chunks[number]) for number in chosen])


def _required(chunk: Chunk | None) -> Chunk:
    if chunk is None:
        raise ValueError("a row group does not say where a column's pages are, and how many")
    return chunk


def _chunk(fields: Any) -> Chunk | None:
    facts = fields.get(3) if isinstance(fields, dict) else None
    if not isinstance(facts, dict):
        return None
    numbers = [number for field in (5, 7, 9) if isinstance(number := facts.get(field), int) and number >= 0]
    if len(numbers) < 3:
        return None
    values, packed, start = numbers
    if isinstance(of_dictionary := facts.get(11), int) and 0 < of_dictionary < start:
        start = of_dictionary
    encodings, elsewhere = facts.get(2), fields.get(1)
    named = elsewhere.decode(errors="replace") if isinstance(elsewhere, bytes) else ""
    return Chunk(values, packed, start, isinstance(encodings, list) and bool(DICTIONARIES.intersection(encodings)), named)


# -------------------------------------------------------------------------------------------- pages

_DATA_HEADERS, _ENCODINGS = {0: 5, 3: 8}, {0: 2, 3: 4}
"""For each kind of page with data, the field that says how many values there are, and the field within that which has their encoding."""


class Page(NamedTuple):
    """A page, not unpacked."""

    unpacked: int
    """Bytes."""
    packed: int
    """Bytes in the file."""
    values: int
    """How many values and nulls a page of data has; 0 for other pages."""
    encoding: int | None
    """How a page of data writes its values, by the number that Parquet has for it; None for other pages, or where it does not say."""


def pages(file: BufferedIOBase, start: int, length: int) -> Iterator[Page]:
    """The pages of one column of one row group.

    Raises:
        ValueError: where these bytes are no pages.
    """
    at, stop = start, start + length
    while at < stop:
        file.seek(at)
        header = read_struct(file)
        kind, unpacked, packed = (header.get(field) for field in (1, 2, 3))
        if not isinstance(kind, int) or not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
            raise ValueError(f"the page at byte {at} has no sizes")
        of_data = header.get(_DATA_HEADERS.get(kind, -1), {})
        values, encoding = (of_data.get(1, 0), of_data.get(_ENCODINGS.get(kind, -1))) if isinstance(of_data, dict) else (0, None)
        at = file.tell() + packed
        if at > stop:
            raise ValueError(f"a page ends at byte {at}, and its column at {stop}")
        yield Page(unpacked, packed, values if isinstance(values, int) and values > 0 else 0, encoding)
