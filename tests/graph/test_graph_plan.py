"""The plan of a graph is what is then done: operations and memory, of opening prompts and of sweeps, as torch counts them."""

from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import EXACT, LINEAR, BudgetError, Difference, InputError, Policy, Site, Threshold, TopK, TopLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.graph import Custom, Latents, Neurons, Span, ends
from attrib.graph.building import _Call
from attrib.graph.given import as_given, as_sealed
from attrib.graph.options import GraphAsked
from attrib.models.transformer import Model
from tests.attribution.test_plan import BARE, WIDTH, assert_about, large
from tests.support.builders import Family, build, dictionary, normal, prompt
from tests.support.covering import each_pair
from tests.support.cut_cases import SETS, ours
from tests.support.measured import measured, peak

NOTHING = Threshold(1e30)
D_SAE = 120


def topk(site: str, k: int = 12, d_sae: int = D_SAE) -> Dictionary:
    return dictionary("topk", site=site, d_in=WIDTH, d_sae=d_sae, k=k)


def transcoder(layer: int, last: int, seed: int = 3, skips: bool = False) -> Dictionary:
    """With biases at both ends; it writes from its own layer to the last."""
    writes = tuple(Site(later, "mlp_out") for later in range(layer, last + 1))
    width = len(writes) * WIDTH
    return from_tensors(
        site=Site(layer, "mlp_in"), writes=writes, W_enc=normal(WIDTH, D_SAE, seed=seed) * WIDTH**-0.5, b_enc=normal(D_SAE, seed=seed + 1),
        W_dec=normal(D_SAE, width, seed=seed + 2) / 4, b_dec=normal(width, seed=seed + 3),
        **({"W_skip": normal(WIDTH, WIDTH, seed=seed + 4) / 9} if skips else {}),
    )  # fmt: skip


GIVEN: dict[str, Any] = {
    "none": lambda: [],
    "mlp_out": lambda: [topk(f"blocks.{layer}.hook_mlp_out") for layer in (1, 2, 3)],
    "residual": lambda: [topk("blocks.1.hook_resid_pre", 40), topk("blocks.3.hook_resid_pre", 5, 6000)],
    "skips": lambda: [transcoder(layer, layer, 10 * layer, skips=True) for layer in (1, 2)],
    "cross": lambda: [transcoder(layer, 3, 10 * layer) for layer in (1, 2, 3)],
    "units": lambda: [Neurons(1, 10), Neurons(2, 50)],
}
TARGETS: dict[str, Any] = {
    "logits": TopLogits(10),
    "span": [Span(1), Difference(1, [2, 3]), Custom("mean", torch.ones(WIDTH), unembeds=True)],
}


def call_of(model: Model, given: Any, tokens: list[Tensor], **options: Any) -> _Call:
    return _Call(model, as_sealed(model, as_given(given, "dictionaries")), tokens, GraphAsked(**options))


def bytes_of(value: Any, seen: dict[int, int]) -> int:
    """Of all tensors in it, each storage once; models and dictionaries are there all the time."""
    if isinstance(value, Tensor):
        seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    elif isinstance(value, dict):
        bytes_of(list(value.values()), seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            bytes_of(each, seen)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, Model | Dictionary):
        bytes_of([getattr(value, name) for name in value.__dataclass_fields__], seen)
    return sum(seen.values())


# -------------------------------------------------------------------------------------- opening a prompt


@pytest.mark.few
@each_pair(
    family=["gpt2", "gemma2", "gpt_neox"], which=[*GIVEN], policy=[EXACT, LINEAR], mlps=["exact", "leaf"], length=[1, 9, 30],
    dtype=[torch.float32, torch.float64],
)  # fmt: skip
def test_memory_of_opening_a_prompt_is_bounded(
    family: Family, which: str, policy: Policy, mlps: Any, length: int, dtype: torch.dtype
):  # fmt: skip
    targets = TARGETS["span" if length > 1 else "logits"]
    call = call_of(large(family), GIVEN[which](), [prompt(length)], policy=policy, mlps=mlps, dtype=dtype, targets=targets)
    found: list[Any] = []
    used = peak(lambda: found.append(call.ends.open(call.prompts[0])))
    planned = call._joint((call.prompts[0], found[0])).opened
    assert used <= planned.peak <= 3 * used, f"{used / planned.peak:.3f} of what was planned"
    kept = bytes_of(found[0], {})
    assert kept <= planned.whole <= 1.1 * kept, f"{kept / planned.whole:.3f} of what was planned"


@pytest.mark.few
@pytest.mark.parametrize("which", [*GIVEN])
def test_targets_read_in_runs_are_those_read_at_once(which: str, monkeypatch: pytest.MonkeyPatch):
    call = call_of(large("gemma2"), GIVEN[which](), [prompt(9)], policy=EXACT)
    whole = call.ends.open(call.prompts[0])
    monkeypatch.setattr(ends, "READ_AT_ONCE", 2)
    runs = call.ends.open(call.prompts[0])
    assert max(len(end.targets.position) for end in whole.bundle.targets) > 2
    torch.testing.assert_close(runs.own, whole.own)
    for found, wanted in zip(runs.bundle.targets, whole.bundle.targets, strict=True):
        torch.testing.assert_close(found.targets._asdict(), wanted.targets._asdict())


# ----------------------------------------------------------------------------------------- whole calls


@pytest.mark.few
@each_pair(family=["gpt2", "gemma2", "gpt_neox", BARE[0]], which=[*GIVEN], policy=[EXACT, LINEAR], lengths=[(11,), (5, 1, 3)])
def test_a_plan_is_what_the_call_does(family: Family, which: str, policy: Policy, lengths: tuple[int, ...]):
    model, tokens = large(family), [prompt(length, seed=length) for length in lengths]
    given = GIVEN[which]()
    targets = [*TARGETS["span"], TopLogits(5)] if min(lengths) > 1 else TopLogits(5)
    options: dict[str, Any] = {"policy": policy, "targets": targets, "keep": TopK(5)}
    plan = attrib.graph.plan(model, given, tokens, **options)
    assert plan.floor is None
    assert plan.direction == "joined"
    for hashed in (model, *(d for d in given if isinstance(d, Dictionary))):
        assert hashed.fingerprint
    graphs, counted, used = measured(lambda: attrib.graph.build(model, given, tokens, **options))
    assert len(graphs) == len(lengths)
    assert_about(counted, plan.flops, 1.01, (family, which, policy, lengths))
    assert 0.25 * plan.peak <= used <= 1.2 * plan.peak + plan.copies + plan.result, f"{used / plan.peak:.3f} of the memory"
    assert 12 * sum(map(len, graphs)) <= plan.result


@pytest.mark.long
@pytest.mark.parametrize("max_nodes", [20, 150])
def test_a_plan_of_the_rows_that_matter_is_about_what_they_take(max_nodes: int):
    model, given, tokens = large("gpt2"), GIVEN["cross"](), [prompt(11), prompt(5)]
    options: dict[str, Any] = {"max_nodes": max_nodes, "block": 50, "targets": TopLogits(5)}
    plan = attrib.graph.plan(model, given, tokens, **options)
    assert len(plan.packs) == 2
    _, counted, used = measured(lambda: attrib.graph.build(model, given, tokens, **options))
    assert_about(counted, plan.flops, 1.5, max_nodes)
    assert used <= 1.2 * plan.peak + 2 * plan.result, f"{used} of {plan.peak} {plan.result}"
    whole = attrib.graph.plan(model, given, tokens, targets=TopLogits(5))
    assert plan.flops < whole.flops
    assert plan.result < whole.result


def test_where_all_rows_take_fewer_products_all_are_planned():
    model, given = large("gpt2"), GIVEN["mlp_out"]()
    plan = attrib.graph.plan(model, given, prompt(12), max_nodes=10_000)
    whole = attrib.graph.plan(model, given, prompt(12))
    assert (plan.flops, len(plan.packs)) == (whole.flops, 1)
    assert whole.peak <= plan.peak <= 2 * whole.peak  # which counts what ranking rows holds beside


@pytest.mark.parametrize("chosen", [{}, {"max_nodes": 20}])
def test_a_plan_refuses_what_the_call_refuses_in_its_words(chosen: dict[str, Any]):
    model = build("gpt2", torch.float64)
    cuts, prompts = ours(SETS["transcoders"](model)), [prompt(3), prompt(12, seed=1)]
    cases: list[tuple[type[Exception], dict[str, Any]]] = [
        (BudgetError, {"budget": 10}), (InputError, {"targets": Latents([(7, 0, 0)])}), (InputError, {"mlps": "none"}),
        (InputError, {"positions": 3}), (InputError, {"keep": TopK(0)}),
    ]  # fmt: skip
    for error, options in cases:
        said = []
        for asked in (attrib.graph.plan, attrib.graph.build):
            with pytest.raises(error) as refused:
                asked(model, cuts, prompts, **options, **chosen)
            said.append(str(refused.value))
        assert said[0] == said[1]
    with pytest.raises(TypeError, match="progress"):
        attrib.graph.plan(model, cuts, prompts, progress=True)


@pytest.mark.parametrize("chosen", [{}, {"max_nodes": 20}])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_budget_that_suffices_is_kept(family: Family, chosen: dict[str, Any]):
    """In ever smaller sweeps, down to the least that a refusal names."""
    given, tokens = (GIVEN["mlp_out"](), prompt(60)) if chosen else (GIVEN["skips"](), prompt(12))
    model = large(family)
    with pytest.raises(BudgetError) as refused:
        attrib.graph.plan(model, given, tokens, budget=10, **chosen)
    least = int(str(refused.value).split("at least ")[1].split(".")[0].replace(",", ""))
    with pytest.raises(BudgetError):
        attrib.graph.plan(model, given, tokens, budget=least - 1, **chosen)
    for budget in (least, 2 * least):
        plan = attrib.graph.plan(model, given, tokens, budget=budget, **chosen)
        assert plan.peak <= budget
        used = peak(lambda budget=budget: attrib.graph.build(model, given, tokens, budget=budget, keep=NOTHING, **chosen))
        assert used <= 1.2 * budget, f"{used / budget:.3f} of the budget"
