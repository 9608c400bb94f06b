"""The exact form of a block's statistics: one row for every pair."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from attrib.stats.fixed import Fixed
from attrib.stats.rows import Aggregates, pairs_of, transposed

PART = 1 << 18
"""Rows that are read at once where a whole table is gone through."""


@runtime_checkable
class Exact(Protocol):
    """What a table answers, whether it is in memory or in a file."""

    def __len__(self) -> int: ...

    def of_target(self, latent: int) -> Aggregates:
        """The pairs of one target, by source."""

    def of_source(self, latent: int) -> Aggregates:
        """The pairs of one source, by target."""

    def parts(self) -> Iterator[Aggregates]:
        """All pairs, in ascending order of the key, some at a time."""

    def l1(self) -> Iterator[Fixed]:
        """The mass of every pair, in the same order, some at a time; nothing else is read."""


@dataclass(frozen=True)
class Table:
    """A table in memory: rows in strictly ascending order of the key."""

    rows: Aggregates

    def __len__(self) -> int:
        return len(self.rows.key)

    def of_target(self, latent: int) -> Aggregates:
        """The pairs of one target, by source."""
        start, stop = (_find(self.rows.key, after << 32) for after in (latent + 1, latent + 2))
        return self.rows.take(slice(start, stop))

    def of_source(self, latent: int) -> Aggregates:
        """The pairs of one source, by target."""
        return self.rows.take(np.flatnonzero(pairs_of(self.rows.key)[1] == latent))

    def by_source(self) -> np.ndarray:
        """The order of the rows by (source, target)."""
        return np.argsort(transposed(self.rows.key), kind="stable")

    def parts(self) -> Iterator[Aggregates]:
        """All pairs, some at a time."""
        for start in range(0, len(self), PART):
            yield self.rows.take(slice(start, start + PART))

    def l1(self) -> Iterator[Fixed]:
        """The mass of every pair, some at a time."""
        yield self.rows.l1


def _find(key: np.ndarray, end: int) -> int:
    """Where a key stands or would stand; it may be one more than 64 bits hold."""
    return len(key) if end >= 1 << 64 else int(np.searchsorted(key, np.uint64(end)))
