"""What `attrib.plan` tells before a run is what the run does: operations, memory, way, sweeps; and a budget is kept."""

import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import pytest
import torch

import attrib
import attrib.engine.plan.choose
import attrib.engine.tiles
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.attribution.opening import opening_of
from attrib.core.types import EXACT, LINEAR, BudgetError, InputError, Policy, Site, Threshold
from attrib.dictionaries.dictionary import COMPETING
from attrib.engine.blocks.multiplier import VARIABLE
from attrib.engine.path import Path
from attrib.engine.plan.choose import PackPlan, plan_pack
from attrib.engine.plan.memory import peak_memory
from attrib.engine.sweep.cells import ON_CPU, ON_CUDA, Pieces
from attrib.engine.tiles import adjoint, task_of
from tests.support.builders import FAMILIES, Family, attrib_model, bare, build, dictionary, normal, prompt
from tests.support.covering import each_pair
from tests.support.measured import flops, measured, peak
from tests.support.tolerances import FOREIGN, assert_close

WIDTH = 192
_HEADS = {"hidden_size": WIDTH, "num_attention_heads": 12, "intermediate_size": 512, "max_position_embeddings": 128}
_GROUPS = _HEADS | {"head_dim": 16, "num_key_value_heads": 4}
LARGE: dict[Family, dict[str, int]] = {
    "gpt2": {"n_embd": WIDTH, "n_head": 12, "n_positions": 128},
    "llama": _GROUPS,
    "gpt_neox": _HEADS,
    "gemma3_text": _GROUPS,
    "gemma2": _GROUPS,
    "olmo2": _GROUPS,
}
"""Beside the two: an MLP beside attention, norms of each head and behind what is added, caps, norms of all heads and none before."""
BARE = ["gpt2 without masks", "llama without masks and norms", "gpt2 without MLPs", "gemma2 without masks and MLPs"]
"""Where every position sees all others, and where there is less to pass."""
LOGITS = attrib.TopLogits(10)
families = pytest.mark.parametrize("family", FAMILIES)
KINDS, TWO = ("token_to_latent", "latent_to_latent", "latent_to_logit"), (EXACT, LINEAR)
policies = pytest.mark.parametrize("policy", TWO, ids=["exact", "linear"])
kinds = pytest.mark.parametrize("kind", KINDS)


@lru_cache
def large(family: Family) -> attrib.Model:
    of, _, without = family.partition(" without ")
    return bare(attrib_model(of, **LARGE[of]), without)  # type: ignore[arg-type, index]


def topk(layer: int, k: int = 20, width: int = WIDTH, rule: Any = "topk") -> attrib.Dictionary:
    return dictionary(rule, site=f"blocks.{layer}.hook_resid_pre", d_in=width, d_sae=500, **({"k": k} if rule == "topk" else {}))


def planned(kind: str, model: attrib.Model, tokens: Any, k: int = 20, rule: Any = "topk", **options: Any) -> attrib.Plan:
    width = model.config.d_model
    source, target = topk(0, k, width, rule), topk(3, k, width, rule)
    ends = {"token_to_latent": (None, target), "latent_to_latent": (source, target), "latent_to_logit": (source, LOGITS)}[kind]
    return attrib.plan(model, *ends, tokens, **options)


def run(kind: str, model: attrib.Model, tokens: Any, k: int = 20, rule: Any = "topk", **options: Any) -> attrib.Edges:
    width = model.config.d_model
    source, target = topk(0, k, width, rule), topk(3, k, width, rule)
    if kind == "token_to_latent":
        return attrib.token_to_latent(model, target, tokens, **options)
    if kind == "latent_to_latent":
        return attrib.latent_to_latent(model, source, target, tokens, **options)
    return attrib.latent_to_logit(model, source, tokens, logits=LOGITS, **options)


def assert_about(got: float, want: float, factor: float, what: object) -> None:
    assert want / factor <= got <= want * factor, f"{what}: {got / want:.3f} of what was planned"


def assert_counted(got: int, want: int, what: object) -> None:
    """Operations of a sweep: one product of an attention's four is a hundredth of them, and a plan may not miss it."""
    assert 0.99 * want <= got <= 1.001 * want, f"{what}: {got / want:.4f} of what was planned"


# ------------------------------------------------------------------------------------- operations


@pytest.mark.few
@each_pair(kind=KINDS, family=FAMILIES, policy=TWO, lengths=[(12,), (8, 1, 5)])
def test_operations_are_those_planned(family: Family, kind: str, policy: Policy, lengths: tuple[int, ...]):
    model, tokens = large(family), [prompt(length, seed=length) for length in lengths]
    plan = planned(kind, model, tokens, policy=policy)
    assert_about(flops(lambda: run(kind, model, tokens, policy=policy)), plan.flops, 1.1, plan)
    assert plan.flops == sum(plan.flops_by_part.values())
    assert 0 < plan.floor <= plan.flops


@families
@kinds
def test_the_least_bytes_are_no_more_than_those_planned(family: Family, kind: str):
    plan = planned(kind, large(family), prompt(20))
    assert 0 < plan.floor_bytes <= sum(plan.bytes_by_part.values())


@pytest.mark.few
@each_pair(family=FAMILIES, policy=TWO, is_tight=[True, False])
def test_operations_of_several_sweeps_and_of_the_reconstruction_alone(family: Family, policy: Policy, is_tight: bool):
    model, tokens = large(family), prompt(9)
    options = {"budget": planned("latent_to_latent", model, tokens, 8, policy=policy).peak // 3} if is_tight else {"error": False}
    plan = planned("latent_to_latent", model, tokens, 8, policy=policy, **options)
    assert (len(plan.packs[0].sweeps) > 1) == is_tight
    assert_about(flops(lambda: run("latent_to_latent", model, tokens, 8, policy=policy, **options)), plan.flops, 1.1, options)


def forced(task: Any) -> list[PackPlan]:
    """Every way of taking a pack's Jacobian, each as the plan that it would be if it were the only one."""
    found = []
    for option in list(attrib.engine.plan.choose._options(task)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attrib.engine.plan.choose, "_options", lambda task, option=option: iter([option]))
            patch.setattr(attrib.engine.plan.choose, "_plan", attrib.engine.plan.choose._plan.__wrapped__)  # nothing is remembered
            found.append(plan_pack(task, 1 << 40))
    return found


def paths(family: Family, policy: Policy, lengths: tuple[int, ...], k: int = 20, targets: Any = None) -> list[Path]:
    source, target = topk(0, k), topk(3, k) if targets is None else targets
    return [attrib.path(large(family), source, target, prompt(length, seed=length), policy=policy) for length in lengths]


WAYS = [("reverse", None), ("forward", None), ("both", 0), ("both", 1)]


def held(path: Path) -> int:
    """Bytes of the rows at both ends, which are the path's own, and in the plan."""
    return sum(rows.numel() * rows.element_size() for rows in (path.sources.direction, path.targets.cotangent))


@pytest.mark.few
@pytest.mark.parametrize(
    ("family", "policy", "length"),
    [*product(LARGE, TWO, (16,)), *zip(BARE, TWO * 2, (16,) * 4, strict=True), ("gpt2", EXACT, 40), ("gpt_neox", LINEAR, 40)],
    ids=str,
)
def test_operations_and_memory_of_every_way(family: Family, policy: Policy, length: int):
    """Of all kinds of blocks, with several bands of rows; and with so many rows that the rows themselves are most of it."""
    (found,) = paths(family, policy, (length,))
    plans = forced(task_of([found]))
    assert [(plan.way, plan.layer) for plan in plans] == WAYS
    for plan in plans:
        got = measured(lambda plan=plan: sum(tile.gradient.numel() for _, tile in adjoint([found], plan)))
        assert_counted(got.flops, plan.cost.total, (plan.way, plan.layer))
        assert plan.floor.total <= plan.cost.total
        assert plan.peak > 4e6
        assert_about(got.peak + held(found), plan.peak, 1.2, (plan.way, plan.layer))


@pytest.mark.few
@pytest.mark.parametrize(("family", "policy"), [*zip([*LARGE, *BARE], TWO * 5, strict=True)])
def test_operations_of_every_way_with_several_prompts(family: Family, policy: Policy):
    found = paths(family, policy, (8, 1, 5))
    plans = forced(task_of(found))
    assert [(plan.way, plan.layer) for plan in plans] == WAYS
    for plan in plans:
        assert_counted(flops(lambda plan=plan: list(adjoint(found, plan))), plan.cost.total, (plan.way, plan.layer))
        assert plan.floor.total <= plan.cost.total


@families
def test_the_cheapest_way_that_fits_is_taken(family: Family):
    for k, targets in ((3, None), (20, None), (20, attrib.TokenLogits([1, 2]))):
        task = task_of(paths(family, EXACT, (16,), k, targets))
        plans = forced(task)
        cheapest = min(plans, key=lambda plan: plan.cost.total)
        chosen = plan_pack(task, 1 << 40)
        assert (chosen.way, chosen.layer, chosen.cost.total) == (cheapest.way, cheapest.layer, cheapest.cost.total)
    # less memory than the cheapest needs in one sweep: the ways that are left, in as many sweeps as each needs
    budget = cheapest.peak - 1
    assert plan_pack(task, budget).peak <= budget
    assert plan_pack(task, budget).cost.total >= cheapest.cost.total


@pytest.mark.long
@families
def test_large_pieces_become_smaller_where_they_do_not_fit(family: Family):
    (found,) = paths(family, EXACT, (40,))
    task = replace(task_of([found]), pieces=ON_CPU._replace(band=8192, chunk=8192, mlp=4096))
    ample, tight = plan_pack(task, 1 << 40), plan_pack(task, 36_000_000)
    assert ample.task.pieces == task.pieces
    assert task.pieces.band > tight.task.pieces.band >= ON_CPU.band
    assert tight.peak <= 36_000_000 < ample.peak
    assert len(tight.sweeps) == 1
    assert tight.cost.total < 1.05 * ample.cost.total
    for plan in (ample, tight):
        (_, tile), *rest = adjoint([found], plan)
        assert not rest
        assert_close(tile.gradient, next(adjoint([found], plan_pack(task_of([found]), 1 << 40)))[1].gradient, FOREIGN)
    assert ON_CPU.smaller == ON_CPU
    assert ON_CUDA.smaller[3:5] == ON_CUDA[3:5]


def test_what_is_selected_at_once_is_in_the_plan():
    (found,) = paths("gpt2", EXACT, (40,), targets=attrib.TokenLogits([1, 2]))
    task = task_of([found])
    many = replace(task, targets=((0,) * 39 + (4000,),))
    small, large = (plan_pack(replace(many, pieces=ON_CPU._replace(select=size)), 1 << 40).peak for size in (1 << 10, 1 << 24))
    assert large > small + 4 * 4 * 4000 * task.n_sources  # several numbers for each of the tile


@families
def test_the_direction_follows_the_counts(family: Family):
    model, tokens = large(family), prompt(16)
    assert planned("token_to_latent", model, tokens).direction == "forward"
    assert attrib.plan(model, topk(0), attrib.TokenLogits([1, 2]), tokens).direction == "reverse"
    near = dictionary("topk", site="blocks.1.hook_resid_mid", d_in=WIDTH, d_sae=500, k=20)
    here = dictionary("topk", site="blocks.1.hook_mlp_out", d_in=WIDTH, d_sae=500, k=20)
    assert attrib.plan(model, near, here, tokens).direction == "local"


def cut(kind: Any, hook: str, **options: Any) -> attrib.Dictionary:
    return dictionary(kind, site=hook, d_in=WIDTH, d_sae=500, **({"k": 20} if kind == "topk" else {}), **options)


def cross_layer(layers: range) -> list[attrib.Dictionary]:
    """Layers of a cross-layer transcoder, of which a few latents are active at each position."""
    found = []
    for layer in layers:
        writes = tuple(Site(later, "mlp_out") for later in range(layer, layers.stop))
        W_enc, W_dec = normal(WIDTH, 300, seed=layer) * WIDTH**-0.5, normal(300, len(writes) * WIDTH, seed=10 + layer) / 4
        b_enc, b_dec = normal(300, seed=20 + layer) / 4 - 1, normal(len(writes) * WIDTH, seed=30 + layer) / 4
        found.append(from_tensors(site=Site(layer, "mlp_in"), writes=writes, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec))
    return found


CUTS: dict[str, Callable[[], list[attrib.Dictionary]]] = {
    "transcoders": lambda: [cut("skip_transcoder", "blocks.1.mlp.hook_in"), cut("transcoder", "blocks.2.mlp.hook_in")],
    "every layer": lambda: cross_layer(range(4)),
    "stream": lambda: [topk(1), cut("topk", "blocks.2.hook_resid_pre", normalize_activations="layer_norm")],
    "attn_out": lambda: [cut("topk", "blocks.1.hook_attn_out")],
    "mlp": lambda: [cut("topk", "blocks.1.mlp.hook_in"), cut("topk", "blocks.2.hook_mlp_out")],
}


def cut_paths(family: Family, which: str, effect: Any, lengths: tuple[int, ...]) -> Iterator[list[Path]]:
    """From a dictionary of one site, and from one of many where it can be put in beside the others."""
    cuts = CUTS[which]()
    for source in (topk(0), cross_layer(range(4))[0]):
        if len(source.writes) == 1 or which in ("stream", "attn_out"):
            given = {"cuts": cuts, "effect": effect}
            yield [attrib.path(large(family), source, topk(3), prompt(length, seed=length), **given) for length in lengths]
    if which == "every layer":
        given = {"cuts": cuts[1:], "effect": effect}
        yield [attrib.path(large(family), cuts[0], topk(3), prompt(length, seed=length), **given) for length in lengths]


@pytest.mark.few
@each_pair(which=[*CUTS], family=["gpt2", "gemma2", "gpt_neox"], effect=["direct", "total"])
def test_operations_and_memory_through_cuts(family: Family, which: str, effect: str):
    for lengths in ((16,),) if family == "gpt2" else ((8, 1, 5),):
        for found in cut_paths(family, which, effect, lengths):
            plans = forced(task_of(found))
            assert {plan.way for plan in plans[1:]} == {"forward", "both"}
            assert plans[0].way == "through" or (effect == "direct" and which in ("every layer", "mlp"))
            for plan in plans:
                got = measured(lambda plan=plan, found=found: sum(tile.gradient.numel() for _, tile in adjoint(found, plan)))
                assert_counted(got.flops, plan.cost.total, (plan.way, plan.layer))
                used = got.peak + sum(map(held, found))
                share = used / swept(plan)
                assert 0.7 < share <= 1.05, (plan.way, plan.layer, share)


def swept(plan: PackPlan) -> int:
    """The plan's bytes of a sweep from whose rows nothing is selected, which may be what takes most."""
    return peak_memory(replace(plan.task, pieces=plan.task.pieces._replace(select=0)), plan.way, plan.layer)


@pytest.mark.parametrize("products", ["torch", "onednn"])
def test_a_sweep_that_holds_less_than_the_selection_from_its_rows(products: str, monkeypatch: pytest.MonkeyPatch):
    """And, by oneDNN, no more than is planned with the block in which its products are put together."""
    monkeypatch.setenv(VARIABLE, products)
    test_operations_and_memory_through_cuts("gpt2", "stream", "direct")


@pytest.mark.few
@pytest.mark.parametrize(("which", "effect"), list(zip(CUTS, ["direct", "total"] * len(CUTS), strict=False)))
def test_operations_and_memory_through_cuts_where_rows_see_both_ways(which: str, effect: str):
    test_operations_and_memory_through_cuts(BARE[0], which, effect)


@pytest.mark.few
@each_pair(family=[*LARGE, *BARE], hook=["attn.hook_z", "hook_attn_out"], layer=[1, 3], policy=TWO)
def test_operations_and_memory_to_a_part_of_attention(family: Family, hook: str, layer: int, policy: Policy):
    """Where targets read within the last attention, tangents come up to there."""
    target = dictionary("topk", site=f"blocks.{layer}.{hook}", d_in=WIDTH, d_sae=500, k=20)
    (found,) = paths(family, policy, (16,), targets=target)
    plans = forced(task_of([found]))
    assert [(plan.way, plan.layer) for plan in plans] == [("reverse", None), ("forward", None), *(("both", at) for at in range(layer))]
    whole = [measured(lambda plan=plan: [tile.gradient for _, tile in adjoint([found], plan)]) for plan in plans]
    (want,) = whole[0].result
    for plan, ((gradient,), operations, used) in zip(plans[1:], whole[1:], strict=True):
        assert_close(gradient, want, FOREIGN, (plan.way, plan.layer))
        assert_counted(operations, plan.cost.total, (plan.way, plan.layer))
        assert_about(used + held(found), plan.peak, 1.2, (plan.way, plan.layer))


# ----------------------------------------------------------------------------------------- memory


@pytest.mark.few
@families
@kinds
def test_memory_of_a_call(family: Family, kind: str):
    model, tokens = large(family), prompt(60)
    plan = planned(kind, model, tokens)
    for cached in (model, topk(0), topk(3)):
        assert cached.fingerprint
    used = peak(lambda: run(kind, model, tokens, keep=Threshold(1e30)))
    assert plan.peak > 4e6
    assert_about(used, plan.peak, 1.2, plan)


# ---------------------------------------------------------------------------------------- budgets


@families
@policies
def test_a_tight_budget_gives_several_sweeps_and_the_same_values(family: Family, policy: Policy):
    model, tokens = large(family), [prompt(9), prompt(5, seed=2)]
    ample = planned("latent_to_latent", model, tokens, 8, policy=policy)
    assert [len(pack.sweeps) for pack in ample.packs] == [1]
    tight = planned("latent_to_latent", model, tokens, 8, policy=policy, budget=ample.peak // 3)
    assert len(tight.packs) == 2  # together they do not fit
    assert len(tight.packs[0].sweeps) > 1
    assert tight.peak <= ample.peak // 3
    assert tight.flops >= ample.flops
    for pack in tight.packs:
        ends = [0, *(end for _, end in pack.sweeps)]
        assert pack.sweeps == tuple(pairwise(ends))
        assert ends[-1] == pack.task.n_targets
    want = run("latent_to_latent", model, tokens, 8, policy=policy)
    got = run("latent_to_latent", model, tokens, 8, policy=policy, budget=ample.peak // 3)
    assert torch.equal(got.indices, want.indices)
    assert_close(got.gradient, want.gradient, FOREIGN)


@pytest.mark.few
@families
@kinds
def test_the_smallest_budget_that_is_named_will_do(family: Family, kind: str):
    model, tokens = build(family), [prompt(2), prompt(4)]
    with pytest.raises(BudgetError, match="budget: 1 bytes are too few for prompt 1, which needs at least"):
        planned(kind, model, tokens, k=2, budget=1)
    budget = 1
    for _ in range(3):  # of the encoding, of a sweep, of a sweep of a later prompt
        try:
            planned(kind, model, tokens, k=2, budget=budget)
        except BudgetError as refused:
            budget = int(re.search(r"at least ([\d,]+)\.", str(refused))[1].replace(",", ""))
    plan = planned(kind, model, tokens, k=2, budget=budget)
    assert plan.peak <= budget
    with pytest.raises(BudgetError, match=f"at least {budget:,}"):
        planned(kind, model, tokens, k=2, budget=budget - 1)
    assert len(run(kind, model, tokens, k=2, budget=budget)) > 0
    with pytest.raises(BudgetError, match=f"at least {budget:,}"):
        run(kind, model, tokens, k=2, budget=budget - 1)


@families
def test_unsorted_targets_in_several_sweeps(family: Family):
    model, source = build(family, torch.float64), dictionary("topk", dtype=torch.float64)
    tokens, options = prompt(9), {"logits": attrib.TokenLogits([3, 9, 4]), "positions": [-1, 0, 4]}
    path = attrib.path(model, source, options["logits"], tokens, positions=[-1, 0, 4])
    # the public calls sort; whoever composes a path may not
    order = torch.tensor([8, 0, 5, 3, 1, 7, 2, 6, 4])
    shuffled = replace(
        path, targets=path.targets._replace(**{name: getattr(path.targets, name)[order] for name in ("position", "cotangent")})
    )
    plan = plan_pack(task_of([path]), 1 << 40)
    ((_, want),) = adjoint([path], plan)
    for sweeps in (((0, 9),), ((0, 2), (2, 3), (3, 9))):
        ((_, got),) = adjoint([shuffled], replace(plan, sweeps=sweeps))
        assert_close(got.gradient, want.gradient[order], FOREIGN, sweeps)
    budget = attrib.plan(model, source, options["logits"], tokens, positions=[-1, 0, 4]).peak * 9 // 10
    assert len(attrib.plan(model, source, options["logits"], tokens, positions=[-1, 0, 4], budget=budget).packs[0].sweeps) > 1
    tight, ample = (attrib.latent_to_logit(model, source, tokens, **options, **more) for more in ({"budget": budget}, {}))
    assert_close(tight.gradient, ample.gradient, FOREIGN)


# ------------------------------------------------------------------------------- what is known before


@pytest.mark.few
@families
@kinds
def test_topk_needs_no_forward_pass(family: Family, kind: str, monkeypatch: pytest.MonkeyPatch):
    model, tokens = build(family), [prompt(4), prompt(9)]
    counted = planned(kind, model, tokens, k=5, rule="standard")

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a forward pass")

    monkeypatch.setattr("attrib.attribution.needs.path_of", refuse)
    assert planned(kind, model, tokens, k=5).flops > 0
    guessed = planned(kind, model, tokens, rule="standard", active=40)
    assert sum(pack.task.n_sources for pack in guessed.packs) == (13 if kind == "token_to_latent" else 40 * 13)
    assert guessed.flops != counted.flops
    with pytest.raises(AssertionError, match="a forward pass"):
        planned(kind, model, tokens, rule="standard")


@families
def test_counts_known_before_are_those_counted(family: Family):
    model, tokens = build(family), prompt(9)
    for kind in ("token_to_latent", "latent_to_latent"):
        for positions in (None, -1, [2, -1]):
            (pack,) = planned(kind, model, tokens, k=5, positions=positions).packs
            ends = (None if kind == "token_to_latent" else topk(0, 5, 32), topk(3, 5, 32))
            counted = task_of([attrib.path(model, *ends, tokens, positions=positions)])
            assert (pack.task.targets, pack.task.sources) == (counted.targets, counted.sources)
    source = topk(0, 5, 32)
    for logits in (attrib.TopLogits(7), attrib.TokenLogits([3, 3, 4]), attrib.Difference(3, 4)):
        for positions in (None, [2, -1]):
            (pack,) = attrib.plan(model, source, logits, tokens, positions=positions).packs
            counted = task_of([attrib.path(model, source, logits, tokens, positions=positions)])
            assert (pack.task.targets, pack.task.sources) == (counted.targets, counted.sources)


@pytest.mark.parametrize("rule", COMPETING)
def test_every_rule_that_ranks_is_planned_with_the_ranking(rule: Any):
    """A rule of k places that is left out would be planned with less than half of what its encoding takes."""
    ranked, plain = topk(0), topk(0, rule="standard")
    other = replace(ranked, config=replace(ranked.config, rule=rule))
    opening = opening_of(large("gpt2"), other, topk(3), (), "direct", EXACT, True, 4)
    encoding = [opening._encoding(one, 40, 800) for one in (other, ranked, plain)]
    assert encoding[0] == encoding[1] > 2 * encoding[2]


def test_what_it_prints():
    plan = planned("latent_to_latent", large("gpt2"), [prompt(20), prompt(9)])
    first, *rest = str(plan).splitlines()
    assert re.fullmatch(rf"{plan.direction}: \d+\.\d\d GFLOP, \d\.\d\d of the floor, peak \d+ MB, result up to \d+\.\d \w+", first)
    assert [line.split()[0] for line in rest[: len(plan.flops_by_part)]] == list(plan.flops_by_part)
    assert len(rest) == len(plan.flops_by_part) + len(plan.packs)
    assert re.search(r"2 prompt\(s\), 580 × 580: \w+", rest[-1])


def test_bad_arguments():
    model, source, target, tokens = build("gpt2"), topk(1, 5, 32), topk(3, 5, 32), prompt(4)
    for options, words in (
        ({"active": 0}, "active: 0; expected at least 1"),
        ({"positions": 4}, r"positions: \[4\] for prompt 0, which has 4 tokens"),
        ({"dtype": "int8"}, "dtype: 'int8'"),
        ({"policy": Policy(norm="half")}, "policy: "),
    ):
        with pytest.raises(InputError, match=words):
            attrib.plan(model, source, target, tokens, **options)
    with pytest.raises(InputError, match=r"target: .* is not after"):
        attrib.plan(model, target, source, tokens)
    with pytest.raises(InputError, match="tokens: no prompts"):
        attrib.plan(model, source, target, [])
    with pytest.raises(BudgetError, match="budget: 1 bytes are too few for prompt 0"):
        attrib.plan(model, source, target, tokens, budget=1)


# ---------------------------------------------------------------------------------- out of memory


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Sweeps of more than `most` targets run out of memory; returns the rows of those that were tried."""
    tried: list[int] = []
    for plain in (attrib.engine.tiles.reverse, attrib.engine.tiles.meet):

        def sweep(on: Any, stop: Any, targets: Any, *rest: Any, plain: Any = plain) -> Any:
            tried.append(len(targets.value))
            if len(targets.value) > most:
                raise torch.OutOfMemoryError("out of memory")
            return plain(on, stop, targets, *rest)

        monkeypatch.setattr(attrib.engine.tiles, plain.__name__, sweep)
    return tried


@families
@pytest.mark.parametrize("ways", ["reverse", "both"])
def test_out_of_memory_goes_on_with_halves(family: Family, ways: str, monkeypatch: pytest.MonkeyPatch):
    (path,) = paths(family, EXACT, (9,), 4)
    plan = next(plan for plan in forced(task_of([path])) if plan.way == ways)
    ((_, whole),) = adjoint([path], plan)
    tried = limit(monkeypatch, 10)
    with pytest.warns(UserWarning, match="out of memory with 36 targets in one sweep"):
        tiles = [tile for _, tile in adjoint([path], plan)]
    assert tried == [36, 18, 9, 9, 18, 9, 9]
    assert [tile.first for tile in tiles] == [0, 9, 18, 27]
    assert_close(torch.cat([tile.gradient for tile in tiles]), whole.gradient, FOREIGN)


@families
def test_out_of_memory_in_a_call(family: Family, monkeypatch: pytest.MonkeyPatch):
    model, source, tokens = build(family, torch.float64), dictionary("topk", dtype=torch.float64), prompt(9)
    options = {"logits": attrib.TokenLogits([3, 9, 4]), "positions": [-1, 0]}
    want = attrib.latent_to_logit(model, source, tokens, **options)
    limit(monkeypatch, 2)
    with pytest.warns(UserWarning, match="going on with halves"):
        got = attrib.latent_to_logit(model, source, tokens, **options)
    assert torch.equal(got.indices, want.indices)
    assert_close(got.gradient, want.gradient, FOREIGN)


@families
def test_one_row_that_does_not_fit_is_an_error(family: Family, monkeypatch: pytest.MonkeyPatch):
    (path,) = paths(family, EXACT, (9,), 1)
    plan = next(plan for plan in forced(task_of([path])) if plan.way == "reverse")
    tried = limit(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="out of memory"):
        list(adjoint([path], plan))
    assert tried == [9, 4, 2, 1]


def values(paths: list[Path], plan: PackPlan) -> list[torch.Tensor]:
    """The Jacobian of each path of a pack, its tiles below each other."""
    tiles = list(adjoint(paths, plan))
    assert [number for number, _ in tiles] == sorted(number for number, _ in tiles)
    return [torch.cat([tile.gradient for number, tile in tiles if number == path]) for path in range(len(paths))]


@families
@pytest.mark.parametrize("ways", ["reverse", "both"])
def test_a_pack_that_runs_out_of_memory_goes_on_prompt_by_prompt(family: Family, ways: str, monkeypatch: pytest.MonkeyPatch):
    pack = paths(family, EXACT, (6, 4), 4)
    plan = next(plan for plan in forced(task_of(pack)) if plan.way == ways)
    want = values(pack, plan)
    tried = limit(monkeypatch, 20)
    with pytest.warns(UserWarning, match=f"out of memory with 2 prompt.s. going {ways}; going on in reverse, one at a time"):
        got = values(pack, plan)
    assert tried == [40, 24, 12, 12, 16]  # the first prompt alone is still too large
    for mine, whole in zip(got, want, strict=True):
        assert_close(mine, whole, FOREIGN)


@families
@pytest.mark.parametrize("ways", ["forward", "both"])
@pytest.mark.parametrize("lengths", [(9,), (6, 4)], ids=["one prompt", "two"])
def test_tangents_that_run_out_of_memory_give_way_to_cotangents(
    family: Family, ways: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    pack = paths(family, EXACT, lengths, 4)
    plan = next(plan for plan in forced(task_of(pack)) if plan.way == ways)
    want = values(pack, plan)

    held: list[weakref.ref[torch.Tensor]] = []
    plain = attrib.engine.tiles.reverse

    def lift(*_: Any) -> None:
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("out of memory")

    def reverse(*arguments: Any) -> Any:
        assert [ref() for ref in held] == [None], "what failed still holds its memory"
        return plain(*arguments)

    large = replace(plan, task=replace(plan.task, pieces=ON_CPU._replace(band=1 << 16)))
    pieces: list[Pieces] = []
    plain_primal = attrib.engine.tiles.primal
    monkeypatch.setattr(attrib.engine.tiles, "primal", lambda *a, **named: (pieces.append(named["pieces"]), plain_primal(*a, **named))[1])
    monkeypatch.setattr(attrib.engine.tiles, "lift", lift)
    monkeypatch.setattr(attrib.engine.tiles, "reverse", reverse)
    with pytest.warns(UserWarning, match=f"out of memory with {len(lengths)} prompt.s. going {ways}"):
        got = values(pack, large)
    assert pieces == [large.task.pieces, *[large.task.pieces.smaller] * len(lengths)]
    for mine, whole in zip(got, want, strict=True):
        assert_close(mine, whole, FOREIGN)


@pytest.mark.parametrize("ways", ["forward", "both"])
def test_tangents_through_cuts_give_way_to_cotangents_through_them(ways: str, monkeypatch: pytest.MonkeyPatch):
    pack = next(cut_paths("gpt2", "transcoders", "total", (6, 4)))
    plan = next(plan for plan in forced(task_of(pack)) if plan.way == ways)
    want = values(pack, plan)

    def lift(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(attrib.engine.tiles, "lift", lift)
    with pytest.warns(UserWarning, match=f"out of memory with 2 prompt.s. going {ways}"):
        got = values(pack, plan)
    for mine, whole in zip(got, want, strict=True):
        assert_close(mine, whole, FOREIGN)
