"""Whether a message of an Arrow stream is compressed, which Arrow does not say before it has unpacked it.

A message's metadata is a FlatBuffer that Arrow has verified; two of its tables are looked into, by the numbers that
their fields have in Arrow's Message.fbs.
"""

import struct
from typing import Any

_HEADER_TYPE, _HEADER = 1, 2
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_DATA = 1
_COMPRESSION = 3


def is_compressed(metadata: Any) -> bool:
    """Whether the buffers of a record batch, or of a dictionary, are compressed.

    Args:
        metadata: of a message, as bytes or a buffer.
    """
    data = memoryview(metadata)
    message = _table(data, 0)
    kind = _field(data, message, _HEADER_TYPE)
    header = _field(data, message, _HEADER)
    if kind is None or header is None or data[kind] not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return False
    batch: int | None = _table(data, header)
    if data[kind] == _DICTIONARY_BATCH:
        inner = _field(data, _table(data, header), _DATA)
        batch = None if inner is None else _table(data, inner)
    return batch is not None and _field(data, batch, _COMPRESSION) is not None


def _table(data: memoryview, at: int) -> int:
    """Where the table begins that is named at `at`."""
    return at + struct.unpack_from("<I", data, at)[0]


def _field(data: memoryview, table: int, number: int) -> int | None:
    """Where a field of a table lies; None where it has none."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, fields)[0]
    offset = struct.unpack_from("<H", data, fields + 4 + 2 * number)[0] if 4 + 2 * number + 2 <= size else 0
    return table + offset if offset else None
