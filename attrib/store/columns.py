"""How columns, strings and texts are put into HDF5."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from jaxtyping import Int

from attrib.core.optional import needed
from attrib.core.types import InputError
from attrib.core.version import __version__
from attrib.store.layout import CHUNK

if TYPE_CHECKING:  # statistics are read without torch, which takes longer to import than they do
    from torch import Tensor


def filters_of(compression: str | None) -> dict[str, Any]:
    """The options of h5py's create_dataset for a compression."""
    match compression:
        case None:
            return {}
        case "gzip" | "lzf":
            return {"compression": compression, "shuffle": True}
        case "blosc-lz4":
            return dict(needed("hdf5plugin", "compression: 'blosc-lz4'", "jobs").Blosc(cname="lz4"))
        case "zstd":
            return dict(needed("hdf5plugin", "compression: 'zstd'", "jobs").Zstd())
    raise InputError(f"compression: {compression!r}; expected None, 'gzip', 'lzf', 'blosc-lz4' or 'zstd'.")


def array(column: "Tensor", dtype: type[np.generic] | None = None) -> np.ndarray:
    """A tensor as numpy has it."""
    return np.asarray(column.detach().cpu().numpy(), dtype)


def integers(column: "Int[Tensor, ' n']") -> np.ndarray:
    """Give the numbers as int32 where every value fits, else as int64."""
    return narrow(array(column, np.int64))


def narrow(column: np.ndarray) -> np.ndarray:
    """Whole numbers, and truths as 0 and 1, as int32 where every value fits, else as int64."""
    values, limits = column.astype(np.int64), np.iinfo(np.int32)
    fits = limits.min <= values.min(initial=0) and values.max(initial=0) <= limits.max
    return values.astype(np.int32) if fits else values


def write_columns(group: h5py.Group, columns: dict[str, np.ndarray], filters: dict[str, Any]) -> None:
    """Each column in the fewest chunks of at most CHUNK bytes, of even length so that the last is not mostly padding."""
    for name, column in columns.items():
        if len(column):
            group.create_dataset(name, data=column, chunks=(_chunk(len(column), column.dtype),), **filters)
        else:  # an empty dataset has no chunks to filter
            group.create_dataset(name, data=column)


def write_in_parts(
    group: h5py.Group, name: str, length: int, dtype: np.dtype[Any], parts: Iterable[np.ndarray], filters: dict[str, Any]
) -> None:
    """A column that is never held: the same dataset, byte by byte, as `write_columns` makes of all its parts together."""
    if not length:
        write_columns(group, {name: np.empty(0, dtype)}, filters)
        return
    chunk, at, rest = _chunk(length, dtype), 0, np.empty(0, dtype)
    data = group.create_dataset(name, (length,), dtype, chunks=(chunk,), **filters)
    for part in parts:
        rest = np.concatenate([rest, part.astype(dtype, copy=False)])
        whole = len(rest) // chunk * chunk  # each chunk is written once, and whole
        data[at : at + whole] = rest[:whole]
        at, rest = at + whole, rest[whole:]
    if at + len(rest) != length:
        raise ValueError(f"{name}: {at + len(rest)} values, and not {length}")
    data[at:] = rest


def _chunk(length: int, dtype: np.dtype[Any]) -> int:
    """How many values of a column lie in a chunk."""
    return -(-length // -(-length * dtype.itemsize // CHUNK))


def write_strings(group: h5py.Group, strings: Sequence[str]) -> None:
    """Write strings as the bytes of their UTF-8 and where each begins.

    HDF5's own variable-length strings end at a NUL, which a token may hold. Lone surrogates pass too. The
    bytes are never compressed, so that no string can be longer than its file.
    """
    encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
    ptr = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    write_columns(group, {"ptr": ptr, "bytes": np.frombuffer(b"".join(encoded), np.uint8)}, {})


def name_as_csr(csr: h5py.Group, shape: tuple[int, int]) -> None:
    """Make data, indices and indptr a matrix in two conventions at once: AnnData's on-disk CSR and binsparse 0.1."""
    csr.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array(shape, np.int64)})
    names = {"pointers_to_1": "indptr", "indices_1": "indices", "values": "data"}
    for name, anndata_name in names.items():
        csr[name] = csr[anndata_name]  # a hard link: the same dataset by a second name
    types = {name: csr[name].dtype.name for name in names}
    header = {"version": "0.1", "format": "CSR", "shape": shape, "number_of_stored_values": len(csr["data"]), "data_types": types}
    csr.attrs["binsparse"] = json.dumps({"binsparse": header})


def as_json(call: dict[str, Any]) -> str:
    """A call as JSON. Raises InputError where that cannot hold it."""
    try:
        return json.dumps(call)
    except (TypeError, ValueError) as error:
        raise InputError(f"edges: `call` cannot be written as JSON ({error}); expected dicts, lists, strings and numbers alone.") from error


def json_text(value: dict[str, Any]) -> np.ndarray:
    """An attribute that holds a JSON object. Raises InputError where JSON cannot."""
    return text(as_json(value))


def text(value: str) -> np.ndarray:
    """An attribute of fixed length. HDF5 keeps the others in a heap without checksums, and in a damaged one can loop for ever."""
    encoded = value.encode()
    return np.array(encoded, h5py.string_dtype("utf-8", max(len(encoded), 1)))


@cache
def packages() -> dict[str, str]:
    """Versions of what makes the numbers and the file."""
    found = {of.name: of.version for of in metadata.distributions() if of.name in ("h5py", "numpy", "torch")}
    return {"attrib": __version__, **dict(sorted(found.items()))}
