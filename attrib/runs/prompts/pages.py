"""The pages of a Parquet file, by their headers alone: what each would take when it is unpacked, before it is.

What the footer says of sizes need not be so, and Arrow does not ask: it unpacks a page to the size that the page's
own header has. So these are read first.
"""

from collections.abc import Iterator
from io import BufferedIOBase
from typing import NamedTuple

from attrib.runs.prompts.thrift import read_struct

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
