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
    with whole(path) as partial, partial.open("xb+", buffering=0) as disk:
        sink = _Sink(disk)
        try:
            # HDF5 keeps checksums of its own structures from 1.10 on, and the file's length: damage is seen and not read
            with h5py.File(sink, "w", libver=("v110", "v110"), **options) as file:
                yield file
        except Exception as error:
            sink.check(path, error)
            raise
        sink.check(path)


class _Sink(io.RawIOBase):
    """What HDF5 writes to, for which no write fails.

    After one that does, HDF5 cannot close what is open: it prints a traceback for each object, and crashes. So it is told that all
    went well, and the file, which is worthless then, is thrown away.
    """

    def __init__(self, disk: io.FileIO) -> None:
        self._disk = disk
        self._fault: OSError | None = None

    def check(self, path: Path, instead_of: Exception | None = None) -> None:
        """Raise what went wrong."""
        if self._fault is not None:
            raise OSError(self._fault.errno, self._fault.strerror, str(path)) from instead_of

    def readable(self) -> bool:
        """As `io.RawIOBase`."""
        return True

    def writable(self) -> bool:
        """As `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """As `io.RawIOBase`."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As `io.RawIOBase`."""
        return self._disk.seek(offset, whence)

    def readinto(self, buffer: Any) -> int | None:
        """As `io.RawIOBase`."""
        return self._disk.readinto(buffer)

    def write(self, data: Any) -> int:
        """All of it, or none where anything went wrong before."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while self._fault is None and left:
                left = left[self._disk.write(left) :]
        except OSError as error:
            self._fault = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """As `io.RawIOBase`; a file can be made longer by this."""
        try:
            return self._disk.truncate(size)
        except OSError as error:
            self._fault = self._fault or error
            return size or 0
