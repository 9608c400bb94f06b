"""Interventions in models whose attention sees both ways, against the pass written out with plain torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Ablate, Add, Head, Latents, Scale, Set, ablate_each, generate, intervene, verify
from attrib.causal.components import Components
from attrib.core.types import EXACT, LINEAR, Policy, UnsupportedError
from tests.support.builders import build, dictionary, normal, prompt
from tests.support.tolerances import assert_close

LATER = "blocks.2.hook_resid_pre"
MODEL = build("gpt2 without masks", torch.float64)
SAE = dictionary("standard", LATER, torch.float64)
PROMPTS = [prompt(length, seed=length) for length in (6, 3, 5)]


def plain(ids: Tensor, edits: dict[str, Callable[[Tensor], Tensor]] | None = None, held: dict[str, Tensor] | None = None) -> Tensor:
    """GPT-2 without masks, head by head. `held` keeps patterns and denominators of one pass, and has them in a later one."""
    p, config = MODEL.params, MODEL.config

    def stands(name: str, value: Tensor) -> Tensor:
        return edits[name](value) if edits and name in edits else value

    def hold(name: str, value: Tensor) -> Tensor:
        return value if held is None else held.setdefault(name, value)

    def norm(name: str, weights: Any, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / hold(name, (x.pow(2).mean(-1, keepdim=True) + config.eps).sqrt()) * weights.weight + weights.bias

    x = p.W_E[ids] + p.W_pos[: len(ids)]
    for layer, block in enumerate(p.blocks):
        x = stands(f"blocks.{layer}.hook_resid_pre", x)
        a, n, heads = block.attention, norm(f"{layer} before attention", block.norm_1, x), []
        for head in range(config.n_heads):
            of = slice(head * config.d_head, (head + 1) * config.d_head)
            q, k, v = (n @ W[:, of] + b[of] for W, b in ((a.W_Q, a.b_Q), (a.W_K, a.b_K), (a.W_V, a.b_V)))
            heads.append(hold(f"{layer}.{head}", (q @ k.T * config.attention_scale).softmax(-1)) @ v)
        x = x + stands(f"blocks.{layer}.attn.hook_z", torch.cat(heads, -1)) @ a.W_O + a.b_O
        n = norm(f"{layer} before the MLP", block.norm_2, x)
        x = x + torch.nn.functional.gelu(n @ block.mlp.W_in + block.mlp.b_in, approximate="tanh") @ block.mlp.W_out + block.mlp.b_out
    return norm("final", p.norm_final, x) @ p.W_U + p.b_U


def latents(x: Tensor) -> Tensor:
    """What the dictionary encodes."""
    p = SAE.params
    return ((x - p.b_dec if SAE.config.apply_b_dec_to_input else x) @ p.W_enc + p.b_enc).relu()


@pytest.mark.parametrize("policy", [EXACT, LINEAR], ids=["exact", "linear"])
def test_edits_are_those_of_the_plain_pass(policy: Policy):
    direction = normal(32, dtype=torch.float64)

    def steered(x: Tensor) -> Tensor:
        return torch.cat([x[:-1], x[-1:] + direction])

    def doubled(x: Tensor) -> Tensor:
        return x + latents(x)[:, [5, 9]] @ SAE.params.W_dec[[5, 9]]

    def without(z: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(z[:, :8]), z[:, 8:]], -1)

    edits = [Add("blocks.1.hook_resid_pre", direction, -1), Scale(Latents(0, [5, 9]), 2.0), Ablate(Head(0, 0))]
    by_hand = {"blocks.1.hook_resid_pre": steered, LATER: doubled, "blocks.0.attn.hook_z": without}
    found = intervene(MODEL, SAE, PROMPTS, edits, errors="live", policy=policy)
    for ids, logits in zip(PROMPTS, found, strict=True):
        held: dict[str, Tensor] | None = None if policy == EXACT else {}
        assert_close(plain(ids, held=held), attrib.forward(MODEL, ids))
        want = plain(ids, by_hand, held)
        assert_close(logits, want)
        assert_close(intervene(MODEL, SAE, ids, edits, errors="live", policy=policy), want)


@pytest.mark.few
@pytest.mark.parametrize(("policy", "pairs"), [(EXACT, False), (LINEAR, True), (Policy("frozen", "frozen", "frozen"), False)], ids=str)
def test_an_ablation_moves_positions_before_it(policy: Policy, pairs: bool):
    """By passes, and by one sweep where everything behind is held: the MLPs too, so that steps of any size are the derivative's."""
    ids = PROMPTS[1]
    found = ablate_each(MODEL, SAE, ids, metric=lambda logits: logits[0, :4], at=[1, 2], latents=range(20), pairs=pairs, policy=policy)
    assert len(found) > 3
    for row in range(0, len(found), 1 + len(found) // 5):

        def without(x: Tensor, row: int = row) -> Tensor:
            for position, latent, size in zip(found.position[row], found.latent[row], found.activation[row], strict=True):
                x = x.index_add(0, position[None], -size * SAE.params.W_dec[latent][None])
            return x

        if policy.mlp == "frozen":
            want = intervene(MODEL, SAE, ids, [Set(Latents(0, int(found.latent[row, 0])), 0.0, int(found.position[row, 0]))], policy=policy)
        else:
            held: dict[str, Tensor] | None = None if policy == EXACT else {}
            plain(ids, held=held)
            want = plain(ids, {LATER: without}, held)
        assert_close(found.ablated[row], want[0, :4])
    if policy.mlp == "frozen":
        one, swept = (ablate_each(MODEL, SAE, ids, logits=[3, 9], policy=policy, method=method) for method in ("passes", "auto"))
        assert_close(swept.ablated, one.ablated)


def test_edges_predict_what_interventions_do():
    edges = attrib.latent_to_logit(MODEL, SAE, PROMPTS[0], logits=[3], policy=LINEAR, keep=attrib.Dense())
    found = verify(edges, MODEL, n=2, dictionaries=[SAE], steps=[1e-3])
    assert float(found.table.relative.median()) < 1e-3


def test_what_looks_back_alone_is_refused_by_name():
    with pytest.raises(UnsupportedError, match=r"tiny-gpt2 has attention that is not causal.*Take a causal model"):
        generate(MODEL, PROMPTS[0], edits=Ablate(Head(0, 0)))


def test_heads_of_the_baseline_see_both_ways():
    """With every edge kept the components' own pass is the model's."""
    ids = PROMPTS[0][None]
    logits, _ = Components(MODEL).run(attrib.embed(MODEL, ids))
    assert_close(logits, attrib.forward(MODEL, ids))
