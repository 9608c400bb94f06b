"""Aggregates of many pairs, one row each, and the one operation on them: rows of one group become one row.

An edge is a row of its own, with count 1. Every column is a sum of integers or a maximum under a total order,
so a group's row is the same whatever the order and grouping in which it came together.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Shaped, UInt64

from attrib.core.types import InputError
from attrib.stats import fixed
from attrib.stats.fixed import Fixed

LARGEST_LATENT = 2**32 - 2


class Aggregates(NamedTuple):
    """Rows of a table or a sketch: aggregates over edges; docs/statistics.md defines every column. The last five say where the maximum is.

    `key` is the pair: that of the row in a table, that of the maximum in a sketch's cell.
    """

    key: UInt64[np.ndarray, " *rows"]
    count: Int64[np.ndarray, " *rows"]  # type: ignore[assignment]  # a tuple has a method of this name
    positive: Int64[np.ndarray, " *rows"]
    negative: Int64[np.ndarray, " *rows"]
    prompts: Int64[np.ndarray, " *rows"]
    l1_high: Int64[np.ndarray, " *rows"]
    l1_low: Int64[np.ndarray, " *rows"]
    sum_high: Int64[np.ndarray, " *rows"]
    sum_low: Int64[np.ndarray, " *rows"]
    squares_high: Int64[np.ndarray, " *rows"]
    squares_low: Int64[np.ndarray, " *rows"]
    maximum: Float64[np.ndarray, " *rows"]
    prompt: Int64[np.ndarray, " *rows"]
    target_position: Int64[np.ndarray, " *rows"]
    source_position: Int64[np.ndarray, " *rows"]

    @property
    def l1(self) -> Fixed:
        """Σ |attribution|."""
        return Fixed(self.l1_high, self.l1_low)

    @property
    def sum(self) -> Fixed:
        """Σ attribution."""
        return Fixed(self.sum_high, self.sum_low)

    @property
    def squares(self) -> Fixed:
        """Σ attribution²."""
        return Fixed(self.squares_high, self.squares_low)

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> "Aggregates":
        """Change every column by one function."""
        return Aggregates(*(change(column) for column in self))

    def take(self, index: slice | Shaped[np.ndarray, " _"]) -> "Aggregates":
        """Chosen rows."""
        return self.each(lambda column: column[index])


COUNTS = ("count", "positive", "negative", "prompts")


def dtype_of(column: str) -> type[np.generic]:
    """The dtype of a column in memory."""
    return {"key": np.uint64, "maximum": np.float64}.get(column, np.int64)


def empty(shape: int | tuple[int, ...] = 0) -> Aggregates:
    """Rows of nothing: no edges, and a maximum that any edge surpasses."""
    rows = Aggregates(*(np.zeros(shape, dtype_of(name)) for name in Aggregates._fields))
    rows.prompt[...] = np.iinfo(np.int64).max
    return rows


# ---------------------------------------------------------------------------------------- pairs


def keys_of(target: Int64[np.ndarray, " n"], source: Int64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """(target, source) as one integer that sorts as the pair does: 32 bits for each latent + 1."""
    return ((target + 1).astype(np.uint64) << np.uint64(32)) | (source + 1).astype(np.uint64)


def pairs_of(key: UInt64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(target, source) of keys."""
    return (key >> np.uint64(32)).astype(np.int64) - 1, (key & np.uint64(2**32 - 1)).astype(np.int64) - 1


def transposed(key: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The keys of (source, target)."""
    return (key << np.uint64(32)) | (key >> np.uint64(32))


def pair_name(key: int) -> str:
    """How an error names a pair."""
    return f"the pair (target {(key >> 32) - 1}, source {(key & 2**32 - 1) - 1})"


# ------------------------------------------------------------------------------------- collapse


def collapse(parts: Sequence[Aggregates], groups: Sequence[Shaped[np.ndarray, " _"]]) -> tuple[Shaped[np.ndarray, " _"], Aggregates]:
    """The rows of every group, as one row each in ascending order of the group; and those groups.

    Raises InputError where the |attribution| or the squares of a group sum to more than fixed-point numbers hold.
    """
    group = np.concatenate(groups)
    if not len(group):
        return group, empty()
    order = np.argsort(group, kind="stable")  # linear where the parts are sorted already
    group = group[order]
    first = np.ones(len(group), bool)
    np.not_equal(group[1:], group[:-1], out=first[1:])
    starts = np.flatnonzero(first)

    def sorted_column(name: str) -> np.ndarray:  # one at a time: a copy of all of them would double the memory
        return np.concatenate([getattr(part, name) for part in parts])[order]

    found: dict[str, np.ndarray] = {name: np.add.reduceat(sorted_column(name), starts) for name in COUNTS}
    passed = np.zeros(len(starts), bool)
    for name in ("l1", "sum", "squares"):
        numbers = Fixed(sorted_column(f"{name}_high"), sorted_column(f"{name}_low"))
        (found[f"{name}_high"], found[f"{name}_low"]), beyond = fixed.group_sums(numbers, starts)
        passed |= beyond
    best = _best(starts, np.cumsum(first) - 1, sorted_column)
    places = order[best]
    for name in ("key", "maximum", "prompt", "target_position", "source_position"):
        found[name] = np.concatenate([getattr(part, name) for part in parts])[places]
    if passed.any():
        raise InputError(
            f"edges: {pair_name(int(found['key'][passed][0]))} has attributions whose absolute values or squares sum to "
            f"{fixed.LIMIT:.1e} or more; expected less. Scale the metric, or leave these prompts out."
        )
    return group[starts], Aggregates(**found)


def _best(
    starts: Int64[np.ndarray, " groups"], number: Int64[np.ndarray, " rows"], column: Callable[[str], np.ndarray]
) -> Int64[np.ndarray, " groups"]:
    """The row of each group's maximum: the largest |attribution|, then the first prompt, target and source position, then pair.

    Of one edge that came with both signs, the positive. All of them are compared, so the order of the rows does not matter.
    """
    size = np.abs(column("maximum"))
    rows = np.flatnonzero(size == np.maximum.reduceat(size, starts)[number])
    if len(rows) > len(starts):
        ties = [column(name)[rows] for name in ("key", "source_position", "target_position", "prompt")]
        rows = rows[np.lexsort([-column("maximum")[rows], *ties, number[rows]])]
        belongs = number[rows]
        rows = rows[np.concatenate([[True], belongs[1:] != belongs[:-1]])]
    return rows
