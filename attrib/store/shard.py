"""One shard, read in slices: asking for one prompt reads that prompt's rows."""

import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import h5py

from attrib.edges import EdgeKind, Edges, NodeKind, Nodes, Prompts, join
from attrib.store.checked import (
    FLOAT,
    INTEGER,
    POINTER,
    check_version,
    child,
    damaged,
    dataset,
    read_column,
    read_json,
    read_ptr,
    read_strings,
    read_text,
    translated,
)
from attrib.store.layout import REMEDY, Block
from attrib.store.wellformed import fault
from attrib.types import FormatError, InputError, Site


class Store:
    """An open shard, read on demand; use it in a `with` statement. `open_store` makes one."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        check_version(file)
        self.call: dict[str, Any] = read_json(file, "call")
        """What the blocks' calls have in common."""
        self.packages: dict[str, str] = read_json(file, "packages")
        """Versions of the packages that wrote the shard."""
        self.blocks: list[Block] = _read_blocks(child(file, "blocks", h5py.Group))
        self._count: int = len(dataset(child(file, "prompts", h5py.Group), "ptr", POINTER)) - 1

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{self._count} prompts" if self._file else "closed"
        return f"Store({str(self.path)!r}, {state}, blocks: {'; '.join(map(str, self.blocks))})"

    def close(self) -> None:
        """Close the file. What was read from it stays."""
        self._file.close()

    @cached_property
    def prompts(self) -> Prompts:
        """All prompts of the shard. Raises FormatError where they are damaged."""
        with self._reading() as file:
            return _read_prompts(file, slice(0, self._count), self._count)

    def edges(
        self,
        kind: str | None = None,
        source: str | Site | None = None,
        target: str | Site | None = None,
        prompts: slice | int | Sequence[int] | None = None,
    ) -> Edges:
        """The one block with this kind and these sites (None: any), and of it only these prompts, in the order asked for.

        Only the rows of those prompts are read. Integers come back as int64, values in the dtype they had.

        Raises:
            InputError: no block or several fit, a prompt is out of range, or the store is closed.
            FormatError: what is read is damaged.
        """
        asked = [name if name is None else str(name) for name in (kind, source, target)]
        found = [block for block in self.blocks if all(name in (None, part) for name, part in zip(asked, block, strict=True))]
        if len(found) != 1:
            raise InputError(
                f"edges(kind={asked[0]!r}, source={asked[1]!r}, target={asked[2]!r}): {len(found) or 'no'} blocks of {self.path} fit; "
                f"expected one. Its blocks: {'; '.join(map(str, self.blocks))}."
            )
        runs = _runs(prompts, self._count)
        with self._reading() as file:
            parts = [_read_edges(file, found[0], run, self._count) for run in runs]
        return parts[0] if len(parts) == 1 else join(parts)

    def values(self) -> Iterator[Edges]:
        """All prompts of every block, one block after another."""
        return (self.edges(*block) for block in self.blocks)

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        if not self._file:
            raise InputError(f"store: {self.path} is closed; read inside its `with` statement, or open it again.")
        with translated(self.path):
            yield self._file


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a shard for reading (public as `attrib.open`). Nothing but its header is read yet.

    Raises:
        InputError: there is no such file.
        FormatError: it is not HDF5, not attrib's, of another version, truncated or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"path: there is no file {path}; expected a shard that attrib.save wrote.")
    with path.open("rb") as raw:
        head = raw.read(8)
    with translated(path):
        if not h5py.is_hdf5(path):
            found = f"{path.stat().st_size} bytes, beginning with {head!r}"
            raise FormatError(f"{path}: not an HDF5 file ({found}); {REMEDY}")
        file = h5py.File(path, "r")
        try:
            return Store(path, file)
        except BaseException:
            file.close()
            raise


def _read_blocks(listing: h5py.Group) -> list[Block]:
    blocks = []
    for name in listing:
        group = child(listing, name, h5py.Group)
        blocks.append(Block(read_text(group, "kind", get_args(EdgeKind)), read_text(group, "source"), read_text(group, "target")))
        if blocks[-1].group != name:
            raise damaged(group, f"its attributes name it {blocks[-1].group}")
    return blocks


def _runs(prompts: slice | int | Sequence[int] | None, count: int) -> list[slice]:
    """The prompts asked for as runs of successive ones; a single empty run for none."""
    if prompts is None or isinstance(prompts, slice):
        numbers = list(range(count)[prompts or slice(None)])
    else:
        numbers = [operator.index(n) for n in (prompts if isinstance(prompts, Sequence) else [prompts])]
    runs: list[slice] = []
    for number in numbers:
        if not -count <= number < count:
            raise InputError(f"prompts: {number} is outside the {count} prompts of this shard.")
        at = number % count
        if runs and runs[-1].stop == at:
            at = runs.pop().start
        runs.append(slice(at, number % count + 1))
    return runs or [slice(0, 0)]


def _read_prompts(file: h5py.File, run: slice, count: int) -> Prompts:
    group = child(file, "prompts", h5py.Group)
    tokens = len(dataset(group, "ids", INTEGER))
    ptr, rows = read_ptr(group, "ptr", count, tokens, run)
    ids = read_column(group, "ids", INTEGER, tokens, rows)
    number = read_column(group, "number", INTEGER, count, run) if "number" in group else None
    return Prompts(ptr, ids, read_strings(child(group, "strings", h5py.Group), tokens, rows), number)


def _read_nodes(group: h5py.Group, site: str, run: slice, count: int) -> tuple[Nodes, slice, int]:
    """The nodes of a run of prompts, which rows of the table they are, and how many rows it has."""
    length = len(dataset(group, "position", INTEGER))
    ptr, rows = read_ptr(group, "ptr", count, length, run)
    nodes = Nodes(
        kind=read_text(group, "kind", get_args(NodeKind)),  # type: ignore[arg-type]
        site=site,
        ptr=ptr,
        position=read_column(group, "position", INTEGER, length, rows),
        latent=read_column(group, "latent", INTEGER, length, rows),
        activation=read_column(group, "activation", FLOAT, length, rows),
        labels=read_strings(child(group, "labels", h5py.Group), length, rows) if "labels" in group else (),
        probability=read_column(group, "probability", FLOAT, length, rows) if "probability" in group else None,
    )
    return nodes, rows, length


def _read_edges(file: h5py.File, block: Block, run: slice, count: int) -> Edges:
    """A run of successive prompts of a block, as a result of its own."""
    group = child(child(file, "blocks", h5py.Group), block.group, h5py.Group)
    sources, columns, _ = _read_nodes(child(group, "sources", h5py.Group), block.source, run, count)
    targets, rows, n_targets = _read_nodes(child(group, "targets", h5py.Group), block.target, run, count)
    gradient, attribution = child(group, "gradient", h5py.Group), child(group, "attribution", h5py.Group)
    n_entries = len(dataset(gradient, "indices", INTEGER))
    indptr, entries = read_ptr(gradient, "indptr", n_targets, n_entries, rows)
    edges = Edges(
        kind=block.kind,  # type: ignore[arg-type]
        sources=sources,
        targets=targets,
        indptr=indptr,
        indices=read_column(gradient, "indices", INTEGER, n_entries, entries) - columns.start,
        gradient=read_column(gradient, "data", FLOAT, n_entries, entries),
        attribution=read_column(attribution, "data", FLOAT, n_entries, entries),
        total=read_column(group, "total", FLOAT, n_targets, rows),
        l1=read_column(group, "l1", FLOAT, n_targets, rows),
        prompts=_read_prompts(file, run, count),
        call=read_json(group, "call"),
    )
    if wrong := fault(edges):
        raise damaged(group, f"in prompts {run.start} to {run.stop}, {wrong}")
    return edges
