"""Plans that weigh what asking a device costs, and that are told from a few sweeps: by counts, and one by what it makes a call ask for."""

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

import attrib
from attrib.core.rates import FREE, LAUNCH, RATES, UNKNOWN, WAIT, Asking, Rates, asking
from attrib.core.types import EXACT, LINEAR, BudgetError, Policy, Site
from attrib.engine.plan import choose
from attrib.engine.plan.choose import ASKED, least_memory, plan_pack, weight
from attrib.engine.plan.choose_joint import JointPlan
from attrib.engine.plan.runs import FEW, most_that_fit
from attrib.engine.plan.task import Task
from attrib.engine.precision import precision_of
from attrib.engine.sweep.cells import ON_CPU, ON_CUDA, pieces_of
from attrib.models.transformer import ModelConfig
from bench.engine.cases import latents
from bench.engine.launches import SMALL
from tests.support.pretend import NAME, NAMED, pretending
from tests.support.tolerances import ROUNDING, assert_close

CONFIG = ModelConfig(
    n_layers=4, d_model=96, n_heads=4, n_kv_heads=4, d_head=24, d_mlp=384, d_vocab=100, n_ctx=256, norm="layer", eps=1e-5,
    activation="gelu_tanh", gated=False, positions="learned", attention_scale=24**-0.5,
)  # fmt: skip
TIGHT = 24 << 20
SMALL_CASE = latents(SMALL, 0, 3, 32, d_sae=256, active=(20, 20))


def task(policy: Policy = EXACT, costs: Asking = FREE, positions: int = 96, rows: int = 20) -> Task:
    counts = ((rows,) * positions,)
    ends = Site(0, "resid_pre"), Site(3, "resid_pre")
    return Task(CONFIG, policy, *ends, counts, counts, 4, pieces=ON_CUDA._replace(asking=costs))


def test_what_asking_costs_follows_from_the_device():
    assert asking(torch.device("cpu")) == FREE
    assert pieces_of(torch.device("cpu")) == ON_CPU
    assert asking(torch.device("meta")) == Asking(round(LAUNCH * UNKNOWN.float32), round(WAIT * UNKNOWN.float32))
    assert all(rates.launch > 0 and rates.wait > 0 for rates in RATES.values())


DTYPES = {
    "float64": "float64", "float32": "float32", "tf32": "tf32", "bfloat16": "bfloat16", torch.float32: "float32", None: "float32",
}  # fmt: skip
"""What products go by which rate: what a call asks for, of a model in float32."""


@pytest.mark.parametrize("dtype", DTYPES)
def test_asking_is_weighed_beside_products_of_the_precision(dtype: torch.dtype | str | None):
    products = precision_of(SMALL_CASE.model, dtype).products
    assert products == DTYPES[dtype]
    rate = UNKNOWN.of(products)
    assert pieces_of(torch.device("meta"), products) == ON_CUDA._replace(asking=Asking(round(LAUNCH * rate), round(WAIT * rate)))
    assert pieces_of(torch.device("cpu"), products) == ON_CPU


@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, "bfloat16"), (torch.float16, "bfloat16"), (torch.float64, "float64")])
def test_a_model_s_own_precision_is_what_its_plan_goes_by(dtype: torch.dtype, rate: str):
    assert precision_of(SMALL_CASE.model.to(dtype=dtype), None).products == rate


def test_a_gpu_is_looked_up_by_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    asking.cache_clear()
    assert asking(torch.device("cuda", 3)) == Asking(335_000_000, 670_000_000)
    assert asking(torch.device("cuda", 3), "tf32") == Asking(2_472_500_000, 4_945_000_000)
    assert asking(torch.device("cuda", 3), "bfloat16") == Asking(4_945_000_000, 9_890_000_000)
    asking.cache_clear()


@pytest.mark.parametrize("policy", [EXACT, LINEAR])
def test_larger_pieces_win_where_asking_costs(policy: Policy):
    free, dear = (plan_pack(task(policy, costs), TIGHT) for costs in (FREE, Asking(100_000_000, 200_000_000)))
    assert len(free.sweeps) > 1
    assert dear.cost.asked < free.cost.asked
    assert dear.cost.total >= free.cost.total
    assert max(dear.peak, free.peak) <= TIGHT
    at = dear.task
    assert weight(at, dear.cost, len(dear.sweeps)) <= weight(at, free.cost, len(free.sweeps))
    assert weight(at, free.cost, 3) == free.cost.total + 1e8 * ASKED.launches * free.cost.asked + 2e8 * ASKED.waits * 3


def test_equal_work_is_planned_once():
    first = plan_pack(task(), TIGHT)
    assert plan_pack(task(), TIGHT, prompt=3) is first
    for other, budget in ((task(), TIGHT + 1), (task(rows=21), TIGHT), (task(LINEAR), TIGHT), (task(costs=Asking(1, 1)), TIGHT)):
        assert plan_pack(other, budget) is not first
    for prompt in (0, 3):  # which is told each time
        with pytest.raises(BudgetError, match=f"too few for prompt {prompt},"):
            plan_pack(task(), 10, prompt)


def planned(dtype: str, to: Callable[[Any], Any]) -> attrib.Plan:
    """The plan of a call whose model and dictionaries are put somewhere."""
    ends = (to(SMALL_CASE.model), to(SMALL_CASE.source), to(SMALL_CASE.target))
    return attrib.plan(*ends, SMALL_CASE.tokens, dtype=dtype, policy=LINEAR, active=20, precision_rows=0)


def test_a_call_in_tf32_asks_for_fewer_products(monkeypatch: pytest.MonkeyPatch):
    """On a GPU a two-thousandth as fast, so that a call that a CPU can compute is weighed as a large one is."""
    slow = (rate / 2000 for rate in RATES[NAMED][:4])
    monkeypatch.setitem(RATES, NAMED, Rates(*slow, bytes=1e9))
    asking.cache_clear()
    found, launches, plans = {}, {}, {}
    for dtype in ("float32", "tf32"):
        with pretending() as device:
            ends = [each.to(device=NAME) for each in (SMALL_CASE.model, SMALL_CASE.source, SMALL_CASE.target)]
            plans[dtype] = planned(dtype, lambda given: given.to(device=NAME))
            device.begin()
            found[dtype] = attrib.latent_to_latent(
                *ends, SMALL_CASE.tokens, dtype=dtype, policy=LINEAR, keep=attrib.Dense(), precision_rows=0
            )
            launches[dtype] = device.counts.total.launches
    asking.cache_clear()
    (exact,), (rounded,) = (plan.packs for plan in plans.values())
    assert rounded.cost.asked < exact.cost.asked
    assert rounded.cost.total > exact.cost.total
    assert launches["tf32"] < launches["float32"]
    assert_close(found["tf32"].dense(0), found["float32"].dense(0), ROUNDING)


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_sweeps_that_several_sets_join_are_weighed_so_too(dtype: str):
    with pretending():
        model, one, other = (each.to(device=NAME) for each in (SMALL_CASE.model, SMALL_CASE.source, SMALL_CASE.target))
        ((pack,),) = (attrib.plan(model, [one, one], other, SMALL_CASE.tokens, dtype=dtype, precision_rows=0).packs,)
        assert isinstance(pack, JointPlan)
        assert pack.joint.pieces.asking == asking(model.device, precision_of(model, dtype).products)
        assert pack.joint.pieces.asking.launch == round(RATES[NAMED].launch * RATES[NAMED].of(dtype))


def test_a_cpu_plans_alike_in_whatever_precision():
    exact, rounded = (planned(dtype, lambda given: given).packs for dtype in ("float32", "tf32"))
    assert exact == rounded
    assert exact[0].task.pieces.asking == FREE


@pytest.mark.parametrize("costs", [FREE, Asking(1_000_000, 2_000_000)])
def test_plans_told_from_a_few_sweeps_weigh_as_much_as_the_least(costs: Asking, monkeypatch: pytest.MonkeyPatch):
    wanted = task(EXACT, costs)
    told = plan_pack(wanted, TIGHT // 3)
    assert len(told.sweeps) > FEW
    monkeypatch.setattr(choose, "FEW", math.inf)  # all sweeps are looked for, in every way
    monkeypatch.setattr(choose, "_plan", choose._plan.__wrapped__)  # nothing is remembered
    exact = plan_pack(wanted, TIGHT // 3)
    assert weight(told.task, told.cost, len(told.sweeps)) <= 1.02 * weight(exact.task, exact.cost, len(exact.sweeps))
    assert told.sweeps[0][0] == 0
    assert told.sweeps[-1][1] == wanted.n_targets
    assert all(end == first for (_, end), (first, _) in zip(told.sweeps, told.sweeps[1:], strict=False))


@pytest.mark.parametrize("costs", [FREE, Asking(100_000, 200_000), Asking(2_000_000, 4_000_000), Asking(335_000_000, 670_000_000)])
def test_what_cannot_win_is_left_out_and_nothing_else(costs: Asking, monkeypatch: pytest.MonkeyPatch):
    """Random work in random budgets, planned with and without looking at what weighs much more in one sweep than the best so far."""
    random, several = Random(0), 0
    for _ in range(50):
        positions, rows = random.choice([5, 17, 40]), random.choice([1, 4, 12])
        ends = [(tuple(random.choice([0, rows, 2 * rows]) for _ in range(positions)),) for _ in range(2)]
        policy = random.choice([EXACT, LINEAR])
        wanted = replace(task(policy, costs), targets=ends[0], sources=ends[1], walks=random.random() < 0.3)
        if not (wanted.n_targets and wanted.n_sources):
            continue
        budget = int(least_memory(wanted) * random.choice([1.05, 1.5, 3, 10, 1000]))
        found = choose._plan.__wrapped__(wanted, budget)
        with monkeypatch.context() as patched:
            patched.setattr(choose, "SPARED", math.inf)
            want = choose._plan.__wrapped__(wanted, budget)
        assert weight(wanted, found.cost, len(found.sweeps)) <= weight(wanted, want.cost, len(want.sweeps))
        assert found.peak <= budget
        if costs == FREE:
            assert found == want
        several += len(found.sweeps) > 1
    assert several > 3


@pytest.mark.parametrize("fixed", [0, 300, 900])
@pytest.mark.parametrize("slope", [1, 3, 60])
@pytest.mark.parametrize("about", [0, 1, 7, 150, 100_000])
def test_the_most_rows_that_fit(fixed: int, slope: int, about: int):
    asked = list[int]()

    def peak(rows: int) -> int:
        asked.append(rows)
        return fixed + slope * rows

    count, budget = 500, 1000
    rows, used = most_that_fit(peak, count, budget, about)
    most = min(count, (budget - fixed) // slope)
    assert used == fixed + slope * rows <= budget
    assert rows >= most - max(1, most // 50) or 100 * used >= 99 * budget
    assert len(asked) <= 12


def test_small_pieces_are_taken_for_what_is_planned_by_counts_alone():
    plan = plan_pack(replace(task(), pieces=ON_CPU), 1 << 40)
    assert len(plan.sweeps) == 1
    assert plan.task.pieces == ON_CPU._replace(select=plan.task.pieces.select)
