"""A metric by several dictionaries at once: each as alone, or all spliced in, against TransformerLens and sae-lens."""

from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.types import InputError
from tests.support.attribution_cases import LENGTHS, Lens, assert_same, metric, prompts, without_shape_checks
from tests.support.builders import build, dictionary, prompt
from tests.support.hooked import hooked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LENSES = (Lens("standard"), Lens("jumprelu", "blocks.2.hook_resid_pre", seed=5), Lens("topk", "blocks.2.attn.hook_z", seed=6))


@pytest.mark.parametrize("error", [True, "source"])
@pytest.mark.parametrize("policy", [attrib.EXACT, attrib.LINEAR], ids=["exact", "linear"])
def test_each_is_what_it_is_alone(error: Any, policy: Any):
    model, sources = build("gpt2", torch.float64), [lens.dictionary("gpt2") for lens in LENSES]
    sources.append(dictionary("transcoder", "blocks.1.mlp.hook_in", torch.float64))
    keep = attrib.Mass(0.9)
    together = attrib.latents_to_metric(model, sources, prompts(*LENGTHS), metric, error=error, policy=policy, keep=keep)
    assert len(together) == len(sources)
    for found, source in zip(together, sources, strict=True):
        alone = attrib.latent_to_metric(model, source, prompts(*LENGTHS), metric, error=error, policy=policy, keep=keep)
        assert found.indices.tolist() == alone.indices.tolist()
        for name in ("gradient", "attribution", "total", "l1"):
            assert_same(getattr(found, name), getattr(alone, name), name)
        assert found.sources.latent.tolist() == alone.sources.latent.tolist()
        assert dict(found.call) == alone.call


@pytest.mark.parametrize("family", ["gpt2", "gemma-2"])
def test_all_spliced_in_without_errors(family: str):
    """The values and gradients of latents where sae-lens' SAEs stand in TransformerLens' hooks, all of them."""
    foreign, tokens = hooked(family, torch.float64), prompt(8)
    lenses = (Lens("standard", "blocks.0.hook_resid_post"), Lens("topk", "blocks.1.hook_mlp_out", seed=5))
    saes, found = [lens.sae("gpt2") for lens in lenses], []

    def splice(sae: Any) -> Any:
        def hook(value: Tensor, hook: Any) -> Tensor:
            latents = sae.encode(value)
            latents.retain_grad() if latents.requires_grad else latents.requires_grad_()
            found.append(latents)
            return sae.decode(latents)

        return hook

    logits = foreign.run_with_hooks(tokens[None], fwd_hooks=[(lens.site, splice(sae)) for lens, sae in zip(lenses, saes, strict=True)])
    value = metric(logits[0])
    gradients = torch.autograd.grad(value, found)
    model = attrib.from_transformer_lens(foreign, name="tiny")
    edges = attrib.latents_to_metric(model, [lens.dictionary("gpt2") for lens in lenses], tokens, metric, error=False)
    for each, latents, gradient in zip(edges, found, gradients, strict=True):
        position, latent = latents[0].nonzero(as_tuple=True)
        assert each.sources.latent.tolist() == latent.tolist()
        assert_same(each.sources.activation, latents[0][position, latent].detach(), "activation")
        assert_same(each.dense(0)[0], gradient[0][position, latent], "gradient")
        assert_same(each.targets.activation[0], value.detach(), "metric")
        assert [one["site"] for one in each.call["beside"]] == [
            str(d.site) for d in (lens.dictionary("gpt2") for lens in lenses) if d.site != attrib.Site.parse(each.sources.site)
        ]


pytest.importorskip("sae_lens", exc_type=ImportError)  # of which the cases below are made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": []}, "sources: none"),
        ({"rule": attrib.Ablation()}, "rule: one backward pass"),
        ({"method": "torch.func"}, "method: one backward pass"),
        ({"dtype": "bfloat16"}, "dtype: one backward pass"),
        ({"metric": 3}, "metric: 3; expected a function"),
        ({"metric": lambda logits: logits}, "metric: gave"),
        ({"error": "no"}, "error: 'no'; expected"),
        ({"sources": [LENSES[0].dictionary("gpt2"), Lens("topk").dictionary("gpt2")], "error": False}, "both replace"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str):
    given = {"sources": [LENSES[0].dictionary("gpt2", torch.float32)], "metric": metric} | options
    sources, what = given.pop("sources"), given.pop("metric")
    with without_shape_checks(), pytest.raises(InputError, match=message):
        attrib.latents_to_metric(build("gpt2", torch.float32), sources, prompts(3), what, **given)
