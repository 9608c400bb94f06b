"""Thrift's compact protocol, as far as Parquet uses it: structs read field by field, and nothing kept that was not asked for.

https://parquet.apache.org/docs/file-format/ says what the fields are.
"""

import struct
from collections.abc import Mapping
from io import BufferedIOBase
from typing import Any

DEEPEST = 16
"""Structs in each other; the footer of a file has five."""

Asked = Mapping[int, Any]
"""What is asked for of a struct's fields, by their numbers.

`bytes` asks for a text; `[one]` for a list, of which each is asked for as `one`; an `Asked` for parts of a struct; and a pair (asked,
function) for what a function makes of a value as soon as it is read. Numbers are always read.
"""


def read_struct(file: BufferedIOBase, asked: Asked | None = None, deep: int = DEEPEST) -> dict[int, Any]:
    """The fields of a struct by their numbers: whole numbers, structs and what is asked for; of others, that they are there.

    Raises:
        ValueError: where these bytes are no struct.
    """
    if not deep:
        raise ValueError("a header is nested too deep")
    found: dict[int, Any] = {}
    field = 0
    while head := _byte(file):
        field = field + (head >> 4) if head >> 4 else _whole(file)
        found[field] = _value(file, head & 15, deep, (asked or {}).get(field))
    return found


def _value(file: BufferedIOBase, kind: int, deep: int, asked: Any) -> Any:
    match kind:
        case _ if isinstance(asked, tuple):
            asked, function = asked
            return function(_value(file, kind, deep, asked))
        case 1 | 2:  # true, false: in a field the kind is the value
            return None
        case 3:
            return _byte(file)
        case 4 | 5 | 6:
            return _whole(file)
        case 7:
            return struct.unpack("<d", _bytes(file, 8))
        case 8 if asked is bytes:
            return _bytes(file, _varint(file))
        case 8:
            file.seek(_varint(file), 1)
            return None
        case 9 | 10:
            head = _byte(file)
            one, kept = asked[0] if isinstance(asked, list) else None, []
            for _ in range(_varint(file) if head >> 4 == 15 else head >> 4):
                value = _byte(file) if head & 15 in (1, 2) else _value(file, head & 15, deep - 1, one)
                if isinstance(asked, list):
                    kept.append(value)
            return kept
        case 12:
            return read_struct(file, asked if isinstance(asked, Mapping) else None, deep - 1)
    raise ValueError(f"a header has a field of the kind {kind}")  # maps too: there are none


def _whole(file: BufferedIOBase) -> int:
    number = _varint(file)
    return (number >> 1) ^ -(number & 1)


def _varint(file: BufferedIOBase) -> int:
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise ValueError("a header has a number of more than 64 bits")


def _byte(file: BufferedIOBase) -> int:
    return _bytes(file, 1)[0]


def _bytes(file: BufferedIOBase, count: int) -> bytes:
    found = file.read(count)
    if len(found) < count:
        raise ValueError("the file ends in a header")
    return found
