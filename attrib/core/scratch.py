"""Columns that grow on the disk, where memory is not to hold what they come to.

A scratch file has no name: nothing is left of it when it is closed, or its process ends, however that comes. Many columns share one, each
of which knows where its own pieces lie.
"""

import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

LOOK = 1 << 26
"""Bytes that are written between two looks at what the disk has left."""


@runtime_checkable
class Column(Protocol):
    """What grows at its end and is read in runs; `attrib.core.edges.Growing` is one that memory holds."""

    size: int

    def add(self, piece: Tensor) -> None:
        """Append a piece."""

    def read(self, runs: Sequence[tuple[int, int]], into: Tensor) -> None:
        """Copy runs `[first, end)` of it, one behind the other."""

    def clear(self) -> None:
        """Let go of all of it."""


class Scratch(AbstractContextManager["Scratch"]):
    """A file without a name. Use it in a `with` statement."""

    def __init__(self, folder: Path, room: Callable[[int, int], None] = lambda _taken, _free: None) -> None:
        """Open one.

        Args:
            folder: on whose disk it lies.
            room: is asked now and then whether what is left of the disk will do, and raises where it will not: by the bytes that the file
                takes, and those that are free.
        """
        self.folder, self._room = folder, room
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed as this is
        self.size = self._looked = 0

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def column(self, dtype: torch.dtype) -> "OnDisk":
        """A new column of this type."""
        return OnDisk(self, dtype)

    def clear(self) -> None:
        """Give the disk back what was written. No column that was made before may be read any more."""
        self._file.truncate(0)
        self.size = self._looked = 0

    def check(self) -> None:
        """Ask whether the disk has room."""
        self._looked = self.size
        self._room(self.size, shutil.disk_usage(self.folder).free)

    def append(self, piece: Tensor) -> int:
        """Write numbers behind all others. Returns where they begin. Raises OSError where the disk does not take them."""
        begin, left = self.size, piece.contiguous().numpy().data.cast("B")
        self._file.seek(begin)
        while left:
            try:
                left = left[self._file.write(left) :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.folder)) from error
        self.size = begin + piece.nbytes
        if self.size - self._looked >= LOOK:
            self.check()
        return begin

    def read(self, begin: int, into: Tensor) -> None:
        """Read what was written there. Raises OSError where it is no longer there."""
        left = into.numpy().data.cast("B")
        self._file.seek(begin)
        while left:
            if not (count := self._file.readinto(left)):
                raise OSError(f"a scratch file in {self.folder} ends before what was written to it")
            left = left[count:]


class OnDisk:
    """A column of a scratch file."""

    def __init__(self, scratch: Scratch, dtype: torch.dtype) -> None:
        self.scratch, self.dtype, self.size = scratch, dtype, 0
        self._begins, self._places = list[int](), list[int]()  # of each piece: its first entry, and where it lies in the file

    def add(self, piece: Tensor) -> None:
        """Append a piece, whose values must fit the column's type."""
        if len(piece):
            self._places.append(self.scratch.append(piece.to(self.dtype)))
            self._begins.append(self.size)
            self.size += len(piece)

    def read(self, runs: Sequence[tuple[int, int]], into: Tensor) -> None:
        """Copy runs `[first, end)` of it, one behind the other."""
        at = 0
        for start, end in runs:
            first, number = start, bisect_right(self._begins, start) - 1
            while first < end:
                upto = min(end, self._begins[number + 1] if number + 1 < len(self._begins) else self.size)
                part = torch.empty(upto - first, dtype=self.dtype)
                self.scratch.read(self._places[number] + (first - self._begins[number]) * self.dtype.itemsize, part)
                into[at : at + upto - first] = part
                at, first, number = at + upto - first, upto, number + 1

    def clear(self) -> None:
        """Let go of all of it; the file is cleared by itself."""
        self._begins, self._places, self.size = [], [], 0
