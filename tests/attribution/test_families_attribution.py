"""The three attributions on every family, against torch.autograd through transformers' own model and sae-lens's own modules."""

from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.types import Site
from tests.reference.foreign import Read, jacobian, latents_enter, run
from tests.support.builders import ALL_FAMILIES, D_MODEL, Family, prompt, sae, tiny
from tests.support.exact_transformers import keep_dtype
from tests.support.tolerances import assert_close

TOKENS = prompt(9, seed=4)
"""Longer than any window of these models, by more than one."""


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_dtype(monkeypatch)


def lens(model: attrib.Model, site: Site, seed: int) -> Any:
    width = model.config.n_heads * model.config.d_head if site.kind == "z" else D_MODEL
    return sae("topk", width, torch.float64, site=site, seed=seed, k=3, apply_b_dec_to_input=False)


def true_values(foreign: Any, *sites: Site) -> dict[Site, Tensor]:
    found: dict[Site, Tensor] = {}
    with torch.no_grad():
        run(foreign, TOKENS, {site: lambda value, site=site: found.setdefault(site, value) for site in sites})
    return found


def sides(family: Family) -> tuple[Any, attrib.Model]:
    foreign = tiny(family, torch.float64).requires_grad_(False)
    return foreign, attrib.from_hugging_face(foreign)


PAIRS = [
    ("blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"),
    ("blocks.0.hook_resid_pre", "blocks.2.mlp.hook_in"),
    ("blocks.1.attn.hook_z", "blocks.2.hook_mlp_out"),
    ("blocks.1.hook_mlp_out", "blocks.3.hook_attn_out"),
    ("blocks.1.mlp.hook_in", "blocks.2.attn.hook_z"),
]


@pytest.mark.few
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_latent_to_latent(family: Family):
    foreign, model = sides(family)
    for number, (start, stop) in enumerate((Site.parse(a), Site.parse(b)) for a, b in PAIRS):
        source, target = lens(model, start, 30 + number), lens(model, stop, 60 + number)
        edges = attrib.latent_to_latent(model, attrib.from_sae_lens(source), attrib.from_sae_lens(target), TOKENS)
        true = true_values(foreign, start, stop)
        a, b = edges.sources, edges.targets
        assert torch.equal((target.encode(true[stop]) > 0).nonzero(), torch.stack([b.position, b.latent], 1))
        read = Read(stop, lambda value, target=target, b=b: target.encode(value)[b.position, b.latent])
        want = jacobian(foreign, TOKENS, start, latents_enter(source, true[start], a.position, a.latent), a.activation, read)
        assert want.abs().max() > 0.05
        assert_close(edges.dense(0), want, what=f"{start} to {stop}")


@pytest.mark.few
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_token_to_latent_and_latent_to_logit(family: Family):
    foreign, model = sides(family)
    stop = Site(2, "mlp_in")
    target = lens(model, stop, 70)
    edges = attrib.token_to_latent(model, attrib.from_sae_lens(target), TOKENS)
    b = edges.targets
    read = Read(stop, lambda value: target.encode(value)[b.position, b.latent])

    def scaled(scales: Tensor) -> Any:
        return lambda value: value * scales[:, None]

    want = jacobian(foreign, TOKENS, Site(0, "resid_pre"), scaled, torch.ones(len(TOKENS), dtype=torch.float64), read)
    assert_close(edges.dense(0), want, what="tokens")
    start = Site(1, "mlp_out")
    source = lens(model, start, 71)
    a = attrib.latent_to_logit(model, attrib.from_sae_lens(source), TOKENS, logits=attrib.TokenLogits([3, 5, 8])).sources
    enter = latents_enter(source, true_values(foreign, start)[start], a.position, a.latent)
    for logits, function in (
        (attrib.TokenLogits([3, 5, 8]), lambda logits: logits[-1, [3, 5, 8]]),
        (attrib.Difference([3, 5], 8), lambda logits: (logits[-1, [3, 5]].mean() - logits[-1, 8])[None]),
    ):
        edges = attrib.latent_to_logit(model, attrib.from_sae_lens(source), TOKENS, logits=logits)
        want = jacobian(foreign, TOKENS, start, enter, a.activation, Read(None, function))
        assert_close(edges.dense(0), want, what=str(logits))
        with torch.no_grad():
            assert_close(edges.targets.activation, function(run(foreign, TOKENS, {})), what="values")


@pytest.mark.parametrize("family", ["gptj", "gpt_neox", "phi"])
def test_what_lies_beside_attention_in_a_parallel_block_is_no_target_of_it(family: Family):
    _, model = sides(family)
    source, target = (attrib.from_sae_lens(lens(model, Site(1, kind), seed)) for kind, seed in (("attn_out", 1), ("mlp_in", 2)))
    with pytest.raises(attrib.InputError, match="not after the source's"):
        attrib.latent_to_latent(model, source, target, TOKENS)
    between = attrib.from_sae_lens(lens(model, Site(1, "resid_mid"), 3))
    with pytest.raises(attrib.InputError, match="only a sum in"):
        attrib.latent_to_latent(model, between, target, TOKENS)


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("subtracts", [True, False])
def test_a_dictionary_from_before_a_norms_weights_reads_and_writes_there(family: Family, subtracts: bool):
    """TransformerLens' ln2.hook_normalized is (mlp_in - bias) / weight, and what is written there passes the weights."""
    foreign, model = sides(family)
    site = Site(1, "mlp_in")
    weight, bias = model.params.blocks[1].norm_2
    hook, stop = "blocks.1.ln2.hook_normalized", Site(3, "resid_pre")
    before = sae("topk", D_MODEL, torch.float64, site=site, seed=80, k=5, apply_b_dec_to_input=subtracts)
    before.cfg.metadata.hook_name = hook
    target = lens(model, stop, 81)
    dictionary = attrib.from_sae_lens(before)
    true = true_values(foreign, site, stop)
    read = (true[site] - bias) / weight
    tokens = attrib.token_to_latent(model, dictionary, TOKENS).targets
    assert torch.equal((before.encode(read) > 0).nonzero(), torch.stack([tokens.position, tokens.latent], 1))
    edges = attrib.latent_to_latent(model, dictionary, attrib.from_sae_lens(target), TOKENS)
    a, b = edges.sources, edges.targets
    enter = latents_enter(before, read, a.position, a.latent)

    def behind(values: Tensor) -> Any:
        return lambda value: enter(values)(value) * weight + bias

    want = jacobian(foreign, TOKENS, site, behind, a.activation, Read(stop, lambda value: target.encode(value)[b.position, b.latent]))
    assert want.abs().max() > 0.05
    assert_close(edges.dense(0), want)
