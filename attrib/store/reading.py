"""How a file that may be hostile is read: types, lengths and links are checked before anything is allocated."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from attrib.core.files import check_file
from attrib.core.optional import needed
from attrib.core.types import AttribError, FormatError, InputError, logits_as_now
from attrib.store.layout import (
    CHAINS,
    CHUNK,
    FORMAT,
    GRAPHS,
    MERGED,
    PLUGINS,
    REMEDY,
    SHUFFLE,
    STATISTICS,
    SURVEY,
    TABLES,
    VERSIONS,
    Codec,
    filter_name,
)
from attrib.store.packed import Packed

KINDS = {
    FORMAT: "a shard of edges, which attrib.open, `attrib show` and `attrib stats build` read",
    MERGED: "a merged file, which stands for shards: attrib.open and `attrib show` read it by itself, and not as a shard in a folder",
    GRAPHS: "attribution graphs, which attrib.open_graphs reads, and `attrib graph show`",
    STATISTICS: "statistics, which attrib.stats.open and `attrib stats show` read",
    SURVEY: "a survey of latents, which attrib.latents.open and `attrib latents show` read",
    TABLES: "tables of a task, which attrib.causal.tasks.open_results and `attrib task show` read",
}
"""What attrib's files are, by their root attribute `format`, and what reads them."""
POINTER, INTEGER, FLOAT, BYTE = ("<i8",), ("<i4", "<i8"), ("<f4", "<f8"), ("|u1",)

LARGEST_CHUNK = 16 * CHUNK
"""Bytes of a chunk, at most: attrib writes a sixteenth, and others repack files."""
FEW = 1 << 18
"""Rows that a compressed column may have in a file of any size. One with more has a byte of the file for each: compression can leave
thousands of rows that are all alike in a byte, which no results are, and who reads them needs memory for each."""
LONGEST_TEXT = 1 << 24
"""Bytes of a text attribute, at most."""
MOST_PARTS = 1 << 17
"""Lists and objects of a JSON attribute, at most: in Python each takes a hundred times the bytes that it takes there."""


class Fault(NamedTuple):
    """What is wrong with a file, as one line: something in it that cannot be, or that two of its parts tell differently."""

    file: Path
    where: str
    """The dataset or group; empty for the file as a whole."""
    what: str
    prompt: int | None = None
    """The number of the prompt in its data set."""
    row: int | None = None
    """The row of the dataset."""
    more: int = 0
    """How many further rows have the same fault."""

    @classmethod
    def of_error(cls, file: Path, error: AttribError, where: str = "", prompt: int | None = None) -> "Fault":
        """What a reader raised at a file."""
        return cls(file, where, str(error).removeprefix(f"{file}: ").removeprefix("damaged: "), prompt)

    def __str__(self) -> str:
        places = [f"{name} {number}" for name, number in (("prompt", self.prompt), ("row", self.row)) if number is not None]
        at = "".join(f"{part}: " for part in (self.where, ", ".join(places)) if part)
        return f"{self.file}: {at}{self.what}{f'; and {self.more:,} more rows like it' if self.more else ''}"


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Whatever h5py raises at a file that is cut short or damaged, as a FormatError."""
    try:
        yield
    except AttribError:
        raise
    except (OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise FormatError(f"{path}: truncated or damaged ({error}); {REMEDY}") from error


def open_file(path: Path) -> h5py.File:
    """Open what should be attrib's, for sharing.

    Raises InputError where it is no file, or open for writing elsewhere, and FormatError where it is no HDF5.

    Shards appear whole, by a rename, and never change, so that a reader's lock stops no writer of attrib's. It is HDF5's
    usual one, since a file must be opened in one way within a process, and h5py may have it open too. Where the
    file system has no locks, it is opened without.
    """
    check_file(path, "a file that attrib wrote")
    why: Exception
    for locking in ("best-effort", False, True):
        try:
            return h5py.File(path, "r", locking=locking)
        except BlockingIOError as error:
            raise InputError(f"{path}: another process has it open for writing; expected a shard that is done. Close it there.") from error
        except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:  # as `translated` has them
            why = error
        if "lock" not in str(why):
            break
    with path.open("rb") as raw:
        head = raw.read(8)
    if not h5py.is_hdf5(path):
        raise FormatError(f"{path}: not an HDF5 file ({path.stat().st_size} bytes, beginning with {head!r}); {REMEDY}")
    raise FormatError(f"{path}: truncated or damaged ({why}); {REMEDY}") from why


def damaged(where: h5py.HLObject, fault: str) -> FormatError:
    """The error for what is wrong with a group or dataset."""
    return FormatError(f"{where.file.filename}: damaged: {where.name}: {fault}; {REMEDY}")


def attribute(where: h5py.HLObject, name: str, kind: str) -> Any:
    """An attribute whose numpy type is of this kind, or None; of another kind, or too long, it is not even read: see `columns.text`."""
    attributes = where.attrs  # of a file, looked up anew each time
    if name not in attributes or (found := attributes.get_id(name)).dtype.kind != kind or found.get_storage_size() > LONGEST_TEXT:
        return None
    return attributes[name]


def format_of(file: h5py.File) -> str | None:
    """What a file says that it is, among `KINDS`; None for a file of another program."""
    found = attribute(file, "format", "S")
    return next((kind for kind in KINDS if found == kind.encode()), None)


def check_kind(file: h5py.File, kind: str, version: int, what: str, expected: str) -> None:
    """Raises FormatError where a file is not of a kind, or of a version that this attrib does not know.

    Args:
        what: what files of this kind hold.
        expected: which file to give in its place.
    """
    found = format_of(file)
    if found != kind:
        other = f"it holds {sorted(file)[:8]}" if found is None else KINDS[found]
        raise FormatError(f"{file.filename}: an HDF5 file, but not of {what}: {other}. Give a file that {expected}.")
    of_file = attribute(file, "format_version", "i")
    if of_file != version:
        raise FormatError(
            f"{file.filename}: {what} of format version {of_file}; this attrib reads version {version}. Install the attrib that wrote it."
        )


def check_version(file: h5py.File) -> None:
    """Raises FormatError where a file is no shard, or of a version that this attrib does not know."""
    found = format_of(file)
    if found not in (FORMAT, None):
        raise FormatError(f"{file.filename}: {KINDS[str(found)]}; expected a shard of edges. Give a shard, or move it out of the folder.")
    if found is None:
        raise FormatError(
            f"{file.filename}: an HDF5 file, but not attrib's: it holds {sorted(file)[:8]}; expected the root attribute "
            f"format={FORMAT!r}. Open it with the program that made it."
        )
    version = attribute(file, "format_version", "i")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise FormatError(
            f"{file.filename}: format version {version}; this attrib reads versions {known}. Install the attrib that wrote it."
        )


class Column:
    """A dataset whose type, length, filters and storage are as they should be. It is sliced as an array; nothing is read before."""

    def __init__(self, data: h5py.Dataset, packed: Packed | None) -> None:
        self.data, self.packed = data, packed

    def __len__(self) -> int:
        return self.data.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        if self.packed is None:
            return self.data[rows]
        start, stop, _ = rows.indices(len(self))
        try:
            return self.packed.rows(start, stop)
        except ValueError as error:
            raise damaged(self.data, str(error)) from error


class Checked(h5py.Group):  # type: ignore[misc]
    """A group that remembers which of its parts were checked: files do not change under their readers, and checks take time."""

    def __init__(self, bind: h5py.h5g.GroupID) -> None:
        super().__init__(bind)
        self.groups: dict[str, Checked] = {}
        self.columns: dict[tuple[str, tuple[str, ...], int | None], Column] = {}


def child(group: h5py.Group, name: str, kind: type) -> Any:
    """A group or dataset that lies in the file itself: a link elsewhere could have us read any file of the user's."""
    known = group.groups if isinstance(group, Checked) else {}
    if kind is h5py.Group and name in known:
        return known[name]
    # HDF5's own calls: h5py's group[name] and group.get take four times as long, and a read of one prompt asks for forty parts
    at, link = group.id, name.encode()
    found = h5py.h5o.open(at, link) if link in at and at.links.get_info(link).type == h5py.h5l.TYPE_HARD else None
    if not isinstance(found, h5py.h5d.DatasetID if kind is h5py.Dataset else h5py.h5g.GroupID):
        raise damaged(group, f"{name!r} is missing or not a {kind.__name__.lower()}")
    if kind is h5py.Dataset:
        return h5py.Dataset(found)
    return known.setdefault(name, Checked(found))


def dataset(group: h5py.Group, name: str, dtypes: tuple[str, ...], length: int | None = None) -> Column:
    """A column whose type, length, filters and storage are as they should be. Nothing is read yet."""
    known, key = group.columns if isinstance(group, Checked) else {}, (name, dtypes, length)
    if key in known:
        return known[key]
    data = child(group, name, h5py.Dataset)
    wanted = (data.size if length is None else length,)
    if data.dtype not in dtypes or data.shape != wanted:
        raise damaged(data, f"{data.dtype} {data.shape}, and not {' or '.join(dtypes)} {wanted}")
    if data.is_virtual or data.external:
        raise damaged(data, "its values lie in another file")
    created = data.id.get_create_plist()
    filters = [created.get_filter(i) for i in range(created.get_nfilters())]
    chain = tuple(code for code, *_ in filters)
    if chain not in CHAINS or (chain and dtypes is BYTE):
        names = ["none"] if dtypes is BYTE else [" and ".join(map(filter_name, one)) or "none" for one in CHAINS]
        raise damaged(data, f"the filters {' and '.join(map(filter_name, chain))} are not as attrib writes them: {', or '.join(names)}")
    if chain and chain[-1] in PLUGINS:
        needed("hdf5plugin", f"{group.file.filename}: compressed, and to be read", "jobs")
    _check_storage(data, created.get_layout(), bool(chain))
    if not chain:
        return known.setdefault(key, Column(data, None))
    chunk = data.chunks[0] * data.dtype.itemsize
    options = [values for _, _, values, _ in filters]
    # both say how much memory there is to be for a chunk, or how it lies in it
    if (chain[0] == SHUFFLE and options[0][:1] != (data.dtype.itemsize,)) or (chain[-1] == Codec.LZF and options[-1][2:3] != (chunk,)):
        raise damaged(data, f"the filters' own parameters {options} are not those of chunks of {chunk} bytes")
    return known.setdefault(key, Column(data, Packed(data, Codec(chain[-1]), chain[0] == SHUFFLE)))


def _check_storage(data: h5py.Dataset, layout: int, is_packed: bool) -> None:
    """That all of a column is there, and that it claims no more than the file holds. What was never written would be read as zeros."""
    size, length = h5py.h5i.get_file_id(data.id).get_filesize(), len(data)
    chunk = data.chunks[0] * data.dtype.itemsize if data.chunks else 0
    # first of all, so that nothing is done as often as a file pleases to claim
    if chunk > min(LARGEST_CHUNK, max(CHUNK, data.nbytes)) or (length > max(size, FEW) if is_packed else data.nbytes > size):
        raise damaged(data, f"{data.nbytes} bytes in chunks of {chunk} are more than the file of {size} bytes holds")
    if layout == h5py.h5d.CONTIGUOUS and length:
        offset = data.id.get_offset()
        if offset is None or offset + data.nbytes > size:
            raise damaged(data, "its values were never written" if offset is None else "its values lie beyond the end of the file")
    if layout != h5py.h5d.CHUNKED:
        return
    there, wanted = data.id.get_num_chunks(), -(-length // data.chunks[0])
    if there != wanted:
        raise damaged(data, f"{there} of its {wanted} chunks were ever written")
    if is_packed:
        found: list[tuple[int, int]] = []
        data.id.chunk_iter(lambda info: found.append((info.byte_offset, info.size)))
        largest = chunk + (chunk >> 7) + 512  # what compression makes of numbers without order
        if sum(stored for _, stored in found) > size or any(at + stored > size or stored > largest for at, stored in found):
            raise damaged(data, f"its compressed chunks take more than the {chunk} bytes of each, or than the file of {size} bytes holds")


def read_text(where: h5py.HLObject, name: str, among: Sequence[str] | None = None) -> str:
    """A text attribute, one of `among` where that is given."""
    value = attribute(where, name, "S")
    if value is None or (among is not None and value.decode() not in among):
        wanted = f"text of fixed length, of {LONGEST_TEXT:,} bytes at most" if among is None else " or ".join(among)
        raise damaged(where, f"the attribute {name} is {value}, and not {wanted}")
    return value.decode()


def read_json(where: h5py.HLObject, name: str) -> dict[str, Any]:
    """An attribute that holds a JSON object."""
    text = read_text(where, name)
    if text.count("[") + text.count("{") > MOST_PARTS:
        raise damaged(where, f"attribute {name} is JSON of more than {MOST_PARTS:,} lists and objects")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise damaged(where, f"attribute {name} is not a JSON object")
    return value


def read_call(where: h5py.HLObject) -> dict[str, Any]:
    """What a file says of how it was made, in the words of today, so that shards of before and after a change of words agree."""
    call = read_json(where, "call")
    return call | {"target": logits_as_now(target)} if isinstance(target := call.get("target"), str) else call
