"""How a file is put under its name: whole or not at all, over no other kind of file, on a disk that may fill up."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from attrib.core.files import OVERWRITE, check_free, named, unnamed, whole
from attrib.core.types import AttribError, InputError
from attrib.store.layout import GRAPHS, MERGED, STATISTICS, SURVEY, TABLES
from attrib.store.reading import FEW, format_of, open_file, translated

_NAMES = {
    MERGED: "a merged file", STATISTICS: "a statistics file", GRAPHS: "a file of graphs", SURVEY: "a survey of latents",
    TABLES: "a file of tables",
}  # fmt: skip


def check_output(argument: str, path: Path, kind: str | None, *, overwrite: bool) -> None:
    """Raises InputError where a file of this kind (its root attribute `format`) cannot be written.

    The path exists and `overwrite` is false, or what is there is of another kind: it may be someone's only copy; None replaces
    any file. Or its folder does not exist.
    """
    check_free(argument, path, "the file" if kind is None else _NAMES[kind], overwrite=overwrite)
    if kind is not None and path.exists() and format_at(path) != kind:
        raise InputError(f"{argument}: {path} is not {_NAMES[kind]}, and {OVERWRITE} replaces nothing else here. Choose another name.")


def format_at(path: Path) -> str | None:
    """What a file says that it is; None for one that cannot be read."""
    try:
        with open_file(path) as file, translated(path):
            return format_of(file)
    except AttribError:
        return None


def check_size(file: h5py.File, rows: int, compression: str | None) -> None:
    """What no reader would take is not written: see `FEW`. `rows` are those of the longest column. Raises InputError."""
    file.flush()
    if rows > max(size := file.id.get_filesize(), FEW):
        raise InputError(
            f"compression: {compression!r} makes {size:,} bytes of columns of {rows:,} rows, and no reader believes a file that is so "
            "much smaller than what it stands for; expected results that are not all alike. Save them without compression."
        )


@contextmanager
def created(path: Path, **options: Any) -> Iterator[h5py.File]:
    """An HDF5 file to write, which takes the name `path` when the block ends well; see `whole`. `options` as of `h5py.File`.

    Raises:
        OSError: where the disk does not take it.
    """
    with whole(path) as partial, _sink(partial) as sink:
        try:
            # HDF5 keeps checksums of its own structures from 1.10 on, and the file's length: damage is seen and not read
            with h5py.File(sink, "w", libver=("v110", "v110"), **options) as file:
                yield file
        except Exception as error:
            sink.check(path, error)
            raise
        sink.check(path)
        if not partial.exists():
            named(sink.fileno(), partial)


def _sink(partial: Path) -> "_Sink":
    """A new file, without a name yet where that can be."""
    descriptor = unnamed(partial)
    return _Sink(partial, "x+") if descriptor is None else _Sink(descriptor, "r+")


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
