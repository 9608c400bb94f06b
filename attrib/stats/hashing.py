"""The hash functions of the sketch, the same on every machine and for ever.

A prefix of a pair is two numbers below 2**32, (t, s). Its cell among 2**bits is

    h(t, s) = ((a·t + b·s + c) mod 2**64) >> (64 - bits),        bits <= 33,

the vector multiply-shift of Dietzfelbinger (1996), as Thorup (2015, arXiv:1504.06804, section 3.5) writes it: with
a, b and c drawn from all 64-bit numbers it is strongly universal, so two prefixes meet with probability 2**-bits.
A cell among half as many is the same number without its last bit: a sketch can be folded to a smaller one.
"""

import numpy as np
from jaxtyping import Int64, UInt64

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
