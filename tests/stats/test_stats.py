"""Statistics of edges: every column against a plain dictionary, and the same bytes whatever the order of merging."""

import math
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attrib import stats
from attrib.core.edges import Edges, Nodes, Prompts, join
from attrib.core.types import InputError
from attrib.stats import Statistics, fixed
from attrib.stats.rows import Aggregates, collapse, pairs_of
from attrib.stats.sketch import LEAST_MEMORY, Sketch, max_pairs
from tests.support.attribution_cases import without_shape_checks
from tests.support.examples import examples

# beartype picks the items of a tuple that it looks at by the random module, which hypothesis warns of
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")

SLOW = settings(deadline=None, max_examples=examples(12), suppress_health_check=[HealthCheck.too_slow])
ENDS = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")

# ------------------------------------------------------------------------------------------ building


def ptr(counts: Any) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def random_edges(
    seed: int,
    prompts: int = 4,
    latents: int = 6,
    *,
    length: int = 3,
    density: float = 0.6,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Edges:
    """A result between latents of which few are drawn often, with ties in size, zeros, and values of many magnitudes."""
    rng = np.random.default_rng(seed)

    def nodes(site: str) -> Nodes:
        rows = [
            np.unique(rng.integers(0, length, (5, 1)) * latents + (latents * rng.random((5, 1)) ** 2).astype(int)) for _ in range(prompts)
        ]
        place = torch.from_numpy(np.concatenate(rows)) if prompts else torch.zeros(0, dtype=torch.int64)
        counts = [len(row) for row in rows]
        return Nodes("latent", site, ptr(counts), place // latents, place % latents, torch.ones(len(place)))

    sources, targets = nodes(ENDS[0]), nodes(ENDS[1])
    there = sources.prompt[None, :] == targets.prompt[:, None]
    kept = there & torch.from_numpy(rng.random(there.shape) < density)
    count = int(kept.sum())
    exponents = rng.choice([-20, -3, 0, 4], count)
    values = torch.from_numpy(np.ldexp(rng.choice([-1.5, -1, -0.0, 0.0, 1, 1 / 3], count), exponents)).to(dtype)
    length_of = torch.full((prompts,), length, dtype=torch.int64)
    words = Prompts(
        ptr(length_of.tolist()), torch.arange(prompts * length), ("x",) * (prompts * length), torch.arange(first, first + prompts)
    )
    rows = torch.zeros(len(targets), dtype=dtype)
    return Edges("latent_to_latent", sources, targets, ptr(kept.sum(1).tolist()), kept.nonzero()[:, 1], values, values, rows, rows, words)


def wide_edges(seed: int, pairs: int, latents: int = 400, **options: Any) -> Edges:
    """One prompt with so many pairs, so that small memory bounds are passed."""
    rng = np.random.default_rng(seed)
    key = np.sort(rng.choice(latents * latents, pairs, replace=False))
    one, values = torch.zeros(latents, dtype=torch.int64), torch.from_numpy(rng.standard_normal(pairs).astype(np.float32))
    nodes = [Nodes("latent", site, ptr([latents]), one, torch.arange(latents), torch.ones(latents)) for site in ENDS]
    words = Prompts(ptr([1]), torch.zeros(1, dtype=torch.int64), ("x",), torch.tensor([seed]))
    counts = np.bincount(key // latents, minlength=latents)
    edges = Edges(
        "latent_to_latent",
        *nodes,
        ptr(counts.tolist()),
        torch.from_numpy(key % latents),
        values,
        values,
        *[torch.zeros(latents)] * 2,
        words,
    )
    return replace(edges, **options)


def saved(statistics: Statistics, folder: Path) -> bytes:
    path = stats.save(folder / "saved.h5", statistics, overwrite=True)
    return path.read_bytes()


def table_of(statistics: Statistics) -> Aggregates:
    parts = list(statistics.part().held.parts())  # type: ignore[union-attr]
    return Aggregates(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


# ----------------------------------------------------------------------------------------- reference


def reference(edges: Edges) -> dict[tuple[int, int], list[tuple[float, int, int, int]]]:
    """For each (target, source) its edges, as (attribution, prompt, target position, source position)."""
    found = defaultdict(list)
    for row in range(len(edges.targets)):
        for entry in range(int(edges.indptr[row]), int(edges.indptr[row + 1])):
            column = int(edges.indices[entry])
            prompt = int(edges.prompts.numbers[edges.targets.prompt[row]])
            at = (prompt, int(edges.targets.position[row]), int(edges.sources.position[column]))
            found[int(edges.targets.latent[row]), int(edges.sources.latent[column])].append((float(edges.attribution[entry]), *at))
    return found


def grid(values: list[float]) -> Fraction:
    """The sum of values that are each rounded to the grid, half to even."""
    return sum((Fraction(round(Fraction(value) * 2**fixed.UNIT), 2**fixed.UNIT) for value in values), Fraction(0))


@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 6))
@SLOW
def test_every_column_is_that_of_a_plain_dictionary(seed: int, dtype: torch.dtype, prompts: int) -> None:
    edges = random_edges(seed, prompts, dtype=dtype, first=7)
    wanted, statistics = reference(edges), stats.of(edges)
    rows = table_of(statistics) if wanted else None
    if rows is None:
        assert not any(len(part) for part in statistics.part().held.parts())  # type: ignore[union-attr]
        return
    pairs = list(zip(*(end.tolist() for end in pairs_of(rows.key)), strict=True))
    assert pairs == sorted(wanted)
    for i, pair in enumerate(pairs):
        values = [value for value, *_ in wanted[pair]]
        assert rows.count[i] == len(values)
        assert rows.prompts[i] == len({prompt for _, prompt, *_ in wanted[pair]})
        assert (rows.positive[i], rows.negative[i]) == (sum(v > 0 for v in values), sum(v < 0 for v in values))
        for numbers, of in ((rows.sum, values), (rows.l1, [abs(v) for v in values]), (rows.squares, [v * v for v in values])):
            assert Fraction(fixed.integers(numbers)[i], 2**fixed.UNIT) == grid(of)
            assert fixed.floats(numbers)[i] == pytest.approx(math.fsum(of), abs=len(of) * 2.0**-67, rel=2.0**-52)
        value, *at = min(wanted[pair], key=lambda edge: (-abs(edge[0]), *edge[1:]))
        found = [int(column[i]) for column in (rows.prompt, rows.target_position, rows.source_position)]
        assert (rows.maximum[i], found) == (value, at)
        assert rows.maximum[i] or not np.signbit(rows.maximum[i]), "one zero, which is the same bytes"


@given(st.integers(0, 10**6), st.sampled_from(["l1", "sum", "mean", "max", "count"]), st.booleans())
@SLOW
def test_the_strongest_are_those_of_a_plain_dictionary(
    tmp_path_factory: pytest.TempPathFactory, seed: int, by: Any, from_file: bool
) -> None:
    edges = random_edges(seed)
    statistics = stats.of(edges)
    if from_file:
        statistics = stats.open(stats.save(tmp_path_factory.mktemp("stats") / "s.h5", statistics))
    strengths = {
        "l1": lambda v: math.fsum(map(abs, v)), "sum": lambda v: abs(math.fsum(v)), "mean": lambda v: abs(math.fsum(v)) / len(v),
        "max": lambda v: max(map(abs, v)), "count": len,
    }  # fmt: skip
    for end, ask in ((0, statistics.top_parents), (1, statistics.top_children)):
        for latent in range(-1, 7):
            of = {pair: [v for v, *_ in found] for pair, found in reference(edges).items() if pair[end] == latent}
            frame = ask(latent, 3, by)
            assert len(frame) == min(3, len(of))
            strongest = sorted((strengths[by](values) for values in of.values()), reverse=True)[:3]
            for (_, row), strength in zip(frame.iterrows(), strongest, strict=True):
                values = of[row.target, row.source]
                assert strengths[by](values) == pytest.approx(strength, rel=1e-12, abs=1e-18)
                assert row.l1 == pytest.approx(math.fsum(map(abs, values)), rel=1e-15, abs=1e-19)
                assert row["mean"] == pytest.approx(math.fsum(values) / len(values), rel=1e-15, abs=1e-19)
                assert row["std"] == pytest.approx(np.std(values), rel=1e-9, abs=2.0**-33)  # the grid of its square
                assert row.sign_agreement == max(sum(v > 0 for v in values), sum(v < 0 for v in values)) / len(values)
                assert (row.exact, row.error, row.maximum_is_bound) == (True, 0.0, False)


@given(st.integers(0, 10**6))
@SLOW
def test_rows_become_one_in_any_order(seed: int) -> None:
    """All ties that there can be, in a sketch's cell too: another pair's edge at the same place, and one edge with both signs."""
    rng = np.random.default_rng(seed)
    few = [rng.integers(0, 2, 12) for _ in Aggregates._fields]
    rows = Aggregates(*few)._replace(key=few[0].astype(np.uint64), maximum=rng.choice([-1.0, 0.0, 1.0], 12))
    cell, order = rng.integers(0, 3, 12), rng.permutation(12)
    cells, one = collapse([rows], [cell])
    first, second = np.split(order, [rng.integers(1, 12)])
    parts = [collapse([rows.take(part)], [cell[part]]) for part in (first, second)]
    again, other = collapse([part for _, part in parts], [group for group, _ in parts])
    assert np.array_equal(cells, again)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    names = ("prompt", "target_position", "source_position", "key")
    for i, group in enumerate(cells):
        edges = [
            (-abs(rows.maximum[j]), *(int(getattr(rows, n)[j]) for n in names), -rows.maximum[j]) for j in np.flatnonzero(cell == group)
        ]
        assert (-abs(one.maximum[i]), *(int(getattr(one, n)[i]) for n in names), -one.maximum[i]) == min(edges)


def test_deviation_does_not_cancel() -> None:
    """Around 8192, deviations of a thousandth: float64 has but two digits of the difference between the squares."""
    of = 8192 + torch.arange(4) * 2.0**-10
    one, zeros = torch.tensor([0]), torch.zeros(4, dtype=torch.int64)
    nodes = Nodes("latent", ENDS[0], ptr([1]), one, one, torch.ones(1))
    targets = Nodes("latent", ENDS[1], ptr([4]), torch.arange(4), zeros, torch.ones(4))
    edges = Edges("latent_to_latent", nodes, targets, torch.arange(5), zeros, of, of, of, of, Prompts(ptr([4]), zeros, ("x",) * 4))
    assert stats.of(edges).top_parents(0)["std"].tolist() == pytest.approx([2.0**-10 * math.sqrt(1.25)], rel=1e-12)


# ------------------------------------------------------------------------------------------- merging


@st.composite
def groupings(draw: st.DrawFn, count: int) -> Any:
    """A nesting of the numbers below `count`, in any order and grouping."""
    items: list[Any] = draw(st.permutations(range(count)))
    while len(items) > 1:
        at = draw(st.integers(0, len(items) - 2))
        size = draw(st.integers(2, min(3, len(items) - at)))
        items[at : at + size] = [tuple(items[at : at + size])]
    return items[0]


def merged(nesting: Any, parts: list[Statistics]) -> Statistics:
    return parts[nesting] if isinstance(nesting, int) else stats.merge(*(merged(inner, parts) for inner in nesting))


@given(groupings(5), st.integers(0, 10**6))
@SLOW
def test_merging_in_any_order_and_grouping_is_the_same_file(tmp_path_factory: pytest.TempPathFactory, nesting: Any, seed: int) -> None:
    folder = tmp_path_factory.mktemp("stats")
    edges = [random_edges(seed + i, prompts=i, first=10 * i) for i in range(5)]
    whole = saved(stats.of(join(edges)), folder)
    assert saved(merged(nesting, [stats.of(part) for part in edges]), folder) == whole
    assert saved(stats.of(reversed(edges)), folder) == whole


SIZES = (100, 60, 150, 200)
"""Pairs of four parts: which of their unions pass the bound depends on what is merged first."""


@given(groupings(4), st.lists(st.sampled_from([LEAST_MEMORY, 3 * LEAST_MEMORY, 1 << 20]), min_size=4, max_size=4))
@SLOW
def test_when_a_table_turns_into_a_sketch_makes_no_difference(
    tmp_path_factory: pytest.TempPathFactory, nesting: Any, memory: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("stats")
    edges = [wide_edges(i, size) for i, size in enumerate(SIZES)]
    parts = [stats.of(part, memory=bound) for part, bound in zip(edges, memory, strict=True)]
    found = merged(nesting, parts)
    assert found.memory == min(memory)
    is_sketch = isinstance(found.part().held, Sketch)
    assert is_sketch == (len(stats.of(edges).part().held.rows.key) > max_pairs(min(memory)))  # type: ignore[union-attr]
    assert saved(found, folder) == saved(stats.of(edges, memory=min(memory)), folder)


def test_files_are_merged_as_what_they_hold(tmp_path: Path) -> None:
    edges = [wide_edges(i, 2000) for i in range(3)]
    for memory, form in ((1 << 20, Sketch), (1 << 30, object)):
        paths = [stats.save(tmp_path / f"{memory}-{i}.h5", stats.of(part, memory=memory)) for i, part in enumerate(edges)]
        found = stats.merge(paths[2], stats.open(paths[0]), stats.of(edges[1], memory=memory))
        assert isinstance(found.part().held, form)
        assert saved(found, tmp_path) == saved(stats.of(edges, memory=memory), tmp_path)
        assert saved(stats.open(paths[1]), tmp_path) == paths[1].read_bytes()


def test_blocks_are_kept_apart_and_in_the_order_of_their_names(tmp_path: Path) -> None:
    first = random_edges(1)
    second = replace(first, sources=replace(first.sources, site="blocks.0.hook_resid_pre"))
    found = stats.of([first, second])
    assert [block.source for block in found.blocks] == ["blocks.0.hook_resid_pre", ENDS[0]]
    assert saved(found, tmp_path) == saved(stats.merge(stats.of(first), stats.of(second)), tmp_path)
    with pytest.raises(
        InputError, match=r"block: kind=None, source=None, target=None fit 2 blocks; expected one\. There are: latent_to_lat"
    ):
        found.top_parents(0)
    assert found.top_parents(0, source=ENDS[0]).equals(stats.of(first).top_parents(0))


# ------------------------------------------------------------------------------------------- refusals


def spoilt(value: float) -> Edges:
    edges = random_edges(3, first=40)
    attribution = edges.attribution.clone()
    attribution[-1] = value
    return replace(edges, attribution=attribution)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (lambda: spoilt(math.nan), r"edges: prompt 43 has an attribution of nan; expected finite numbers"),
        (lambda: spoilt(-math.inf), r"edges: prompt 43 has an attribution of -inf"),
        (lambda: spoilt(1e9), r"edges: prompt 43 has an attribution of 1e\+09; expected less than 5\.4e\+08"),
        (
            lambda: replace(wide_edges(0, 50), sources=replace(wide_edges(0, 50).sources, latent=torch.full((400,), 2**32 - 1))),
            r"edges: the source latent 4294967295 is outside -1 … 4294967294",
        ),
        (lambda: replace(random_edges(0), indptr=torch.tensor([0])), r"edges: in 'latent_to_latent .*', indptr does not rise"),
        (
            lambda: [random_edges(0), replace(random_edges(0), call={"policy": "x"})],
            r"the calls of 'latent.*' differ in policy: None and 'x'",
        ),
        (lambda: replace(random_edges(0), call={"seed": torch.tensor(1)}), r"`call` cannot be written as JSON \(.*Tensor"),
    ],
)
def test_what_cannot_be_counted_is_named(edges: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stats.of(edges())


def test_sums_that_pass_the_range_name_the_pair_and_never_wrap() -> None:
    large = wide_edges(1, 40)
    large = replace(large, attribution=torch.full((40,), 5e8))
    one = stats.of(large)
    key = int(table_of(one).key[0])
    pair = rf"the pair \(target {(key >> 32) - 1}, source {(key & 2**32 - 1) - 1}\) has attributions whose absolute values or squares"
    with pytest.raises(InputError, match=rf"edges: {pair} sum to 2\.9e\+17 or more"):
        stats.merge(one, one)
    many = replace(wide_edges(1, 300), attribution=torch.full((300,), 2e8))
    with pytest.raises(InputError, match=r"the attributions of a block have absolute values or squares that sum to 2\.9e\+17 or more"):
        stats.of(many, memory=LEAST_MEMORY)


def test_arguments_that_cannot_be_used_are_named() -> None:
    statistics = stats.of(random_edges(0))
    for call, message in (
        (stats.merge, r"parts: got none"),
        (lambda: stats.of_files([]), r"paths: got none"),
        (lambda: stats.of(random_edges(0), memory=1000), r"memory: 1,000 bytes; expected at least 65,536"),
        (lambda: statistics.top_parents(0, 0), r"k: 0; expected at least 1"),
        (lambda: statistics.top_parents(0, source="blocks.7.hook_z"), r"source='blocks\.7\.hook_z', target=None fit no blocks"),
        (lambda: statistics.top_parents(0, 1.5), r"k: 1\.5; expected a whole number of pairs, from 1"),
        (lambda: statistics.top_children(0, -1), r"k: -1; expected at least 1"),
        (lambda: statistics.top_parents(1.5), r"latent: 1\.5; expected a latent's number"),
        (lambda: statistics.top_children("a"), r"latent: 'a'; expected a latent's number"),
        (lambda: statistics.top_parents(True), r"latent: True; expected a latent's number"),
        (lambda: statistics.top_parents([1]), r"latent: \[1\]; expected a latent's number"),
        (lambda: statistics.top_parents(10**30), r"latent: 10{30}; expected a latent's number"),
        (lambda: stats.open("absent.h5"), r"path: there is no file absent\.h5"),
    ):
        with without_shape_checks(), pytest.raises(InputError, match=message):
            call()


@pytest.mark.few
@pytest.mark.parametrize("form", [np.int32, np.uint64, np.array, torch.tensor])
def test_latents_of_arrays_and_tensors_are_numbers(form: Any, tmp_path: Path) -> None:
    statistics = stats.of(random_edges(0))
    for one in (statistics, stats.open(stats.save(tmp_path / "s.h5", statistics))):
        assert len(one.top_parents(2)) > 0
        assert one.top_parents(form(2), form(3)).equals(one.top_parents(2, 3))
        assert one.top_children(form(2)).equals(one.top_children(2))


def test_what_is_printed_is_short() -> None:
    edges = random_edges(0)
    statistics = stats.of([edges, replace(edges, sources=replace(edges.sources, site="embed"))])
    first = repr(statistics.parts[0])
    assert first == f"BlockStatistics(latent_to_latent {ENDS[0]} -> {ENDS[1]}: a table of {statistics.parts[0].pairs} pairs)"
    assert repr(statistics) == f"Statistics(within 1,073,741,824 bytes a block, 2 blocks: {first}; {statistics.parts[1]!r})"
    sketch = stats.of(wide_edges(0, 2000), memory=LEAST_MEMORY).parts[0]
    assert repr(sketch) == f"BlockStatistics({sketch.block}: a sketch, l1 ≥ {sketch.found_from:.3g} are found)"


def test_the_calls_keep_what_they_share() -> None:
    def with_call(**call: Any) -> Edges:
        return replace(random_edges(0), call=call)

    model = {"name": "here", "sha256": "m"}
    first = with_call(model=model, keep="TopK(1)", cuts=[{"name": "a", "sha256": "c"}], prompts={"count": 1}, products="torch")
    second = with_call(
        model=model | {"name": "there"}, keep="TopK(1)", cuts=[{"name": "b", "sha256": "c"}], prompts={"count": 2}, products="torch"
    )
    third = with_call(model=model, keep="Dense()", cuts=[{"name": "a", "sha256": "c"}], products="onednn")  # whoever multiplied
    parts = [stats.of(edges) for edges in (first, second, third)]
    calls = [merged(nesting, parts).part().call for nesting in ((0, 1, 2), ((2, 0), 1), (0, (2, 1)))]
    assert calls == [{"cuts": [{"sha256": "c"}], "model": {"sha256": "m"}}] * 3
    assert stats.merge(parts[0], parts[1]).part().call["products"] == "torch"


def test_a_prompt_of_two_edges_of_a_pair_counts_once() -> None:
    edges = reduce(lambda a, b: join([a, b]), [random_edges(5, prompts=1, length=9, first=i) for i in range(3)])
    rows = table_of(stats.of(edges))
    assert (rows.count > rows.prompts).any()
    assert rows.prompts.max() == 3
