"""A new HDF5 file, on a disk that may fill up."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from attrib.store.whole import whole


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
