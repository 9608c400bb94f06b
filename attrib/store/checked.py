"""How a file that may be hostile is read: types, lengths and links are checked before anything is allocated."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from attrib.store.layout import BUILT_IN_FILTERS, CHUNK, FORMAT, MERGED, PLUGIN_FILTERS, REMEDY, STATISTICS, VERSION, import_plugin
from attrib.types import AttribError, FormatError, InputError, logits_as_now

KINDS = {
    FORMAT: "a shard of edges, which attrib.open, `attrib show` and `attrib stats build` read",
    MERGED: "a merged file, which stands for shards: attrib.open and `attrib show` read it by itself, and not as a shard in a folder",
    STATISTICS: "statistics, which attrib.stats.open and `attrib stats show` read",
}
"""What attrib's files are, by their root attribute `format`, and what reads them."""
POINTER, INTEGER, FLOAT, BYTE = ("<i8",), ("<i4", "<i8"), ("<f4", "<f8"), ("|u1",)


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
    if not path.is_file():  # a pipe would keep its reader waiting
        raise InputError(f"path: there is no file {path}; expected a file that attrib wrote.")
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
    """An attribute whose numpy type is of this kind, or None; of another kind, it is not even read: see `_text`."""
    attributes = where.attrs  # of a file, looked up anew each time
    return attributes[name] if name in attributes and attributes.get_id(name).dtype.kind == kind else None


def format_of(file: h5py.File) -> str | None:
    """What a file says that it is, among `KINDS`; None for a file of another program."""
    found = attribute(file, "format", "S")
    return next((kind for kind in KINDS if found == kind.encode()), None)


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
    if version != VERSION:
        raise FormatError(
            f"{file.filename}: format version {version}; this attrib reads version {VERSION}. Install the attrib that wrote it."
        )


class Checked(h5py.Group):  # type: ignore[misc]
    """A group that remembers which of its parts were checked: files do not change under their readers, and checks take time."""

    def __init__(self, bind: h5py.h5g.GroupID) -> None:
        super().__init__(bind)
        self.groups: dict[str, Checked] = {}
        self.columns: dict[tuple[str, tuple[str, ...], int | None], h5py.Dataset] = {}


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


def dataset(group: h5py.Group, name: str, dtypes: tuple[str, ...], length: int | None = None) -> h5py.Dataset:
    """A column whose type, length, filters and storage are as they should be. Nothing is read yet."""
    known, key = group.columns if isinstance(group, Checked) else {}, (name, dtypes, length)
    if key in known:
        return known[key]
    data = child(group, name, h5py.Dataset)
    size = h5py.h5i.get_file_id(data.id).get_filesize()
    wanted = (data.size if length is None else length,)
    if data.dtype not in dtypes or data.shape != wanted:
        raise damaged(data, f"{data.dtype} {data.shape}, and not {' or '.join(dtypes)} {wanted}")
    if data.is_virtual or data.external:
        raise damaged(data, "its values lie in another file")
    created = data.id.get_create_plist()
    filters = {created.get_filter(i)[0] for i in range(created.get_nfilters())}
    if not filters <= BUILT_IN_FILTERS | PLUGIN_FILTERS:
        raise damaged(data, f"the filters {sorted(filters)} are not all of format version {VERSION}")
    if filters & PLUGIN_FILTERS:
        import_plugin(f"{group.file.filename}: compressed, and reading it")
    chunk = data.chunks[0] * data.dtype.itemsize if data.chunks else 0
    # a compressed column is backed by chunks that are there, any other by bytes that are there
    if chunk > 16 * CHUNK or data.nbytes > (data.id.get_num_chunks() * chunk if filters else size):
        raise damaged(data, f"{data.nbytes} bytes in chunks of {chunk} are more than the file of {size} bytes holds")
    return known.setdefault(key, data)


def read_text(where: h5py.HLObject, name: str, among: Sequence[str] | None = None) -> str:
    """A text attribute, one of `among` where that is given."""
    value = attribute(where, name, "S")
    if value is None or (among is not None and value.decode() not in among):
        raise damaged(where, f"the attribute {name} is {value}, and not {'text of fixed length' if among is None else ' or '.join(among)}")
    return value.decode()


def read_json(where: h5py.HLObject, name: str) -> dict[str, Any]:
    """An attribute that holds a JSON object."""
    value = json.loads(read_text(where, name))
    if not isinstance(value, dict):
        raise damaged(where, f"attribute {name} is not a JSON object")
    return value


def read_call(where: h5py.HLObject) -> dict[str, Any]:
    """What a file says of how it was made, in the words of today, so that shards of before and after a change of words agree."""
    call = read_json(where, "call")
    return call | {"target": logits_as_now(target)} if isinstance(target := call.get("target"), str) else call
