"""The pages of a Parquet file, by their headers alone: what each would take when it is unpacked, before it is.

What the footer says of sizes need not be so, and Arrow does not ask: it unpacks a page to the size that the page's
own header has. So these are read first. Headers are Thrift's compact protocol; https://parquet.apache.org/docs/file-format/.
"""

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

DEEPEST = 16
"""Structs in each other in a header; there are three."""

_DATA_HEADERS, _ENCODINGS = {0: 5, 3: 8}, {0: 2, 3: 4}
"""Of the kinds of pages with data, the field that says how many values there are, and the field within that which has their encoding."""


class Page(NamedTuple):
    """A page, not unpacked."""

    unpacked: int
    """Bytes."""
    packed: int
    """Bytes in the file."""
    values: int
    """Of a page of data: values and nulls. Else 0."""
    encoding: int | None
    """Of a page of data: how its values are written, by its number in Parquet. Else None, or where it does not say."""


def pages(file: BinaryIO, start: int, length: int) -> Iterator[Page]:
    """The pages of one column of one row group.

    Raises:
        ValueError: where these bytes are no pages.
    """
    at, stop = start, start + length
    while at < stop:
        file.seek(at)
        header = _struct(file, DEEPEST)
        kind, unpacked, packed = (header.get(field) for field in (1, 2, 3))
        if not isinstance(kind, int) or not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
            raise ValueError(f"the page at byte {at} has no sizes")
        of_data = header.get(_DATA_HEADERS.get(kind, -1), {})
        values, encoding = (of_data.get(1, 0), of_data.get(_ENCODINGS.get(kind, -1))) if isinstance(of_data, dict) else (0, None)
        at = file.tell() + packed
        if at > stop:
            raise ValueError(f"a page ends at byte {at}, and its column at {stop}")
        yield Page(unpacked, packed, values if isinstance(values, int) and values > 0 else 0, encoding)


# --------------------------------------------------------------------------------------------- Thrift


def _struct(file: BinaryIO, deep: int) -> dict[int, Any]:
    """The fields of a struct by their numbers: whole numbers and structs; of others, that they are there."""
    if not deep:
        raise ValueError("a page's header is nested too deep")
    found: dict[int, Any] = {}
    field = 0
    while head := _byte(file):
        field = field + (head >> 4) if head >> 4 else _whole(file)
        found[field] = _value(file, head & 15, deep)
    return found


def _value(file: BinaryIO, kind: int, deep: int) -> Any:
    match kind:
        case 1 | 2:  # true, false: in a field the kind is the value
            return None
        case 3:
            return _byte(file)
        case 4 | 5 | 6:
            return _whole(file)
        case 7:
            return struct.unpack("<d", _bytes(file, 8))
        case 8:
            file.seek(_varint(file), 1)
            return None
        case 9 | 10:
            head = _byte(file)
            for _ in range(_varint(file) if head >> 4 == 15 else head >> 4):
                _byte(file) if head & 15 in (1, 2) else _value(file, head & 15, deep - 1)
            return None
        case 12:
            return _struct(file, deep - 1)
    raise ValueError(f"a page's header has a field of the kind {kind}")  # maps too: there are none


def _whole(file: BinaryIO) -> int:
    number = _varint(file)
    return (number >> 1) ^ -(number & 1)


def _varint(file: BinaryIO) -> int:
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise ValueError("a page's header has a number of more than 64 bits")


def _byte(file: BinaryIO) -> int:
    return _bytes(file, 1)[0]


def _bytes(file: BinaryIO, count: int) -> bytes:
    found = file.read(count)
    if len(found) < count:
        raise ValueError("the file ends in a page's header")
    return found
