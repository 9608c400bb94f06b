"""What the sketch promises, on skewed data: no heavy pair is missed, and every estimate is within its bound."""

from typing import NamedTuple

import numpy as np
import pytest

from attrib.core.types import FormatError, InputError
from attrib.stats import fixed
from attrib.stats.accumulate import Accumulator
from attrib.stats.heavy import Estimates, heavy_sources, heavy_targets, mass_estimate
from attrib.stats.rows import Aggregates, collapse, keys_of, pairs_of
from attrib.stats.sketch import DEPTH, LEAF, LEVELS, Sketch, add_pairs, add_sketch, bits_of, blank, cells, check, prefix
from attrib.stats.statistics import BlockStatistics, Statistics
from attrib.store import Block

MEMORY = 4 << 20
LATENTS = 4000


class Skewed(NamedTuple):
    truth: Aggregates
    sketch: Sketch


def edge_rows(seed: int, count: int) -> Aggregates:
    """Edges between latents that are drawn by Zipf's law, whose sizes are log-normal. Most are positive, so that noise adds up."""
    rng = np.random.default_rng(seed)
    rank = np.minimum(rng.zipf(1.4, (2, count)), LATENTS)
    target, source = rank * 7919 % LATENTS
    value = np.exp(rng.standard_normal(count)) * rng.choice([-1, 1], count, p=[0.1, 0.9])
    value[rank.max(0) < 4] = 1  # the largest edges are not those of the heaviest pairs
    value = value.astype(np.float32).astype(np.float64)
    l1, total, squares = (fixed.rounded(numbers) for numbers in (np.abs(value), value, value**2))
    ones, numbers = np.ones(count, np.int64), rng.integers(0, 1000, (3, count))
    signs = (value > 0).astype(np.int64), (value < 0).astype(np.int64)
    return Aggregates(keys_of(target, source), ones, *signs, ones, *l1, *total, *squares, value, *numbers)


@pytest.fixture(scope="module")
def skewed() -> Skewed:
    edges = edge_rows(0, 200_000)
    _, truth = collapse([edges], [edges.key])
    accumulator = Accumulator(MEMORY)
    for part in np.array_split(np.arange(len(truth.key)), 5):
        accumulator.add_rows(truth.take(part))
    sketch = accumulator.result()
    assert isinstance(sketch, Sketch)
    return Skewed(truth, sketch)


def test_every_row_of_every_level_holds_all_mass(skewed: Skewed) -> None:
    mass = fixed.total(skewed.truth.l1)
    assert {fixed.total(skewed.sketch.row(level, row)) for level in range(LEAF + 1) for row in range(DEPTH)} == {mass}
    assert skewed.sketch.edges == 200_000
    check(skewed.sketch)


@pytest.mark.parametrize("level", range(LEAF + 1))
def test_no_estimate_is_too_small_and_few_are_beyond_the_bound(skewed: Skewed, level: int) -> None:
    of, truth = prefix(skewed.truth.key, level), skewed.truth
    found, rows = collapse([truth], [of])
    estimate, _ = mass_estimate(skewed.sketch, found, level)
    assert not fixed.less(estimate, rows.l1).any()
    excess = fixed.floats(estimate) - fixed.floats(rows.l1)
    bound = skewed.sketch.epsilon * fixed.total(truth.l1) * 2.0**-fixed.UNIT
    assert (excess >= bound).mean() <= np.exp(-DEPTH)
    assert excess.any() or level < 3, "a sketch of more pairs than cells has collisions"


def assert_found(found: Estimates, truth: Aggregates, skewed: Skewed) -> None:
    """All of the true pairs that are heavy are among those found, and what is said of each holds."""
    assert set(truth.key[is_heavy(truth, skewed)].tolist()) <= set(found.rows.key.tolist())
    assert np.unique(found.rows.key).size == len(found.rows.key)
    at = np.searchsorted(truth.key, found.rows.key)
    at = np.minimum(at, len(truth.key) - 1)
    there = truth.key[at] == found.rows.key
    assert there.mean() > 0.9
    known, estimates = truth.take(at[there]), Estimates(found.rows.take(there), *(column[there] for column in found[1:]))
    for name in ("count", "positive", "negative", "prompts"):
        assert (getattr(estimates.rows, name) >= getattr(known, name)).all()
    assert not fixed.less(estimates.rows.l1, known.l1).any()
    assert not fixed.less(estimates.rows.squares, known.squares).any()
    too_large = fixed.floats(estimates.rows.l1) - fixed.floats(known.l1)
    assert (too_large <= estimates.error + 1e-9).mean() >= 1 - np.exp(-DEPTH)
    off = np.abs(fixed.floats(estimates.rows.sum) - fixed.floats(known.sum))
    assert (off <= too_large + 1e-9).all(), "a sum is off by what the others in its cell weigh, at most"
    placed = estimates.has_place
    for name in ("maximum", "prompt", "target_position", "source_position"):
        assert np.array_equal(getattr(estimates.rows, name)[placed], getattr(known, name)[placed])
    assert (np.abs(estimates.rows.maximum) >= np.abs(known.maximum)).all()
    assert (estimates.rows.prompt[~placed] == -1).all()
    assert not estimates.is_exact.any()


def is_heavy(truth: Aggregates, skewed: Skewed) -> np.ndarray:
    """Which of the true pairs a search must find."""
    return fixed.floats(truth.l1) >= skewed.sketch.phi * fixed.total(skewed.truth.l1) * 2.0**-fixed.UNIT


def test_all_heavy_parents_and_children_are_found(skewed: Skewed) -> None:
    """Of every latent that has any: so all heavy pairs are found from either end."""
    of = pairs_of(skewed.truth.key)
    heavy = pairs_of(skewed.truth.key[is_heavy(skewed.truth, skewed)])
    assert len(heavy[0]) >= 10
    for end, ask in enumerate((heavy_sources, heavy_targets)):
        has_place = []
        for latent in np.unique(heavy[end]).tolist():
            found = ask(skewed.sketch, latent)
            assert (pairs_of(found.rows.key)[end] == latent).all()
            assert_found(found, skewed.truth.take(np.flatnonzero(of[end] == latent)), skewed)
            has_place += found.has_place.tolist()
        assert 0 < sum(has_place) < len(has_place), "both kinds of maximum are met"
        assert len(ask(skewed.sketch, LATENTS + 5).rows.key) == 0


def test_a_narrower_sketch_is_a_wider_one_folded(skewed: Skewed) -> None:
    folded, straight = blank(5), blank(5)
    add_sketch(folded, skewed.sketch)
    add_pairs(straight, skewed.truth)
    for a, b in zip((*folded.levels, folded.leaves), (*straight.levels, straight.leaves), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_ranks_that_a_sketch_cannot_tell_are_refused(skewed: Skewed) -> None:
    block = Block("latent_to_latent", "a", "b")
    statistics = Statistics(MEMORY, (BlockStatistics(block, skewed.sketch),))
    target = int(pairs_of(skewed.truth.key[is_heavy(skewed.truth, skewed)])[0][0])
    for by in ("mean", "max", "count"):
        with pytest.raises(InputError, match=rf"by: '{by}'; 'latent_to_latent a -> b' is a sketch, which ranks by 'l1' or 'sum' alone"):
            statistics.top_parents(target, by=by)
    frame = statistics.top_parents(target, k=3, by="sum")
    assert frame["sum"].abs().is_monotonic_decreasing
    assert frame[["mean", "std", "sign_agreement"]].isna().all(None)
    part = statistics.part()
    assert part.pairs is None
    assert part.found_from == pytest.approx(8 / 2 ** bits_of(MEMORY) * part.held.mass / 2**fixed.UNIT)  # type: ignore[union-attr]


def test_a_sketch_that_cannot_be_is_refused(skewed: Skewed) -> None:
    spoilt = blank(skewed.sketch.bits)
    add_sketch(spoilt, skewed.sketch)
    spoilt.levels[3].low[5] ^= 1
    with pytest.raises(FormatError, match=r"row 0 of a sketch is not the sum of the same pairs as the others"):
        check(spoilt)
    for level in spoilt.levels[1:]:
        level.high[:] = 1 << 40  # every prefix is heavy, and there would be 2**64
    with pytest.raises(FormatError, match=r"are heavy, and an eighth can be; the file is damaged"):
        heavy_sources(spoilt, 0)


def test_hashes_are_what_they_were() -> None:
    """Files of all machines and versions merge, so these numbers never change."""
    key = keys_of(np.array([0, 1, 70_000]), np.array([5, 0, 2**31]))
    assert [cells(key, level, row, 16).tolist() for level, row in ((0, 0), (4, 2), (LEAF, 3))] == HASHES
    assert len(LEVELS) == 10


HASHES = [[65397, 19561, 47161], [31670, 21881, 36270], [57201, 61882, 47185]]


def test_hashes_spread_evenly_and_rows_disagree() -> None:
    target, source = (side.ravel() for side in np.meshgrid(np.arange(512), np.arange(512)))
    key = keys_of(target, source)
    for row in range(DEPTH):
        counts = np.bincount(cells(key, LEAF, row, 10), minlength=1024)
        assert abs(counts - 256).max() < 256
    together = np.unique(np.stack([cells(key, LEAF, row, 10) for row in range(DEPTH)]), axis=1)
    assert together.shape[1] == len(key)


def lone(key: int, value: float) -> Aggregates:
    """A pair of one edge."""
    one = np.ones(1, np.int64)
    l1, total, squares = (fixed.rounded(np.array([x])) for x in (abs(value), value, value**2))
    signs = np.array([value > 0], np.int64), np.array([value < 0], np.int64)
    return Aggregates(np.array([key], np.uint64), one, *signs, one, *l1, *total, *squares, np.array([value]), one, one, one)


def test_what_collisions_leave_known() -> None:
    """A pair that meets others in some rows is known from the rest; one that meets a larger edge in all of them, by bounds."""
    own = np.array([(1 << 32) + 1], np.uint64)
    others = np.arange(1 << 33, (1 << 33) + 4000, dtype=np.uint64)
    meets = np.stack([cells(others, LEAF, row, 8) == cells(own, LEAF, row, 8) for row in range(DEPTH)])
    alone = [int(others[(meets[row]) & (meets.sum(0) == 1)][0]) for row in range(DEPTH)]
    sketch = blank(8)
    add_pairs(sketch, lone(int(own[0]), 1.0))
    for row in range(DEPTH - 1):
        add_pairs(sketch, lone(alone[row], -5.0 - row))
    found = heavy_sources(sketch, 0)
    assert found.rows.key.tolist() == own.tolist()
    assert [fixed.floats(numbers)[0] for numbers in (found.rows.l1, found.rows.sum)] == [1.0, 1.0]
    assert (found.rows.maximum[0], found.has_place[0], found.error[0]) == (1.0, True, 0.0)
    add_pairs(sketch, lone(alone[-1], -9.0))
    found = heavy_sources(sketch, 0)
    assert [fixed.floats(numbers)[0] for numbers in (found.rows.l1, found.rows.sum)] == [6.0, -4.0]
    assert (found.rows.maximum[0], found.has_place[0], found.rows.prompt[0]) == (5.0, False, -1)
    assert found.error[0] < 1
