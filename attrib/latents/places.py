"""The places of a corpus that are kept as examples: a latent's largest, and of each band those of least hash.

Which rows are kept follows from the rows alone, under a total order: the largest values, of equal ones the first place; and in each
band the places of least hash, which are a uniform sample of the band without replacement, since hashes know nothing of values.
So any part of a corpus may be reduced first, in any order, and what is left of the whole is the same.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32, Int64, Shaped, UInt64

from attrib.latents.bins import BANDS, band_of, bins_of


class Places(NamedTuple):
    """Rows, one for each example, with what stands around it. `at` counts among the latents that are surveyed."""

    at: Int64[np.ndarray, " rows"]
    prompt: Int64[np.ndarray, " rows"]
    position: Int64[np.ndarray, " rows"]
    value: Float[np.ndarray, " rows"]
    tokens: Int32[np.ndarray, "rows window"]
    """The token ids around the place; -1 before the prompt's first and behind its last."""
    values: Float[np.ndarray, "rows window"]
    """The latent's own scores at these; 0 outside."""

    def take(self, rows: Shaped[np.ndarray, " chosen"] | slice) -> "Places":
        """Some rows."""
        return Places(*(column[rows] for column in self))


def empty(window: int, dtype: np.dtype) -> Places:
    """No rows."""
    whole = np.empty(0, np.int64)
    return Places(whole, whole, whole, np.empty(0, dtype), np.empty((0, window), np.int32), np.empty((0, window), dtype))


def joined(parts: list[Places]) -> Places:
    """The rows of several, one after another."""
    return Places(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def hashes(
    seed: int, latent: Int64[np.ndarray, " n"], prompt: Int64[np.ndarray, " n"], position: Int64[np.ndarray, " n"]
) -> UInt64[np.ndarray, " n"]:
    """A number of 64 bits for each place of a latent, the same on every machine: the finaliser of splitmix64, three times over.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
    """
    found = _mixed(np.full(len(latent), seed, np.uint64) + _STEP)
    for part in (latent, prompt, position):
        found = _mixed(found ^ (part.astype(np.uint64) * _STEP + _STEP))
    return found


_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(z: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # modulo 2^64
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Scores(NamedTuple):
    """Where a latent scores what, without its context."""

    at: Int64[np.ndarray, " rows"]
    prompt: Int64[np.ndarray, " rows"]
    position: Int64[np.ndarray, " rows"]
    value: Float[np.ndarray, " rows"]


def largest(rows: Scores | Places, count: int) -> Int64[np.ndarray, " kept"]:
    """Of each latent the rows of largest value, in that order; of equal ones those of the first places."""
    order = np.lexsort((rows.position, rows.prompt, -rows.value, rows.at))
    return order[rank_in_run(rows.at[order]) < count]


def sampled(rows: Scores | Places, latents: Int64[np.ndarray, " latents"], seed: int, count: int) -> Int64[np.ndarray, " kept"]:
    """Of each latent and band the rows of least hash, in that order."""
    group = groups_of(rows)
    order = np.lexsort((rows.position, rows.prompt, hashes_of(rows, latents, seed), group))
    return order[rank_in_run(group[order]) < count]


def groups_of(rows: Scores | Places) -> Int64[np.ndarray, " rows"]:
    """A number for each latent and band, ascending in both."""
    return rows.at * BANDS + band_of(bins_of(rows.value))


def hashes_of(rows: Scores | Places, latents: Int64[np.ndarray, " latents"], seed: int) -> UInt64[np.ndarray, " rows"]:
    """The hash of each row, which follows from its latent's own number."""
    return hashes(seed, latents[rows.at], rows.prompt, rows.position)


def rank_in_run(sorted_key: Shaped[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """How many equal keys stand before each, of keys in order."""
    begins = np.flatnonzero(np.concatenate([[True], sorted_key[1:] != sorted_key[:-1]])) if len(sorted_key) else np.empty(0, np.int64)
    lengths = np.diff(np.append(begins, len(sorted_key)))
    return np.arange(len(sorted_key)) - np.repeat(begins, lengths)


def last_kept(
    key: Int64[np.ndarray, " rows"], order: Shaped[np.ndarray, " rows"], count: int, groups: int, otherwise: float | int
) -> Shaped[np.ndarray, " groups"]:
    """By group, the order of the last row that is kept where the group is full: what comes behind it need not be looked at.

    Args:
        key: the group of each row, ascending, with rows of a group in their order.
        otherwise: of groups that still have room.
    """
    limit = np.full(groups, otherwise, order.dtype)
    full = rank_in_run(key) == count - 1
    limit[key[full]] = order[full]
    return limit
