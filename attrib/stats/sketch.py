"""The bounded form of a block's statistics: a hierarchical Count-Min sketch over pairs.

Cormode and Muthukrishnan, "An improved data stream summary: the count-min sketch and its applications", Journal of
Algorithms 55 (2005) 58-75; the hierarchy for heavy hitters is that of their section 5. Each level has DEPTH rows of
2**bits cells; a pair adds to one cell in each row, found by a hash of a prefix of the pair. The levels hold mass, Σ
|attribution|, and the leaves, whose prefix is the whole pair, everything that a table's row holds.

All cells are sums of integers or maxima under a total order. So a sketch of two tables merged is the sketches of
the two merged, bit for bit: it does not matter when a table turned into a sketch. docs/statistics.md has the guarantees.

A prefix of a pair is two numbers below 2**32, (t, s). Its cell among 2**bits is

    h(t, s) = ((a·t + b·s + c) mod 2**64) >> (64 - bits),        bits <= 33,

the vector multiply-shift of Dietzfelbinger (1996), as Thorup (2015, arXiv:1504.06804, section 3.5) writes it: with
a, b and c drawn from all 64-bit numbers it is strongly universal, so two prefixes meet with probability 2**-bits.
A cell among half as many is the same number without its last bit: a sketch can be folded to a smaller one. The functions
are the same on every machine and for ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from attrib.core.types import FormatError, InputError
from attrib.stats import fixed
from attrib.stats.fixed import Fixed
from attrib.stats.rows import COUNTS, Aggregates, collapse, empty

DEPTH = 4
"""Rows of every level of a sketch: an estimate fails with probability e**-DEPTH."""
LEVELS = ((8, 0), (16, 0), (24, 0), (32, 0), (32, 8), (32, 16), (32, 24), (8, 32), (16, 32), (24, 32))
"""The prefixes whose mass a sketch holds: how many of the first bits of the target and of the source."""
LEAF = len(LEVELS)

DEFAULT_MEMORY = 1 << 30
LEAST_MEMORY = 1 << 16
# A table of n rows of 120 bytes is merged with up to a quarter of new rows into a third, beside sorted columns of one at a time.
BYTES_PER_PAIR = 400
# A cell has 120 bytes in the leaves and 16 in each level. Half of the memory is left for what is added to it.
BYTES_PER_COLUMN = 2 * DEPTH * (120 + 16 * len(LEVELS))


def max_pairs(memory: int) -> int:
    """The pairs that a block's table may have."""
    return memory // BYTES_PER_PAIR


def bits_of(memory: int) -> int:
    """log2 of the width of a block's sketch."""
    return min((memory // BYTES_PER_COLUMN).bit_length() - 1, 32)


def check_memory(memory: int) -> int:
    """A memory bound that can be used. Raises InputError."""
    if memory < LEAST_MEMORY:
        raise InputError(f"memory: {memory:,} bytes; expected at least {LEAST_MEMORY:,} for each block, and 1 GiB for 2.7 million pairs.")
    return memory


# ----------------------------------------------------------------------------------- cells of a pair

_SEED = 0x617474726962  # "attrib" in ASCII
_MASK = (1 << 64) - 1


def _splitmix64(index: int) -> int:
    """Number `index` of the generator of Steele, Lea and Flood (2014), from _SEED."""
    z = (_SEED + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def cells(key: UInt64[np.ndarray, " n"], level: int, row: int, bits: int) -> Int64[np.ndarray, " n"]:
    """The cell of every key in one row of a level. `level` and `row` choose the constants a, b and c; both are below 32."""
    a, b, c = (np.uint64(_splitmix64((level * 32 + row) * 3 + i)) for i in range(3))
    t, s = key >> np.uint64(32), key & np.uint64(2**32 - 1)
    return ((a * t + b * s + c) >> np.uint64(64 - bits)).astype(np.int64)


# --------------------------------------------------------------------------------------- the sketch


@dataclass(frozen=True)
class Sketch:
    """Levels of mass and leaves, arrays of [DEPTH · 2**bits]: row r of a level lies in cells r · 2**bits on."""

    bits: int
    levels: tuple[Fixed, ...]
    leaves: Aggregates

    @property
    def width(self) -> int:
        """Cells in a row."""
        return 1 << self.bits

    @property
    def mass(self) -> int:
        """Σ |attribution| of all pairs, in units of the grid: every row of every level has it as its sum."""
        return fixed.total(self.row(0, 0))

    @property
    def edges(self) -> int:
        """How many edges there were."""
        return int(self.leaves.count[: self.width].sum())

    @property
    def phi(self) -> float:
        """Every pair of at least this fraction of the mass is found."""
        return 8 / self.width

    @property
    def epsilon(self) -> float:
        """An estimate of mass is too large by less than this fraction of all mass, with probability 1 - e**-DEPTH."""
        return float(np.e) / self.width

    def row(self, level: int, row: int) -> Fixed:
        """The mass in one row of a level."""
        span = slice(row * self.width, (row + 1) * self.width)
        numbers = self.levels[level] if level < LEAF else self.leaves.l1
        return Fixed(numbers.high[span], numbers.low[span])

    def at(self, key: UInt64[np.ndarray, " n"], level: int, row: int) -> np.ndarray:
        """Where in a level's arrays the cells of these prefixes are."""
        return row * self.width + cells(key, level, row, self.bits)


def blank(bits: int) -> Sketch:
    """The sketch of no pairs, in arrays of its own."""
    size = DEPTH << bits
    return Sketch(bits, tuple(Fixed(np.zeros(size, np.int64), np.zeros(size, np.int64)) for _ in LEVELS), empty(size))


def prefix(key: UInt64[np.ndarray, " n"], level: int) -> UInt64[np.ndarray, " n"]:
    """The part of the pairs that a level sees, the rest zero."""
    if level == LEAF:
        return key
    target, source = ((1 << 32) - (1 << 32 - length) for length in LEVELS[level])
    return key & np.uint64(target << 32 | source)


def add_pairs(sketch: Sketch, rows: Aggregates) -> None:
    """Add pairs to the arrays of a sketch. Raises InputError, before anything is added, where fixed-point numbers do not hold the sum."""
    if not len(rows.key):
        return
    _check_room(sketch, rows)
    for level in range(LEAF):
        seen = prefix(rows.key, level)
        starts = np.flatnonzero(np.concatenate([[True], seen[1:] != seen[:-1]]))  # pairs in order share their targets' prefixes
        (mass, _), seen = fixed.group_sums(rows.l1, starts), seen[starts]
        for row in range(DEPTH):
            added, _ = fixed.scatter_sums(mass, cells(seen, level, row, sketch.bits), sketch.width)
            _add_mass(sketch.row(level, row), added)
    for row in range(DEPTH):
        _add_leaves(sketch.leaves, sketch.at(rows.key, LEAF, row), rows)


def add_sketch(sketch: Sketch, other: Sketch) -> None:
    """Add a sketch of the same width or wider, folded, to the arrays of a sketch. Raises as `add_pairs` does."""
    fold = other.bits - sketch.bits
    _check_room(sketch, other.leaves.take(slice(other.width)))
    for level in range(LEAF):
        for row in range(DEPTH):
            added = other.row(level, row)
            if fold:  # a narrower row's cells are those of the wider row without their last bits
                added, _ = fixed.group_sums(added, np.arange(0, other.width, 1 << fold))
            _add_mass(sketch.row(level, row), added)
    for row in range(DEPTH):
        leaves = other.leaves.take(slice(row * other.width, (row + 1) * other.width))
        filled = np.flatnonzero(leaves.count)
        _add_leaves(sketch.leaves, row * sketch.width + (filled >> fold), leaves.take(filled))


def check(sketch: Sketch) -> None:
    """Raises FormatError where a sketch cannot have come about: a pair adds the same to every row of every level."""
    mass, edges = sketch.mass, sketch.edges
    for row in range(DEPTH):
        levels = [sketch.row(level, row) for level in range(LEAF + 1)]
        leaves = sketch.leaves.take(slice(row * sketch.width, (row + 1) * sketch.width))
        are_numbers = all(fixed.are_numbers(numbers) for numbers in (*levels, leaves.sum, leaves.squares))
        if not are_numbers or {fixed.total(level) for level in levels} != {mass} or int(leaves.count.sum()) != edges or edges < 0:
            raise FormatError(f"statistics: row {row} of a sketch is not the sum of the same pairs as the others; its file is damaged.")
        if any((getattr(leaves, name) < 0).any() for name in COUNTS) or not np.isfinite(leaves.maximum).all():
            raise FormatError(f"statistics: row {row} of a sketch has a count below 0 or an infinite maximum; its file is damaged.")


def _add_mass(held: Fixed, added: Fixed) -> None:
    held.high[:], held.low[:] = fixed.plus(held, added)


def _add_leaves(leaves: Aggregates, at: np.ndarray, rows: Aggregates) -> None:
    is_touched = np.zeros(len(leaves.count), bool)
    is_touched[at] = True
    touched = np.flatnonzero(is_touched & (leaves.count > 0))
    where, new = collapse([leaves.take(touched), rows], [touched, at])
    for held, column in zip(leaves, new, strict=True):
        held[where] = column


def _check_room(sketch: Sketch, rows: Aggregates) -> None:
    """No cell is larger than all pairs together, so one look at the totals is enough."""
    held: Sequence[Fixed] = (sketch.row(LEAF, 0), sketch.leaves.take(slice(sketch.width)).squares)
    for before, added in zip(held, (rows.l1, rows.squares), strict=True):
        if not fixed.is_within(fixed.total(before) + fixed.total(added)):
            raise InputError(
                f"edges: the attributions of a block have absolute values or squares that sum to {fixed.LIMIT:.1e} or more; expected less. "
                "Scale the metric, or leave the prompts of the largest out."
            )
