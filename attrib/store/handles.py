"""Open shards, a few at a time: HDF5's handles cost memory and descriptors, and belong to one process."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from attrib.core.types import InputError
from attrib.store.graphs import Graphs
from attrib.store.index import Index, check_identity
from attrib.store.shard import Store

MOST = 8
"""Shards open at a time."""


OpenT = TypeVar("OpenT", Store, Graphs)


class Handles(Generic[OpenT]):
    """The shards of an index, opened when they are read; the one that was used longest ago is closed first.

    A process that was forked closes what it inherited and opens its own. Threads take turns, as they do in HDF5.
    """

    def __init__(self, index: Index, open_file: Callable[[Path], OpenT]) -> None:
        self._index = index
        self._open_file: Callable[[Path], OpenT] = open_file
        self._begin()

    def _begin(self) -> None:
        self._open: OrderedDict[int, OpenT] = OrderedDict()
        self._lock = threading.RLock()  # one that another thread held at a fork would never be free again
        self._process = os.getpid()

    @contextmanager
    def shard(self, number: int) -> Iterator[OpenT]:
        """A shard of the index, for as long as the `with` statement. Raises InputError where it is gone or was replaced."""
        if self._process != os.getpid():
            inherited = self._open
            self._begin()
            _close(inherited)
        with self._lock:
            if number not in self._open:
                while len(self._open) >= MOST:
                    self._open.popitem(last=False)[1].close()
                self._open[number] = self._opened(number)
            self._open.move_to_end(number)
            yield self._open[number]

    def _opened(self, number: int) -> OpenT:
        path = self._index.path(number)
        if not path.is_file():
            raise InputError(f"{path}: it is gone since the folder was opened; open the folder again (in Python, `refreshed()`).")
        store = self._open_file(path)
        try:
            check_identity(path, store.descriptor, self._index.shards[number].identity)
        except InputError:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close all that are open; the next to be read is opened again."""
        with self._lock:
            _close(self._open)


def _close(stores: OrderedDict[int, OpenT]) -> None:
    while stores:
        stores.popitem()[1].close()
