"""Edges ↔ sparse HDF5: one shard file, one block per (kind, source site, target site).

docs/format.md is the specification. A shard is written whole or not at all, and read in slices: asking
for one prompt reads that prompt's rows. The reader trusts nothing: types, lengths and links are checked
against each other and against the size of the file before anything is allocated.
"""

import importlib
import json
import operator
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import quote

import h5py
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from attrib.edges import EdgeKind, Edges, NodeKind, Nodes, Prompts, join
from attrib.types import AttribError, FormatError, InputError, Site

FORMAT, VERSION = "attrib", 1
CHUNK = 1 << 20
"""Bytes of a chunk, at most. The reader accepts sixteen times as much, from files that were repacked."""

_REMEDY = "expected a shard as attrib.save wrote it. Copy it again, or make it again."
_POINTER, _INTEGER, _FLOAT, _BYTE = ("<i8",), ("<i4", "<i8"), ("<f4", "<f8"), ("|u1",)
# HDF5's numbers of the filters that version 1 allows: deflate, shuffle, lzf; and, through hdf5plugin, blosc and zstd
_BUILT_IN_FILTERS, _PLUGIN_FILTERS = {1, 2, 32000}, {32001, 32015}


class Block(NamedTuple):
    """What names a block: the kind of its edges, and the sites they go between."""

    kind: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind} {self.source} -> {self.target}"

    @property
    def group(self) -> str:
        """The name of the block's group: its parts percent-encoded and joined by ':', so that no two blocks share one."""
        return ":".join(quote(part, safe="") for part in self)


def _block(edges: Edges) -> Block:
    return Block(edges.kind, edges.sources.site, edges.targets.site)


# --------------------------------------------------------------------------------------- well-formed


def _fault(edges: Edges) -> str | None:
    """What keeps a result from being well formed: one rule for the writer and the reader. A later check relies on the ones before it."""
    prompts, sources, targets = edges.prompts, edges.sources, edges.targets
    pointers = (
        ("prompts.ptr", prompts.ptr, len(prompts), len(prompts.ids)),
        ("sources.ptr", sources.ptr, len(prompts), len(sources)),
        ("targets.ptr", targets.ptr, len(prompts), len(targets)),
        ("indptr", edges.indptr, len(targets), len(edges)),
    )
    for name, ptr, rows, entries in pointers:
        if len(ptr) != rows + 1 or ptr[:1].tolist() != [0] or ptr[-1] != entries or (ptr.diff() < 0).any():
            return f"{name} does not rise from 0 to {entries} in {rows} steps"
    values = (edges.gradient, edges.attribution, edges.total, edges.l1)
    if [len(column) for column in values] != [len(edges)] * 2 + [len(targets)] * 2 or len(prompts.strings) != len(prompts.ids):
        return "gradient and attribution, total and l1, or the prompts' ids and strings differ in length"
    if {column.dtype for column in values} not in ({torch.float32}, {torch.float64}):
        return "gradient, attribution, total and l1 are neither all float32 nor all float64"
    for nodes in (sources, targets):
        floats = [nodes.activation] if nodes.probability is None else [nodes.activation, nodes.probability]
        if {len(column) for column in (nodes.latent, *floats)} != {len(nodes)} or len(nodes.labels) not in (0, len(nodes)):
            return f"the columns or labels of the {nodes.kind} nodes differ in length"
        if any(column.dtype not in (torch.float32, torch.float64) for column in floats):
            return f"activation or probability of the {nodes.kind} nodes is neither float32 nor float64"
        if ((nodes.position < 0) | (nodes.position >= prompts.ptr.diff()[nodes.prompt])).any():
            return f"a position of the {nodes.kind} nodes is outside its prompt"
    return None if _is_canonical(edges) else "indices do not ascend within each row, inside the columns of the row's prompt"


def _is_canonical(edges: Edges) -> bool:
    """Whether columns ascend within each row, inside the row's own prompt. Only a row's ends need be compared with the prompt."""
    starts, stops = edges.indptr[:-1], edges.indptr[1:]
    filled = stops > starts
    starts, stops, prompt = starts[filled], stops[filled], edges.targets.prompt[filled]
    rises = edges.indices[1:] > edges.indices[:-1]
    rises[starts[1:] - 1] = True  # from the last entry of a row to the first of the next
    first, last, ptr = edges.indices[starts], edges.indices[stops - 1], edges.sources.ptr
    return bool(rises.all() and (first >= ptr[prompt]).all() and (last < ptr[prompt + 1]).all())


# --------------------------------------------------------------------------------------- writing


def save(path: str | os.PathLike[str], edges: Edges | Sequence[Edges], *, compression: str | None = None, overwrite: bool = False) -> Path:
    """Write one shard: a block for each Edges, all of the same prompts. Returns its path.

    `compression` is None, "gzip", "lzf", or with hdf5plugin "blosc-lz4" or "zstd". The shard appears
    under its name only when it is complete and on the disk; a write that fails leaves nothing behind.

    Raises:
        InputError: the path exists and `overwrite` is false, or its folder does not exist; two Edges are
            one block, or have different prompts, or are malformed; the compression is not to be had.
    """
    path, filters = Path(path), _filters(compression)
    if path.is_dir() or (path.exists() and not overwrite):
        raise InputError(f"path: {path} exists already; expected a new name. Choose another, or replace a file with overwrite=True.")
    if not path.parent.is_dir():
        raise InputError(f"path: the folder {path.parent} does not exist; make it first.")
    blocks = _check_blocks([edges] if isinstance(edges, Edges) else edges)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        # HDF5 keeps checksums of its own structures from 1.10 on, and the file's length: damage is seen and not read
        with h5py.File(partial, "x", libver=("v110", "v110")) as file:
            _write(file, blocks, filters)
        _sync(partial, os.O_RDWR)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":  # Windows cannot open a folder
        _sync(path.parent, os.O_RDONLY)
    return path


def _check_blocks(edges: Sequence[Edges]) -> dict[Block, Edges]:
    if not edges:
        raise InputError("edges: got an empty sequence; expected at least one Edges.")
    blocks: dict[Block, Edges] = {}
    for part in edges:
        block, first = _block(part), edges[0].prompts
        if block in blocks:
            raise InputError(f"edges: two of them are the block '{block}'; expected one. Join them first with attrib.edges.join.")
        if fault := _fault(part):
            raise InputError(f"edges: in '{block}', {fault}; expected a result as attrib's functions return it.")
        if not (
            torch.equal(part.prompts.ptr, first.ptr) and torch.equal(part.prompts.ids, first.ids) and part.prompts.strings == first.strings
        ):
            raise InputError(f"edges: '{block}' has other prompts than '{_block(edges[0])}'; expected the same. Save them to two files.")
        blocks[block] = part
    return blocks


def _filters(compression: str | None) -> dict[str, Any]:
    """The options of h5py's create_dataset for a compression."""
    match compression:
        case None:
            return {}
        case "gzip" | "lzf":
            return {"compression": compression, "shuffle": True}
        case "blosc-lz4":
            return dict(_import_plugin("compression: 'blosc-lz4'").Blosc(cname="lz4"))
        case "zstd":
            return dict(_import_plugin("compression: 'zstd'").Zstd())
    raise InputError(f"compression: {compression!r}; expected None, 'gzip', 'lzf', 'blosc-lz4' or 'zstd'.")


def _import_plugin(wanted_by: str) -> Any:
    """Import hdf5plugin, which gives HDF5 its filters. Raises InputError, beginning with `wanted_by`, where it is missing."""
    try:
        return importlib.import_module("hdf5plugin")
    except ImportError as error:
        raise InputError(f"{wanted_by} needs the package hdf5plugin, which is not installed; pip install 'attrib[jobs]'.") from error


def _write(file: h5py.File, blocks: dict[Block, Edges], filters: dict[str, Any]) -> None:
    calls, absent = [edges.call for edges in blocks.values()], object()
    shared = {key: value for key, value in calls[0].items() if all(call.get(key, absent) == value for call in calls)}
    file.attrs.update({"format": _text(FORMAT), "format_version": VERSION, "call": _json(shared), "packages": _json(_packages())})
    prompts = next(iter(blocks.values())).prompts
    group = file.create_group("prompts")
    _write_columns(group, {"ptr": _array(prompts.ptr, np.int64), "ids": _integers(prompts.ids)}, filters)
    _write_strings(group.create_group("strings"), prompts.strings)
    listing = file.create_group("blocks", track_order=True)  # blocks are listed in the order they were given in
    for block, edges in blocks.items():
        group = listing.create_group(block.group)
        group.attrs.update({name: _text(part) for name, part in block._asdict().items()} | {"call": _json(edges.call)})
        _write_edges(group, edges, filters)


def _write_edges(group: h5py.Group, edges: Edges, filters: dict[str, Any]) -> None:
    _write_columns(group, {name: _array(getattr(edges, name)) for name in ("total", "l1", "remainder")}, filters)
    _write_nodes(group.create_group("sources"), edges.sources, filters)
    _write_nodes(group.create_group("targets"), edges.targets, filters)
    gradient, attribution = group.create_group("gradient"), group.create_group("attribution")
    _write_columns(gradient, {"indptr": _array(edges.indptr, np.int64), "indices": _integers(edges.indices)}, filters)
    attribution["indptr"], attribution["indices"] = gradient["indptr"], gradient["indices"]
    for csr, values in ((gradient, edges.gradient), (attribution, edges.attribution)):
        _write_columns(csr, {"data": _array(values)}, filters)
        _name_as_csr(csr, edges.shape)


def _name_as_csr(csr: h5py.Group, shape: tuple[int, int]) -> None:
    """Make data, indices and indptr a matrix in two conventions at once: AnnData's on-disk CSR and binsparse 0.1."""
    csr.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array(shape, np.int64)})
    names = {"pointers_to_1": "indptr", "indices_1": "indices", "values": "data"}
    for name, anndata_name in names.items():
        csr[name] = csr[anndata_name]  # a hard link: the same dataset by a second name
    types = {name: csr[name].dtype.name for name in names}
    header = {"version": "0.1", "format": "CSR", "shape": shape, "number_of_stored_values": len(csr["data"]), "data_types": types}
    csr.attrs["binsparse"] = json.dumps({"binsparse": header})


def _write_nodes(group: h5py.Group, nodes: Nodes, filters: dict[str, Any]) -> None:
    group.attrs["kind"] = _text(nodes.kind)
    integers = {"ptr": _array(nodes.ptr, np.int64), "position": _integers(nodes.position), "latent": _integers(nodes.latent)}
    _write_columns(group, integers | {"activation": _array(nodes.activation)}, filters)
    if nodes.probability is not None:
        _write_columns(group, {"probability": _array(nodes.probability)}, filters)
    if nodes.labels:
        _write_strings(group.create_group("labels"), nodes.labels)


def _write_strings(group: h5py.Group, strings: Sequence[str]) -> None:
    """Write strings as the bytes of their UTF-8 and where each begins.

    HDF5's own variable-length strings end at a NUL, which a token may hold. Lone surrogates pass too. The
    bytes are never compressed, so that no string can be longer than its file.
    """
    encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
    ptr = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    _write_columns(group, {"ptr": ptr, "bytes": np.frombuffer(b"".join(encoded), np.uint8)}, {})


def _write_columns(group: h5py.Group, columns: dict[str, np.ndarray], filters: dict[str, Any]) -> None:
    """Each column in the fewest chunks of at most CHUNK bytes, of even length so that the last is not mostly padding."""
    for name, column in columns.items():
        if len(column):
            length = -(-len(column) // -(-column.nbytes // CHUNK))
            group.create_dataset(name, data=column, chunks=(length,), **filters)
        else:  # an empty dataset has no chunks to filter
            group.create_dataset(name, data=column)


def _array(column: Tensor, dtype: type[np.generic] | None = None) -> np.ndarray:
    return np.asarray(column.detach().cpu().numpy(), dtype)


def _integers(column: Int[Tensor, " n"]) -> np.ndarray:
    """As int32 where every value fits, else as int64."""
    values, limits = _array(column, np.int64), np.iinfo(np.int32)
    fits = limits.min <= values.min(initial=0) and values.max(initial=0) <= limits.max
    return values.astype(np.int32) if fits else values


def _json(value: dict[str, Any]) -> np.ndarray:
    try:
        return _text(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"edges: `call` cannot be written as JSON ({error}); expected dicts, lists, strings and numbers alone.") from error


def _text(value: str) -> np.ndarray:
    """An attribute of fixed length. HDF5 keeps the others in a heap without checksums, and in a damaged one can loop for ever."""
    encoded = value.encode()
    return np.array(encoded, h5py.string_dtype("utf-8", max(len(encoded), 1)))


@cache
def _packages() -> dict[str, str]:
    """Versions of what makes the numbers and the file. attrib is absent where it runs from a checkout that is not installed."""
    return {found.name: found.version for found in metadata.distributions() if found.name in ("attrib", "torch", "numpy", "h5py")}


def _sync(path: Path, flags: int) -> None:
    """Put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --------------------------------------------------------------------------------------- reading


class Store:
    """An open shard, read on demand; use it in a `with` statement. `open_store` makes one."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        _check_version(file)
        self.call: dict[str, Any] = _read_json(file, "call")
        """What the blocks' calls have in common."""
        self.packages: dict[str, str] = _read_json(file, "packages")
        """Versions of the packages that wrote the shard."""
        self.blocks: list[Block] = _read_blocks(_child(file, "blocks", h5py.Group))
        self._count: int = len(_dataset(_child(file, "prompts", h5py.Group), "ptr", _POINTER)) - 1

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
        with _translated(self.path):
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
    with _translated(path):
        if not h5py.is_hdf5(path):
            found = f"{path.stat().st_size} bytes, beginning with {head!r}"
            raise FormatError(f"{path}: not an HDF5 file ({found}); {_REMEDY}")
        file = h5py.File(path, "r")
        try:
            return Store(path, file)
        except BaseException:
            file.close()
            raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Whatever h5py raises at a file that is cut short or damaged, as a FormatError."""
    try:
        yield
    except AttribError:
        raise
    except (OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise FormatError(f"{path}: truncated or damaged ({error}); {_REMEDY}") from error


def _damaged(where: h5py.HLObject, fault: str) -> FormatError:
    return FormatError(f"{where.file.filename}: damaged: {where.name}: {fault}; {_REMEDY}")


def _attribute(where: h5py.HLObject, name: str, kind: str) -> Any:
    """An attribute whose numpy type is of this kind, or None; of another kind, it is not even read: see `_text`."""
    return where.attrs[name] if name in where.attrs and where.attrs.get_id(name).dtype.kind == kind else None


def _check_version(file: h5py.File) -> None:
    if _attribute(file, "format", "S") != FORMAT.encode():
        raise FormatError(
            f"{file.filename}: an HDF5 file, but not attrib's: it holds {sorted(file)[:8]}; expected the root attribute "
            f"format={FORMAT!r}. Open it with the program that made it."
        )
    version = _attribute(file, "format_version", "i")
    if version != VERSION:
        raise FormatError(
            f"{file.filename}: format version {version}; this attrib reads version {VERSION}. Install the attrib that wrote it."
        )


def _child(group: h5py.Group, name: str, kind: type) -> Any:
    """A group or dataset that lies in the file itself: a link elsewhere could have us read any file of the user's."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], kind):
        raise _damaged(group, f"{name!r} is missing or not a {kind.__name__.lower()}")
    return group[name]


def _dataset(group: h5py.Group, name: str, dtypes: tuple[str, ...], length: int | None = None) -> h5py.Dataset:
    """A column whose type, length, filters and storage are as they should be. Nothing is read yet."""
    data, size = _child(group, name, h5py.Dataset), group.file.id.get_filesize()
    wanted = (data.size if length is None else length,)
    if data.dtype not in dtypes or data.shape != wanted:
        raise _damaged(data, f"{data.dtype} {data.shape}, and not {' or '.join(dtypes)} {wanted}")
    if data.is_virtual or data.external:
        raise _damaged(data, "its values lie in another file")
    created = data.id.get_create_plist()
    filters = {created.get_filter(i)[0] for i in range(created.get_nfilters())}
    if not filters <= _BUILT_IN_FILTERS | _PLUGIN_FILTERS:
        raise _damaged(data, f"the filters {sorted(filters)} are not all of format version {VERSION}")
    if filters & _PLUGIN_FILTERS:
        _import_plugin(f"{group.file.filename}: compressed, and reading it")
    chunk = data.chunks[0] * data.dtype.itemsize if data.chunks else 0
    # a compressed column is backed by chunks that are there, any other by bytes that are there
    if chunk > 16 * CHUNK or data.nbytes > (data.id.get_num_chunks() * chunk if filters else size):
        raise _damaged(data, f"{data.nbytes} bytes in chunks of {chunk} are more than the file of {size} bytes holds")
    return data


def _read_text(where: h5py.HLObject, name: str, among: Sequence[str] | None = None) -> str:
    value = _attribute(where, name, "S")
    if value is None or (among is not None and value.decode() not in among):
        raise _damaged(where, f"the attribute {name} is {value}, and not {'text of fixed length' if among is None else ' or '.join(among)}")
    return value.decode()


def _read_json(where: h5py.HLObject, name: str) -> dict[str, Any]:
    value = json.loads(_read_text(where, name))
    if not isinstance(value, dict):
        raise _damaged(where, f"attribute {name} is not a JSON object")
    return value


def _read_blocks(listing: h5py.Group) -> list[Block]:
    blocks = []
    for name in listing:
        group = _child(listing, name, h5py.Group)
        blocks.append(Block(_read_text(group, "kind", get_args(EdgeKind)), _read_text(group, "source"), _read_text(group, "target")))
        if blocks[-1].group != name:
            raise _damaged(group, f"its attributes name it {blocks[-1].group}")
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


def _read_column(group: h5py.Group, name: str, dtypes: tuple[str, ...], length: int, rows: slice) -> Tensor:
    """`rows` of a column; integers as int64."""
    values = _dataset(group, name, dtypes, length)[rows]
    return torch.from_numpy(values if dtypes is _FLOAT else values.astype(np.int64))


def _read_ptr(group: h5py.Group, name: str, count: int, entries: int, rows: slice) -> tuple[Tensor, slice]:
    """The pointers of `rows`, starting from 0, and the slice of the entries that they point to."""
    whole = _dataset(group, name, _POINTER, count + 1)
    ptr = torch.from_numpy(whole[rows.start : rows.stop + 1])
    if (whole[0], whole[-1]) != (0, entries) or ptr[0] < 0 or ptr[-1] > entries or (ptr.diff() < 0).any():
        raise _damaged(whole, f"does not rise from 0 to {entries}")
    return ptr - ptr[0], slice(int(ptr[0]), int(ptr[-1]))


def _read_strings(group: h5py.Group, count: int, rows: slice) -> tuple[str, ...]:
    data = _dataset(group, "bytes", _BYTE)
    ptr, span = _read_ptr(group, "ptr", count, len(data), rows)
    raw, ends = data[span].tobytes(), ptr.tolist()
    return tuple(raw[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(ends))


def _read_prompts(file: h5py.File, run: slice, count: int) -> Prompts:
    group = _child(file, "prompts", h5py.Group)
    tokens = len(_dataset(group, "ids", _INTEGER))
    ptr, rows = _read_ptr(group, "ptr", count, tokens, run)
    ids = _read_column(group, "ids", _INTEGER, tokens, rows)
    return Prompts(ptr, ids, _read_strings(_child(group, "strings", h5py.Group), tokens, rows))


def _read_nodes(group: h5py.Group, site: str, run: slice, count: int) -> tuple[Nodes, slice, int]:
    """The nodes of a run of prompts, which rows of the table they are, and how many rows it has."""
    length = len(_dataset(group, "position", _INTEGER))
    ptr, rows = _read_ptr(group, "ptr", count, length, run)
    nodes = Nodes(
        kind=_read_text(group, "kind", get_args(NodeKind)),  # type: ignore[arg-type]
        site=site,
        ptr=ptr,
        position=_read_column(group, "position", _INTEGER, length, rows),
        latent=_read_column(group, "latent", _INTEGER, length, rows),
        activation=_read_column(group, "activation", _FLOAT, length, rows),
        labels=_read_strings(_child(group, "labels", h5py.Group), length, rows) if "labels" in group else (),
        probability=_read_column(group, "probability", _FLOAT, length, rows) if "probability" in group else None,
    )
    return nodes, rows, length


def _read_edges(file: h5py.File, block: Block, run: slice, count: int) -> Edges:
    """A run of successive prompts of a block, as a result of its own."""
    group = _child(_child(file, "blocks", h5py.Group), block.group, h5py.Group)
    sources, columns, _ = _read_nodes(_child(group, "sources", h5py.Group), block.source, run, count)
    targets, rows, n_targets = _read_nodes(_child(group, "targets", h5py.Group), block.target, run, count)
    gradient, attribution = _child(group, "gradient", h5py.Group), _child(group, "attribution", h5py.Group)
    n_entries = len(_dataset(gradient, "indices", _INTEGER))
    indptr, entries = _read_ptr(gradient, "indptr", n_targets, n_entries, rows)
    edges = Edges(
        kind=block.kind,  # type: ignore[arg-type]
        sources=sources,
        targets=targets,
        indptr=indptr,
        indices=_read_column(gradient, "indices", _INTEGER, n_entries, entries) - columns.start,
        gradient=_read_column(gradient, "data", _FLOAT, n_entries, entries),
        attribution=_read_column(attribution, "data", _FLOAT, n_entries, entries),
        total=_read_column(group, "total", _FLOAT, n_targets, rows),
        l1=_read_column(group, "l1", _FLOAT, n_targets, rows),
        prompts=_read_prompts(file, run, count),
        call=_read_json(group, "call"),
    )
    if fault := _fault(edges):
        raise _damaged(group, f"in prompts {run.start} to {run.stop}, {fault}")
    return edges
