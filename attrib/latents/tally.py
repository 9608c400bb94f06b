"""What a survey holds of one dictionary: numbers of each latent, places, and which latents are active together. Any two can be added.

Counts are integers, sums are fixed-point numbers (attrib.stats.fixed), maxima and samples follow a total order: the same corpus gives
the same tally bit for bit, whatever its parts were and in whichever order they came.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int64

from attrib.core.types import InputError
from attrib.latents.bins import BANDS, BINS, bins_of
from attrib.latents.places import Places, Scores, empty, groups_of, hashes_of, joined, largest, last_kept, sampled
from attrib.stats import fixed
from attrib.stats.fixed import Fixed

LARGEST = 2.0**29
"""Scores are below this: their squares are what fixed-point numbers hold."""


class Limits(NamedTuple):
    """How much is kept."""

    top: int
    """Places of largest score, of each latent."""
    per_band: int
    """Sampled places of each latent and band."""
    before: int
    """Tokens of context before a place, and `after` behind it."""
    after: int
    seed: int
    """Chooses the sample."""

    @property
    def window(self) -> int:
        """Tokens that are kept of each place."""
        return self.before + 1 + self.after


class Tally(NamedTuple):
    """Numbers of all surveyed latents, and their places."""

    places: Int64[np.ndarray, " latents"]
    """Places whose score is not zero."""
    prompts: Int64[np.ndarray, " latents"]
    """Prompts with such a place."""
    sum: Fixed
    squares: Fixed
    histogram: Int64[np.ndarray, "latents bins"]
    top: Places
    sample: Places
    together: Int64[np.ndarray, "chosen chosen"]
    """Places at which two of the chosen latents are both above zero; their own on the diagonal."""


class Read(NamedTuple):
    """The places of whole prompts, one behind another, and the scores at them that are not zero, by (place, latent)."""

    prompt: Int64[np.ndarray, " places"]
    position: Int64[np.ndarray, " places"]
    token: Int64[np.ndarray, " places"]
    counts: Bool[np.ndarray, " places"]
    """Whether a place counts. What does not count may still stand in the context of what does."""
    place: Int64[np.ndarray, " rows"]
    at: Int64[np.ndarray, " rows"]
    value: Float[np.ndarray, " rows"]


def blank(latents: int, together: int, window: int, dtype: np.dtype) -> Tally:
    """The tally of nothing."""
    zeros = np.zeros(latents, np.int64)
    nothing = empty(window, dtype)
    return Tally(
        zeros, zeros, Fixed(zeros, zeros), Fixed(zeros, zeros), np.zeros((latents, BINS), np.int64), nothing, nothing,
        np.zeros((together, together), np.int64),
    )  # fmt: skip


def added(a: Tally, b: Tally, latents: Int64[np.ndarray, " latents"], limits: Limits) -> Tally:
    """Both. Raises InputError where a sum is larger than fixed-point numbers hold."""
    total, squares = fixed.plus(a.sum, b.sum), fixed.plus(a.squares, b.squares)
    if not (fixed.are_numbers(total) and fixed.are_numbers(squares)):
        raise InputError(f"tokens: {_TOO_LARGE}")
    top, sample = joined([a.top, b.top]), joined([a.sample, b.sample])
    return Tally(
        a.places + b.places,
        a.prompts + b.prompts,
        total,
        squares,
        a.histogram + b.histogram,
        top.take(largest(top, limits.top)),
        sample.take(sampled(sample, latents, limits.seed, limits.per_band)),
        a.together + b.together,
    )


_TOO_LARGE = f"the scores of a latent, or their squares, sum to {fixed.LIMIT:.1e} or more; expected less. Survey fewer prompts."


def tallied(held: Tally, read: Read, latents: Int64[np.ndarray, " latents"], chosen: Int64[np.ndarray, " chosen"], limits: Limits) -> Tally:
    """What is held, and some whole prompts that it does not hold yet.

    Args:
        chosen: which latents, counted among those surveyed, are looked at together.

    Raises:
        InputError: where a score or a sum is larger than fixed-point numbers hold.
    """
    counts = read.counts[read.place]
    place, at, value = read.place[counts], read.at[counts], read.value[counts]
    if len(value) and float(np.abs(value).max()) >= LARGEST:
        raise InputError(f"tokens: a latent has the score {np.abs(value).max():.3g}; expected sizes below {LARGEST:.1e}.")
    scores = Scores(at, read.prompt[place], read.position[place], value)
    histogram = np.zeros((len(latents), BINS), np.int64)
    np.add.at(histogram.ravel(), at * BINS + bins_of(value), 1)
    places, prompts, total, squares = _numbers(scores, len(latents))
    part = Tally(
        places,
        prompts,
        total,
        squares,
        histogram,
        _with_context(_candidates_of_top(held.top, scores, len(latents), limits), place, read, limits),
        _with_context(_candidates_of_sample(held.sample, scores, latents, limits), place, read, limits),
        _together(at, place, value, chosen, len(latents), len(read.prompt)),
    )  # fmt: skip
    return added(held, part, latents, limits)


def _numbers(scores: Scores, size: int) -> tuple[Int64[np.ndarray, " latents"], Int64[np.ndarray, " latents"], Fixed, Fixed]:
    """The count, the prompts, the sum and the squares of each latent."""
    order = np.argsort(scores.at, kind="stable")  # so prompts stay together
    at, prompt, value = scores.at[order], scores.prompt[order], scores.value[order].astype(np.float64)
    changes = at[1:] != at[:-1]
    begins = np.flatnonzero(np.append(len(at) > 0, changes)) if len(at) else np.empty(0, np.int64)
    is_first = np.append(len(at) > 0, changes | (prompt[1:] != prompt[:-1]))[: len(at)]
    sums = [Fixed(np.zeros(size, np.int64), np.zeros(size, np.int64)) for _ in range(2)]
    for found, numbers in zip(sums, (value, value**2), strict=True):
        if len(begins):
            each, passed = fixed.group_sums(fixed.rounded(numbers), begins)
            if passed.any():
                raise InputError(f"tokens: {_TOO_LARGE}")
            found.high[at[begins]], found.low[at[begins]] = each
    return np.bincount(at, minlength=size), np.bincount(at[is_first], minlength=size), sums[0], sums[1]


def _candidates_of_top(held: Places, scores: Scores, size: int, limits: Limits) -> Int64[np.ndarray, " kept"]:
    """Rows that may be among the largest."""
    if not limits.top:
        return np.empty(0, np.int64)
    least = last_kept(held.at, held.value, limits.top, size, -np.inf)
    may = np.flatnonzero(scores.value >= least[scores.at])  # equal ones too: an earlier place goes before
    return may[largest(Scores(*(column[may] for column in scores)), limits.top)]


def _candidates_of_sample(
    held: Places, scores: Scores, latents: Int64[np.ndarray, " latents"], limits: Limits
) -> Int64[np.ndarray, " kept"]:
    """Rows that may be in the sample."""
    if not limits.per_band:
        return np.empty(0, np.int64)
    of_held = hashes_of(held, latents, limits.seed)
    most = last_kept(groups_of(held), of_held, limits.per_band, len(latents) * BANDS, 2**64 - 1)
    may = np.flatnonzero(hashes_of(scores, latents, limits.seed) <= most[groups_of(scores)])
    return may[sampled(Scores(*(column[may] for column in scores)), latents, limits.seed, limits.per_band)]


def _with_context(kept: Int64[np.ndarray, " kept"], place: Int64[np.ndarray, " rows"], read: Read, limits: Limits) -> Places:
    """Rows that count, with the tokens around each, and the latent's scores there.

    Args:
        kept: which of the rows that count; `place` has the place of each of these.
    """
    counts = np.flatnonzero(read.counts[read.place])[kept]
    at, centre = read.at[counts], place[kept]
    around = centre[:, None] + np.arange(-limits.before, limits.after + 1)
    inside = (around >= 0) & (around < len(read.prompt))
    around = np.where(inside, around, 0)
    inside &= read.prompt[around] == read.prompt[centre][:, None]
    tokens = np.where(inside, read.token[around], -1).astype(np.int32)
    latents = int(read.at.max(initial=0)) + 1
    keys, wanted = read.place * latents + read.at, around * latents + at[:, None]
    found = np.searchsorted(keys, wanted).clip(max=max(0, len(keys) - 1))
    values = np.where(inside & (keys[found] == wanted), read.value[found], 0) if len(keys) else np.zeros(tokens.shape, read.value.dtype)
    return Places(at, read.prompt[centre], read.position[centre], read.value[counts], tokens, values.astype(read.value.dtype))


def _together(
    at: Int64[np.ndarray, " rows"],
    place: Int64[np.ndarray, " rows"],
    value: Float[np.ndarray, " rows"],
    chosen: Int64[np.ndarray, " chosen"],
    size: int,
    places: int,
) -> Int64[np.ndarray, "chosen chosen"]:
    """At how many places two of the chosen latents are both above zero."""
    found = np.zeros((len(chosen), len(chosen)), np.int64)
    if not len(chosen):
        return found
    number = np.full(size, -1)
    number[chosen] = np.arange(len(chosen))
    mask = (number[at] >= 0) & (value > 0)
    on = scipy.sparse.csr_array((np.ones(mask.sum(), np.int64), (number[at[mask]], place[mask])), shape=(len(chosen), places))
    pairs = (on @ on.T).tocoo()
    found[pairs.row, pairs.col] = pairs.data
    return found
