"""How a file is put under its name: whole or not at all, over no other kind of file, on a disk that may fill up."""

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from attrib.core.types import AttribError, InputError
from attrib.store.layout import MERGED, STATISTICS
from attrib.store.reading import format_of, open_file, translated

OVERWRITE = "--overwrite (in Python, overwrite=True)"
"""How a caller says it."""
_NAMES = {MERGED: "a merged file", STATISTICS: "a statistics file"}
PARTIAL = ".partial"
"""What the names of files end in that are being written, or were when their writer was killed."""


def check_output(argument: str, path: Path, kind: str | None, *, overwrite: bool) -> None:
    """Raises InputError where a file of this kind (its root attribute `format`) cannot be written.

    The path exists and `overwrite` is false, or what is there is of another kind: it may be someone's only copy; None replaces
    any file. Or its folder does not exist.
    """
    named = "the file" if kind is None else _NAMES[kind]
    if not path.parent.is_dir():
        raise InputError(f"{argument}: the folder {path.parent} does not exist; make it first.")
    if not path.exists():
        return
    if path.is_dir() or not overwrite:
        what = "" if path.is_dir() else f", or replace {named} with {OVERWRITE}"
        raise InputError(f"{argument}: {path} exists already; expected a new name. Choose another{what}.")
    if kind is not None and format_at(path) != kind:
        raise InputError(f"{argument}: {path} is not {named}, and {OVERWRITE} replaces nothing else here. Choose another name.")


def format_at(path: Path) -> str | None:
    """What a file says that it is; None for one that cannot be read."""
    try:
        with open_file(path) as file, translated(path):
            return format_of(file)
    except AttribError:
        return None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name in the folder of `path` to write a file to, which takes the name `path` when the block ends well.

    By then it is on the disk, and so is its name: a reader, and a machine that lost its power, see the whole
    file or none. An error removes it; a killed process leaves it, under a name that ends in `PARTIAL`.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def created(path: Path, **options: Any) -> Iterator[h5py.File]:
    """An HDF5 file to write, which takes the name `path` when the block ends well; see `whole`. `options` as of `h5py.File`.

    Raises:
        OSError: where the disk does not take it.
    """
    with whole(path) as partial, _Sink(partial, "x+") as sink:
        try:
            # HDF5 keeps checksums of its own structures from 1.10 on, and the file's length: damage is seen and not read
            with h5py.File(sink, "w", libver=("v110", "v110"), **options) as file:
                yield file
        except Exception as error:
            sink.check(path, error)
            raise
        sink.check(path)


class _Sink(io.FileIO):
    """A file of which no write fails, as far as HDF5 sees.

    After one that does, HDF5 cannot close what is open: it prints a traceback for each object, and crashes. So it is told that all
    went well, and the file, which is worthless then, is thrown away.
    """

    _fault: OSError | None = None

    def check(self, path: Path, instead_of: Exception | None = None) -> None:
        """Raise what went wrong."""
        if self._fault is not None:
            raise OSError(self._fault.errno, self._fault.strerror, str(path)) from instead_of

    def write(self, data: Any) -> int:
        """All of it, or none where anything went wrong before."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while self._fault is None and left:
                left = left[super().write(left) :]
        except OSError as error:
            self._fault = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Seek as in any file, which this may make longer."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._fault = self._fault or error
            return size or 0
