"""How the mass of a block's pairs is spread: how many pairs have an l1 of each power of ten."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from attrib.stats import fixed
from attrib.stats.table import Exact

MOST = 12
"""Decades that are told; what lies below them counts to the lowest."""
_LEAST = -21
"""Ten to this is below the grid that sums stand on, so that only sums of zero are counted here, which are of no decade."""


@dataclass(frozen=True)
class Decades:
    """Pairs by the decade of their l1, for each of some blocks, all on one scale."""

    pairs: Int64[np.ndarray, "blocks decades"]
    first: int
    """The lowest decade begins at ten to this; smaller pairs are in it too, but for those of nothing but zeros."""

    @property
    def last(self) -> int:
        """The highest decade ends at ten to this."""
        return self.first + self.pairs.shape[1]


def decades_of(tables: Sequence[Exact]) -> Decades:
    """The decades that the pairs of some tables lie in, at most the highest `MOST`. Raises FormatError where a sum is damaged."""
    highest = int(np.ceil(np.log10(fixed.LIMIT)))
    counts = np.zeros((len(tables), highest - _LEAST), np.int64)
    for number, held in enumerate(tables):
        for sums in held.l1():
            size = np.maximum(fixed.floats(sums), 10.0**_LEAST)
            decade = np.floor(np.log10(size)).astype(np.int64) - _LEAST
            counts[number] += np.bincount(decade, minlength=counts.shape[1])
    filled = np.flatnonzero(counts[:, 1:].sum(0)) + 1
    if not len(filled):
        return Decades(counts[:, 1:1], 0)
    last = int(filled[-1]) + 1
    first = max(int(filled[0]), last - MOST)
    shown = counts[:, first:last].copy()
    shown[:, 0] += counts[:, 1:first].sum(1)
    return Decades(shown, _LEAST + first)
