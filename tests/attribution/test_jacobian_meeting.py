"""Sources that are lifted together, and meet the rows of targets that come down: at every place against the way down alone."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.attribution.jacobian import _Call
from attrib.attribution.options import Options
from attrib.core.rates import Asking
from attrib.core.types import EXACT, LINEAR, BudgetError, Policy, Site, TopLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.bundle import Bundle, jacobians, joint_of
from attrib.engine.plan.choose_joint import ASKED, JointPlan, joint_cost, joint_memory, least_joint_memory, meetings, plan_joint, weight
from attrib.engine.plan.joint import Joint
from attrib.engine.sweep.cells import ON_CUDA
from attrib.models.tokens import to_prompts
from attrib.models.transformer import Model
from tests.attribution.test_jacobian import assert_same, ends, graph_ends, opened
from tests.attribution.test_plan import BARE, LARGE, WIDTH, assert_about, large
from tests.paths.test_cuts import ALL_SETS, PROMPTS, put_in
from tests.support.builders import Family, attrib_model, build, dictionary, prompt
from tests.support.covering import each_pair
from tests.support.measured import flops, peak
from tests.support.tolerances import ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Found = dict[tuple[int, int, int], tuple[Tensor, Tensor]]
"""Of each prompt, source and target which targets the rows are of, and the rows."""


def whole(joint: Joint) -> JointPlan:
    """One sweep over all rows."""
    return JointPlan(joint, ((0, joint.above.n_targets),), joint_memory(joint))


def in_runs(joint: Joint, size: int) -> JointPlan:
    """Sweeps over so many rows each; sources are lifted once."""
    count = joint.above.n_targets
    return replace(whole(joint), sweeps=tuple((first, min(first + size, count)) for first in range(0, max(count, 1), size)))


def swept(bundles: list[Bundle], plan: JointPlan, call: _Call) -> Found:
    found: Found = {}
    for number, piece in jacobians(bundles, plan, call.precision):
        key = number, piece.source, piece.target
        if key in found:
            found[key] = tuple(torch.cat(both) for both in zip(found[key], (piece.place, piece.gradient), strict=True))  # type: ignore[assignment]
        else:
            found[key] = piece.place, piece.gradient
    return found


def assert_found(got: Found, want: Found, what: object) -> None:
    """The same rows, in the same order, with the same numbers but for rounding, relative to the largest of a pair's."""
    assert got.keys() == want.keys()
    for key, (place, gradient) in want.items():
        assert torch.equal(got[key][0], place), (what, key)
        scale = gradient.abs().max().clamp_min(1e-9) if gradient.numel() else 1
        assert_close(got[key][1] / scale, gradient / scale, ROUNDING, (what, key))


def bundles_of(call: _Call) -> Iterator[list[Bundle]]:
    for of_group, _, _ in call.groups:
        yield [of_group.open(ids, None) for ids in call.prompts]


def all_ends(family: Family, which: str | None, dtype: torch.dtype) -> tuple[Model, tuple[Any, ...], tuple[Any, ...], list[Dictionary]]:
    """Cuts, errors, tokens and latents within components to whatever reads anywhere."""
    model, cuts = build(family, dtype), put_in(family, which, dtype) if which else []
    sources, targets = ends(model, which, cuts)
    written = attrib.replace(model, cuts).written if cuts else ()
    return model, (*sources, *map(attrib.ErrorAt, written)), tuple(targets), cuts


@pytest.mark.few
@each_pair(
    which=["residual", "transcoders", "cross", "attn_out", "z", "mlp_in", "every layer", None],
    family=["gpt2", "llama", "gemma2", "gpt_neox", BARE[0]], effect=["direct", "total"], policy=[EXACT, LINEAR],
    dtype=[torch.float64, torch.float32],
)  # fmt: skip
def test_at_every_place_it_is_what_the_way_down_gives(
    which: str | None, family: Family, effect: Any, policy: Policy, dtype: torch.dtype
) -> None:
    model, sources, targets, cuts = all_ends(family, which, dtype)
    call = _Call(model, sources, targets, to_prompts(model, PROMPTS[:2]), Options(policy=policy, cuts=cuts, effect=effect))
    number, places = [*ALL_SETS, None].index(which) + (effect == "total") + len(family), 0
    for bundles in bundles_of(call):
        joint = joint_of(bundles)
        want, moving, every = swept(bundles, whole(joint), call), 0, list(meetings(joint))
        for joined in {every[at % len(every)].meets: every[at % len(every)] for at in (number, number + len(every) // 2)}.values():
            assert_found(swept(bundles, whole(joined), call), want, (joined.meets, which))
            places, moving = places + 1, moving + len(joined.lifted) * len(joined.above.targets)
        assert moving
    assert places


# ------------------------------------------------------------------------------------- budgets, orders, refusals


@pytest.mark.parametrize("effect", ["direct", "total"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_runs_of_rows_meet_what_was_lifted_once(family: Family, effect: Any) -> None:
    model, sources, targets, cuts = graph_ends(family)
    options = Options(policy=LINEAR, cuts=cuts, effect=effect, positions=(4, 1, -2))
    call = _Call(model, tuple(sources), tuple(targets), to_prompts(model, PROMPTS[:1]), options)
    (bundles,) = ([of_group.open(call.prompts[0], call.positions)] for of_group, _, _ in call.groups)
    joint = joint_of(bundles)
    want = swept(bundles, whole(joint), call)
    for joined in meetings(joint):
        found = swept(bundles, in_runs(joined, 3), call)
        assert_found(found, want, joined.meets)


def planned(family: Family = "gpt2", effect: Any = "direct", lengths: tuple[int, ...] = (20,)) -> tuple[list[Bundle], Joint, _Call]:
    of_group, call = opened(family, LINEAR, lengths, effect)
    bundles = [of_group.open(ids, None) for ids in call.prompts]
    return bundles, joint_of(bundles), call


@pytest.mark.long
def test_the_place_with_the_fewest_products_within_the_budget_is_taken() -> None:
    bundles, joint, call = planned(lengths=(8,))
    plans = [whole(each) for each in (joint, *meetings(joint))]
    ample = plan_joint(joint, 1 << 40)
    assert ample.joint.meets is not None
    assert ample.cost.total == min(plan.cost.total for plan in plans)
    want, tight = swept(bundles, whole(joint), call), 0
    least = least_joint_memory(joint)
    for budget in (ample.peak - 1, (ample.peak + least) // 2):
        plan = plan_joint(joint, budget)
        fits = [each.cost.total for each in plans if each.peak <= budget]
        assert plan.cost.total <= min(fits, default=1 << 62)
        assert plan.peak <= budget
        tight += plan.joint.meets is not None and len(plan.sweeps) > 1
    assert tight  # tangents that are lifted once, and sweeps over runs of rows
    assert_found(swept(bundles, plan_joint(joint, least), call), want, "least")
    with pytest.raises(BudgetError, match=f"at least {least:,}"):
        plan_joint(joint, least - 1)


@pytest.mark.parametrize(("effect", "share"), [("direct", 1 << 20), ("total", 5)])
def test_a_graph_is_asked_for_less_where_asking_is_dear(effect: Any, share: int) -> None:
    """Both sides meet elsewhere, where all fits, and smaller pieces leave memory for fewer sweeps, where it does not."""
    bundles, joint, call = planned(effect=effect)
    free = replace(joint, pieces=ON_CUDA.narrow.within(0))
    dear = replace(joint, pieces=free.pieces._replace(asking=Asking(100_000_000, 200_000_000)))
    budget = share * least_joint_memory(free)
    cheap, asked = plan_joint(free, budget), plan_joint(dear, budget)
    assert asked.cost.asked < cheap.cost.asked
    assert len(asked.sweeps) <= len(cheap.sweeps)
    assert asked.peak <= budget
    assert weight(dear, asked.cost, len(asked.sweeps)) < weight(dear, cheap.cost, len(cheap.sweeps))
    assert weight(dear, asked.cost, 3) == asked.cost.total + 1e8 * ASKED.launches * asked.cost.asked + 2e8 * ASKED.waits * 3
    assert weight(free, cheap.cost, 3) == cheap.cost.total
    if effect == "total":
        assert asked.joint.pieces.band < free.pieces.band
    else:
        assert asked.joint.meets != cheap.joint.meets
        assert_found(swept(bundles, asked, call), swept(bundles, cheap, call), effect)


def test_the_way_of_a_graph_is_halved() -> None:
    """Of 12 layers: 55 attentions that a latent's rows pass become 25; what meets costs some of it."""
    model, ids = attrib_model("gpt2", n_layers=12, **LARGE["gpt2"]), prompt(16)
    cuts = [dictionary("topk", site=f"blocks.{layer}.hook_mlp_out", d_in=WIDTH, d_sae=300, k=12) for layer in range(12)]
    call = _Call(model, ("tokens", *cuts), (*cuts, TopLogits(10)), to_prompts(model, ids), Options(policy=LINEAR, cuts=cuts))
    ((bundle,),) = bundles_of(call)
    joint = joint_of([bundle])
    plan = plan_joint(joint, 1 << 40)
    assert plan.joint.meets is not None
    assert 4 <= plan.joint.meets.layer <= 7
    down = joint_cost(joint)
    assert plan.cost.flops["attention"] < 0.45 * down.flops["attention"]
    assert plan.cost.total < 0.65 * down.total
    assert f"joined at {plan.joint.meets}" in str(plan)


def test_out_of_memory_on_the_way_up_goes_on_down(monkeypatch: pytest.MonkeyPatch) -> None:
    bundles, joint, call = planned()
    plan = plan_joint(joint, 1 << 40)
    assert plan.joint.meets is not None
    want = swept(bundles, plan, call)

    def lift(*_: Any) -> Any:
        raise torch.OutOfMemoryError("too many tangents")

    monkeypatch.setattr(attrib.engine.bundle, "lift", lift)
    with pytest.warns(UserWarning, match="going on down"):
        assert_found(swept(bundles, plan, call), want, "down")


def test_out_of_memory_of_a_pack_says_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been read on the way up is told with the first sweep, and so not when that is given up."""
    bundles, joint, call = planned(lengths=(8, 1, 5))
    plan = next(plan for joined in meetings(joint) if (plan := whole(joined)).joint.below and plan.joint.above.n_targets)
    want, sweep = swept(bundles, whole(joint), call), attrib.engine.bundle.join

    def join(primal: Any, *others: Any) -> Any:
        if len(primal.lengths) > 1:
            raise torch.OutOfMemoryError("too many rows")
        return sweep(primal, *others)

    monkeypatch.setattr(attrib.engine.bundle, "join", join)
    with pytest.warns(UserWarning, match=r"3 prompt\(s\) joined; going on down"):
        assert_found(swept(bundles, plan, call), want, "one at a time")


@pytest.mark.few
@pytest.mark.parametrize("keep", [attrib.TopK(2), attrib.Threshold(0.01), attrib.Mass(0.9)])
def test_what_is_kept_is_the_same(keep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sources, targets, cuts = graph_ends("llama")

    def found(plan: Any) -> dict[tuple[int, int], attrib.Edges]:
        monkeypatch.setattr("attrib.attribution.jacobian.plan_joint", plan)
        return attrib.jacobian(model, sources, targets, PROMPTS, cuts=cuts, keep=keep)

    joined = found(lambda joint, *_: whole(list(meetings(joint))[2]))
    for pair, edges in found(lambda joint, *_: whole(joint)).items():
        assert torch.equal(joined[pair].indices, edges.indices)
        assert_same(joined[pair], edges, ROUNDING, pair)


# ----------------------------------------------------------------------------------------- operations, memory


@pytest.mark.few
@each_pair(
    family=["gpt2", "llama", "gpt_neox", "gemma2", BARE[0]], policy=[EXACT, LINEAR], lengths=[(12,), (8, 1, 5)],
    effect=["direct", "total"],
)  # fmt: skip
def test_operations_are_those_planned(family: Family, policy: Policy, lengths: tuple[int, ...], effect: str) -> None:
    of_group, call = opened(family, policy, lengths, effect)
    bundles = [of_group.open(ids, None) for ids in call.prompts]
    for joined in list(meetings(joint_of(bundles)))[1 + len(lengths) // 3 :: 3]:
        plan = whole(joined)
        got = flops(lambda plan=plan: [piece for _, piece in jacobians(bundles, plan, call.precision)])
        assert_about(got, plan.cost.total, 1.01, (family, policy, lengths, joined.meets))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_operations_of_ends_within_components_are_those_planned(family: Family) -> None:
    """Tangents are read in the heads of an attention, behind it, and within an MLP, and go on."""

    def at(site: str) -> Dictionary:
        return dictionary("topk", site=site, d_in=WIDTH, d_sae=300, k=6)

    sources = ("tokens", *map(at, ("blocks.0.attn.hook_z", "blocks.1.hook_attn_out", "blocks.1.mlp.hook_in")))
    targets = (*map(at, ("blocks.2.attn.hook_z", "blocks.2.hook_attn_out", "blocks.2.hook_mlp_out", "blocks.3.hook_resid_post")),)
    call = _Call(large(family), sources, targets, to_prompts(large(family), prompt(10)), Options(policy=LINEAR))
    (bundles,) = bundles_of(call)
    for joined in list(meetings(joint_of(bundles)))[-3:]:
        plan = whole(joined)
        assert_about(flops(lambda plan=plan: list(jacobians(bundles, plan, call.precision))), plan.cost.total, 1.01, joined.meets)


@pytest.mark.few
@each_pair(family=["gpt2", "gemma2", "gpt_neox", BARE[0]], policy=[EXACT, LINEAR], effect=["direct", "total"])
def test_memory_is_within_what_is_planned(family: Family, policy: Policy, effect: str) -> None:
    of_group, call = opened(family, policy, (20,), effect)
    found = call._joint(of_group, (call.prompts[0], bundle := of_group.open(call.prompts[0], None)))
    rows = sum(end[0][3].numel() * bundle.model.dtype.itemsize for end in (*bundle.sources, *bundle.targets))
    for joined in list(meetings(found))[1::3]:
        plan = whole(joined)
        used = peak(lambda plan=plan: sum(piece.gradient.numel() for _, piece in jacobians([bundle], plan, call.precision)))
        share = (used + rows) / (plan.peak - found.opened.held)
        assert 0.85 <= share <= 1.05, f"{share:.3f} of what was planned, meeting at {joined.meets}"


def test_places_where_both_sides_can_meet() -> None:
    _, joint, _ = planned("gpt2")
    assert [str(each.meets) for each in meetings(joint)][:3] == [
        "blocks.0.hook_resid_mid", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid",
    ]  # fmt: skip
    _, joint, _ = planned("gpt_neox")
    assert {each.meets.kind for each in meetings(joint) if each.meets} == {"resid_pre"}  # in a parallel block there is no other stream
    assert [each.meets for each in meetings(joint)][-1] == Site(4, "resid_pre")
