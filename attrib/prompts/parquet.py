"""Prompts of Parquet files, whose pages are measured before they are unpacked.

A few bytes may stand for gigabytes: a page that unpacks to its limit, a text that every row names, a run of one
number. So a text that many rows name is held once, what a page says of itself is held against the bytes that it
takes, and as many rows are read at once as there is room for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attrib.prompts.columns import Limits, columns, of_batch
from attrib.prompts.given import LONGEST_LINE, Given
from attrib.prompts.library import library
from attrib.prompts.pages import pages
from attrib.types import AttribError, FormatError, first_line

LARGEST_PAGE = 1 << 28
"""Bytes of a page when it is unpacked, at most; writers make pages of 1 to 100 MB."""
PAGE, UNPACKED_A_BYTE = LONGEST_LINE, 100
"""Bytes that any page may have, and as many more for each byte that it takes in the file."""
VALUES, VALUES_A_BYTE = 1 << 22, 8
"""Values of a column in a row group, such as token ids, and as many more for each of its bytes. One row may have all of them."""
WIDEST = 64
"""Bytes of a value that has always as many: each null takes them too."""
ROOM, ROWS_AT_ONCE = 1 << 26, 256
"""Bytes that a batch of rows may take, and its rows, at most."""


def read_parquet(path: Path, field: str | None) -> Iterator[Given]:
    """The prompts of a file, a row each.

    Raises:
        InputError: where it has no such column.
        FormatError: where it is damaged, or says to hold more than its bytes account for.
    """
    parquet = library("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            names = columns(file.schema_arrow.names, field, str(path))
            limits, metadata = Limits(str(path), path.stat().st_size), file.metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            limits.take_rows(sum(group.num_rows for group in groups))
            _check_width(file.schema_arrow, metadata, names, path)
            texts = _texts(metadata, names)
        before = 0
        with path.open("rb") as raw, parquet.ParquetFile(path, read_dictionary=texts, buffer_size=1 << 20) as file:
            for number, group in enumerate(groups):
                at_once = _rows_at_once(raw, group, names, f"{path}, row group {number}")
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


def _texts(metadata: Any, names: list[str]) -> list[str]:
    """The paths of columns of text, each of which is read once for all rows that name it."""
    return [leaf.path for leaf in _leaves(metadata.schema, names) if leaf.physical_type == "BYTE_ARRAY"]


def _check_width(schema: Any, metadata: Any, names: list[str], path: Path) -> None:
    widths = [leaf.length for leaf in _leaves(metadata.schema, names) if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY"]
    if max(widths, default=0) > WIDEST:
        raise FormatError(f"prompts: {path} has values of {max(widths):,} bytes each in {names[0]!r}; expected text or token ids.")
    sizes = [getattr(schema.field(name).type, "list_size", 0) for name in names]
    if max(sizes) > LONGEST_LINE // 2:
        raise FormatError(f"prompts: {path} has lists of {max(sizes):,} values each in {names[0]!r}; expected text or token ids.")


def _rows_at_once(raw: BinaryIO, group: Any, names: list[str], where: str) -> int:
    """How many rows of a row group there is room for at once. Raises FormatError where its pages are more than they account for."""
    largest = 1
    for leaf in _leaves(group, names):
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
            largest = max(largest, page.unpacked)
        if values != leaf.num_values:
            raise ValueError(f"{where} has {values:,} values in its pages, and {leaf.num_values:,} by its footer")
        if values > VALUES + VALUES_A_BYTE * leaf.total_compressed_size:
            raise FormatError(
                f"prompts: {where} has {values:,} values of {leaf.path_in_schema} in {leaf.total_compressed_size:,} bytes, more than they "
                "account for. Write the file with smaller row groups."
            )
    return max(1, min(ROWS_AT_ONCE, ROOM // largest))
