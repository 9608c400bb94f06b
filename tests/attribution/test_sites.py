"""Gradients by places of the model, against TransformerLens' hooks and torch's own backward."""

from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.types import BudgetError, InputError, Site
from tests.support.attribution_cases import Lens, assert_same, prompts, without_shape_checks
from tests.support.builders import build, prompt
from tests.support.hooked import hooked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SITES = ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_z", "blocks.0.hook_mlp_out", "blocks.1.hook_attn_out", "blocks.1.hook_resid_post"]


def metric(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[:, 7].sum()


def by_hooks(foreign: Any, tokens: Tensor, read: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What TransformerLens has at each site, and the gradient that backward leaves there."""
    found: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        value.retain_grad()
        found[hook.name] = value

    logits = foreign.run_with_hooks(tokens[None], fwd_hooks=[(site, keep) for site in SITES])
    read(logits[0]).backward()
    return {site: found[site][0].detach().flatten(1) for site in SITES}, {site: found[site].grad[0].flatten(1) for site in SITES}


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "gemma-2", "pythia"])
def test_of_a_metric_and_of_logits(family: str):
    foreign, tokens = hooked(family, torch.float64), prompt(7)
    (of_metric,) = attrib.site_gradients(foreign, SITES, tokens, metric)
    (of_logits,) = attrib.site_gradients(foreign, SITES, tokens, [5, 3])
    for found, reads in ((of_metric, [metric]), (of_logits, [lambda logits: logits[-1, 5], lambda logits: logits[-1, 3]])):
        for row, read in enumerate(reads):
            values, gradients = by_hooks(foreign, tokens, read)
            for name in SITES:
                at = Site.parse(name)
                assert_same(found.activation[at], values[name], name)
                assert_same(found.gradient[at][row], gradients[name], name)
                terms = values[name] * gradients[name]  # whose sum is nothing but eps where a norm reads all of the place
                assert ((found.attribution(name)[row] - terms.sum(-1)).abs() <= 1e-9 * terms.abs().sum(-1)).all(), name
    z = (values["blocks.0.attn.hook_z"] * gradients["blocks.0.attn.hook_z"]).unflatten(-1, (4, -1)).sum(-1)
    assert_same(of_logits.by_head("blocks.0.attn.hook_z")[1], z, "heads")
    table = of_logits.to_pandas()
    assert len(table) == 2 * 7 * (4 + 4)
    assert {*table.site} == {*SITES}
    one = table[(table.site == "blocks.0.attn.hook_z") & (table["head"] == 2) & (table.position == 6)]
    assert one.attribution.tolist() == of_logits.by_head("blocks.0.attn.hook_z")[:, 6, 2].tolist()


def test_of_latents_is_the_jacobian_of_the_segment():
    model, target, ids = build("llama", torch.float64), Lens("topk", "blocks.3.hook_resid_pre", seed=7).dictionary("llama"), prompts(6, 1)
    found = attrib.site_gradients(model, "blocks.1.hook_resid_pre", ids, target, policy=attrib.LINEAR)
    for each, tokens in zip(found, ids, strict=True):
        x = attrib.capture(model, tokens, "blocks.1.hook_resid_pre")[Site(1, "resid_pre")]
        latents = attrib.encode_sparse(target, attrib.capture(model, tokens, target.site)[target.site])
        run = attrib.segment(model, "blocks.1.hook_resid_pre", target.site, policy=attrib.LINEAR)
        whole = torch.func.jacrev(lambda x, run=run: run.plain(x) @ target.params.W_enc)(x)
        assert each.labels == tuple(map(str, latents.latent.tolist()))
        assert_same(each.gradient[Site(1, "resid_pre")], whole[latents.position, latents.latent], "gradient")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [5]), "sites: none; expected names"),
        (("blocks.9.hook_resid_pre", [5]), r"sites: blocks.9.hook_resid_pre is outside"),
        (("blocks.1.hook_z_out", [5]), r"expected a TransformerLens hook name"),
        ((["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"], [5]), "of which two are one place"),
        (("blocks.3.hook_resid_post", "dictionary"), "is behind the target's blocks.1.hook_resid_pre"),
        (("blocks.0.hook_resid_pre", lambda logits: logits), r"metric: gave Tensor; expected a scalar"),
        (("blocks.0.hook_resid_pre", [99]), "99"),
    ],
)
def test_what_is_refused(arguments: Any, message: str):
    model, dictionary = build("gpt2", torch.float32), Lens("standard").dictionary("gpt2", torch.float32)
    sites, target = arguments
    with without_shape_checks(), pytest.raises(InputError, match=message):
        attrib.site_gradients(model, sites, prompts(3), dictionary if target == "dictionary" else target)


def test_budgets_positions_and_names():
    model = build("gpt2", torch.float32)
    with pytest.raises(BudgetError, match="needs at least"):
        attrib.site_gradients(model, SITES, prompts(3), [5], budget=100)
    with pytest.raises(InputError, match="positions: 0 beside a metric"):
        attrib.site_gradients(model, SITES, prompts(3), metric, positions=0)
    (found,) = attrib.site_gradients(model, SITES, prompts(3), [5], positions="all")
    assert found.position.tolist() == [0, 1, 2]
    assert found.attribution(SITES[0])[0, 1:].abs().sum() == 0
    with pytest.raises(InputError, match=r"site: blocks.2.hook_resid_pre was not asked for"):
        found.attribution("blocks.2.hook_resid_pre")
    with pytest.raises(InputError, match="expected the heads' outputs"):
        found.by_head(SITES[0])
