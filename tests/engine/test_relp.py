"""Relevance through MLPs as a policy: against transformers' own MLPs with detached ratios, in every sweep, and what it conserves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attrib
from attrib.core.types import InputError, Policy, Site, TokenLogits
from tests.reference import dense
from tests.support.attribution_cases import LENGTHS, Lens, assert_same, lenses, metric, prompts, reference_model, without_shape_checks
from tests.support.builders import ALL_FAMILIES, FAMILIES, Family, build
from tests.support.builders import dictionary as plain_dictionary

IDS = (7, 0, 59)


@contextmanager
def relevant(recipe: nn.Module) -> Iterator[None]:
    """MLPs of a transformers model with the ratios of their activations, and half of each gated product, held."""

    def ratio(act: Any, u: Tensor) -> Tensor:
        return u * (act(u) / u).detach()

    def gated(mlp: Any, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
        (x,) = args
        a, w = ratio(mlp.act_fn, mlp.gate_proj(x)), mlp.up_proj(x)
        return mlp.down_proj(0.5 * (a * w.detach() + a.detach() * w))

    def plain(mlp: Any, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
        (x,) = args
        return mlp.c_proj(ratio(mlp.act, mlp.c_fc(x)))

    handles = [parts.mlp.register_forward_hook(gated if hasattr(parts.mlp, "gate_proj") else plain) for parts in dense._parts(recipe)]
    try:
        yield
    finally:  # the model is shared with other tests
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("method", ["adjoint", "torch.func"])
@pytest.mark.parametrize("policy", [attrib.RELP, Policy(mlp="relp")], ids=["relp", "mlp alone"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_detached_ratios(family: Family, policy: Policy, method: Any):
    source = Lens("standard")
    edges = attrib.latent_to_logit(
        build(family, torch.float64), source.dictionary(family), prompts(*LENGTHS), logits=TokenLogits(IDS), policy=policy, method=method
    )
    recipe = reference_model(family)
    with relevant(recipe):
        for number, ids in enumerate(prompts(*LENGTHS)):
            want = dense.latent_to_logit(recipe, source.sae(family), ids, torch.tensor(IDS), linear=policy == attrib.RELP)
            assert_same(edges.dense(number), want.gradient, "gradient")
            assert_same(edges.prompt(number).targets.activation, want.values, "logits")


@pytest.mark.few
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_both_methods_agree_in_every_family(family: Family):
    model, (source, target) = build(family, torch.float64), lenses("standard")
    ends = source.dictionary("gpt2"), target.dictionary("gpt2")
    plain, sweep = (
        attrib.latent_to_latent(model, *ends, prompts(9), policy=attrib.RELP, method=method) for method in ("torch.func", "adjoint")
    )
    assert_same(sweep.dense(0), plain.dense(0), family)
    tokens = [attrib.token_to_latent(model, ends[1], prompts(9), policy=attrib.RELP, method=method) for method in ("torch.func", "adjoint")]
    assert_same(tokens[1].dense(0), tokens[0].dense(0), family)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_no_derivative_and_its_values_are_the_models(family: Family):
    model, ids = build(family, torch.float64), prompts(6)[0]
    x = attrib.embed(model, ids)
    start, stop = Site(0, "resid_pre"), Site(3, "resid_post")
    exact, held = (attrib.segment(model, start, stop, policy=policy) for policy in (attrib.EXACT, attrib.RELP))
    assert_same(held.plain(x), exact.plain(x), "values")
    source = Lens("standard").dictionary(family)
    linear, relevance = (
        attrib.latent_to_metric(model, source, ids, metric, policy=policy).attribution for policy in (attrib.LINEAR, attrib.RELP)
    )
    assert (linear - relevance).abs().max() > 1e-3 * linear.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_add_up_with_biases(family: Family):
    """Relevance is conserved: what no latent and no error brings is biases', even past MLPs."""
    model, source = build(family, torch.float64), Lens("standard").dictionary(family)
    edges = attrib.latent_to_logit(model, source, prompts(9), logits=TokenLogits(IDS), policy=attrib.RELP, error="source", bias=True)
    assert ((edges.total - edges.targets.activation).abs() <= 1e-10 * edges.l1).all()
    no_biases = _without_biases(model)
    plain = plain_dictionary("standard", "blocks.1.hook_resid_pre", torch.float64, apply_b_dec_to_input=False)
    plain = plain_without_bias(plain)
    edges = attrib.latent_to_logit(no_biases, plain, prompts(9), logits=TokenLogits(IDS), policy=attrib.RELP, error="source", bias=True)
    assert (edges.dense(0, "attribution")[:, 0].abs() <= 1e-10 * edges.l1).all()


def _without_biases(model: attrib.Model) -> attrib.Model:
    """The model with every bias at zero, those of norms among them."""

    def bare(part: Any) -> Any:
        if hasattr(part, "_fields"):
            return type(part)(*(torch.zeros_like(v) if n.startswith("b_") or n == "bias" else bare(v) for n, v in part._asdict().items()))
        return tuple(map(bare, part)) if isinstance(part, tuple) else part

    return replace(model, params=bare(model.params))


def plain_without_bias(dictionary: attrib.Dictionary) -> attrib.Dictionary:
    return replace(dictionary, params=dictionary.params._replace(b_dec=torch.zeros_like(dictionary.params.b_dec)))


def test_a_sweep_of_many_pairs_takes_it():
    model, (source, target) = build("llama", torch.float64), (lens.dictionary("llama") for lens in lenses("standard"))
    found = attrib.jacobian(model, [source], [target, attrib.TopLogits(2)], prompts(6), policy=attrib.RELP)
    assert_same(found[0, 0].dense(0), attrib.latent_to_latent(model, source, target, prompts(6), policy=attrib.RELP).dense(0), "latents")
    alone = attrib.latent_to_logit(model, source, prompts(6), logits=attrib.TopLogits(2), policy=attrib.RELP)
    assert_same(found[0, 1].dense(0), alone.dense(0), "logits")


def test_what_is_refused():
    model, source = build("gpt2", torch.float32), Lens("standard").dictionary("gpt2", torch.float32)
    with without_shape_checks(), pytest.raises(InputError, match="where mlp may also be 'relp'"):
        attrib.latent_to_logit(model, source, prompts(3), policy=Policy("relp", "frozen", "exact"))
    with pytest.raises(InputError, match=r"mlps: 'leaf' beside .* no relevance passes it"):
        attrib.graph.build(model, [source], prompts(3), policy=attrib.RELP, mlps="leaf")
