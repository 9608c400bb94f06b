"""What follows from a memory bound: how many pairs a table may have, and how wide the sketch is that takes its place."""

from attrib.core.types import InputError

DEPTH = 4
"""Rows of every level of a sketch: an estimate fails with probability e**-DEPTH."""
LEVELS = ((8, 0), (16, 0), (24, 0), (32, 0), (32, 8), (32, 16), (32, 24), (8, 32), (16, 32), (24, 32))
"""The prefixes whose mass a sketch holds: how many of the first bits of the target and of the source."""

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
