"""Rows of neighbouring positions in one rectangle, as on a GPU: the same Jacobians in every way, and no number where none belongs."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

import attrib
from attrib.core.types import EXACT, LINEAR, Policy, Site, SiteKind
from attrib.engine.blocks.norm_mlp import MLPPoint, NormPoint, with_frozen_norm
from attrib.engine.plan.sizes import Sizes
from attrib.engine.sweep import meet
from attrib.engine.sweep.cells import ON_CPU, Cone, Direction, cells_of, cone_of, read_runs, seed_cells, seeded_cone, together
from attrib.engine.sweep.steps import spread_down, spread_up
from attrib.engine.tiles import adjoint, task_of
from attrib.models.transformer import width
from bench.engine.cases import latents
from bench.engine.launches import SMALL
from tests.attribution.test_plan import WAYS, assert_counted, forced, held, paths
from tests.engine.test_sweep import BESIDE, LENGTHS, SOURCES, TARGETS, Pack, assert_all_ways, make
from tests.support.builders import Family, normal
from tests.support.covering import each_pair
from tests.support.measured import measured
from tests.support.pretend import NAME, pretending

WIDE = ON_CPU._replace(span=4)


def widened(pack: Pack, span: int, most: int = WIDE.band) -> Pack:
    """The same on cones of wide bands."""
    causal = pack.on.model.config.causal
    down, up = (
        cone_of(rows.at, direction, most, causal=causal, span=span) for rows, direction in ((pack.targets, "down"), (pack.sources, "up"))
    )
    return pack._replace(down=down, up=up)


@pytest.mark.few
@each_pair(
    lambda row: row["ends"][0] != "resid_mid" or row["family"] not in BESIDE,
    family=["gpt2", "llama", "gemma2", "olmo2", "phi"],
    policy=[EXACT, LINEAR, Policy("exact", "frozen", "exact"), Policy("frozen", "exact", "exact")],
    ends=[("resid_pre", "resid_pre"), ("z", "attn_out"), ("resid_mid", "resid_post")],
    span=[2, 4, 8],
)
def test_every_family_in_every_way(family: Family, policy: Policy, ends: tuple[SiteKind, SiteKind], span: int):
    pack = make(family, Site(0, ends[0]), Site(3, ends[1]), policy, (0, 2), pieces=WIDE._replace(span=span))
    names = assert_all_ways(widened(pack, span))
    assert {"forward, once", "both at layer 1, once"} <= {*names}


@pytest.mark.parametrize("most", [4, 12])
def test_too_large_ones_stay_narrow(most: int):
    pack = make("gpt2", Site(0, "resid_pre"), Site(3, "resid_pre"), EXACT, (0, 2), pieces=WIDE._replace(band=most, chunk=most, mlp=most))
    assert_all_ways(widened(pack, 4, most))


@pytest.mark.parametrize("span", [1, 4])
def test_kernels_read_rows_out_where_they_lie(monkeypatch: pytest.MonkeyPatch, span: int):
    """In bands of either kind, in pieces that have a part of the rows, and into tables that are turned round."""
    pytest.importorskip("triton")
    asked: list[bool] = []

    def noted(*args: Any) -> None:
        asked.append(args[-1].is_contiguous())
        read_out(*args)

    read_out = meet.read_out
    monkeypatch.setattr(meet, "read_out", noted)
    for policy in (EXACT, LINEAR):
        pieces = ON_CPU._replace(span=span, chunk=12)  # a sweep reads out in several pieces, of which all but one begin in the middle
        pack = make("gpt2", Site(0, "resid_pre"), Site(2, "resid_pre"), policy, (0, 2), dtype=torch.float32, pieces=pieces)
        pack = pack._replace(on=replace(pack.on, impl="triton"))
        assert_all_ways(widened(pack, span) if span > 1 else pack)
    assert {*asked} == {False, True}
    pack = make("gpt2", Site(0, "resid_pre"), Site(2, "resid_pre"), LINEAR, (0, 2), pieces=ON_CPU._replace(span=span))
    asked.clear()
    assert_all_ways(pack._replace(on=replace(pack.on, impl="torch")))
    assert not asked


def test_folds_of_several_positions(monkeypatch: pytest.MonkeyPatch):
    """Where a fold pays from the first row on."""
    for name in ("steps", "meet"):
        monkeypatch.setattr(f"attrib.engine.sweep.{name}.fold_rows", lambda config: 0)
    for family in ("llama", "gemma2"):
        assert_all_ways(widened(make(family, Site(0, "resid_pre"), Site(3, "resid_pre"), EXACT, (0, 2), pieces=WIDE), 4))


@pytest.mark.few
@pytest.mark.parametrize("policy", [EXACT, LINEAR], ids=["exact", "linear"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2"])
def test_cells_outside_the_cone_are_zeros(family: Family, policy: Policy):
    pack = make(family, Site(1, "resid_pre"), Site(1, "z"), policy, (0, 2), pieces=WIDE)
    on, d = pack.on, width(pack.on.model.config, Site(1, "resid_pre"))
    for direction, counts in (("down", pack.targets), ("up", pack.sources)):
        narrow = {direction: cone_of(counts.at, direction), "wide": cone_of(counts.at, direction, span=4)}
        if direction == "down":
            found, wide = (spread_down(on, 1, counts, None, cone) for cone in narrow.values())
        else:
            found, wide = (spread_up(on, 1, counts, cone, None) for cone in narrow.values())
        assert found.shape[1] == wide.shape[1] == d
        assert len(wide) > len(found), "else nothing is outside"
        assert wide.any(1).sum() == found.any(1).sum()


@pytest.mark.parametrize("direction", ["down", "up"])
def test_where_rows_lie(direction: Direction):
    lengths, counts = (LENGTHS[0], LENGTHS[2]), (TARGETS[0], TARGETS[2])
    narrow, wide = cone_of(counts, direction), cone_of(counts, direction, span=4)
    assert len(wide.bands) < len(narrow.bands)
    assert [band[:2] + band[3:] for band in seeded_cone(wide).bands] == [band[:2] + band[3:] for band in seeded_cone(narrow).bands]
    at = [t for rows in counts for t, count in enumerate(rows) for _ in range(count)]
    row = 0
    for prompt, length in enumerate(lengths):
        cells = cells_of(wide, prompt, length, torch.device("cpu"))
        for number in range(sum(counts[prompt])):
            assert seed_cells(wide, torch.device("cpu"))[row] == cells.start[number] + cells.step[number] * at[row]
            row += 1
        for begin, end in together(4, cells.alive):
            several = cells.over(begin, end).view(end - begin, -1)
            assert torch.equal(several, torch.stack([cells.at(t) for t in range(begin, end)]))
            assert torch.equal(cells.by_row(begin, end).view(-1, end - begin), several.T)


def test_runs_that_would_be_mostly_empty_go_one_by_one():
    alive = [(0, 3)] * 8
    counts = [2, 2, 1, 2, 9, 0, 1, 0]
    begins = [sum(counts[:t]) for t in range(9)]
    assert list(read_runs(4, alive, begins)) == [(0, 4, 2), (4, 5, 9), (6, 7, 1)]
    assert all(end - begin <= 3 for begin, end in together(3, alive))
    assert [end for _, end in together(3, alive)] == [3, 6, 8]


def test_nothing_is_wide_where_it_does_not_pay():
    assert ON_CPU.span == 1
    assert WIDE.smaller.span == 1 == WIDE.narrow.span
    plain = cone_of(SOURCES, "up")
    assert cone_of(SOURCES, "up", span=1) == plain
    assert not any(band.is_wide for band in plain.bands)
    assert cone_of(SOURCES, "down", causal=False, span=4) == cone_of(SOURCES, "down", causal=False)
    assert all(a.offset + a.cells == b.offset for a, b in pairwise(cone_of(SOURCES, "up", span=4).bands))


@pytest.mark.parametrize(("family", "policy"), [("llama", EXACT), ("gemma2", LINEAR)], ids=str)
def test_operations_and_memory_are_those_planned(family: Family, policy: Policy):
    (found,) = paths(family, policy, (16,))
    plans = forced(replace(task_of([found]), pieces=WIDE))
    assert [(plan.way, plan.layer) for plan in plans] == WAYS
    for plan in plans:
        got = measured(lambda plan=plan: [tile.gradient.numel() for _, tile in adjoint([found], plan)])
        assert_counted(got.flops, plan.cost.total, (plan.way, plan.layer))
        assert 0.75 * plan.peak < got.peak + held(found) < 1.05 * plan.peak, (plan.way, plan.layer)


def test_slopes_are_counted_twice_where_the_norm_scales_them_alone():
    policies = {policy: Sizes(replace(task_of(paths("gpt2", policy, (16,))), pieces=WIDE)) for policy in (EXACT, LINEAR)}
    point = MLPPoint((normal(4, 8),))
    for policy, sizes in policies.items():
        is_made = with_frozen_norm(point, NormPoint(normal(4, 6), normal(4, 1)), policy) is not point
        assert sizes.scaled_slopes == is_made * sizes.slopes
        assert Sizes(replace(sizes.task, pieces=WIDE.narrow)).scaled_slopes == 0
    assert policies[EXACT].meeting(True, 6) == policies[LINEAR].meeting(True, 6) - policies[LINEAR].scaled_slopes


def test_a_gpu_is_asked_for_less():
    problem = latents(SMALL, 0, 3, 32, d_sae=256, active=(8, 8))
    with pretending():
        model, source, target = (each.to(device=NAME) for each in (problem.model, problem.source, problem.target))
        task = task_of([attrib.path(model, source, target, problem.tokens)])
        assert task.span > 1
    assert Cone(task.bands(up=True)).cells > sum(map(sum, replace(task, pieces=ON_CPU).up())), "else nothing is wide"
    assert task.pieces.within(1 << 30).select < task.pieces.within(64 << 30).select
    assert ON_CPU.within(0) == ON_CPU
