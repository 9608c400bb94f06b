"""Prompts of Parquet files, whose pages are measured before they are unpacked.

A few bytes may stand for gigabytes: a page that unpacks to its limit, a text that every row names, a run of one
number. So what a page says of itself is held against the bytes that it takes, and only as many rows are read at once as
there is room for, if each had the largest text of all. Texts in lists, of which one row may have any number, are left as they
lie in the file: each once, and numbers that name them.
"""

from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from attrib.core.types import AttribError, FormatError, first_line
from attrib.runs.prompts.columns import Limits, columns, of_batch
from attrib.runs.prompts.footer import Group, groups_of, pages
from attrib.runs.prompts.given import LONGEST_LINE, Given, library

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
        chosen = {number: leaf for number in range(len(metadata.schema)) if _root(leaf := metadata.schema.column(number)) in names}
        leaves = list(chosen.values())
        _check_columns(schema, leaves, names, path)
        with path.open("rb") as raw:
            groups = groups_of(raw, path.stat().st_size, len(metadata.schema), list(chosen))
            limits.take_rows(sum(group.rows for group in groups))
            kept = _texts_in_lists(leaves, groups)
            with parquet.ParquetFile(path, metadata=metadata, read_dictionary=kept, buffer_size=1 << 20) as file:
                for number, group in enumerate(groups):
                    at_once = _rows_at_once(raw, leaves, group, names, kept, f"{path}, row group {number}")
                    for batch in file.iter_batches(batch_size=at_once, row_groups=[number], columns=names, use_threads=False):
                        yield from of_batch(batch, limits, before, field)
                        before += batch.num_rows
    except AttribError:
        raise
    except Exception as error:  # of a damaged file, Arrow hands on whatever its parts raise
        raise FormatError(f"prompts: {path} is not Parquet, or damaged: {first_line(error)}.") from error


def _root(leaf: Any) -> str:
    """The column of a table that a column of the file is part of."""
    return str(leaf.path.split(".")[0])


def _texts_in_lists(leaves: Sequence[Any], groups: Sequence[Group]) -> list[str]:
    """Paths of the columns with texts of which a row may have several, and which stand in a dictionary."""
    pairs = (pair for group in groups for pair in zip(leaves, group.chunks, strict=True))
    return sorted({leaf.path for leaf, chunk in pairs if _is_text_in_lists(leaf) and chunk.is_in_dictionary})


def _is_text_in_lists(leaf: Any) -> bool:
    return leaf.physical_type == "BYTE_ARRAY" and leaf.max_repetition_level > 0


def _check_columns(schema: Any, leaves: Sequence[Any], names: list[str], path: Path) -> None:
    if len(leaves) > MOST_COLUMNS:
        raise FormatError(f"prompts: {path} has {len(leaves):,} columns in {names[0]!r} and beside it; up to {MOST_COLUMNS:,} are read.")
    widths = [leaf.length for leaf in leaves if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY"]
    if max(widths, default=0) > WIDEST:
        raise FormatError(f"prompts: {path} has values of {max(widths):,} bytes each in {names[0]!r}; expected text or token ids.")
    sizes = [getattr(schema.field(name).type, "list_size", 0) for name in names]
    if max(sizes) > LONGEST_LINE // 2:
        raise FormatError(f"prompts: {path} has lists of {max(sizes):,} values each in {names[0]!r}; expected text or token ids.")


def _rows_at_once(raw: BufferedIOBase, leaves: Sequence[Any], group: Group, names: list[str], kept: list[str], where: str) -> int:
    """How many rows of a row group there is room for at once. Raises FormatError where its pages are more than they account for."""
    largest, together = 1, 0
    most_values = VALUES + VALUES_A_BYTE * max(chunk.packed for chunk in group.chunks)
    for leaf, chunk in zip(leaves, group.chunks, strict=True):
        encodings = _KEPT if leaf.path in kept else _UNPACKED if _is_text_in_lists(leaf) else None
        if chunk.elsewhere:
            raise FormatError(f"prompts: {where} has its values in {chunk.elsewhere!r}; expected them in the file itself.")
        values = 0
        for page in pages(raw, chunk.start, chunk.packed):
            values += page.values
            most = min(LARGEST_PAGE, PAGE + UNPACKED_A_BYTE * page.packed)
            if page.unpacked > most:
                raise FormatError(
                    f"prompts: {where} has a page of {page.packed:,} bytes that unpacks to {page.unpacked:,}; such a page may have up to "
                    f"{most:,}. Write the file with smaller pages."
                )
            if encodings is not None and page.encoding is not None and page.encoding not in encodings:
                raise FormatError(
                    f"prompts: {where} has texts of {leaf.path} in encoding {page.encoding} of Parquet, whose size shows only when they "
                    f"are unpacked; in lists, {', '.join(map(str, encodings))} are read. Write the file with a dictionary, or plain."
                )
            largest = max(largest, page.unpacked)
        if values != chunk.values:
            raise ValueError(f"{where} has {values:,} values in its pages, and {chunk.values:,} by its footer")
        if values > most_values:
            raise FormatError(
                f"prompts: {where} has {values:,} values of {leaf.path}, more than {chunk.packed:,} bytes have; "
                f"up to {most_values:,} are read. Write the file with smaller row groups."
            )
        together += values
    if together > TOGETHER * most_values:
        raise FormatError(
            f"prompts: {where} has {together:,} values in the {len(leaves)} columns of {names[0]!r} and beside it, more than its bytes "
            f"have; up to {TOGETHER * most_values:,} are read. Write the file with smaller row groups."
        )
    return max(1, min(ROWS_AT_ONCE, ROOM // largest))
