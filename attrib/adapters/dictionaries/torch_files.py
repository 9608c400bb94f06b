"""Tensors in files that torch.save or Python's pickle wrote, read as data: no pickle is run, and sizes are checked before memory is taken.

    zip       data.pkl, and beside it a file of numbers for each storage                                torch.save since 1.6
    legacy    magic number, version, machine, the pickle, the storages' keys, then their numbers        torch.save before
    plain     one pickle, in which each storage is the bytes of a legacy file                           pickle.dump

Each of them may be packed by gzip.
"""

import gzip
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrib.adapters.dictionaries.tensors import MOST_INFLATED, SMALL
from attrib.core.files import check_file
from attrib.core.pickled import Call, DamagedError, Name, read_pickle, translated, zipped

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    Name("torch.DoubleStorage"): torch.float64, Name("torch.FloatStorage"): torch.float32, Name("torch.HalfStorage"): torch.float16,
    Name("torch.BFloat16Storage"): torch.bfloat16,
}  # fmt: skip
_TENSOR, _PARAMETER = Name("torch._utils._rebuild_tensor_v2"), Name("torch._utils._rebuild_parameter")
_FROM_BYTES = Name("torch.storage._load_from_bytes")
_MOST_NUMBERS = 1 << 40
_MOST_DIMENSIONS = 8


class Storage(NamedTuple):
    """Numbers that lie in a row in a file; they are read when `read` is called."""

    dtype: torch.dtype
    numel: int
    read: Callable[[], bytes]


class StoredTensor(NamedTuple):
    """A tensor as its file has it: how a storage is to be looked at. All of it lies within the storage."""

    storage: Storage
    offset: int
    shape: list[int]
    stride: list[int]

    def read(self) -> Tensor:
        """The numbers, in memory of their own and in the dtype in which they are stored."""
        raw = self.storage.read()
        if len(raw) != self.storage.numel * self.storage.dtype.itemsize:
            raise DamagedError(f"a tensor of it has {len(raw):,} bytes of {self.storage.numel * self.storage.dtype.itemsize:,}")
        return torch.frombuffer(bytearray(raw), dtype=self.storage.dtype).as_strided(self.shape, self.stride, self.offset).contiguous()


@contextmanager
def torch_file(path: Path, expected: str) -> Iterator[Any]:
    """The value that a file holds, whose tensors can be read while it is open: those are `Call`s that `tensor_of` understands.

    Args:
        expected: what the file should be, for messages: "a file that ... wrote".

    Raises:
        InputError: there is no such file.
        FormatError: it is damaged, becomes larger than weights do, or holds what no such file needs.
    """
    check_file(path, expected)
    with translated(path, f"expected {expected}."), path.open("rb") as file:
        size, is_packed = path.stat().st_size, file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream: BufferedIOBase = BytesIO(_unpacked(file, size)) if is_packed else file
        yield _value(stream, stream.seek(0, 2))


def _unpacked(file: BufferedIOBase, size: int) -> bytes:
    """What gzip packed. Raises DamagedError where that is more than weights can be: no more than that is ever unpacked."""
    most = max(SMALL, MOST_INFLATED * size)
    with gzip.GzipFile(fileobj=file) as packed:
        raw = packed.read(most + 1)
    if len(raw) > most:
        raise DamagedError(f"its {size:,} bytes would take more than {most:,} in memory: weights do not lie that close")
    return raw


def _value(stream: BufferedIOBase, size: int) -> Any:
    """The value of a file of any of the three forms."""
    stream.seek(0)
    is_zip = stream.read(4) == b"PK\x03\x04"
    stream.seek(0)
    if is_zip:
        return _of_zip(stream, size)
    value = read_pickle(stream)
    if value == _MAGIC:
        stream.seek(0)
        return _of_legacy(stream, size)
    if stream.tell() != size:
        raise DamagedError(f"behind its pickle are {size - stream.tell():,} more bytes")
    return value


def _of_zip(stream: BufferedIOBase, size: int) -> Any:
    archive = zipfile.ZipFile(stream)
    folder, raw = zipped(archive, size)
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    order = f"{folder}/byteorder"
    if order in sizes and (sizes[order] > len("little") or archive.read(order) != b"little"):
        raise DamagedError("its numbers are not little-endian")

    def persistent(key: Any) -> Storage:
        dtype, name, count = _place(key)
        file = f"{folder}/data/{name}"
        if (there := sizes.get(file)) != count * dtype.itemsize:
            raise DamagedError(f"its storage {name} has {there} bytes, not those of {count:,} numbers of {dtype}")
        return Storage(dtype, count, lambda: archive.read(file))

    return read_pickle(BytesIO(raw), persistent)


def _of_legacy(stream: BufferedIOBase, size: int) -> Any:
    head = [read_pickle(stream) for _ in range(3)]
    if head[:2] != [_MAGIC, _PROTOCOL] or not isinstance(head[2], dict) or head[2].get("little_endian") is not True:
        raise DamagedError("its head is not that of a little-endian file of torch.save")
    starts: dict[str, int] = {}
    found: dict[str, Storage] = {}

    def persistent(key: Any) -> Storage:
        dtype, name, count = _place(key)

        def read() -> bytes:
            stream.seek(starts[name])
            return stream.read(count * dtype.itemsize)

        kept = found.setdefault(name, Storage(dtype, count, read))
        if (kept.dtype, kept.numel) != (dtype, count):
            raise DamagedError(f"its storage {name} is of {kept.numel:,} numbers of {kept.dtype}, and of {count:,} of {dtype}")
        return kept

    value, keys = read_pickle(stream, persistent), read_pickle(stream)
    if not isinstance(keys, list) or sorted(keys) != sorted(found):
        raise DamagedError("its storages are not those that its pickle names")
    for name in keys:
        dtype, count, _ = found[name]
        (said,) = struct.unpack("<q", stream.read(8))
        starts[name] = stream.tell()
        if said != count or stream.seek(starts[name] + count * dtype.itemsize) > size:
            raise DamagedError(f"its storage {name} has not the {count:,} numbers of {dtype} that its pickle says")
    if stream.tell() != size:
        raise DamagedError(f"behind its storages are {size - stream.tell():,} more bytes")
    return value


def _place(key: Any) -> tuple[torch.dtype, str, int]:
    """What a pickle says of a storage beside it: dtype, name, and how many numbers. On which device it was is of no account."""
    match key:
        case ("storage", Name() as kind, str(name), str(), int(count)) | ("storage", Name() as kind, str(name), str(), int(count), None):
            if kind not in _STORAGES:
                raise DamagedError(f"its pickle names {kind!r}; expected a storage of floating numbers")
            if name.isascii() and name.isalnum() and not isinstance(count, bool) and 0 <= count < _MOST_NUMBERS:
                return _STORAGES[kind], name, count
    raise DamagedError("its pickle says of a storage what torch.save does not")


def tensor_of(value: Any, what: str) -> StoredTensor:
    """The tensor that a call in a pickle would make, without its numbers.

    Raises:
        DamagedError: it is another call, or the tensor has more numbers than its storage, or lies outside of it.
    """
    match value:
        case Call(function=function, arguments=(inner, bool(), {**hooks})) if function == _PARAMETER and not hooks:
            return tensor_of(inner, what)
        case Call(function=function, arguments=(storage, int(offset), tuple(shape), tuple(stride), bool(), {**hooks}, *rest)):
            if function == _TENSOR and not hooks and rest in ([], [None], [{}]):
                return _laid(_storage(storage, what), offset, [*shape], [*stride], what)
        case Call(function=Name() as function):
            raise DamagedError(f"{what}: its pickle calls {function!r}, which attrib does not; expected a dense tensor")
    raise DamagedError(f"{what}: {_kind(value)}; expected a dense tensor")


def _storage(value: Any, what: str) -> Storage:
    if isinstance(value, Call) and value.function == _FROM_BYTES:
        match value.arguments:
            case (bytes(raw),):
                value = _of_legacy(BytesIO(raw), len(raw))
    if not isinstance(value, Storage):
        raise DamagedError(f"{what}: its numbers are {_kind(value)}; expected a storage of torch")
    return value


def _laid(storage: Storage, offset: int, shape: list[Any], stride: list[Any], what: str) -> StoredTensor:
    numbers = [offset, *shape, *stride]
    if len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS or any(type(n) is not int or not 0 <= n < _MOST_NUMBERS for n in numbers):
        raise DamagedError(f"{what}: its shape, strides and offset are none")
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if math.prod(shape) > storage.numel or (math.prod(shape) and last >= storage.numel):
        raise DamagedError(f"{what}: {shape} is more than its storage of {storage.numel:,} numbers holds")
    return StoredTensor(storage, offset, shape, stride)


def _kind(value: Any) -> str:
    """What a value is, in a few words: of one from a file nothing is written out that could be long."""
    return f"a call of {value.function!r}" if isinstance(value, Call) and isinstance(value.function, Name) else f"a {type(value).__name__}"
