"""The memory budget holds: what torch allocates, counted event by event, stays under it, and it is made use of."""

import re
from functools import lru_cache
from typing import Any

import pytest

import attrib
from attrib.core.types import BudgetError, Keep
from attrib.engine.transforms import chunk_size, working_memory
from tests.support.builders import Family, attrib_model, dictionary, prompt
from tests.support.covering import each_pair
from tests.support.measured import peak

KINDS = ["token_to_latent", "latent_to_latent"]
WIDTH = 96
LARGE: dict[Family, dict[str, int]] = {
    "gpt2": {"n_embd": WIDTH, "n_head": 4, "n_positions": 128},
    "llama": {"hidden_size": WIDTH, "head_dim": 24, "intermediate_size": 256, "max_position_embeddings": 128},
}


@lru_cache
def large(family: Family) -> attrib.Model:
    return attrib_model(family, **LARGE[family])


def ends(k: int) -> list[attrib.Dictionary]:
    return [dictionary("topk", site=f"blocks.{layer}.hook_resid_pre", d_in=WIDTH, d_sae=200, k=k) for layer in (1, 3)]


@pytest.mark.few
@each_pair(family=list(LARGE), kind=KINDS, size=[(4, 1), (6, 20), (64, 20)])
def test_allocation_of_torch_func_stays_within_the_budget(family: Family, kind: str, size: tuple[int, int]) -> None:
    positions, rows = size
    model = large(family)
    source, target = ends(8)
    tokens = prompt(positions)
    start = source.site if kind == "latent_to_latent" else attrib.Site(0, "resid_pre")
    need = working_memory(model.config, start, target.site, positions, 200, 4)
    budget = need.fixed + rows * need.row
    assert chunk_size(need, budget, 0) == rows
    for cached in (model, source, target):
        assert cached.fingerprint  # hashed before, as in every call but the first
    options: dict[str, Any] = {"budget": budget, "keep": attrib.TopK(1), "method": "torch.func"}

    def run() -> object:
        if kind == "token_to_latent":
            return attrib.token_to_latent(model, target, tokens, **options)
        return attrib.latent_to_latent(model, source, target, tokens, positions=[-1, -2, -3], **options)

    used = peak(run)
    assert used <= budget, f"{used / budget:.2f} of the budget"
    assert used > 0.2 * budget, f"only {used / budget:.2f} of the budget: sweeps could be wider"


@pytest.mark.few
@each_pair(family=list(LARGE), keep=[attrib.Threshold(1e30), attrib.TopK(1)], kind=KINDS, share=[0.6, 1.0])
def test_allocation_of_the_adjoint_stays_within_the_budget(family: Family, kind: str, share: float, keep: Keep) -> None:
    """At a share of what one sweep needs."""
    model = large(family)
    source, target = ends(20)
    tokens, given = prompt(32), source if kind == "latent_to_latent" else None
    for cached in (model, source, target):
        assert cached.fingerprint
    budget = int(share * attrib.plan(model, given, target, tokens).peak)

    def run() -> object:
        options: dict[str, Any] = {"budget": budget, "keep": keep, "method": "adjoint"}
        if given is None:
            return attrib.token_to_latent(model, target, tokens, **options)
        return attrib.latent_to_latent(model, source, target, tokens, **options)

    used = peak(run)
    assert used <= 1.1 * budget, f"{used / budget:.2f} of the budget"
    assert used > 0.5 * budget, f"only {used / budget:.2f} of the budget: sweeps could be wider"


@pytest.mark.parametrize("method", ["adjoint", "torch.func"])
def test_the_smallest_budget_is_named_and_works(method: Any) -> None:
    model = attrib_model("llama")
    source, target = (dictionary("standard", site=f"blocks.{layer}.hook_resid_pre") for layer in (1, 3))

    def call(budget: int) -> attrib.Edges:
        return attrib.latent_to_latent(model, source, target, prompt(9), positions=0, budget=budget, method=method)

    budget = 10
    with pytest.raises(BudgetError, match=f"budget: {budget:,} bytes are too few for prompt 0") as refused:
        call(budget)
    (smallest,) = re.findall(r"at least ([\d,]+)\.", str(refused.value))
    budget = int(smallest.replace(",", ""))
    assert len(call(budget)) > 0
    with pytest.raises(BudgetError):
        call(budget - 1)
