"""How a page is given its data: a JSON header, and columns of numbers behind it, compressed.

    four bytes, the header's length · the header · zeros up to a multiple of 8 · columns, each at a multiple of 8

All numbers are little-endian float32 or int32. web/src/payload.ts reads it.
"""

import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from attrib.core.types import InputError

VERSION = 1
_LEVEL = 6
"""Of compression: the highest takes twice as long, for one byte in a hundred."""


def pack(format: str, header: Mapping[str, Any], integers: Mapping[str, Tensor], floats: Mapping[str, Tensor]) -> bytes:
    """A header and its columns, the same bytes each time. Raises InputError for a number that float32 or int32 cannot hold."""
    for name, whole in integers.items():
        if len(whole) and not -(1 << 31) <= int(whole.min()) <= int(whole.max()) < 1 << 31:
            raise InputError(f"{name}: it holds whole numbers up to {int(whole.max())}, which int32, which a page has, cannot.")
    columns = {name: column.numpy().astype("<i4") for name, column in integers.items()}
    columns |= {name: column.float().numpy().astype("<f4") for name, column in floats.items()}
    arrays, offset = [], 0
    for name, column in columns.items():
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise InputError(f"{name}: it holds numbers that float32, which a page has, cannot; expected finite ones.")
        arrays.append({"name": name, "type": column.dtype.str[1:], "length": len(column), "offset": offset})
        offset += _aligned(column.nbytes)
    everything = {"format": format, "version": VERSION, **header, "arrays": arrays}
    text = json.dumps(everything, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    first = len(text).to_bytes(4, "little") + text
    parts = [
        first.ljust(_aligned(len(first)), b"\0"),
        *(column.tobytes().ljust(_aligned(column.nbytes), b"\0") for column in columns.values()),
    ]
    return gzip.compress(b"".join(parts), _LEVEL, mtime=0)


def left_out(of: str, which: str, *counts: tuple[str, int, int]) -> str:
    """What a page leaves out, in words; empty for nothing.

    Args:
        which: those that are there.
        counts: for each thing its name, and how many there are and are shown.
    """
    parts = [f"{shown:,} of the {of}'s {there:,} {what}" for what, there, shown in counts if shown < there]
    return f"This page holds {' and '.join(parts)}, {which}." if parts else ""


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
