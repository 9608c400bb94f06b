"""The error and the constants as sources: their values by plain torch, and that rows of a linear path add up to their targets."""

from typing import Any

import pytest
import torch

import attrib
from attrib.core.types import BIAS, ERROR, Site, TokenLogits
from tests.reference import dense
from tests.support.attribution_cases import LENGTHS, Lens, assert_same, lenses, metric, prompts, reference_model
from tests.support.builders import FAMILIES, Family, build
from tests.support.builders import dictionary as plain_dictionary

ALL_FROZEN = attrib.Policy("frozen", "frozen", "frozen")
IDS = (7, 0, 59)


def errors_of(edges: attrib.Edges) -> torch.Tensor:
    """The columns of errors of one prompt."""
    assert edges.sources.position[edges.sources.latent == ERROR].tolist() == list(range(len(edges.prompts.ids)))
    return edges.dense(0)[:, edges.sources.latent == ERROR]


@pytest.mark.parametrize("policy", [attrib.EXACT, attrib.LINEAR], ids=["exact", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["adjoint", "torch.func"])
def test_the_gradient_by_the_error(family: Family, policy: Any, method: Any):
    """Latents are as they were, and the error of each position is one more direction."""
    source = Lens("topk", "blocks.1.attn.hook_z" if family == "llama" else "blocks.1.hook_resid_pre")
    model, mine = build(family, torch.float64), source.dictionary(family)
    options: dict[str, Any] = {"logits": TokenLogits(IDS), "policy": policy, "method": method}
    edges = attrib.latent_to_logit(model, mine, prompts(*LENGTHS), error="source", **options)
    usual = attrib.latent_to_logit(model, mine, prompts(*LENGTHS), **options)
    recipe, sae, start = reference_model(family), source.sae(family), Site.parse(source.site)
    for number, ids in enumerate(prompts(*LENGTHS)):
        part, before = edges.prompt(number), usual.prompt(number)
        assert_same(part.dense(0)[:, part.sources.latent >= 0], before.dense(0), "latents")
        x, stream = dense.true_value(recipe, ids, start), dense.true_value(recipe, ids, Site(start.layer, "resid_pre"))
        rest = x - dense.decoder_at(sae, x)(dense.encode(sae, x))

        def through(scales: torch.Tensor, x: Any = x, rest: Any = rest, stream: Any = stream) -> torch.Tensor:
            return dense.run(recipe, start, x + rest * (scales[:, None] - 1), None, stream)[-1, list(IDS)]

        one = torch.ones(len(ids), dtype=torch.float64)
        if policy == attrib.LINEAR:
            with dense.held(recipe, lambda through=through, one=one: through(one)):
                want = torch.func.jacrev(through)(one)
        else:
            want = torch.func.jacrev(through)(one)
        assert_same(errors_of(part), want.detach(), "errors")
        assert_same(part.total, (part.dense(0, "attribution")).sum(-1), "total")


def test_the_gradient_of_a_metric_by_the_error():
    model, mine = build("gpt2", torch.float64), Lens("standard").dictionary("gpt2")
    (ids,) = prompts(7)
    edges = attrib.latent_to_metric(model, mine, ids, metric, error="source")
    step = 1e-5
    x = attrib.capture(model, ids, mine.site)[mine.site]
    rest = attrib.cut(mine, x).error

    def at(q: int, size: float) -> torch.Tensor:
        return metric(attrib.forward(model, ids, put={mine.site: x + size * rest * (torch.arange(7) == q)[:, None]}))

    moved = [(at(q, step), at(q, -step)) for q in range(7)]
    want = torch.stack([(up - down) / (2 * step) for up, down in moved])
    assert (errors_of(edges)[0] - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_add_up_to_logits(family: Family):
    """The bias is what the model makes of nothing, where patterns, denominators and MLPs are held."""
    model, source = build(family, torch.float64), Lens("standard", "blocks.2.hook_resid_pre")
    mine, (ids,) = source.dictionary(family), prompts(9)
    edges = attrib.latent_to_logit(model, mine, ids, logits=TokenLogits(IDS), policy=ALL_FROZEN, error="source", bias=True)
    assert ((edges.total - edges.targets.activation).abs() <= 1e-10 * edges.l1).all()
    assert edges.sources.latent.tolist().count(BIAS) == 1
    assert (edges.sources.latent[0], edges.sources.position[0]) == (BIAS, 0)
    sae, start = source.sae(family), Site.parse(source.site)
    recipe = reference_model(family)
    x = dense.true_value(recipe, ids, start)
    nothing = dense.decoder_at(sae, x)(torch.zeros_like(dense.encode(sae, x)))
    with dense.held(recipe, lambda: dense.run(recipe, start, x, None)):
        bias = _with_held_mlps(recipe, start, x, nothing)[-1, list(IDS)]
    assert_same(edges.dense(0, "attribution")[:, 0], bias.detach(), "bias")


def _with_held_mlps(recipe: Any, start: Site, x: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """The logits from another value at `start`, with the MLPs' outputs as they are at `x`."""
    found: list[torch.Tensor] = []
    blocks = [parts.mlp for parts in dense._parts(recipe)][start.layer :]
    taken = [mlp.register_forward_hook(lambda _, args, out: found.append(out)) for mlp in blocks]
    dense.run(recipe, start, x, None)
    for handle in taken:
        handle.remove()
    held = iter(found)
    put = [mlp.register_forward_hook(lambda _, args, out: next(held)) for mlp in blocks]
    logits = dense.run(recipe, start, moved, None)
    for handle in put:
        handle.remove()
    return logits


@pytest.mark.few
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu"])
def test_rows_add_up_to_latents(kind: Any):
    source, target = (lens.dictionary("gpt2") for lens in lenses(kind))
    edges = attrib.latent_to_latent(
        build("gpt2", torch.float64), source, target, prompts(*LENGTHS), policy=ALL_FROZEN, error="source", bias=True
    )
    assert ((edges.total - edges.targets.activation).abs() <= 1e-10 * edges.l1).all()
    assert (edges.remainder.abs() <= 1e-10 * edges.l1).all()


def test_rows_add_up_behind_transcoders():
    """Transcoders as cuts in place of the MLPs: LINEAR is linear then, and no MLP needs to be frozen."""
    model = build("gpt2", torch.float64)
    cuts = [plain_dictionary("transcoder", f"blocks.{layer}.mlp.hook_in", torch.float64, seed=layer) for layer in (1, 2, 3)]
    source = Lens("standard").dictionary("gpt2")
    edges = attrib.latent_to_logit(
        model, source, prompts(6), logits=TokenLogits(IDS), cuts=cuts, policy=attrib.LINEAR, error="source", bias=True
    )
    assert ((edges.total - edges.targets.activation).abs() <= 1e-10 * edges.l1).all()


def test_what_is_kept_may_leave_them_out():
    model, source = build("gpt2", torch.float32), Lens("standard").dictionary("gpt2", torch.float32)
    options: dict[str, Any] = {"logits": TokenLogits(IDS), "error": "source"}
    whole, few = (attrib.latent_to_logit(model, source, prompts(6), keep=keep, **options) for keep in (attrib.Dense(), attrib.TopK(2)))
    assert_same(few.total, whole.total, "total")
    assert len(few) == 2 * len(IDS)
