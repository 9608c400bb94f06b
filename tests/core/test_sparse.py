"""Sparse containers: what goes in comes out, in canonical order, and selections keep what their rule says."""

from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from attrib.core.keep import RULES, check_keep, is_counted, keep_text, kept, least_share, most_kept, parse_keep
from attrib.core.ranked import fewest, in_order
from attrib.core.sparse import select, to_csr
from attrib.core.types import Dense, InputError, Keep, Mass, SparseLatents, Threshold, TopK
from attrib.runs.again import rule_of

SHAPES = st.tuples(st.integers(0, 6), st.integers(0, 9))
# few different numbers, so that zeros and ties are common
NUMBERS = st.sampled_from([0.0, 0.0, 0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 3.25, 1e-20])
MATRICES = arrays.arrays(np.float64, SHAPES, elements=NUMBERS).map(torch.from_numpy)
MASKS = arrays.arrays(np.bool_, SHAPES).map(torch.from_numpy)
quick = settings(deadline=None)


@quick
@given(MATRICES, st.integers(0, 6))
def test_a_selection_is_that_of_the_rows(matrix: Tensor, position: int):
    at = matrix.nonzero(as_tuple=True)
    part = select(SparseLatents(*at, matrix[at]), at[0] == position)
    alone = torch.where(torch.arange(len(matrix))[:, None] == position, matrix, 0.0)
    there = alone.nonzero(as_tuple=True)
    assert all(torch.equal(got, want) for got, want in zip(part, (*there, alone[there]), strict=True))


@quick
@given(MASKS)
def test_csr_is_scipys(mask: Tensor):
    indptr, indices, place = to_csr(mask)
    want = scipy.sparse.csr_array(mask.numpy())
    want.sort_indices()
    assert indptr.tolist() == want.indptr.tolist()
    assert indices.tolist() == want.indices.tolist()
    assert torch.equal(mask.flatten()[place], torch.ones_like(place, dtype=torch.bool))
    assert torch.equal(place, mask.flatten().nonzero().flatten())
    assert indptr.dtype == indices.dtype == torch.int64


# --------------------------------------------------------------------------------------- keep


def kept_columns(keep, gradient: Tensor, attribution: Tensor) -> list[list[int]]:
    mask = kept(keep, gradient, attribution)
    assert mask.dtype == torch.bool
    assert not mask[gradient == 0].any()
    return [row.nonzero()[:, 0].tolist() for row in mask]


@st.composite
def tiles(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A gradient and the attribution that belongs to it, for sources whose activations are not zero."""
    gradient = draw(MATRICES)
    activation = torch.tensor(draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=gradient.shape[1], max_size=gradient.shape[1])))
    return gradient, gradient * activation


@quick
@given(tiles())
def test_dense_keeps_every_gradient_that_is_not_zero(tile: tuple[Tensor, Tensor]):
    gradient, attribution = tile
    assert torch.equal(kept(Dense(), gradient, attribution), gradient != 0)


@quick
@given(tiles(), st.integers(1, 12))
def test_top_k_with_ties_to_the_earlier_source(tile: tuple[Tensor, Tensor], k: int):
    gradient, attribution = tile
    for columns, row in zip(kept_columns(TopK(k), gradient, attribution), attribution.abs().tolist(), strict=True):
        ranked = sorted((c for c in range(len(row)) if row[c]), key=lambda c: (-row[c], c))
        assert columns == sorted(ranked[:k])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_keeps_k_where_some_are_no_numbers(k: int):
    """They come first, so that they are seen, and of many the first k are kept."""
    nan, inf = float("nan"), float("inf")
    tile = torch.tensor([[1.0, nan, 3.0, 2.0, 2.0], [nan, 1.0, nan, nan, 1.0], [inf, nan, 2.0, inf, 0.5], [4.0, 3.0, 2.0, 1.0, 0.5]])
    order = tile.argsort(dim=-1, descending=True, stable=True)[:, :k]
    assert kept_columns(TopK(k), tile, tile) == [sorted(row) for row in order.tolist()]


@quick
@given(tiles(), st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 100.0]))
def test_threshold_keeps_what_reaches_it(tile: tuple[Tensor, Tensor], t: float):
    gradient, attribution = tile
    for columns, row in zip(kept_columns(Threshold(t), gradient, attribution), attribution.abs().tolist(), strict=True):
        assert columns == [c for c in range(len(row)) if row[c] and row[c] >= t]


@quick
@given(tiles(), st.sampled_from([1e-6, 0.1, 0.3, 0.5, 0.75, 0.9, 0.999, 1.0]))
def test_mass_keeps_the_fewest_that_reach_it(tile: tuple[Tensor, Tensor], fraction: float):
    gradient, attribution = tile
    for columns, row in zip(kept_columns(Mass(fraction), gradient, attribution), attribution.abs().tolist(), strict=True):
        goal, held = fraction * sum(row), [row[c] for c in columns]
        rest = [row[c] for c in range(len(row)) if c not in columns]
        rounding = 1e-12 * sum(row)
        assert sum(held) >= goal - rounding
        if held:
            assert sum(held) - min(held) < goal + rounding  # with one fewer it falls short
            assert min(held) >= max(rest, default=0.0)  # and no other choice would do with fewer
        else:
            assert sum(row) == 0


OF_EACH_RULE: dict[str, tuple[Keep, ...]] = {
    "Dense": (Dense(),),
    "TopK": (TopK(1), TopK(3)),
    "Threshold": (Threshold(0.0), Threshold(0.5)),
    "Mass": (Mass(0.3), Mass(1.0)),
}


def test_every_rule_is_held_by_these_tests():
    assert set(OF_EACH_RULE) == set(RULES), "a keep rule without examples: docs/architecture.md says what else it needs"


every_example = pytest.mark.parametrize("keep", [keep for some in OF_EACH_RULE.values() for keep in some], ids=str)


@every_example
def test_a_rule_is_read_from_what_is_written_of_it(keep: Keep):
    for again in (parse_keep(keep_text(keep)), parse_keep(keep), rule_of(repr(keep))):  # command lines and run files; objects; HDF5
        assert (type(again), again) == (type(keep), keep)
        assert [type(number) for number in again] == [type(number) for number in keep]


@quick
@given(tiles(), st.data())
def test_a_rule_keeps_no_more_and_no_less_than_is_said_of_it(tile: tuple[Tensor, Tensor], data: st.DataObject):
    gradient, attribution = tile
    keep = data.draw(st.sampled_from([keep for some in OF_EACH_RULE.values() for keep in some]))
    rows = kept(keep, gradient, attribution)
    most = most_kept(keep, gradient.shape[1])
    assert most <= gradient.shape[1]
    assert (rows.sum(-1) <= most).all()
    if is_counted(keep):
        full = kept(keep, torch.ones_like(gradient), torch.ones_like(gradient))
        assert full.sum(-1).tolist() == [most] * len(gradient)
    share = (attribution.abs() * rows).sum(-1)
    assert (share >= least_share(keep) * attribution.abs().sum(-1) * (1 - 1e-6)).all()


def test_shares_and_counts_are_as_large_as_they_can_be_said():
    assert [least_share(keep) for keep in (Dense(), Mass(0.3), TopK(3), Threshold(0.5))] == [1.0, 0.3, 0.0, 0.0]
    assert [most_kept(keep, 5) for keep in (Dense(), Mass(0.3), TopK(3), TopK(9), Threshold(0.5))] == [5, 5, 3, 5, 5]
    assert [is_counted(keep) for keep in (Dense(), TopK(3), Mass(0.3), Threshold(0.5))] == [True, True, False, False]


@every_example
def test_a_rule_that_makes_sense_is_returned(keep):
    assert check_keep(keep) is keep


@pytest.mark.parametrize("keep", [TopK(0), TopK(-3), Threshold(-0.1), Threshold(float("nan")), Mass(0.0), Mass(1.1), Mass(float("nan"))])
def test_a_rule_that_makes_none_is_refused_by_name(keep):
    with pytest.raises(InputError, match=r"^keep: ") as caught:
        check_keep(keep)
    assert repr(keep)[: repr(keep).index("(")] in str(caught.value)


@pytest.mark.parametrize(
    ("fraction", "columns"), [(0.25, [1]), (0.5, [1]), (0.51, [0, 1]), (0.75, [0, 1]), (0.76, [0, 1, 3]), (1.0, [0, 1, 3])]
)
def test_mass_that_is_reached_exactly_asks_for_no_more(fraction: float, columns: list[int]):
    row = torch.tensor([[1.0, -2.0, 0.0, 1.0]])
    assert kept_columns(Mass(fraction), row, row) == [columns]


# -------------------------------------------------------------------------- rows that are not sorted: how large rows are ranked

WIDE = ("heavy tails", "few numbers", "one number", "zeros", "tiny and huge", "one column", "beyond the bins", "denormal")


def wide_tile(kind: str, dtype: torch.dtype) -> Tensor:
    """Rows of many columns; enough of them that they are ranked in several blocks."""
    rng = torch.Generator().manual_seed(WIDE.index(kind))
    rows, columns = (160, 1) if kind == "one column" else (160, 1000)
    plain = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    power = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    made = {
        "heavy tails": plain * power.mul(2).exp(),
        "few numbers": plain.round(),
        "one number": torch.full_like(plain, -0.375),
        "zeros": plain.where(power > 2, 0.0) * (torch.arange(rows) % 3 > 0)[:, None],
        "tiny and huge": plain * 2.0 ** (power * 20),
        "one column": plain,
        "beyond the bins": torch.cat([plain[:, :1], plain[:, 1:] * 2.0**-40], dim=1),
        "denormal": plain * torch.finfo(dtype).tiny * 8,
    }
    return made[kind].to(dtype)


def first_of(row: Tensor, keep: Keep) -> set[int]:
    """The columns that a rule keeps, by sorting, and by sums that are not rounded."""
    size = [Fraction(value) for value in row.abs().tolist()]
    ranked = sorted(range(len(size)), key=lambda column: (-size[column], column))
    if isinstance(keep, TopK):
        first = ranked[: keep.k]
    else:
        before = accumulate((size[column] for column in ranked), initial=Fraction(0))
        goal = Fraction(keep[0]) * sum(size)
        first = [column for column, sum_before in zip(ranked, before, strict=False) if sum_before < goal]
    return {column for column in first if size[column]}


@pytest.mark.few
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("keep", [Mass(0.98), Mass(0.5), TopK(100), TopK(3)], ids=str)
def test_rows_that_are_not_sorted_keep_what_sorted_rows_keep(keep: Keep, kind: str, dtype: torch.dtype):
    tile = wide_tile(kind, dtype)
    tile = tile.float() if dtype == torch.bfloat16 else tile
    rows = kept_columns(keep, tile, tile)
    for row in (0, 1, 2, 130, 131, 159):
        assert set(rows[row]) == first_of(tile[row], keep), row


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("fraction", [1e-9, 0.3, 0.9, 0.999, 1 - 1e-9])
def test_bins_keep_what_sorting_whole_rows_keeps(fraction: float, kind: str, dtype: torch.dtype):
    size = wide_tile(kind, dtype).abs()
    bins, whole = fewest(size, fraction), in_order(size, fraction)
    assert torch.equal(bins, whole)
    alone = torch.cat([fewest(row[None], fraction) for row in size[::40]])
    assert torch.equal(alone, bins[::40])


@pytest.mark.parametrize("kind", WIDE)
def test_the_whole_mass_is_all_that_is_not_zero_however_small(kind: str):
    tile = wide_tile(kind, torch.float64)
    assert torch.equal(kept(Mass(1.0), tile, tile), tile != 0)


@pytest.mark.parametrize("keep", [Mass(0.9), Mass(1.0), TopK(1), TopK(2), TopK(4)], ids=str)
def test_numbers_that_are_not_finite_rank_first_and_have_no_mass(keep: Keep):
    nan, inf = float("nan"), float("inf")
    tile = torch.tensor([[1.0, nan, inf, 2.0, nan], [1.0, -inf, 0.0, inf, 3.0], [1.0, 5.0, 0.0, 2.0, 3.0]])
    order = [[1, 4, 2, 3, 0], [1, 3, 4, 0], [1, 4, 3, 0]]
    if isinstance(keep, TopK):
        wanted = [sorted(row[: keep.k]) for row in order]
    else:
        wanted = [[], [], sorted(order[2][: 3 if keep == Mass(0.9) else 4])]
    assert kept_columns(keep, tile, tile) == wanted


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_a_sum_beyond_all_numbers_has_no_fraction(fraction: float):
    row = torch.full((1, 3), 1e308, dtype=torch.float64)
    assert kept_columns(Mass(fraction), row, row) == [[]]
    assert not in_order(row, fraction).any()
