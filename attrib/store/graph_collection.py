"""The graphs of a folder of files as one object, each read when it is asked for by its prompt's number."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import SupportsIndex

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.lazy import LazyGraph
from attrib.store.graphs import NUMBER, Graphs, open_graph_file, read_lazy, read_tokens
from attrib.store.handles import Handles
from attrib.store.index import Header, Identity, Index, check_identity, index_of
from attrib.store.listing import SHARDS, folder_of, is_one_file, listed
from attrib.store.numbers import LIMIT, checked_number, told
from attrib.store.reading import Checked


class GraphCollection(AbstractContextManager["GraphCollection"]):
    """The graphs of a folder as they were when it was opened; use it in a `with` statement. `attrib.open_graphs` makes one.

    Graphs go by the numbers of their prompts in the data set, and come in the order of these. Files that carry no numbers count
    their graphs one after another, in the order of the files' names.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self.path = path
        self._index, self._handles, self._closed = index, Handles(index, open_graph_file), False

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._index.order)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self)} graphs in {len(self._index.shards)} files"
        return f"GraphCollection({str(self.path)!r}, {state})"

    def __iter__(self) -> Iterator[Graph]:
        return (self[number] for number in self.numbers.tolist())

    def __getitem__(self, number: SupportsIndex) -> Graph:
        """The graph of one prompt, by its number in the data set; negative ones count from the last that is there.

        Raises:
            InputError: there is none of this number; its file is gone or was replaced; or the collection is closed.
            FormatError: what is read is damaged.
        """
        with self._file_of("graphs", number) as (graphs, place):
            return graphs[place]

    def lazy(self, prompt: SupportsIndex) -> LazyGraph:
        """The graph of one prompt without its edges, by the prompt's number; see `Graphs.lazy`. Raises as `graphs[number]`."""
        with self._group_of(prompt) as group:
            return read_lazy(group, lambda: self._group_of(prompt))

    def strings(self, prompt: SupportsIndex) -> tuple[str, ...]:
        """The tokens of one prompt, without the rest of its graph. Arguments and errors as of `graphs[number]`."""
        with self._group_of(prompt) as group:
            return read_tokens(group)

    @contextmanager
    def _file_of(self, argument: str, number: SupportsIndex) -> Iterator[tuple[Graphs, int]]:
        at = checked_number(argument, number, NUMBER)
        shard, place = self._found(argument, int(self.numbers[at]) if -len(self) <= at < 0 else at)
        if self._closed:
            raise InputError(f"graphs: {self.path} is closed; read inside its `with` statement, or open it again.")
        with self._handles.shard(shard) as graphs:
            yield graphs, place

    @contextmanager
    def _group_of(self, prompt: SupportsIndex) -> Iterator[Checked]:
        with self._file_of("prompt", prompt) as (graphs, place), graphs.group(place) as group:
            yield group

    @property
    def is_numbered(self) -> bool:
        """Whether the files say the numbers of their prompts."""
        return self._index.numbered

    @property
    def numbers(self) -> Int[Tensor, " graphs"]:
        """The numbers of the prompts in their data set, ascending."""
        return self._index.number[self._index.order]

    def place_of(self, prompt: SupportsIndex) -> tuple[Path, int]:
        """The file that holds the graph of the prompt of this number, and its place there. Raises InputError where none does."""
        shard, place = self._found("prompt", checked_number("prompt", prompt, NUMBER))
        return self._index.path(shard), place

    def close(self) -> None:
        """Close the files. What was read from them stays."""
        self._closed = True
        self._handles.close()

    def _found(self, argument: str, number: int) -> tuple[int, int]:
        """The number of the file, and the graph's place there."""
        place = self._index.places(torch.tensor([number if 0 <= number < LIMIT else -1]))
        if int(place) < 0:
            raise InputError(
                f"{argument}: {number} is not among the {len(self)} prompts of {self.path} ({told(self.numbers.tolist())}); expected "
                "numbers of the data set that are there, from 0. What was written since it was opened is seen when it is opened again."
            )
        shard = int(self._index.shard_of(place))
        return shard, int(place - self._index.ptr[shard])


def open_graphs(path: str | os.PathLike[str]) -> Graphs | GraphCollection:
    """Open a file of graphs, or all of a folder or of a merged file (public as `attrib.open_graphs`).

    Nothing but headers is read before a graph is asked for. A folder's files are as `attrib.open` has them: a job's folder is one.

    >>> with attrib.open_graphs("graphs.h5") as graphs:  # doctest: +SKIP
    ...     graph = graphs[3]

    Raises:
        InputError: there is no such file or folder; a folder without files of graphs, or with a link that leads out of it.
        FormatError: a file is not HDF5, not of graphs, of another version, truncated or damaged; a folder has a number twice.
    """
    return open_graph_file(Path(path)) if is_one_file(Path(path)) else open_graph_collection(path)


def open_graph_collection(path: str | os.PathLike[str]) -> GraphCollection:
    """Open a folder's graphs, or those of a single file in the same way: they then go by their numbers. Raises as `open_graphs`."""
    path = Path(path)
    shards = listed(path)
    if not shards and not (path / SHARDS).is_dir():
        raise InputError(f"path: the folder {path} has no files that end in .h5; expected files of graphs, or a job's folder.")
    return GraphCollection(path, index_of(folder_of(path), shards, header_of=_header))


def _header(path: Path, identity: Identity) -> Header:
    with open_graph_file(path) as graphs:
        check_identity(path, graphs.descriptor, identity)
        return Header((), {}, len(graphs), graphs.numbers if graphs.is_numbered else None)
