"""One shard, read in slices: asking for one prompt reads that prompt's rows."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import h5py
import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.edges import Edges, Nodes, Prompts, join
from attrib.core.shown import in_html
from attrib.core.slices import ptr_of, ranges
from attrib.core.types import EdgeKind, InputError, NodeKind, Site, as_now
from attrib.store.layout import Block
from attrib.store.numbers import PROMPTS, checked_latents, checked_numbers, checked_slice
from attrib.store.reading import (
    FLOAT,
    INTEGER,
    POINTER,
    Checked,
    check_version,
    child,
    damaged,
    dataset,
    open_file,
    read_call,
    read_json,
    read_text,
    translated,
)
from attrib.store.rows import read_column, read_ptr, read_strings
from attrib.store.select import Latents, Selection, is_among, keep_nodes, select_latents
from attrib.store.wellformed import fault


class Store(AbstractContextManager["Store"]):
    """An open shard, read on demand; use it in a `with` statement. `attrib.open` makes one."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file, self._root = path, file, Checked(file["/"].id)
        check_version(file)
        self.call: dict[str, Any] = read_call(file)
        """What the blocks' calls have in common."""
        self.packages: dict[str, str] = read_json(file, "packages")
        """Versions of the packages that wrote the shard."""
        self.blocks: list[Block] = _read_blocks(child(file, "blocks", h5py.Group))
        self._count: int = len(dataset(child(file, "prompts", h5py.Group), "ptr", POINTER)) - 1

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {self._state}, blocks: {'; '.join(map(str, self.blocks))})"

    def _repr_html_(self) -> str:
        return in_html(f"Store({str(self.path)!r}, {self._state})", Block._fields, self.blocks)

    @property
    def _state(self) -> str:
        return f"{self._count} prompts" if self._file else "closed"

    @property
    def descriptor(self) -> int:
        """The system's number of the open file, which stays the same file whatever takes over its name."""
        return self._file.id.get_vfd_handle()

    def close(self) -> None:
        """Close the file. What was read from it stays."""
        self._file.close()

    @cached_property
    def prompts(self) -> Prompts:
        """All prompts of the shard. Raises FormatError where they are damaged."""
        with self.reading() as file:
            return _read_prompts(file, slice(0, self._count), self._count)

    @property
    def numbers(self) -> Int[Tensor, " prompts"]:
        """The numbers of the prompts in their data set; their places where the shard carries none."""
        with self.reading() as file:
            number = _read_number(child(file, "prompts", h5py.Group), slice(0, self._count), self._count)
        return torch.arange(self._count) if number is None else number

    def edges(
        self,
        kind: str | None = None,
        source: str | Site | None = None,
        target: str | Site | None = None,
        prompts: Selection = None,
        *,
        source_latents: Latents = None,
        target_latents: Latents = None,
    ) -> Edges:
        """The one block with this kind and these sites (None: any), and of it only these prompts, in the order asked for.

        `prompts` are their places in the shard; negative ones count from the end. Only the rows of those prompts are read.
        Integers come back as int64, values in the dtype they had.
        `source_latents` and `target_latents` slice as `attrib.store.select.select_latents` does; of rows of
        other targets no edges are read.

        Raises:
            InputError: no block or several fit, a prompt is out of range, prompts or latents are not whole numbers, or the
                store is closed.
            FormatError: what is read is damaged.
        """
        block = the_block(self.path, self.blocks, kind, source, target)
        runs = _runs(prompts, self._count)
        # an argument that cannot be used is no damage of the file: it is met before the reading
        sources, targets = checked_latents("source_latents", source_latents), checked_latents("target_latents", target_latents)
        with self.reading() as file:
            parts = [_read_edges(file, block, run, self._count, targets) for run in runs]
        if sources is not None:
            parts = [select_latents(part, sources) for part in parts]
        return parts[0] if len(parts) == 1 else join(parts)

    def sizes(self, block: Block, prompts: Sequence[int]) -> Int[Tensor, " prompts"]:
        """How many edges each of these prompts has in a block. Raises as `edges` does."""
        runs = _runs(prompts, self._count)
        with self.reading() as file:
            return torch.cat([_read_sizes(file, block, run, self._count) for run in runs])

    def values(self) -> Iterator[Edges]:
        """All prompts of every block, one block after another."""
        return (self.edges(*block) for block in self.blocks)

    def check(self, block: Block) -> None:
        """Raises FormatError where a part of a block is missing, or has a type, length, filter or storage that docs/format.md has not."""
        with self.reading() as file:
            _read_edges(file, block, slice(0, 0), self._count)  # of no prompt, which looks at every part all the same
            group = child(child(file, "blocks", h5py.Group), block.group, h5py.Group)
            dataset(group, "remainder", FLOAT, len(dataset(group, "total", FLOAT)))

    @contextmanager
    def reading(self) -> Iterator[Checked]:
        """The file's root, to read from; whatever h5py raises at damage is a FormatError. Raises InputError where it is closed."""
        if not self._file:
            raise InputError(f"store: {self.path} is closed; read inside its `with` statement, or open it again.")
        with translated(self.path):
            yield self._root


def open_shard(path: str | os.PathLike[str]) -> Store:
    """Open one shard for reading. Nothing but its header is read yet, and of its parts none is looked at before it is asked for.

    Raises:
        InputError: there is no such file.
        FormatError: it is not HDF5, not attrib's, of another version, truncated or damaged.
    """
    path = Path(path)
    file = open_file(path)
    try:
        with translated(path):
            return Store(path, file)
    except BaseException:
        file.close()
        raise


def the_block(path: Path, blocks: Sequence[Block], kind: str | None, source: str | Site | None, target: str | Site | None) -> Block:
    """The one block with this kind and these sites; None fits any. Raises InputError where none or several fit."""
    asked = [name if name is None else str(name) for name in (kind, source, target)]
    found = [block for block in blocks if all(name is None or as_now(name) == as_now(own) for name, own in zip(asked, block, strict=True))]
    if len(found) != 1:
        raise InputError(
            f"edges(kind={asked[0]!r}, source={asked[1]!r}, target={asked[2]!r}): {len(found) or 'no'} blocks of {path} fit; "
            f"expected one. Its blocks: {'; '.join(map(str, blocks))}."
        )
    return found[0]


def _read_blocks(listing: h5py.Group) -> list[Block]:
    blocks = []
    for name in listing:
        group = child(listing, name, h5py.Group)
        blocks.append(Block(read_text(group, "kind", get_args(EdgeKind)), read_text(group, "source"), read_text(group, "target")))
        if blocks[-1].group != name:
            raise damaged(group, f"its attributes name it {blocks[-1].group}")
    return blocks


def _runs(prompts: Selection, count: int) -> list[slice]:
    """The prompts asked for as runs of successive ones; a single empty run for none."""
    runs: list[slice] = []
    for prompt in _asked(prompts, count):
        if not -count <= prompt < count:
            raise InputError(f"prompts: {prompt} is outside the {count} prompts of this shard.")
        at = prompt % count
        if runs and runs[-1].stop == at:
            at = runs.pop().start
        runs.append(slice(at, prompt % count + 1))
    return runs or [slice(0, 0)]


def _asked(prompts: Selection, count: int) -> Sequence[int]:
    if prompts is None:
        return range(count)
    if isinstance(prompts, slice):
        return range(count)[checked_slice("prompts", prompts)]
    return checked_numbers("prompts", prompts, PROMPTS)


def _read_prompts(file: h5py.Group, run: slice, count: int) -> Prompts:
    group = child(file, "prompts", h5py.Group)
    tokens = len(dataset(group, "ids", INTEGER))
    ptr, rows = read_ptr(group, "ptr", count, tokens, run)
    ids = read_column(group, "ids", INTEGER, tokens, rows)
    corrupt = read_column(group, "corrupt", INTEGER, tokens, rows) if "corrupt" in group else None
    return Prompts(ptr, ids, read_strings(child(group, "strings", h5py.Group), tokens, rows), _read_number(group, run, count), corrupt)


def _read_number(group: h5py.Group, run: slice, count: int) -> Int[Tensor, " prompts"] | None:
    return read_column(group, "number", INTEGER, count, run) if "number" in group else None


def _read_nodes(group: h5py.Group, site: str, run: slice, count: int) -> tuple[Nodes, slice, int]:
    """The nodes of a run of prompts, which rows of the table they are, and how many rows it has."""
    length = len(dataset(group, "position", INTEGER))
    ptr, rows = read_ptr(group, "ptr", count, length, run)
    nodes = Nodes(
        kind=read_text(group, "kind", get_args(NodeKind)),  # type: ignore[arg-type]
        site=as_now(site),
        ptr=ptr,
        position=read_column(group, "position", INTEGER, length, rows),
        latent=read_column(group, "latent", INTEGER, length, rows),
        activation=read_column(group, "activation", FLOAT, length, rows),
        labels=read_strings(child(group, "labels", h5py.Group), length, rows) if "labels" in group else (),
        probability=read_column(group, "probability", FLOAT, length, rows) if "probability" in group else None,
        change=read_column(group, "change", FLOAT, length, rows) if "change" in group else None,
    )
    return nodes, rows, length


def _read_sizes(file: h5py.Group, block: Block, run: slice, count: int) -> Int[Tensor, " prompts"]:
    group = child(child(file, "blocks", h5py.Group), block.group, h5py.Group)
    targets, gradient = child(group, "targets", h5py.Group), child(group, "gradient", h5py.Group)
    n_targets, n_entries = len(dataset(targets, "position", INTEGER)), len(dataset(gradient, "indices", INTEGER))
    ptr, rows = read_ptr(targets, "ptr", count, n_targets, run)
    indptr, _ = read_ptr(gradient, "indptr", n_targets, n_entries, rows)
    return indptr[ptr].diff()


NEAR = 1 << 15
"""Entries: rows of latents that were asked for are read together with what lies between them, where that is no more."""


def _read_edges(file: h5py.Group, block: Block, run: slice, count: int, target_latents: list[int] | None = None) -> Edges:
    """A run of successive prompts of a block, as a result of its own; of the targets, those of some latents."""
    group = child(child(file, "blocks", h5py.Group), block.group, h5py.Group)
    sources, columns, _ = _read_nodes(child(group, "sources", h5py.Group), block.source, run, count)
    targets, rows, n_targets = _read_nodes(child(group, "targets", h5py.Group), block.target, run, count)
    gradient, attribution = child(group, "gradient", h5py.Group), child(group, "attribution", h5py.Group)
    n_entries = len(dataset(gradient, "indices", INTEGER))
    indptr, entries = read_ptr(gradient, "indptr", n_targets, n_entries, rows)
    total, l1 = (read_column(group, name, FLOAT, n_targets, rows) for name in ("total", "l1"))
    gap = read_column(group, "gap", FLOAT, n_targets, rows) if "gap" in group else None
    spans: list[slice] = [entries]
    within: slice | Tensor = slice(None)
    if target_latents is not None:
        kept = is_among(targets, target_latents)
        starts, counts = indptr[:-1][kept], indptr.diff()[kept]
        spans, within = _spans(starts, counts, entries.start)
        targets, indptr, total, l1 = keep_nodes(targets, kept), ptr_of(counts), total[kept], l1[kept]
        gap = None if gap is None else gap[kept]
    edges = Edges(
        kind=block.kind,  # type: ignore[arg-type]
        sources=sources,
        targets=targets,
        indptr=indptr,
        indices=_read_spans(gradient, "indices", INTEGER, n_entries, spans)[within] - columns.start,
        gradient=_read_spans(gradient, "data", FLOAT, n_entries, spans)[within],
        attribution=_read_spans(attribution, "data", FLOAT, n_entries, spans)[within],
        total=total,
        l1=l1,
        prompts=_read_prompts(file, run, count),
        call=read_call(group),
        gap=gap,
    )
    if wrong := fault(edges):
        raise damaged(group, f"in prompts {run.start} to {run.stop}, {wrong}")
    return edges


def _spans(starts: Int[Tensor, " rows"], counts: Int[Tensor, " rows"], offset: int) -> tuple[list[slice], Int[Tensor, " entries"]]:
    """What to read for rows that are not all of their prompts': slices of the file's entries, and which of those read are the rows'."""
    spans: list[slice] = []
    before: list[int] = []  # entries of the spans so far that lie before the row's first
    read = 0
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        if spans and start + offset - spans[-1].stop <= NEAR:
            first = spans.pop().start
        else:
            first = start + offset
            read += spans[-1].stop - spans[-1].start if spans else 0
        spans.append(slice(first, start + offset + count))
        before.append(read + start + offset - first)
    return spans or [slice(offset, offset)], ranges(torch.tensor(before, dtype=torch.int64), counts)


def _read_spans(group: h5py.Group, name: str, dtypes: tuple[str, ...], length: int, spans: list[slice]) -> Tensor:
    parts = [read_column(group, name, dtypes, length, span) for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
