"""The memory budget holds: what torch allocates, counted event by event, stays under it, and it is made use of."""

import re
from collections.abc import Callable
from itertools import accumulate

import pytest
from torch.profiler import ProfilerActivity, profile

import attrib
from attrib.jacobian import chunk_size, working_memory
from attrib.types import BudgetError
from tests.builders import Family, dictionary, prompt, tiny

WIDTH = 96
LARGE: dict[Family, dict[str, int]] = {
    "gpt2": {"n_embd": WIDTH, "n_head": 4, "n_positions": 128},
    "llama": {"hidden_size": WIDTH, "head_dim": 24, "intermediate_size": 256, "max_position_embeddings": 128},
}


def peak(run: Callable[[], object]) -> int:
    """Bytes of tensors at the fullest moment of a run, beyond those there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        run()
    changes = (event.nbytes() for event in events.profiler.kineto_results.events() if event.name() == "[memory]")
    return max(accumulate(changes, initial=0))


@pytest.mark.parametrize(("positions", "rows"), [(4, 1), (6, 20), (64, 20)])
@pytest.mark.parametrize("kind", ["token_to_latent", "latent_to_latent"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_allocation_stays_within_the_budget(family: Family, kind: str, positions: int, rows: int) -> None:
    model = attrib.from_hugging_face(tiny(family, **LARGE[family]))
    source, target = (dictionary("topk", site=f"blocks.{layer}.hook_resid_pre", d_in=WIDTH, d_sae=200, k=8) for layer in (1, 3))
    tokens = prompt(positions)
    start = source.site if kind == "latent_to_latent" else attrib.Site(0, "resid_pre")
    need = working_memory(model.config, start, target.site, positions, 200, 4)
    budget = need.fixed + rows * need.row
    assert chunk_size(need, budget, 0) == rows
    for cached in (model, source, target):
        assert cached.fingerprint  # hashed before, as in every call but the first

    def run() -> object:
        if kind == "token_to_latent":
            return attrib.token_to_latent(model, target, tokens, budget=budget, keep=attrib.TopK(1))
        return attrib.latent_to_latent(model, source, target, tokens, budget=budget, keep=attrib.TopK(1), positions=[-1, -2, -3])

    used = peak(run)
    assert used <= budget, f"{used / budget:.2f} of the budget"
    assert used > 0.2 * budget, f"only {used / budget:.2f} of the budget: sweeps could be wider"


def test_the_smallest_budget_is_named_and_works() -> None:
    model = attrib.from_hugging_face(tiny("llama"))
    source, target = (dictionary("standard", site=f"blocks.{layer}.hook_resid_pre") for layer in (1, 3))
    with pytest.raises(BudgetError, match="budget: 10 bytes are too few for prompt 0") as refused:
        attrib.latent_to_latent(model, source, target, prompt(9), positions=0, budget=10)
    (smallest,) = re.findall(r"at least ([\d,]+)\.", str(refused.value))
    smallest = int(smallest.replace(",", ""))
    assert len(attrib.latent_to_latent(model, source, target, prompt(9), positions=0, budget=smallest)) > 0
    with pytest.raises(BudgetError):
        attrib.latent_to_latent(model, source, target, prompt(9), positions=0, budget=smallest - 1)
