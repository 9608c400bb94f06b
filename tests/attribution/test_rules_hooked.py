"""Ablations by TransformerLens' own hooks: each latent taken off the stream, one forward pass each."""

import pytest
import torch
from torch import Tensor

import attrib
from tests.support.attribution_cases import Lens, assert_same
from tests.support.builders import prompt
from tests.support.hooked import hooked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SITE = "blocks.1.hook_resid_pre"


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "gemma-2", "pythia"])
@pytest.mark.parametrize("error", [True, False])
def test_ablations_are_those_of_hooks(family: str, error: bool):
    foreign, tokens = hooked(family, torch.float64), prompt(6)
    later_site = "blocks.1.hook_resid_post" if family == "pythia" else "blocks.1.hook_mlp_out"
    source, target = Lens("jumprelu", SITE), Lens("standard", later_site, seed=8)
    sae, later = source.sae("gpt2"), target.sae("gpt2")
    with torch.no_grad():
        _, cache = foreign.run_with_cache(tokens[None])
        x = cache[SITE][0]
        latents = sae.encode(x)
        rest = x - sae.decode(latents) if error else torch.zeros_like(x)

        def with_latents(values: Tensor) -> tuple[Tensor, Tensor]:
            """The last logits, and the later latents."""
            found = []
            hooks = [(SITE, lambda *_, hook=None: (sae.decode(values) + rest)[None])]
            hooks += [(later_site, lambda value, hook: found.append(value[0]))]
            logits = foreign.run_with_hooks(tokens[None], fwd_hooks=hooks)
            return logits[0, -1, [3, 5]], later.encode(found[0])

        logits, after = with_latents(latents)
        position, latent = latents.nonzero(as_tuple=True)
        at = later.encode(cache[later_site][0]).nonzero(as_tuple=True)
        effects: list[Tensor] = []
        on_latents: list[Tensor] = []
        for q, i in zip(position.tolist(), latent.tolist(), strict=True):
            changed = latents.clone()
            changed[q, i] = 0
            left, left_after = with_latents(changed)
            effects.append(logits - left)
            on_latents.append((after - left_after)[at])
    model = attrib.from_transformer_lens(foreign, name="tiny")
    ends = attrib.from_sae_lens(sae), attrib.from_sae_lens(later)
    edges = attrib.latent_to_logit(model, ends[0], tokens, logits=attrib.TokenLogits((3, 5)), rule=attrib.Ablation(), error=error)
    assert edges.sources.latent.tolist() == latent.tolist()
    assert_same(edges.dense(0, "attribution"), torch.stack(effects, dim=-1), "logits")
    edges = attrib.latent_to_latent(model, *ends, tokens, rule=attrib.Ablation(), error=error)
    assert_same(edges.dense(0, "attribution"), torch.stack(on_latents, dim=-1), "latents")
