"""Statistics files: groups of plain columns for each block, written whole and mapped into memory for reading.

docs/statistics.md is the specification; what the columns mean is for attrib.stats to know. Columns are not chunked and
not compressed, so each is one stretch of the file, and a reader maps it: of a file of any size, only the pages that
are looked at are read. As in a shard, types and places are checked before anything is looked at.
"""

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import h5py
import numpy as np
from jaxtyping import Shaped

from attrib.core.types import EdgeKind, FormatError
from attrib.store.columns import json_text, packages, text
from attrib.store.layout import REMEDY, STATISTICS, Block
from attrib.store.reading import attribute, check_kind, child, damaged, dataset, open_file, read_call, read_text, translated
from attrib.store.writing import check_output, created

VERSION = 1

Column = Shaped[np.ndarray, " length"]
Groups = Mapping[str, Iterable[tuple[str, Column]]]
"""Columns by name, group by group, each made when its turn to be written comes."""
Schema = Mapping[str, Mapping[str, tuple[str, ...]]]
"""The dtypes that each column of each group may have."""


class Written(NamedTuple):
    """A block to be written. `bits` is the width of its sketch, None for a table."""

    block: Block
    call: dict[str, Any]
    bits: int | None
    groups: Groups


class Stored(NamedTuple):
    """A block that is in a file. The columns are views of the file, and cannot be written to."""

    block: Block
    call: dict[str, Any]
    bits: int | None
    groups: dict[str, dict[str, Column]]


def write_statistics(path: Path, memory: int, blocks: Iterable[Written], *, overwrite: bool) -> None:
    """Write a statistics file, whole or not at all. Raises InputError where the path cannot be used."""
    check_output("path", path, STATISTICS, overwrite=overwrite)
    with created(path, alignment_threshold=4096, alignment_interval=4096) as file:
        file.attrs.update({"format": text(STATISTICS), "format_version": VERSION, "memory": memory, "packages": json_text(packages())})
        listing = file.create_group("blocks")
        for written in blocks:
            group = listing.create_group(written.block.group)
            group.attrs.update({name: text(part) for name, part in written.block._asdict().items()} | {"call": json_text(written.call)})
            if written.bits is not None:
                group.attrs["bits"] = written.bits
            for name, columns in written.groups.items():
                held = group.create_group(name)
                for column_name, column in columns:
                    held.create_dataset(column_name, data=column)


def read_statistics(path: str | os.PathLike[str], table: Schema, sketch: Schema) -> tuple[int, list[Stored]]:
    """The memory bound of a statistics file, and its blocks with the columns that the schemas name, mapped.

    The file is closed again; the maps stay as long as the columns do, and show what the file was even if it is
    replaced. A file that is cut short in its place while it is mapped ends the process: replace files, do not edit them.

    Raises:
        InputError: there is no such file.
        FormatError: it is not a statistics file, of another version, truncated or damaged.
    """
    path = Path(path)
    with translated(path), open_file(path) as file:
        memory = _read_header(file)
        raw = np.frombuffer(mmap.mmap(file.id.get_vfd_handle(), 0, access=mmap.ACCESS_READ), np.uint8)
        listing = child(file, "blocks", h5py.Group)
        return memory, [_read_block(child(listing, name, h5py.Group), raw, table, sketch) for name in listing]


def damaged_statistics(path: Path, block: Block, fault: str) -> FormatError:
    """The error for what is wrong with a block that was read."""
    return FormatError(f"{path}: damaged: {block}: {fault}; {REMEDY}")


def _read_header(file: h5py.File) -> int:
    check_kind(file, STATISTICS, VERSION, "statistics", "`attrib stats build` wrote")
    memory = attribute(file, "memory", "i")
    if memory is None or np.ndim(memory) or memory < 1:
        raise damaged(file, f"the attribute memory is {memory}, and not a positive integer")
    return int(memory)


def _read_block(group: h5py.Group, raw: np.ndarray, table: Schema, sketch: Schema) -> Stored:
    block = Block(read_text(group, "kind", get_args(EdgeKind)), read_text(group, "source"), read_text(group, "target"))
    if f"/blocks/{block.group}" != group.name:
        raise damaged(group, f"its attributes name it {block.group}")
    bits = attribute(group, "bits", "i")
    if "bits" in group.attrs and (bits is None or np.ndim(bits)):
        raise damaged(group, "the attribute bits is not an integer")
    columns = {}
    for name, dtypes in (table if bits is None else sketch).items():
        held = child(group, name, h5py.Group)
        columns[name] = dict(_mapped(held, raw, dtypes))
    return Stored(block, read_call(group), None if bits is None else int(bits), columns)


def _mapped(group: h5py.Group, raw: np.ndarray, dtypes: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, Column]]:
    for name, allowed in dtypes.items():
        data = dataset(group, name, allowed).data
        offset = data.id.get_offset()
        if data.size and (offset is None or offset + data.nbytes > len(raw)):
            raise damaged(data, "its values do not lie in one stretch of the file")
        yield name, raw[offset : offset + data.nbytes].view(data.dtype) if data.size else np.empty(0, data.dtype)
