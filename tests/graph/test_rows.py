"""Rows as sweeps give them: what is kept of each, in order, and rows that are asked for part by part."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attrib.core.keep import kept
from attrib.core.scratch import Scratch
from attrib.core.types import LINEAR, Dense, Keep, Mass, Threshold, TopK, TopLogits
from attrib.engine.bundle import Bundle, jacobians, joint_of
from attrib.engine.on_demand import OnDemand
from attrib.engine.plan.choose_joint import JointPlan, meetings, plan_joint
from attrib.engine.precision import precision_of
from attrib.graph.columns import Columns
from attrib.graph.ends import GraphEnds
from attrib.graph.rows import GraphRows
from attrib.graph.selected import Selected, runs_of
from tests.support.builders import Family, build, prompt
from tests.support.covering import each_pair
from tests.support.cut_cases import SETS, ours
from tests.support.tolerances import ROUNDING, assert_close

POSITIONS = 8
"""Of the prompt, whose rows are asked for one at a time, too."""
RULES: list[Keep] = [Dense(), TopK(3), Mass(0.8), Threshold(1.0), Threshold(1e9)]


@each_pair(keep=RULES, zeros=[True, False], LARGEST=[7, 1 << 23], order=["ascending", "descending", "mixed"], where=["memory", "disk"])
def test_what_is_kept_is_put_in_order(
    keep: Keep, zeros: bool, LARGEST: int, order: str, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """However rows come, in pieces of whatever size: whole rows, rows without an entry, and rows of no width."""
    monkeypatch.setattr("attrib.core.edges.Growing.LARGEST", LARGEST)
    source, scratch = torch.Generator().manual_seed(0), Scratch(tmp_path)
    selected = Selected(torch.float32) if where == "memory" else Selected(torch.float32, scratch.column, torch.int32)
    rows = torch.arange(10, 70, 2)[torch.randperm(30, generator=source)] if order == "mixed" else torch.arange(10, 40)
    groups = [group.sort().values for group in rows.split([1, 9, 5, 0, 15])]
    want = torch.zeros(70, 100)
    for number, group in enumerate(groups if order != "descending" else groups[::-1]):
        node = torch.randperm(100, generator=source)[: 0 if number == 1 else 20].sort().values
        weight = torch.randn(len(group), len(node), generator=source)
        weight[:, ::2] *= 0.0 if zeros else 1.0
        want[group[:, None], node] = weight * kept(keep, weight, weight)
        assert_close(selected.add(group, weight, node, keep), weight.abs().sum(1))
    ordered = selected.ordered()
    targets, indptr, total, l1 = ordered[:4]
    parts = [(ordered.sources(first, first + 3), ordered.weights(first, first + 3)) for first in range(0, len(targets), 3)]
    indices, found = ordered.whole()
    assert all(map(torch.equal, map(torch.cat, zip(*parts, strict=True)), (indices, found)))
    assert torch.equal(targets, rows.sort().values)
    row = torch.arange(len(targets)).repeat_interleave(indptr.diff())
    assert torch.equal(torch.zeros(70, 100).index_put((targets[row], indices), found), want)
    assert (indices.diff()[row.diff() == 0] > 0).all()
    assert len(total) == len(l1) == len(targets)
    if keep == Dense():
        assert_close(total, want[targets].sum(1))
        assert_close(l1, want[targets].abs().sum(1))


def test_of_no_rows_there_is_nothing():
    ordered = Selected(torch.float64).ordered()
    assert [len(column) for column in (*ordered[:4], *ordered.whole())] == [0, 1, 0, 0, 0, 0]


def test_runs_are_of_numbers_that_follow_each_other():
    assert runs_of(torch.tensor([4, 5, 6, 2, 3, 9, 8])) == [(4, 7), (2, 4), (9, 10), (8, 9)]
    assert runs_of(torch.arange(0)) == []


@cache
def opened(family: Family, which: str) -> Any:
    model = build(family, torch.float64)
    ends = GraphEnds(model, tuple(ours(SETS[which](model))), (TopLogits(3),), LINEAR, None, "exact", True, 0)
    return ends.open(prompt(POSITIONS, seed=2))


@cache
def plain(family: Family, which: str) -> Tensor:
    """[nodes, nodes], from the Jacobian of each pair of ends."""
    there = opened(family, which)
    bundle: Bundle = there.bundle
    whole = torch.zeros(len(there.nodes), len(there.nodes), dtype=bundle.model.dtype)
    for _, (source, target, place, gradient) in jacobians(
        [bundle], plan_joint(joint_of([bundle]), 1 << 30), precision_of(bundle.model, None)
    ):
        whole[there.rows[target][place][:, None], there.columns[source]] = gradient * bundle.sources[source].sources.value
    return whole


@pytest.mark.few
@pytest.mark.parametrize("which", ["transcoders", "all", "residual"])
def test_a_row_sees_what_is_before_it(which: str):
    there = opened("gpt2", which)
    columns, whole = Columns(there), plain("gpt2", which)
    for target, nodes in enumerate(there.rows):
        for position in range(POSITIONS):
            here = nodes[there.nodes.position[nodes] == position]
            seen = columns.seen(target, position)
            beyond = torch.ones(len(there.nodes), dtype=torch.bool).index_fill(0, seen.node, False)
            assert not whole[here][:, beyond].any()
            assert (seen.node.diff() > 0).all()
            assert len(seen.node) == sum(seen.counts)


def dense(there: Any, rows: GraphRows, chosen: Tensor, **asked: Any) -> Tensor:
    """[nodes, nodes] of rows that are asked for."""
    bundle: Bundle = there.bundle
    joint = joint_of([bundle])
    plan, precision = plan_joint(joint, 1 << 30), precision_of(bundle.model, None)
    if place := asked.get("meets"):
        plan = next(JointPlan(one, ((0, 1),), 0) for one in meetings(joint) if str(one.meets) == place)
    on_demand = OnDemand(bundle, plan, precision, "torch", 1 << 30)
    on_demand.most = asked.get("most", on_demand.most)
    for some in chosen.split(asked.get("at_once", len(chosen))):
        for found, of_them in on_demand.rows([torch.isin(own, some).nonzero()[:, 0] for own in there.rows]):
            rows.add(found, of_them)
    ordered = rows.selected.ordered()
    (targets, indptr), (indices, weight) = ordered[:2], ordered.whole()
    row = torch.arange(len(targets)).repeat_interleave(indptr.diff())
    return torch.zeros(len(there.nodes), len(there.nodes), dtype=weight.dtype).index_put((targets[row], indices), weight)


@pytest.mark.few
@each_pair(
    family=["gpt2", "llama", "gpt_neox"], which=["transcoders", "all"], meets=[None, "blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"],
    most=[1, 5, 1000], at_once=[7, 1000],
)  # fmt: skip
def test_rows_by_parts_are_those_of_the_whole(family: Family, which: str, meets: str | None, most: int, at_once: int):
    there = opened(family, which)
    want = plain(family, which)
    shuffled = torch.randperm(len(there.nodes), generator=torch.Generator().manual_seed(1))
    got = dense(there, GraphRows(there, Dense()), shuffled, meets=meets, most=most, at_once=at_once)
    assert_close(got, want, ROUNDING)
    assert want.abs().max() > 0.01
