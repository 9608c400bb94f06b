"""Fixed bins of values, four to the octave, and bands, one to the octave: the same in every survey, so that any two can be added.

A value v = ± m · 2^e, 1/2 <= m < 1, belongs to the octave from 2^(e - 1) to 2^e. Mantissas are compared with the three quarter
steps, so a bin follows from a value's bits and from no rounded logarithm. Bins ascend: the negative ones, from the largest size to
the least, then the positive ones. The first and last octave of each sign also hold what is smaller and larger.
"""

import numpy as np
from jaxtyping import Float64, Int64, Shaped

FIRST, OCTAVES, STEPS = -12, 32, 4
"""Sizes from 2^FIRST on, in so many octaves of so many bins each."""
BINS = 2 * OCTAVES * STEPS
BANDS = 2 * OCTAVES
_MANTISSAS = np.exp2(np.array([-0.75, -0.5, -0.25]))


def bins_of(values: Shaped[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The bin of each value, none of which is zero."""
    mantissa, exponent = np.frexp(np.abs(values.astype(np.float64)))
    octave, step = exponent.astype(np.int64) - 1 - FIRST, np.searchsorted(_MANTISSAS, mantissa, side="right")
    size = np.where(octave < 0, 0, np.where(octave >= OCTAVES, OCTAVES * STEPS - 1, octave * STEPS + step))
    return np.where(values < 0, BINS // 2 - 1 - size, BINS // 2 + size)


def band_of(bins: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The band that a bin lies in."""
    return bins // STEPS


def edges() -> Float64[np.ndarray, " edges"]:
    """The edges of all bins, ascending; bin b lies between edges b and b + 1. The outermost are infinite, and the middle one is zero."""
    size = np.ldexp(np.concatenate([[0.5], _MANTISSAS])[:, None], np.arange(FIRST + 1, FIRST + OCTAVES + 1)).T.ravel()
    positive = np.concatenate([[0.0], size[1:], [np.inf]])
    return np.concatenate([-positive[:0:-1], positive])
