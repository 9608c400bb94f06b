"""Attribution graphs ↔ HDF5: one group for each prompt's graph, of which one is read without the others.

docs/format.md is the specification. As of a shard, nothing of a file is believed: types, lengths and storage are looked at before
anything is allocated, and what is read is held against what a graph is by the rule that the writer goes by.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, SupportsIndex

import h5py
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import FormatError, InputError
from attrib.graph.graph import Graph
from attrib.graph.lazy import LazyGraph
from attrib.graph.nodes import NAMED_KINDS, Nodes, NodeSet
from attrib.graph.wellformed import fault_of_rows, fault_of_sets, fault_of_sources, fault_of_weights, refuse
from attrib.store.columns import (
    array,
    filters_of,
    integers,
    json_text,
    name_as_csr,
    packages,
    text,
    write_columns,
    write_in_parts,
    write_strings,
)
from attrib.store.layout import GRAPHS
from attrib.store.numbers import LIMIT, checked_number, told
from attrib.store.reading import (
    BYTE,
    FLOAT,
    INTEGER,
    Checked,
    Fault,
    check_kind,
    child,
    damaged,
    dataset,
    open_file,
    read_json,
    translated,
)
from attrib.store.rows import read_column, read_ptr, read_strings
from attrib.store.writing import check_output, check_size, created

VERSION = 1
NUMBER = "a prompt's number in the data set"
_ROWS = ("value", "own", "total", "l1", "importance")
_NAMES = ("kind", "site", "name")
_FaultOf = Callable[[Graph | LazyGraph, slice, Tensor], tuple[str, str] | None]
"""What is wrong with a column of edges of some rows."""


def save_graphs(
    path: str | os.PathLike[str],
    graphs: Graph | LazyGraph | Iterable[Graph | LazyGraph],
    *,
    numbers: Int[Tensor, " graphs"] | None = None,
    compression: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the graphs of one or many prompts to a file of their own; `attrib.save` does this where it is given graphs.

    What comes back is the same in every bit; integers come back as int64, and tuples of a call as lists. `compression` and the
    rest as `attrib.save` has them.

    Args:
        graphs: each is written as it comes, and no longer held; of a lazy one no more than a block of rows at a time is read.
        numbers: the number in its data set of each graph's prompt.

    Raises:
        InputError: the path exists and `overwrite` is false, or its folder does not exist; a graph is malformed, or there is none;
            a call holds what JSON cannot; the compression is not to be had, or leaves less than a byte of each row.
    """
    path, filters, graphs = Path(path), filters_of(compression), [graphs] if isinstance(graphs, Graph | LazyGraph) else graphs
    check_output("path", path, None, overwrite=overwrite)
    with created(path) as file:
        file.attrs.update({"format": text(GRAPHS), "format_version": VERSION, "packages": json_text(packages())})
        listing, longest = file.create_group("graphs", track_order=True), 0
        for number, graph in enumerate(graphs):
            _write(listing.create_group(str(number)), graph, filters, f"graphs: number {number}")
            longest = max(longest, len(graph), len(graph.nodes), len(graph.targets) + 1)
        if not longest:
            raise InputError("graphs: got an empty sequence; expected at least one Graph.")
        if numbers is not None:
            if len(numbers) != len(listing) or (numbers < 0).any():
                raise InputError(f"numbers: {len(numbers)} for {len(listing)} graphs; expected one from 0 for each.")
            write_columns(file, {"number": integers(numbers)}, filters)
        if filters:
            check_size(file, longest, compression)
    return path


def _write(group: h5py.Group, graph: Graph | LazyGraph, filters: dict[str, Any], argument: str) -> None:
    """Write a graph. Raises InputError, beginning with `argument`, where it is malformed."""
    refuse(argument, fault_of_sets(graph.nodes.sets, len(graph.nodes), len(graph.nodes.labels)) or fault_of_rows(graph))
    group.attrs["call"] = json_text(dict(graph.call))
    tokens, sets, nodes, rows, edges = (group.create_group(name) for name in ("tokens", "sets", "nodes", "rows", "edges"))
    write_columns(tokens, {"ids": integers(graph.tokens)}, filters)
    write_strings(tokens.create_group("strings"), graph.strings)
    write_columns(sets, {"size": integers(torch.tensor([each.size for each in graph.nodes.sets], dtype=torch.int64))}, filters)
    for name in _NAMES:
        write_strings(sets.create_group(name), [getattr(each, name) for each in graph.nodes.sets])
    numbers = {name: integers(getattr(graph.nodes, name)) for name in ("position", "latent")}
    write_columns(nodes, numbers | {"activation": array(graph.nodes.activation)}, filters)
    write_strings(nodes.create_group("labels"), graph.nodes.labels)
    write_columns(rows, {"target": integers(graph.targets)} | {name: array(getattr(graph, name)) for name in _ROWS}, filters)
    write_columns(edges, {"indptr": array(graph.indptr, np.int64)}, filters)
    columns = {
        "indices": (graph.nodes.number_type, _checked(graph, argument, graph.sources_of, fault_of_sources)),
        "data": (graph.dtype, _checked(graph, argument, graph.weights_of, fault_of_weights)),
    }
    for name, (dtype, parts) in columns.items():
        write_in_parts(edges, name, len(graph), array(torch.empty(0, dtype=dtype)).dtype, parts, filters)
    name_as_csr(edges, (len(graph.targets), len(graph.nodes)))


def _checked(
    graph: Graph | LazyGraph,
    argument: str,
    of: Callable[[int, int], Tensor],
    fault: _FaultOf,
) -> Iterator[np.ndarray]:
    """A column of edges, block by block of rows. Raises as `_write`."""
    for first, end in graph.blocks():
        part = of(first, end)
        refuse(argument, fault(graph, slice(first, end), part))
        yield array(part)


class Graphs(AbstractContextManager["Graphs"]):
    """The graphs of a file, each read when it is asked for by its place; use it in a `with` statement. `attrib.open_graphs` makes one."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        check_kind(file, GRAPHS, VERSION, "graphs", "attrib.save wrote of graphs")
        self.packages: dict[str, str] = read_json(file, "packages")
        """Versions of the packages that wrote the file."""
        root = Checked(file["/"].id)
        self._listing: Checked = child(root, "graphs", h5py.Group)
        self._count = len(self._listing)
        self.is_numbered = "number" in root
        """Whether the file says the numbers of its prompts."""
        self.numbers: Int[Tensor, " graphs"] = self._numbers(root) if self.is_numbered else torch.arange(self._count)
        """The number in its data set of each graph's prompt; where the file does not say, its place."""

    def _numbers(self, root: Checked) -> Int[Tensor, " graphs"]:
        found = read_column(root, "number", INTEGER, self._count, slice(0, self._count))
        if (found < 0).any() or len(found.unique()) < self._count:
            raise damaged(root, "number falls below 0, or is there twice")
        return found

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"Graphs({str(self.path)!r}, {f'{self._count} graphs' if self._file else 'closed'})"

    def __iter__(self) -> Iterator[Graph]:
        return (self[number] for number in range(self._count))

    def __getitem__(self, number: SupportsIndex) -> Graph:
        """One graph, by its place in the file; negative ones count from the end.

        Raises:
            InputError: there is none of this number, or the file is closed.
            FormatError: what is read is damaged.
        """
        with self.group(number) as group:
            return _read(group)

    def lazy(self, prompt: SupportsIndex) -> LazyGraph:
        """The graph of one prompt without its edges, of which rows are read when they are asked for, as long as the file is open.

        What is read is held against what a graph is, then as now.

        Args:
            prompt: its number in the data set, one of `numbers`: as `attrib.store.GraphCollection.lazy` takes it, and not a place. Where
                the file says no numbers the two are one; a negative one counts from the end.

        Raises:
            InputError: there is none of this number, or the file is closed.
            FormatError: what is read is damaged.
        """
        place = self._place_of(prompt)
        with self.group(place) as group:
            return read_lazy(group, lambda: self.group(place))

    def strings(self, prompt: SupportsIndex) -> tuple[str, ...]:
        """The tokens of one prompt, without the rest of its graph. Arguments and errors as of `lazy`."""
        with self.group(self._place_of(prompt)) as group:
            return read_tokens(group)

    @property
    def descriptor(self) -> int:
        """The system's number of the open file, which stays the same file whatever takes over its name."""
        return self._file.id.get_vfd_handle()

    def close(self) -> None:
        """Close the file. What was read from it stays."""
        self._file.close()

    def _place(self, number: SupportsIndex) -> int:
        at = checked_number("graphs", number, "a graph's number")
        if not -self._count <= at < self._count:
            raise InputError(f"graphs: {at} is outside the {self._count} graphs of {self.path}.")
        return at % self._count

    def _place_of(self, prompt: SupportsIndex) -> int:
        number = checked_number("prompt", prompt, NUMBER)
        if -self._count <= number < 0:
            return number % self._count
        found = (self.numbers == number).nonzero()[:, 0] if 0 <= number < LIMIT else self.numbers[:0]
        if not len(found):
            raise InputError(f"prompt: {number} is not among the {self._count} prompts of {self.path} ({told(self.numbers.tolist())}).")
        return int(found[0])

    @contextmanager
    def group(self, number: SupportsIndex) -> Iterator[Checked]:
        """Where a graph lies in the file. Arguments and errors are those of `graphs[number]`."""
        at = self._place(number)
        with self._reading() as listing:
            yield child(listing, str(at), h5py.Group)

    @contextmanager
    def _reading(self) -> Iterator[Checked]:
        if not self._file:
            raise InputError(f"graphs: {self.path} is closed; read inside its `with` statement, or open it again.")
        with translated(self.path):
            yield self._listing


def open_graph_file(path: Path) -> Graphs:
    """Open a file of graphs. Nothing but its header is read before a graph is asked for. Raises as `attrib.open_graphs`."""
    file = open_file(path)
    try:
        with translated(path):
            return Graphs(path, file)
    except BaseException:
        file.close()
        raise


def faults_of_graphs(path: Path) -> Iterator[Fault]:
    """What is wrong with a file of graphs, all of which are read: the first fault of each graph."""
    try:
        with open_graph_file(path) as graphs:
            for number in range(len(graphs)):
                try:
                    graphs[number]
                except FormatError as error:
                    yield Fault.of_error(path, error)
    except FormatError as error:
        yield Fault.of_error(path, error)


def read_tokens(group: Checked) -> tuple[str, ...]:
    """The tokens of a graph's prompt."""
    tokens = child(group, "tokens", h5py.Group)
    _, count = _columns(tokens, {"ids": INTEGER})
    return _strings(child(tokens, "strings", h5py.Group), count)


def _read(group: Checked) -> Graph:
    return read_lazy(group, lambda: nullcontext(group)).whole()  # which looks at what it reads


def read_lazy(group: Checked, reading: Callable[[], AbstractContextManager[Checked]]) -> LazyGraph:
    """A graph without its edges.

    Args:
        reading: gives the group again, whenever rows are asked for.
    """
    tokens, sets, nodes, rows, edges = (child(group, name, h5py.Group) for name in ("tokens", "sets", "nodes", "rows", "edges"))
    (ids,), n_tokens = _columns(tokens, {"ids": INTEGER})
    (position, latent, activation), n_nodes = _columns(nodes, {"position": INTEGER, "latent": INTEGER, "activation": FLOAT})
    (target, value, own, total, l1, importance), n_rows = _columns(rows, {"target": INTEGER, **dict.fromkeys(_ROWS, FLOAT)})
    n_edges = len(dataset(edges, "indices", INTEGER))
    dtype = torch.from_numpy(dataset(edges, "data", FLOAT, n_edges)[0:0]).dtype
    indptr, _ = read_ptr(edges, "indptr", n_rows, n_edges, slice(0, n_rows))
    table = _read_sets(sets)
    if wrong := fault_of_sets(table, n_nodes, None):
        raise damaged(group, f"{wrong[0]}: {wrong[1]}")
    named = sum(each.size for each in table if each.kind in NAMED_KINDS)
    labels = _strings(child(nodes, "labels", h5py.Group), named)
    stored = _Stored(reading, indptr, dtype)
    graph = LazyGraph(
        Nodes(table, position, latent, activation, labels), target, indptr, value, own, total, l1, importance, ids,
        _strings(child(tokens, "strings", h5py.Group), n_tokens), read_json(group, "call"), stored,
    )  # fmt: skip
    if wrong := fault_of_rows(graph):
        raise damaged(group, f"{wrong[0]}: {wrong[1]}")
    stored.graph = graph
    return graph


class _Stored:
    """Edges of a file, which are held against the rest of their graph when they are read."""

    graph: LazyGraph

    def __init__(self, reading: Callable[[], AbstractContextManager[Checked]], indptr: Int[Tensor, " rows_plus_1"], dtype: torch.dtype):
        self._reading, self._indptr, self.dtype = reading, indptr, dtype

    def sources(self, first: int, end: int) -> Int[Tensor, " edges"]:
        return self._read("indices", INTEGER, first, end, fault_of_sources)

    def weights(self, first: int, end: int) -> Float[Tensor, " edges"]:
        return self._read("data", FLOAT, first, end, fault_of_weights)

    def _read(self, name: str, types: tuple[str, ...], first: int, end: int, fault: _FaultOf) -> Tensor:
        with self._reading() as group:
            entries = slice(int(self._indptr[first]), int(self._indptr[end]))
            found = read_column(child(group, "edges", h5py.Group), name, types, int(self._indptr[-1]), entries)
            if wrong := fault(self.graph, slice(first, end), found):
                raise damaged(group, f"{wrong[0]}: {wrong[1]}")
            return found


def _columns(group: Checked, types: Mapping[str, tuple[str, ...]]) -> tuple[list[Tensor], int]:
    """Columns of one length, which is that of the first, and the length."""
    length = len(dataset(group, next(iter(types)), next(iter(types.values()))))
    return [read_column(group, name, dtypes, length, slice(0, length)) for name, dtypes in types.items()], length


def _read_sets(group: Checked) -> tuple[NodeSet, ...]:
    (size,), count = _columns(group, {"size": INTEGER})
    kinds, sites, names = (_strings(child(group, name, h5py.Group), count) for name in _NAMES)
    return tuple(map(NodeSet, kinds, sites, names, size.tolist()))  # type: ignore[arg-type]


def _strings(group: Checked, count: int) -> tuple[str, ...]:
    dataset(group, "bytes", BYTE)
    return read_strings(group, count, slice(0, count))
