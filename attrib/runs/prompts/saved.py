"""Prompts of a data set that the library `datasets` saved, from its folder alone.

The folder may come from elsewhere. It names its files, and what it names must lie in it: neither a path nor a link
reaches others. Its tables are Arrow's streams, read here as they are; nothing of `datasets` runs on them.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrib.core.types import AttribError, FormatError, InputError, first_line
from attrib.runs.prompts.columns import Limits, columns, of_batch
from attrib.runs.prompts.flatbuffer import is_compressed
from attrib.runs.prompts.given import LONGEST_LINE, Given, library

STATE, SPLITS = "state.json", "dataset_dict.json"


def files_of(folder: Path, split: str, allowed: Sequence[Path]) -> list[Path]:
    """The tables of a data set, in order.

    Args:
        allowed: folders that its links may lead to, beside its own.

    Raises:
        InputError: where it is none, has no such split, or names what lies elsewhere.
    """
    root = folder.resolve()
    roots = [root, *(each.resolve() for each in allowed)]
    if not (root / STATE).exists():
        splits = _json(root, SPLITS, folder, roots).get("splits")
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise _no_data_set(folder, f"{SPLITS} lists no splits")
        if split not in splits:
            raise InputError(f"prompts: {folder} has no split {split!r}; it has {', '.join(map(repr, splits))}.")
        root = _beneath(root, split, SPLITS, folder, roots)
    state = _json(root, STATE, folder, roots)
    if state.get("_indices_data_files"):
        raise InputError(
            f"prompts: {folder} was saved with a choice of its rows beside them (_indices_data_files); save it again with datasets 2."
        )
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) and isinstance(entry.get("filename"), str) for entry in listed):
        raise _no_data_set(folder, f"{STATE} lists no files")
    files = [_beneath(root, entry["filename"], STATE, folder, roots) for entry in listed]
    if absent := next((path for path in files if not path.is_file()), None):
        raise _no_data_set(folder, f"{absent.name} is no file")
    return files


def read_saved(files: Sequence[Path], name: str, field: str | None) -> Iterator[Given]:
    """The prompts of a data set's tables, a row each.

    Raises:
        InputError: where they have no such column.
        FormatError: where they are damaged, or say to hold more than their bytes account for.
    """
    before, limits = 0, Limits(name, sum(path.stat().st_size for path in files))
    for path in files:
        try:
            for batch in _batches(path, field, name):
                limits.take_rows(batch.num_rows)
                yield from of_batch(batch, limits, before, field)
                before += batch.num_rows
        except AttribError:
            raise
        except Exception as error:  # of a damaged file, Arrow hands on whatever its parts raise
            raise FormatError(f"prompts: {name} is damaged, {path.name}: {first_line(error)}.") from error


def _batches(path: Path, field: str | None, name: str) -> Iterator[Any]:
    """The batches of a table, mapped and not read, with the columns that are asked for."""
    arrow = library("pyarrow")
    with arrow.memory_map(str(path)) as mapped:
        for message in arrow.ipc.MessageReader.open_stream(mapped):
            if is_compressed(message.metadata):
                raise FormatError(f"prompts: {name} is compressed within {path.name}, as save_to_disk writes no table. Save it again.")
        mapped.seek(0)
        names = arrow.ipc.open_stream(mapped).schema.names
        wanted = [names.index(column) for column in columns(names, field, name)]
        mapped.seek(0)
        for batch in arrow.ipc.open_stream(mapped, options=arrow.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)):
            yield _checked(batch, arrow)


def _checked(batch: Any, arrow: Any) -> Any:
    """A batch whose offsets point into it, which Arrow takes from a file as they are. Text is as bytes, that each row has its own fault."""
    columns = [column.view(_as_bytes(column.type, arrow)) for column in batch.columns]
    made = arrow.RecordBatch.from_arrays(columns, names=batch.schema.names)
    made.validate(full=True)
    return made


def _as_bytes(kind: Any, arrow: Any) -> Any:
    """A type with bytes in place of text, which lie the same way."""
    kinds = arrow.types
    for is_of, made in (
        (kinds.is_string, arrow.binary), (kinds.is_large_string, arrow.large_binary), (kinds.is_string_view, arrow.binary_view),
    ):  # fmt: skip
        if is_of(kind):
            return made()
    return kind


# ------------------------------------------------------------------------------------------------ names


def _beneath(folder: Path, name: str, named_by: str, source: Path, roots: Sequence[Path]) -> Path:
    """What a data set names, links followed. Raises InputError where that lies elsewhere."""
    try:
        path = (folder / name).resolve()
        is_name = Path(name).name == name and name not in (".", "..")
        if is_name and any(path.is_relative_to(root) for root in roots):
            return path
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL
        pass
    raise InputError(
        f"prompts: {source} is a data set whose {named_by} names {name[:200]!r}, outside of it. It is read from its own folder alone: "
        "copy the file there; a job may read linked files of a folder that --allow names."
    )


def _json(folder: Path, name: str, source: Path, roots: Sequence[Path]) -> dict[str, Any]:
    """A small file of a data set."""
    path = _beneath(folder, name, "folder", source, roots)
    if not path.is_file():  # nor a pipe, which would be waited for
        raise _no_data_set(source, f"it holds no {name}")
    try:
        if (size := path.stat().st_size) > LONGEST_LINE:
            raise ValueError(f"has {size:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise _no_data_set(source, f"{name}: {first_line(error)}") from error
    return found


def _no_data_set(folder: Path, why: str) -> InputError:
    return InputError(f"prompts: {folder} is not a folder that datasets' save_to_disk wrote: {why}.")
