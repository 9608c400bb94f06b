"""Sums that do not depend on their order: fixed-point numbers of 124 bits in two integers.

Floating-point addition is not associative, so sums of shards that are merged in other orders would differ in
their last digits. Here every value is rounded once, to the grid of 2**-66, and from then on only integers are
added. A number is

    value = high · 2**-4 + low · 2**-66,        0 <= low < 2**62,        -2**62 <= high < 2**62,

which is unique, so equal numbers are equal bytes. The rounding moves a value by 2**-67 = 6.8e-21 at most; sums
reach 2**58 = 2.9e17. What would pass that is told to the caller, and never wraps around.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

UNIT = 66
"""The grid is 2**-UNIT."""
LIMIT = 2.0**58
"""Every number is below this."""
_LOW, _HALF = 62, 31
_LOW_MASK, _HALF_MASK, _HIGH_LIMIT = (1 << _LOW) - 1, (1 << _HALF) - 1, 1 << _LOW


class Fixed(NamedTuple):
    """Numbers as the module's docstring defines them."""

    high: Shaped[np.ndarray, " *n"]
    low: Shaped[np.ndarray, " *n"]


def rounded(values: Float64[np.ndarray, " n"]) -> Fixed:
    """Finite values below LIMIT, each rounded to the grid (half to even, the same for both signs)."""
    # With a magnitude, the scaled value minus its floor is exact: for a small negative value it would not be.
    scaled = np.ldexp(np.abs(values), UNIT - _LOW)
    high = np.floor(scaled)
    low = np.rint(np.ldexp(scaled - high, _LOW)).astype(np.int64)
    negative = np.signbit(values)
    return _carried(np.where(negative, -high, high).astype(np.int64), np.where(negative, -low, low))


def _carried(high: Int64[np.ndarray, " *n"], low: Int64[np.ndarray, " *n"]) -> Fixed:
    return Fixed(high + (low >> _LOW), low & _LOW_MASK)


def plus(a: Fixed, b: Fixed) -> Fixed:
    """a + b. The caller knows that it is below LIMIT; the sum of any two numbers is without wrap-around."""
    return _carried(a.high + b.high, a.low + b.low)


def group_sums(numbers: Fixed, starts: Int64[np.ndarray, " groups"]) -> tuple[Fixed, Bool[np.ndarray, " groups"]]:
    """The sums of successive groups of up to 2**31 numbers, and which of them pass the limit."""
    return _joined([np.add.reduceat(limb, starts) for limb in _limbs(numbers)])


def scatter_sums(numbers: Fixed, at: Int64[np.ndarray, " n"], size: int) -> tuple[Fixed, Bool[np.ndarray, " size"]]:
    """`size` sums, of the numbers that belong `at` each, and which of them pass the limit."""
    sums = []
    for limb in _limbs(numbers):
        sums.append(np.zeros(size, np.int64))
        np.add.at(sums[-1], at, limb)
    return _joined(sums)


def _limbs(numbers: Fixed) -> list[np.ndarray]:
    """Four limbs of 31 bits, lowest first: 2**31 of each can be added in 64 bits."""
    return [numbers.low & _HALF_MASK, numbers.low >> _HALF, numbers.high & _HALF_MASK, numbers.high >> _HALF]


def _joined(limbs: Sequence[np.ndarray]) -> tuple[Fixed, Bool[np.ndarray, " n"]]:
    a, b, c, d = limbs
    b = b + (a >> _HALF)
    c = c + (b >> _HALF)
    d = d + (c >> _HALF)
    passed = (d >= 1 << _HALF) | (d < -(1 << _HALF))
    d = np.where(passed, 0, d)
    return Fixed((d << _HALF) | (c & _HALF_MASK), ((b & _HALF_MASK) << _HALF) | (a & _HALF_MASK)), passed


def magnitude(numbers: Fixed) -> Fixed:
    """The numbers without their signs."""
    negative = numbers.high < 0
    return _carried(np.where(negative, -numbers.high, numbers.high), np.where(negative, -numbers.low, numbers.low))


def floats(numbers: Fixed) -> Float64[np.ndarray, " n"]:
    """The nearest float64, give or take one unit in its last place."""
    # Of a magnitude, or a small negative number would be the difference of two large ones.
    high, low = np.asarray(numbers.high, np.int64), np.asarray(numbers.low, np.int64)
    size = magnitude(Fixed(high, low))
    value = np.ldexp(size.high.astype(np.float64), _LOW - UNIT) + np.ldexp(size.low.astype(np.float64), -UNIT)
    return np.where(high < 0, -value, value)


def integers(numbers: Fixed) -> list[int]:
    """Python's integers, in units of the grid."""
    return [(high << _LOW) + low for high, low in zip(numbers.high.tolist(), numbers.low.tolist(), strict=True)]


def of_integer(number: int) -> tuple[int, int]:
    """(high, low) of an integer in units of the grid."""
    return number >> _LOW, number & _LOW_MASK


def total(numbers: Fixed) -> int:
    """The sum of all, in units of the grid, exactly and without a limit."""
    return sum(int(np.sum(limb)) << (_HALF * i) for i, limb in enumerate(_limbs(numbers)))


def is_within(number: int) -> bool:
    """Whether an integer in units of the grid is below LIMIT."""
    return abs(number) < _HIGH_LIMIT << _LOW


def less(a: Fixed, b: Fixed) -> Bool[np.ndarray, " *n"]:
    """Elementwise a < b."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def are_numbers(numbers: Fixed) -> bool:
    """Whether what came from a file keeps to the format."""
    is_low = (numbers.low >= 0) & (numbers.low <= _LOW_MASK)
    is_high = (numbers.high >= -_HIGH_LIMIT) & (numbers.high < _HIGH_LIMIT)
    return bool((is_low & is_high).all())
