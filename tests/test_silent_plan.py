"""What is planned is what happens, for every kind of call: operations to a tenth, memory to a fifth; and a budget that is named will do."""

import random
import re
from itertools import product
from typing import Any

import pytest
import torch

import attrib
from attrib.types import EXACT, LINEAR, BudgetError, Site, Threshold
from tests.builders import Family, attrib_model, build, dictionary, prompt
from tests.test_budget import peak
from tests.test_plan import CUTS, LARGE, WIDTH, assert_about, flops, large, topk

LOGITS: dict[str, Any] = {
    "top": attrib.TopLogits(10),
    "tokens": attrib.Tokens([1, 2, 3]),
    "difference": attrib.Difference(3, 4),
    "direction": attrib.Direction(torch.ones(WIDTH)),
    "direction midway": attrib.Direction(torch.ones(WIDTH), Site(2, "resid_pre")),
}
ENDS = ("token_to_latent", "latent_to_latent", *LOGITS)
LENGTHS = ((60,), (8, 1, 5))


def grid() -> list[tuple[Any, ...]]:
    """Every kind of block, of ends, with and without the source's error, through every kind of cut, of both policies."""
    whole = product(LARGE, ENDS, (True, False), ("none", *CUTS), ("direct", "total"), (EXACT, LINEAR), LENGTHS, (None, [-1, 0]))
    return [
        case
        for case in whole
        if not (case[1] == "token_to_latent" and (not case[2] or case[3] == "every layer"))
        and not (case[3] == "none" and case[4] == "total")
    ]


def call_of(family: Family, ends: str, error: bool, which: str, effect: Any, policy: Any, lengths: tuple[int, ...], positions: Any) -> Any:
    """The plan of a case, and the call itself, which keeps nothing."""
    model, source, target = large(family), topk(0), topk(3)
    cuts = [] if which == "none" else CUTS[which]()
    if which == "every layer":
        source, *cuts = cuts
    tokens = [prompt(length, seed=length) for length in lengths]
    options: dict[str, Any] = {"cuts": cuts, "effect": effect, "policy": policy, "positions": positions, "keep": Threshold(1e30)}
    for hashed in (model, source, target, *cuts):
        assert hashed.fingerprint
    if ends == "token_to_latent":
        return attrib.plan(model, None, target, tokens, **options), lambda: attrib.token_to_latent(model, target, tokens, **options)
    options["error"] = error
    if ends == "latent_to_latent":
        return attrib.plan(model, source, target, tokens, **options), lambda: attrib.latent_to_latent(
            model, source, target, tokens, **options
        )
    logits = LOGITS[ends]
    return attrib.plan(model, source, logits, tokens, **options), lambda: attrib.latent_to_logit(
        model, source, tokens, logits=logits, **options
    )


NAMED = [
    ("gpt2", "top", False, "none", "direct", EXACT, (60,), None),
    ("llama", "top", False, "transcoders", "direct", EXACT, (60,), None),
    ("gpt2", "direction", False, "every layer", "direct", LINEAR, (60,), None),
    ("gemma3_text", "direction midway", True, "every layer", "direct", LINEAR, (60,), None),
    ("olmo2", "difference", True, "stream", "total", EXACT, (60,), None),
    ("gpt_neox", "direction midway", False, "every layer", "total", LINEAR, (8, 1, 5), None),
    ("olmo2", "tokens", True, "transcoders", "total", EXACT, (60,), [-1, 0]),
]
"""Where plans were furthest off."""


@pytest.mark.parametrize("case", [*NAMED, *random.Random(3).sample(grid(), 13)], ids=lambda case: " ".join(map(str, case)))
def test_operations_and_memory_of_a_call(case: tuple[Any, ...]) -> None:
    plan, call = call_of(*case)
    assert_about(flops(call), plan.flops, 1.1, case)
    used = peak(call)
    assert used <= 1.2 * plan.peak, f"{used / plan.peak:.2f} of what was planned"
    assert used >= 0.2 * plan.peak, f"only {used / plan.peak:.2f} of what was planned"


# ------------------------------------------------------------------------------ budgets that are named


def small(rule: Any, layer: int) -> attrib.Dictionary:
    return dictionary(rule, site=f"blocks.{layer}.hook_resid_pre", d_sae=12, **({"k": 3} if rule == "topk" else {}))


def budgets() -> list[tuple[Any, ...]]:
    kinds = ("token_to_latent", "latent_to_latent", "latent_to_logit", "latent_to_metric")
    whole = product(kinds, ("topk", "standard"), ("none", "cut"), ("direct", "total"), ("adjoint", "torch.func"), (None, 2), (True, False))
    return [
        case for case in whole if not (case[2] == "none" and case[3] == "total") and not (case[4] == "torch.func" and case[5])
    ]  # which measures the adjoint


@pytest.mark.parametrize("case", random.Random(5).sample(budgets(), 8), ids=lambda case: " ".join(map(str, case)))
def test_the_budget_that_is_named_does_for_the_whole_call(case: tuple[Any, ...]) -> None:
    kind, rule, which, effect, method, rows, error = case
    model, source, target = build("gpt2"), small(rule, 0), small(rule, 3)
    tokens = [prompt(2), prompt(3, seed=1)]
    options: dict[str, Any] = {"cuts": [small(rule, 2)] if which == "cut" else [], "effect": effect, "method": method}
    options |= {} if kind == "latent_to_metric" else {"precision_rows": rows}
    options |= {} if kind == "token_to_latent" else {"error": error}

    def call(budget: int) -> attrib.Edges:
        given = options | {"budget": budget}
        match kind:
            case "token_to_latent":
                return attrib.token_to_latent(model, target, tokens, **given)
            case "latent_to_latent":
                return attrib.latent_to_latent(model, source, target, tokens, **given)
            case "latent_to_logit":
                return attrib.latent_to_logit(model, source, tokens, **given)
        return attrib.latent_to_metric(model, source, tokens, lambda logits: logits[-1, 3], **given)

    with pytest.raises(BudgetError, match=r"budget: 100 bytes are too few for prompt \d") as refused:
        call(100)
    named = int(re.search(r"at least ([\d,]+)\.", str(refused.value))[1].replace(",", ""))  # type: ignore[index]
    assert len(call(named).targets) > 0


def test_a_later_prompt_is_in_the_budget_that_a_sweep_asks_for() -> None:
    """The encoders' part suffices, so that the sweeps ask, prompt by prompt."""
    model = attrib_model("gpt2")
    source, target = small("standard", 0), small("standard", 3)
    tokens = [prompt(3), prompt(6, seed=1)]
    encoders = 3 * 4 * 6 * 12
    with pytest.raises(BudgetError, match="for prompt 1") as refused:
        attrib.latent_to_latent(model, source, target, tokens, budget=encoders)
    named = int(re.search(r"at least ([\d,]+)\.", str(refused.value))[1].replace(",", ""))  # type: ignore[index]
    assert len(attrib.latent_to_latent(model, source, target, tokens, budget=named)) > 0
    assert attrib.plan(model, source, target, tokens, budget=named).packs
