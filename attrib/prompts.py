"""Prompts from files and data sets, one after another, each as it is or with the reason why it cannot be one.

Text, JSONL, Parquet, Hugging Face data sets and standard input are read as streams: nothing is held but the
prompt at hand. What is wrong with a prompt is said of that prompt, and the next is read.
"""

import gzip
import importlib
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import torch
from torch import Tensor

from attrib.types import AttribError, FetchError, FormatError, InputError, first_line

FIELDS = ("text", "prompt", "tokens", "input_ids")
"""The keys or columns that hold a prompt, where none is named: the first that is there."""

LONGEST_LINE = 1 << 24
"""Bytes of a line, at most. A longer one is passed over without being held."""

Form = Literal["text", "jsonl", "parquet", "dataset"]
_SUFFIXES: dict[str, Form] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


class Given(NamedTuple):
    """What stands where a prompt should: the prompt, or what is wrong with it."""

    where: str
    prompt: str | Tensor | None
    fault: str = ""


def read(source: str | Path, *, form: Form | None = None, field: str | None = None, split: str = "train") -> Iterator[Given]:
    """The prompts of one source, in its order.

    Args:
        source: a file, by its suffix JSONL (.jsonl, .ndjson), Parquet (.parquet) or else text, a prompt a line, each
            also as .gz but for Parquet; a folder that `datasets` saved; "hf:NAME" or "hf:NAME:CONFIG", a Hugging Face
            data set, streamed; "-", standard input.
        form: what the source is, where its name does not say.
        field: the key or column that holds the prompt, text or token ids. None: the first of `FIELDS` that is there.
        split: of a Hugging Face data set.

    Raises:
        InputError: where there is no such source, or it has no such column.
        FormatError: where a file is damaged.
    """
    name = str(source)
    if name.startswith("hf:"):
        return _read_rows(_hub(name, split), name, field)
    path = Path(name)
    if name == "-" and form in ("parquet", "dataset"):
        raise InputError(f"prompts: standard input is read line by line; expected the form text or jsonl, got {form}.")
    if name != "-" and not path.exists():
        raise InputError(f"prompts: {name} does not exist.")
    form = form or ("dataset" if path.is_dir() else _SUFFIXES.get(Path(name.lower().removesuffix(".gz")).suffix, "text"))
    if form == "dataset":
        return _read_saved(_saved(path, split), name, field)
    if path.is_dir():
        raise InputError(f"prompts: {name} is a folder; expected a file, or a folder that datasets' save_to_disk wrote.")
    if form == "parquet":
        return _read_parquet(path, field)
    return _read_lines(name, form, field)


# ------------------------------------------------------------------------------------------------ lines


def _read_lines(name: str, form: Form, field: str | None) -> Iterator[Given]:
    for number, line in enumerate(_lines(name), 1):
        where = f"{name}, line {number}"
        if line is None:
            yield Given(where, None, f"is longer than {LONGEST_LINE:,} bytes")
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield Given(where, None, f"is not UTF-8: {error.reason} at byte {error.start}")
            continue
        text = text.removeprefix("\ufeff") if number == 1 else text  # a mark of its encoding, and none of the prompt's
        yield _of_json(text, where, field) if form == "jsonl" else _of_value(text, where)


def _lines(name: str) -> Iterator[bytes | None]:
    """Lines without their ends; None for one that is too long to hold."""
    most = LONGEST_LINE + 1  # with its end
    with _opened(name) as file:
        while line := file.readline(most):
            if line.endswith(b"\n") or len(line) < most:
                yield line.removesuffix(b"\n").removesuffix(b"\r")
                continue
            while (rest := file.readline(most)) and not rest.endswith(b"\n"):
                pass
            yield None


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        with gzip.open(name) if name.lower().endswith(".gz") else Path(name).open("rb") as file:
            yield cast(BinaryIO, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FormatError(f"prompts: {name} is not gzip, or damaged: {error}.") from error


def _of_json(line: str, where: str, field: str | None) -> Given:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Given(where, None, f"is not JSON: {error}" if line.strip() else "is an empty prompt")
    if isinstance(value, dict):
        keys = [field] if field else FIELDS
        if not any(key in value for key in keys):
            return Given(where, None, f"has no key {' or '.join(map(repr, keys))}")
        value = next(value[key] for key in keys if key in value)
    return _of_value(value, where)


# ------------------------------------------------------------------------------------------------- rows


def _read_parquet(path: Path, field: str | None) -> Iterator[Given]:
    parquet = _library("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            column = _column(file.schema_arrow.names, field, str(path))
            values = (value for batch in file.iter_batches(batch_size=256, columns=[column]) for value in batch.column(0))
            yield from _of_arrow(values, str(path))
    except AttribError:
        raise
    except Exception as error:  # of a damaged file, Arrow hands on whatever its parts raise
        raise FormatError(f"prompts: {path} is not Parquet, or damaged: {first_line(error)}.") from error


def _read_saved(table: Any, name: str, field: str | None) -> Iterator[Given]:
    """The rows of a data set on the disk, of which one column is read."""
    column = _column(table.column_names, field, name)
    try:
        batches = table.select_columns([column]).with_format("arrow").iter(batch_size=256)
        yield from _of_arrow((value for batch in batches for value in batch.column(0)), name)
    except Exception as error:  # as above
        raise FormatError(f"prompts: {name} is damaged: {first_line(error)}.") from error


def _of_arrow(values: Iterable[Any], name: str) -> Iterator[Given]:
    """Prompts from Arrow's scalars; bytes are text where they are UTF-8, in columns of strings too."""
    for number, value in enumerate(values, 1):
        where = f"{name}, row {number}"
        try:
            found = value.as_py()
            yield _of_value(found.decode() if isinstance(found, bytes) else found, where)
        except UnicodeDecodeError:
            yield Given(where, None, "is not UTF-8")


def _read_rows(rows: Iterable[dict[str, Any]], name: str, field: str | None) -> Iterator[Given]:
    """The rows of a data set that comes over the network, as it comes."""
    try:
        for number, row in enumerate(rows, 1):
            yield _of_value(row[_column(list(row), field, name)], f"{name}, row {number}")
    except AttribError:
        raise
    except Exception as error:  # of the network, of the hub, of whatever reads the data set's files
        raise FetchError(f"prompts: {name} could not be read on: {first_line(error)}.") from error


def _column(names: Sequence[str], field: str | None, source: str) -> str:
    found = [key for key in ([field] if field else FIELDS) if key in names]
    if not found:
        wanted = repr(field) if field else " or ".join(map(repr, FIELDS))
        raise InputError(f"prompts: {source} has the columns {', '.join(map(repr, names))}, and not {wanted}. Name one with `field`.")
    return found[0]


def _hub(name: str, split: str) -> Iterable[dict[str, Any]]:
    datasets = _library("datasets")
    dataset, _, config = name.removeprefix("hf:").partition(":")
    reads_files = getattr(importlib.import_module("datasets.packaged_modules"), "_PACKAGED_DATASETS_MODULES", {})
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*(/[\w.-]*\w[\w.-]*)?", dataset, re.ASCII) or dataset in reads_files or Path(dataset).exists():
        # `datasets` would read such a folder, and for "text" the one we are in; a job's config must not reach the user's files this way
        raise InputError(f"prompts: {name} names no data set of the hub but files; expected hf:NAME or hf:OWNER/NAME, or the path itself.")
    try:
        return datasets.load_dataset(dataset, config or None, split=split, streaming=True)  # type: ignore[no-any-return]
    except Exception as error:  # the hub's own errors are of many kinds
        raise InputError(f"prompts: the data set {name} could not be opened: {first_line(error)}.") from error


def _saved(path: Path, split: str) -> Any:
    datasets = _library("datasets")
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # of a damaged folder, `datasets` hands on whatever its parts raise
        raise InputError(f"prompts: {path} is not a folder that datasets' save_to_disk wrote: {first_line(error)}.") from error
    if isinstance(saved, dict):
        if split not in saved:
            raise InputError(f"prompts: {path} has no split {split!r}; it has {', '.join(map(repr, saved))}.")
        saved = saved[split]
    return saved


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = name.partition(".")[0]
        raise InputError(f"prompts: these need the package {missing}, which is not installed; pip install 'attrib[jobs]'.") from error


# ----------------------------------------------------------------------------------------------- values


def _of_value(value: Any, where: str) -> Given:
    """A prompt from what stood in its place: text, or token ids."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return Given(where, None, "holds a lone surrogate, which no UTF-8 has")
        return Given(where, value) if value.strip() else Given(where, None, "is an empty prompt")
    if isinstance(value, bytes):
        return Given(where, None, "is not UTF-8")
    if isinstance(value, list) and all(isinstance(token, int) and not isinstance(token, bool) for token in value):
        if not value:
            return Given(where, None, "is an empty prompt")
        if min(value) < 0 or max(value) >= 1 << 31:
            return Given(where, None, f"has token ids from {min(value)} to {max(value)}; expected 0 or more, below 2^31")
        return Given(where, torch.tensor(value, dtype=torch.int64))
    shown = repr(value)
    shown = shown if len(shown) < 80 else shown[:77] + "..."
    return Given(where, None, f'is {shown}; expected a string, {{"text": "..."}} or {{"tokens": [ids]}}')
