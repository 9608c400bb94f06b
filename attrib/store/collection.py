"""A folder of shards as one object: sliced by prompt, latent or kind, and read only where it is sliced."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.edges import Edges, Prompts, Value, join, join_prompts
from attrib.core.shown import in_html
from attrib.core.slices import ptr_of
from attrib.core.types import FormatError, InputError, Site
from attrib.store.contradictions import faults_of_file
from attrib.store.graph_collection import open_graphs
from attrib.store.graphs import faults_of_graphs
from attrib.store.handles import Handles
from attrib.store.index import Index, differences, index_of, shared
from attrib.store.layout import GRAPHS, REMEDY, Block
from attrib.store.listing import SHARDS, folder_of, holds_graphs, is_one_file, listed
from attrib.store.numbers import LIMIT, PROMPTS, checked_latents, checked_number, checked_numbers, checked_slice, told
from attrib.store.reading import Fault
from attrib.store.select import Latents, Selection, lengths
from attrib.store.shard import Store, open_shard, the_block
from attrib.store.writing import format_at

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse

    from attrib.store.dataset import EdgeDataset


class Collection(AbstractContextManager["Collection"]):
    """The shards of a folder as they were when it was opened; use it in a `with` statement. `attrib.open` makes one.

    Prompts go by their numbers in the data set. Shards that carry none count theirs one after another, in the order of
    the files' names. It can be pickled and forked: every process opens its own files, and reads the same snapshot.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self.path = path
        self._index, self._handles, self._closed = index, Handles(index, open_shard), False
        self._calls: dict[Block, tuple[dict[str, Any], Path]] = {}

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._index.order)

    def __repr__(self) -> str:
        return f"Collection({str(self.path)!r}, {self._state}, blocks: {'; '.join(map(str, self.blocks))})"

    def _repr_html_(self) -> str:
        return in_html(f"Collection({str(self.path)!r}, {self._state})", Block._fields, self.blocks)

    @property
    def _state(self) -> str:
        return "closed" if self._closed else f"{len(self)} prompts in {len(self._index.shards)} shards"

    def __getstate__(self) -> dict[str, Any]:
        # of what was read, nothing: a worker that needs all prompts reads them
        return {name: value for name, value in self.__dict__.items() if name not in ("_handles", "prompts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handles = Handles(self._index, open_shard)

    def close(self) -> None:
        """Close the files. What was read from them stays."""
        self._closed = True
        self._handles.close()

    def refreshed(self) -> "Collection":
        """The folder as it is now. Shards that are known already are not read again."""
        return Collection(self.path, index_of(self._index.folder, listed(self.path), self._index))

    @property
    def blocks(self) -> list[Block]:
        """The blocks, of every shard the same."""
        return list(self._index.blocks)

    @property
    def call(self) -> dict[str, Any]:
        """What the blocks' calls have in common, in every shard; of each shard's own, such as the prompts' hash, nothing."""
        return self._index.call

    @property
    def numbers(self) -> Int[Tensor, " prompts"]:
        """The numbers of the prompts in their data set, ascending."""
        return self._index.number[self._index.order]

    def place_of(self, prompt: SupportsIndex) -> tuple[Path, int]:
        """The file that holds the prompt of this number, and its place there. Raises InputError for a number that none has."""
        place = self._found("prompt", [checked_number("prompt", prompt, "a prompt's number in the data set")])
        shard = int(self._index.shard_of(place))
        return self._index.path(shard), int(place - self._index.ptr[shard])

    @cached_property
    def prompts(self) -> Prompts:
        """All prompts, in the order of their numbers, read from every shard and kept. Raises FormatError where they are damaged."""
        nothing = torch.zeros(0, dtype=torch.int64)
        parts = [Prompts(ptr_of(nothing), nothing, ())]
        for shard in range(len(self._index.shards)):
            with self._reading(shard) as store:
                parts.append(store.prompts)
        return replace(join_prompts(parts), number=self._index.number).take(self._index.order)

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

        `prompts` are numbers in the data set; a slice takes those of its numbers that are there. With latents, only
        targets and sources of these latents, and the edges between them: see `attrib.store.select.select_latents`.

        Raises:
            InputError: no block or several fit, a prompt is not there, prompts or latents are not whole numbers, a shard is
                gone or was replaced, or the collection is closed.
            FormatError: what is read is damaged, or was made in another way than what the other shards hold.
        """
        block, places = the_block(self.path, self.blocks, kind, source, target), self._places(prompts)
        needed, order = places.unique(return_inverse=True)
        latents = _ends(source_latents, target_latents)
        parts = list(self._pieces(block, needed, PIECE, latents)) or [self._piece(block, 0, [], latents)]
        joined = parts[0] if len(parts) == 1 else join(parts)
        return joined if torch.equal(order, torch.arange(len(needed))) else joined.take(order)

    def values(self) -> Iterator[Edges]:
        """All prompts of every block, one block after another; each is held as a whole."""
        return (self.edges(*block) for block in self.blocks)

    def iterate(
        self,
        kind: str | None = None,
        source: str | Site | None = None,
        target: str | Site | None = None,
        prompts: Selection = None,
        *,
        by: Literal["prompt", "shard"] = "prompt",
        most: int | None = None,
        source_latents: Latents = None,
        target_latents: Latents = None,
    ) -> Iterator[Edges]:
        """What `edges` gives, in parts that are read one after another and not kept.

        By prompt, they come in the order asked for. By shard, each file is opened once and its prompts come as they lie in
        it: where a shard's prompts are scattered over the data set, that is many times faster. `most` edges or one prompt
        are the largest part, where it is given. Raises as `edges` does.
        """
        if by not in ("prompt", "shard") or (most is not None and (by == "prompt" or most < 1)):
            raise InputError(
                f"iterate(by={by!r}, most={most!r}): expected by='prompt' alone, or by='shard' and most of at least 1, or None."
            )
        block, places = the_block(self.path, self.blocks, kind, source, target), self._places(prompts)
        latents = _ends(source_latents, target_latents)
        if by == "shard":
            return self._pieces(block, places.sort().values, most, latents)
        pieces = self._pieces(block, places, PIECE, latents)
        return (piece.prompt(i) for piece in pieces for i in range(len(piece.prompts)))

    def dataset(
        self,
        kind: str | None = None,
        source: str | Site | None = None,
        target: str | Site | None = None,
        value: Value | None = None,
        *,
        source_latents: Latents = None,
        target_latents: Latents = None,
    ) -> "EdgeDataset":
        """A torch Dataset: item i is the prompt of the i-th number, as a dict of tensors; see `attrib.store.dataset.EdgeDataset`."""
        from attrib.store.dataset import EdgeDataset

        block = the_block(self.path, self.blocks, kind, source, target)
        return EdgeDataset(self, block, value, source_latents, target_latents)

    def to_scipy(
        self,
        kind: str | None = None,
        source: str | Site | None = None,
        target: str | Site | None = None,
        value: Value = "attribution",
    ) -> "Iterator[tuple[Int[Tensor, ' prompts'], scipy.sparse.csr_array]]":
        """For every shard, the numbers of its prompts and their CSR array [targets, sources]. Only one is held at a time."""
        return ((part.prompts.numbers, part.to_scipy(value)) for part in self.iterate(kind, source, target, by="shard"))

    def to_pandas(
        self,
        kind: str | None = None,
        source: str | Site | None = None,
        target: str | Site | None = None,
        prompts: Selection = None,
        *,
        source_latents: Latents = None,
        target_latents: Latents = None,
    ) -> "pd.DataFrame":
        """One row per edge, as `Edges.to_pandas`, where `prompt` is the number in the data set."""
        edges = self.edges(kind, source, target, prompts, source_latents=source_latents, target_latents=target_latents)
        table = edges.to_pandas()
        table["prompt"] = edges.prompts.numbers.numpy()[table["prompt"].to_numpy()]
        return table

    def _places(self, prompts: Selection) -> Int[Tensor, " asked"]:
        """Where the prompts asked for lie."""
        index = self._index
        if prompts is None:
            return index.order
        if isinstance(prompts, slice):
            return index.order[_in_slice(self.numbers, prompts)]
        return self._found("prompts", checked_numbers("prompts", prompts, PROMPTS))

    def _found(self, argument: str, asked: list[int]) -> Int[Tensor, " asked"]:
        """Where the prompts of these numbers lie. Raises InputError for one that no shard has."""
        places = self._index.places(torch.tensor([prompt if 0 <= prompt < LIMIT else -1 for prompt in asked], dtype=torch.int64))
        if (missing := (places < 0).nonzero()[:, 0]).numel():
            raise InputError(
                f"{argument}: {asked[int(missing[0])]} is not among the {len(self)} prompts of {self.path} "
                f"({told(self.numbers.tolist())}); expected numbers of the data set that are there, from 0. What was written since it was "
                "opened is seen when it is opened again."
            )
        return places

    def _pieces(
        self, block: Block, places: Int[Tensor, " asked"], most: int | None, latents: dict[str, list[int] | None]
    ) -> Iterator[Edges]:
        """Successive places of one shard at a time, of at most so many edges or one prompt."""
        shards, counts = self._index.shard_of(places).unique_consecutive(return_counts=True)
        for shard, group in zip(shards.tolist(), places.split(counts.tolist()), strict=True):
            own = (group - self._index.ptr[shard]).tolist()
            parts = [len(own)]
            if most is not None and len(own) > 1:
                with self._reading(shard) as store:
                    parts = lengths(store.sizes(block, own).tolist(), most)
            start = 0
            for length in parts:
                yield self._piece(block, shard, own[start : start + length], latents)
                start += length

    def _piece(self, block: Block, shard: int, own: list[int], latents: dict[str, list[int] | None]) -> Edges:
        """Prompts of one shard, by their places in it, with their numbers in the data set and the call that all shards share."""
        with self._reading(shard) as store:
            edges = store.edges(block.kind, block.source, block.target, own, **latents)
        call, path = shared(edges.call), self._index.path(shard)
        first, reference = self._calls.setdefault(block, (call, path))
        if call != first:
            raise FormatError(
                f"{path}: the call of its block '{block}' differs from that of {reference}: {differences(call, first)}; expected "
                "the shards of one data set, made in one way. Move the file elsewhere, or open it by itself."
            )
        number = self._index.number[self._index.ptr[shard] + torch.tensor(own, dtype=torch.int64)]
        return replace(edges, prompts=replace(edges.prompts, number=number), call=first)

    def _reading(self, shard: int) -> AbstractContextManager[Store]:
        if self._closed:
            raise InputError(f"collection: {self.path} is closed; read inside its `with` statement, or open it again.")
        return self._handles.shard(shard)


PIECE = 1 << 20
"""Edges that are read at a time where a caller did not say: some 16 MB."""


def open(path: str | os.PathLike[str], *, verify: bool = False) -> Store | Collection:
    """Open a shard, or all of a folder or of a merged file (public as `attrib.open`). What is read is read when it is asked for.

    A folder's shards are its files `*.h5`, or those of its subfolder `shards` where it has one, as a job's folder does.
    Names that begin with a dot are files that are being written, and not read.

    Of a file, every part is looked at: that it is there, with the type, length, filters and storage that it should have. Of a folder's
    shards, the headers and numbers. `verify` reads everything, and holds all that is told twice against each other; docs/format.md has
    a table of what is checked when.

    Raises:
        InputError: there is no such file or folder, or it is a pipe or a device; a folder without shards; one of its shards is a link
            that leads out of it.
        FormatError: a file is not HDF5, not attrib's, of another version, truncated or damaged; the shards of a folder do not
            belong together, or hold a prompt twice; with `verify`, the first fault that is found.
    """
    path = Path(path)
    opened = _open_file(path) if is_one_file(path) else open_collection(path)
    if verify and (fault := next(faults(path), None)):
        opened.close()
        raise FormatError(f"{fault}. `attrib verify-file` lists all faults; {REMEDY}")
    return opened


def _open_file(path: Path) -> Store:
    opened = open_shard(path)
    try:
        for block in opened.blocks:
            opened.check(block)
    except BaseException:
        opened.close()
        raise
    return opened


def faults(path: str | os.PathLike[str]) -> Iterator[Fault]:
    """What is wrong with a shard, a file of graphs, or the shards of a folder or a merged file: everything is read.

    Raises InputError as `open` does.
    """
    path = Path(path)
    if is_one_file(path):
        yield from _faults_of_file(path)
        return
    folder, right = folder_of(path), True
    for shard in sorted(listed(path)):
        for fault in _faults_of_file(folder / shard.name):
            right = False
            yield fault
    try:
        (open_graphs if holds_graphs(path) else open_collection)(path).close()
    except FormatError as error:
        if right:  # else it may be said already
            yield Fault.of_error(path, error)


def _faults_of_file(path: Path) -> Iterator[Fault]:
    return faults_of_graphs(path) if format_at(path) == GRAPHS else faults_of_file(path)


def open_collection(path: str | os.PathLike[str]) -> Collection:
    """Open a folder's shards, or a single shard in the same way: its prompts then go by their numbers. Raises as `open` does."""
    path = Path(path)
    shards = listed(path)
    if not shards and not (path / SHARDS).is_dir():
        raise InputError(f"path: the folder {path} has no shards, files that end in .h5; expected some, or a job's folder.")
    return Collection(path, index_of(folder_of(path), shards))


def _ends(source_latents: Latents, target_latents: Latents) -> dict[str, list[int] | None]:
    """The latents that both ends are sliced by, by the name of their argument. Raises InputError where they cannot be used."""
    given = {"source_latents": source_latents, "target_latents": target_latents}
    return {name: checked_latents(name, latents) for name, latents in given.items()}


def _in_slice(numbers: Int[Tensor, " prompts"], asked: slice) -> Int[Tensor, " chosen"]:
    """Where in the ascending numbers those of a slice are, in its order. Numbers that are not there are passed over."""
    asked = checked_slice("prompts", asked)
    if any(bound is not None and bound < 0 for bound in (asked.start, asked.stop)):
        raise InputError(f"prompts: {asked}; expected bounds that are numbers of the data set, from 0.")
    last, step = int(numbers[-1]) if len(numbers) else 0, asked.step or 1
    chosen = range(*asked.indices(last + 1))
    if not chosen:
        return torch.zeros(0, dtype=torch.int64)
    low, high = sorted((chosen[0], chosen[-1]))
    kept = ((numbers >= low) & (numbers <= high) & ((numbers - low) % abs(step) == 0)).nonzero()[:, 0]
    return kept if step > 0 else kept.flip(0)
