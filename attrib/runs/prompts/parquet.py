"""Prompts of Parquet files, whose pages are measured before they are unpacked.

A few bytes may stand for gigabytes: a page that unpacks to its limit, a text that every row names, a run of one
number. So what a page says of itself is held against the bytes that it takes, and only as many rows are read at once as
there is room for, if each had the largest text of all. Texts in lists, of which one row may have any number, are left as they
lie in the file: each once, and numbers that name them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attrib.core.types import AttribError, FormatError, first_line
from attrib.runs.prompts.columns import Limits, columns, of_batch
from attrib.runs.prompts.given import LONGEST_LINE, Given
from attrib.runs.prompts.library import library
from attrib.runs.prompts.pages import pages

LARGEST_PAGE = 1 << 28
"""Bytes of a page when it is unpacked, at most; writers make pages of 1 to 100 MB."""
PAGE, UNPACKED_A_BYTE = LONGEST_LINE, 100
"""Bytes that any page may have, and as many more for each byte that it takes in the file."""
VALUES, VALUES_A_BYTE = 1 << 22, 8
"""Values of a column in a row group, such as token ids, and as many more for each byte of the longest column that is read.

One row may have all of them. A mask of ones takes no bytes, and has as many values as the ids beside it.
"""
TOGETHER = 4
"""How many times those all columns may have together: ids have up to three columns of as many values beside them."""
MOST_COLUMNS = 1 << 10
"""Columns that are read, at most, the fields of messages each counted for itself: whatever it holds, each takes some 25 kB."""
WIDEST = 32
"""Bytes of a value that has always as many: each null takes them too."""
_KEPT, _UNPACKED = (0, 2, 8), (0, 6)
"""Encodings of texts in lists: plain and with a dictionary, which is left as it is; or plain and by lengths, which expand nothing."""
ROOM, ROWS_AT_ONCE = 1 << 25, 256
"""Bytes that a batch of rows may take, and its rows, at most."""


def read_parquet(path: Path, field: str | None) -> Iterator[Given]:
    """The prompts of a file, a row each.

    Raises:
        InputError: where it has no such column.
        FormatError: where it is damaged, or says to hold more than its bytes account for.
    """
    parquet = library("pyarrow.parquet")
    try:
        before, metadata = 0, parquet.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        names = columns(schema.names, field, str(path))
        limits = Limits(str(path), path.stat().st_size)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        limits.take_rows(sum(group.num_rows for group in groups))
        _check_columns(schema, metadata, names, path)
        kept = _texts_in_lists(metadata, names)
        with path.open("rb") as raw, parquet.ParquetFile(path, metadata=metadata, read_dictionary=kept, buffer_size=1 << 20) as file:
            for number, group in enumerate(groups):
                at_once = _rows_at_once(raw, metadata.schema, group, names, kept, f"{path}, row group {number}")
                for batch in file.iter_batches(batch_size=at_once, row_groups=[number], columns=names, use_threads=False):
                    yield from of_batch(batch, limits, before, field)
                    before += batch.num_rows
    except AttribError:
        raise
    except Exception as error:  # of a damaged file, Arrow hands on whatever its parts raise
        raise FormatError(f"prompts: {path} is not Parquet, or damaged: {first_line(error)}.") from error


def _leaves(of: Any, names: list[str]) -> Iterator[Any]:
    """The columns of a row group, or of the schema, in which those of the names lie."""
    count = of.num_columns if hasattr(of, "num_columns") else len(of)
    path = "path_in_schema" if hasattr(of, "num_columns") else "path"
    yield from (leaf for leaf in (of.column(number) for number in range(count)) if getattr(leaf, path).split(".")[0] in names)


def _texts_in_lists(metadata: Any, names: list[str]) -> list[str]:
    """Paths of the columns with texts of which a row may have several, and which stand in a dictionary."""
    found = set[str]()
    for number in range(metadata.num_row_groups):
        for leaf, of_group in zip(_leaves(metadata.schema, names), _leaves(metadata.row_group(number), names), strict=True):
            if _is_text_in_lists(leaf) and any("DICTIONARY" in encoding for encoding in of_group.encodings):
                found.add(leaf.path)
    return sorted(found)


def _is_text_in_lists(leaf: Any) -> bool:
    return leaf.physical_type == "BYTE_ARRAY" and leaf.max_repetition_level > 0


def _check_columns(schema: Any, metadata: Any, names: list[str], path: Path) -> None:
    leaves = list(_leaves(metadata.schema, names))
    if len(leaves) > MOST_COLUMNS:
        raise FormatError(f"prompts: {path} has {len(leaves):,} columns in {names[0]!r} and beside it; up to {MOST_COLUMNS:,} are read.")
    widths = [leaf.length for leaf in leaves if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY"]
    if max(widths, default=0) > WIDEST:
        raise FormatError(f"prompts: {path} has values of {max(widths):,} bytes each in {names[0]!r}; expected text or token ids.")
    sizes = [getattr(schema.field(name).type, "list_size", 0) for name in names]
    if max(sizes) > LONGEST_LINE // 2:
        raise FormatError(f"prompts: {path} has lists of {max(sizes):,} values each in {names[0]!r}; expected text or token ids.")


def _rows_at_once(raw: BinaryIO, schema: Any, group: Any, names: list[str], kept: list[str], where: str) -> int:
    """How many rows of a row group there is room for at once. Raises FormatError where its pages are more than they account for."""
    largest, together, leaves = 1, 0, list(_leaves(group, names))
    most_values = VALUES + VALUES_A_BYTE * max(leaf.total_compressed_size for leaf in leaves)
    for place, leaf in zip(_leaves(schema, names), leaves, strict=True):
        encodings = _KEPT if place.path in kept else _UNPACKED if _is_text_in_lists(place) else None
        if leaf.file_path:
            raise FormatError(f"prompts: {where} has its values in {leaf.file_path!r}; expected them in the file itself.")
        start = leaf.data_page_offset
        if leaf.has_dictionary_page and 0 < leaf.dictionary_page_offset < start:
            start = leaf.dictionary_page_offset
        values = 0
        for page in pages(raw, start, leaf.total_compressed_size):
            values += page.values
            most = min(LARGEST_PAGE, PAGE + UNPACKED_A_BYTE * page.packed)
            if page.unpacked > most:
                raise FormatError(
                    f"prompts: {where} has a page of {page.packed:,} bytes that unpacks to {page.unpacked:,}; such a page may have up to "
                    f"{most:,}. Write the file with smaller pages."
                )
            if encodings is not None and page.encoding is not None and page.encoding not in encodings:
                raise FormatError(
                    f"prompts: {where} has texts of {place.path} in encoding {page.encoding} of Parquet, whose size shows only when they "
                    f"are unpacked; in lists, {', '.join(map(str, encodings))} are read. Write the file with a dictionary, or plain."
                )
            largest = max(largest, page.unpacked)
        if values != leaf.num_values:
            raise ValueError(f"{where} has {values:,} values in its pages, and {leaf.num_values:,} by its footer")
        if values > most_values:
            raise FormatError(
                f"prompts: {where} has {values:,} values of {leaf.path_in_schema}, more than {leaf.total_compressed_size:,} bytes have; "
                f"up to {most_values:,} are read. Write the file with smaller row groups."
            )
        together += values
    if together > TOGETHER * most_values:
        raise FormatError(
            f"prompts: {where} has {together:,} values in the {len(leaves)} columns of {names[0]!r} and beside it, more than its bytes "
            f"have; up to {TOGETHER * most_values:,} are read. Write the file with smaller row groups."
        )
    return max(1, min(ROWS_AT_ONCE, ROOM // largest))
