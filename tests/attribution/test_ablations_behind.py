"""Ablations of all sources, each from its own position on: against `ablate_each`, and against whole passes one at a time."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import ablate_each
from attrib.core.types import EXACT, Site
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model
from attrib.paths.path import Asked, path_of
from tests.paths.test_cuts import put_in
from tests.support.attribution_cases import LATE, Lens, prompts
from tests.support.builders import build, dictionary
from tests.support.cut_cases import cross, ours
from tests.support.measured import flops

RULE = attrib.Ablation()
IDS = (3, 5)


def sae(site: str = "blocks.1.hook_resid_pre", kind: Any = "topk") -> Dictionary:
    return Lens(kind, site).dictionary("gpt2")


def same(got: Tensor, want: Tensor) -> None:
    """To 1e-10 of the largest, and something moves."""
    assert got.shape == want.shape
    assert want.any()
    assert float((got - want).abs().max()) <= 1e-10 * float(want.abs().max())


@pytest.mark.few
@pytest.mark.parametrize("cuts", [None, "direct", "total"])
@pytest.mark.parametrize("site", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_in"])
def test_it_is_what_ablating_each_gives(site: str, cuts: Any):
    model, given = build("gpt2", torch.float64), prompts(1, 7)
    source = dictionary("transcoder", site, torch.float64) if site.endswith("mlp.hook_in") else sae(site)
    others = [d for d in put_in("gpt2", "transcoders") if cuts is not None and d.site.layer > 1]
    effects = ["total", *[cuts] * len(others)]
    each = ablate_each(model, source, given, logits=attrib.TokenLogits(IDS), dictionaries=others, effect=effects)
    options: dict[str, Any] = {} if cuts is None else {"cuts": others, "effect": cuts}
    edges = attrib.latent_to_logit(model, source, given, logits=attrib.TokenLogits(IDS), rule=RULE, **options)
    effect = each.base[each.prompt] - each.ablated
    for number in range(len(given)):
        same(edges.dense(number, "attribution").T, effect[each.prompt == number])

    def metric(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)[..., 3].square().sum()  # of all positions

    each = ablate_each(model, source, given, metric=metric, dictionaries=others, effect=effects)
    edges = attrib.latent_to_metric(model, source, given, metric, rule=RULE, **options)
    same(torch.cat([edges.dense(n, "attribution")[0] for n in (0, 1)]), (each.base[each.prompt] - each.ablated)[:, 0])


def one_at_a_time(model: Model, source: Dictionary | None, target: Any, ids: Tensor, error: Any, **options: Any) -> Tensor:
    """What each target loses, by the whole path from changed sources on."""
    asked = Asked(is_error_source=error == "source", is_movable=True)
    path = path_of(model, source, target, ids, policy=EXACT, error=bool(error), asked=asked, **options)
    value, columns = path.sources.value, []
    assert path.moved is not None
    for number in range(len(value)):
        ablated = value.clone()
        ablated[number] = 0
        columns.append(path.targets.value - path.moved(ablated).targets.value)
    return torch.stack(columns, 1)


LAYERS = range(1, 3)
CASES: dict[str, Any] = {
    "tokens": (None, None),
    "stream": (sae, None),
    "tokens past transcoders": (None, "transcoders"),
    "stream past transcoders": (sae, "transcoders"),
    "stream past another": (sae, "residual"),
    "layer of many": (lambda: ours(cross(build("gpt2", torch.float64), LAYERS))[0], None),
    "layer past the other": (lambda: ours(cross(build("gpt2", torch.float64), LAYERS))[0], "cross"),
}


@pytest.mark.few
@pytest.mark.parametrize("error", [True, False, "source"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_whole_passes_give(case: str, error: Any):
    make, named = CASES[case]
    if make is None and error is not True:
        pytest.skip("tokens have no error")
    model, source, (ids,) = build("gpt2", torch.float64), make and make(), prompts(6)
    cuts = [] if named is None else ours(cross(model, LAYERS)) if named == "cross" else put_in("gpt2", named)
    cuts = [cut for cut in cuts if cut.site.kind == "mlp_in" or cut.site.layer == 2]  # in the stream, the one between the ends
    target = Lens("topk", LATE, seed=7).dictionary("gpt2")  # whose latents compete
    for effect in ("direct", "total") if cuts else ("direct",):
        options: dict[str, Any] = {"cuts": apart(cuts, source), "effect": effect}
        want = one_at_a_time(model, source, target, ids, error, **options)
        if source is None:
            edges = attrib.token_to_latent(model, target, ids, rule=RULE, **options)
        else:
            edges = attrib.latent_to_latent(model, source, target, ids, rule=RULE, error=error, **options)
        same(edges.dense(0, "attribution"), want)


def apart(cuts: list[Dictionary], source: Dictionary | None) -> list[Dictionary]:
    """Those that are not the source itself."""
    return [cut for cut in cuts if source is None or cut.fingerprint != source.fingerprint]


@pytest.mark.long
@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
def test_in_parallel_blocks_and_past_norms_behind_blocks(family: Any):
    model, (ids,) = build(family, torch.float64), prompts(6)
    for source in (Lens("topk").dictionary("gpt2"), dictionary("transcoder", "blocks.1.mlp.hook_in", torch.float64)):
        want = one_at_a_time(model, source, attrib.TokenLogits(IDS), ids, True, positions=(2, 5))
        edges = attrib.latent_to_logit(model, source, ids, logits=attrib.TokenLogits(IDS), rule=RULE, positions=[2, 5])
        same(edges.dense(0, "attribution"), want)


def test_where_attention_looks_both_ways():
    causal, source, (ids,) = build("gpt2", torch.float64), sae(), prompts(6)
    model = replace(causal, config=replace(causal.config, causal=False))
    target = Lens("jumprelu", LATE, seed=7).dictionary("gpt2")
    edges = attrib.latent_to_latent(model, source, target, ids, rule=RULE)
    same(edges.dense(0, "attribution"), one_at_a_time(model, source, target, ids, True))
    assert edges.dense(0)[edges.targets.position == 0][:, edges.sources.position == 5].any()


def test_a_plan_counts_the_positions_behind_alone():
    model, given = build("gpt2", torch.float32), prompts(13, 5)
    source = dictionary("topk", site=Site(1, "resid_pre"), k=4)
    for target in (dictionary("topk", site=Site(3, "resid_pre"), k=4), attrib.TopLogits(3)):
        whole = attrib.plan(model, source, target, given, rule=RULE).flops
        if isinstance(target, Dictionary):
            run: Any = partial(attrib.latent_to_latent, model, source, target, given, rule=RULE)
        else:
            run = partial(attrib.latent_to_logit, model, source, given, logits=target, rule=RULE)
        assert flops(run) == pytest.approx(whole, rel=0.02)
