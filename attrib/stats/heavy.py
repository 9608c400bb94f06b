"""What a sketch can tell: the pairs of large mass, and how far off each estimate can be."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from attrib.core.types import FormatError
from attrib.stats import fixed
from attrib.stats.fixed import Fixed
from attrib.stats.rows import COUNTS, Aggregates
from attrib.stats.sketch import DEPTH, LEAF, LEVELS, Sketch

_LEVEL_OF = {lengths: level for level, lengths in enumerate((*LEVELS, (32, 32)))}
_OF_TARGET = ((32, 0), (32, 8), (32, 16), (32, 24), (32, 32))
_OF_SOURCE = ((0, 32), (8, 32), (16, 32), (24, 32), (32, 32))
_AT_ONCE = 1 << 12
"""Prefixes whose 256 children are looked up together."""


class Estimates(NamedTuple):
    """Rows of pairs, and what is known of them.

    Where `is_exact` is false: l1, squares and the counts are upper bounds; the true l1 is at least l1 - error and the
    true sum within error of sum; and where `has_place` is false too, |maximum| is an upper bound and has no place.
    """

    rows: Aggregates
    is_exact: Bool[np.ndarray, " rows"]
    error: Float64[np.ndarray, " rows"]
    has_place: Bool[np.ndarray, " rows"]


def certain(rows: Aggregates) -> Estimates:
    """Rows of a table."""
    size = len(rows.key)
    return Estimates(rows, np.ones(size, bool), np.zeros(size), np.ones(size, bool))


def heavy_sources(sketch: Sketch, target: int) -> Estimates:
    """All pairs of one target with at least phi of the sketch's mass, and perhaps a few with less."""
    return _descend(sketch, np.array([(target + 1) << 32], np.uint64), _OF_TARGET)


def heavy_targets(sketch: Sketch, source: int) -> Estimates:
    """All pairs of one source with at least phi of the sketch's mass, and perhaps a few with less."""
    return _descend(sketch, np.array([source + 1], np.uint64), _OF_SOURCE)


def mass_estimate(sketch: Sketch, key: UInt64[np.ndarray, " n"], level: int) -> tuple[Fixed, Int64[np.ndarray, " n"]]:
    """The least mass among the prefixes' cells, which is at least their own, and in which row it is."""
    numbers = sketch.levels[level] if level < LEAF else sketch.leaves.l1
    best, best_row = Fixed(np.empty(0), np.empty(0)), np.zeros(len(key), np.int64)
    for row in range(DEPTH):
        at = sketch.at(key, level, row)
        found = Fixed(numbers.high[at], numbers.low[at])
        if row:
            is_less = fixed.less(found, best)
            best_row[is_less] = row
            found = Fixed(np.where(is_less, found.high, best.high), np.where(is_less, found.low, best.low))
        best = found
    return best, best_row


def _descend(sketch: Sketch, prefixes: UInt64[np.ndarray, " n"], path: tuple[tuple[int, int], ...]) -> Estimates:
    """From a prefix by eight bits at a time: only children whose mass may reach the threshold are followed.

    A prefix has at least the mass of each of its pairs, and its estimate at least its mass, so no heavy pair is lost.
    """
    least = max(1, -(-sketch.mass * 8 // sketch.width))  # phi of the mass, rounded up to the grid
    threshold = Fixed(*(np.array([limb]) for limb in fixed.of_integer(least)))
    for (target_bits, _), (to_target, to_source) in pairwise(path):
        shift = 64 - to_target if to_target != target_bits else 32 - to_source
        digits = np.arange(256, dtype=np.uint64) << np.uint64(shift)
        level, kept = _LEVEL_OF[to_target, to_source], []
        for start in range(0, len(prefixes), _AT_ONCE):
            children = (prefixes[start : start + _AT_ONCE, None] | digits).ravel()
            mass, _ = mass_estimate(sketch, children, level)
            kept.append(children[~fixed.less(mass, threshold)])
        prefixes = np.concatenate(kept) if kept else prefixes
        if len(prefixes) > sketch.width:  # of true ones there are an eighth, and false ones are far fewer
            raise FormatError(f"statistics: of {sketch.width} cells {len(prefixes)} are heavy, and an eighth can be; the file is damaged.")
    return _estimates(sketch, prefixes)


def _estimates(sketch: Sketch, key: UInt64[np.ndarray, " n"]) -> Estimates:
    l1, row = mass_estimate(sketch, key, LEAF)
    least = sketch.leaves.take(np.choose(row, [sketch.at(key, LEAF, r) for r in range(DEPTH)]))
    found = {name: getattr(least, name) for name in Aggregates._fields} | {"key": key}
    squares, has_place = least.squares, np.zeros(len(key), bool)
    place = {name: np.full(len(key), -1, np.int64) for name in ("prompt", "target_position", "source_position")}
    bound, maximum = np.full(len(key), np.inf), np.zeros(len(key))
    for r in range(DEPTH):
        cell = sketch.leaves.take(sketch.at(key, LEAF, r))
        for name in COUNTS:
            found[name] = np.minimum(found[name], getattr(cell, name))
        is_less = fixed.less(cell.squares, squares)
        squares = Fixed(np.where(is_less, cell.squares.high, squares.high), np.where(is_less, cell.squares.low, squares.low))
        bound = np.minimum(bound, np.abs(cell.maximum))
        own = cell.key == key  # the cell's maximum is this pair's, so it is the pair's maximum
        has_place |= own
        maximum[own] = cell.maximum[own]
        for name, column in place.items():
            column[own] = getattr(cell, name)[own]
    found |= place | {"maximum": np.where(has_place, maximum, bound), "squares_high": squares.high, "squares_low": squares.low}
    mass = fixed.floats(l1)
    error = np.minimum(sketch.epsilon * float(sketch.mass) * 2.0**-fixed.UNIT, mass - np.where(has_place, np.abs(maximum), 0.0))
    return Estimates(Aggregates(**found), np.zeros(len(key), bool), np.maximum(error, 0.0), has_place)
