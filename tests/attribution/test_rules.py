"""Rules of attribution against plain torch: every source moved, every node of an integral, one by one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.rules import MOST_STEPS, NAMES, parse_rule, rule_text
from attrib.core.types import InputError, NotFiniteError, Site, TokenLogits
from tests.reference import dense
from tests.support import builders
from tests.support.attribution_cases import LENGTHS, Lens, assert_same, lenses, metric, prompts, reference_model, without_shape_checks
from tests.support.builders import FAMILIES, KINDS, Family, Kind, build

families = pytest.mark.parametrize("family", FAMILIES)
IDS = (7, 0, 59)
OTHERS = [(ids * 7 + 3) % builders.D_VOCAB for ids in prompts(*LENGTHS)]
RULES: list[Any] = [
    attrib.Gradient(), attrib.IntegratedGradients(3), attrib.IntegratedGradients(4, OTHERS, "midpoint"), attrib.Patching(OTHERS),
    attrib.Ablation(),
]  # fmt: skip
rules = pytest.mark.parametrize("rule", RULES, ids=rule_text)

Function = Callable[[Tensor], Tensor]
"""From a vector of sources to one of targets, by transformers and sae-lens."""


class Recipe:
    """Targets as a function of sources, by the dense recipe; `value` and `other` are the sources here and on the other prompt."""

    def __init__(self, function: Function, value: Tensor, other: Tensor, position: Tensor, latent: Tensor) -> None:
        self.function, self.value, self.other, self.position, self.latent = function, value, other, position, latent

    def gradient(self, at: Tensor) -> Tensor:
        return torch.func.jacrev(self.function, chunk_size=8)(at)

    def expected(self, rule: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Gradient, what it is multiplied by, attribution and gap."""
        v, f = self.value, self.function
        one_by_one = torch.eye(len(v), dtype=torch.bool)
        match rule:
            case attrib.Gradient():
                gradient = self.gradient(v)
                return gradient, torch.ones_like(v), gradient, None
            case attrib.IntegratedGradients(steps, baseline, nodes):
                base = torch.zeros_like(v) if isinstance(baseline, str) else self.other
                at, weight = np.polynomial.legendre.leggauss(steps)
                points = [(a + 1) / 2 for a in at] if nodes == "legendre" else [(n + 0.5) / steps for n in range(steps)]
                weights = [w / 2 for w in weight] if nodes == "legendre" else [1 / steps] * steps
                mean = sum(w * self.gradient(base + t * (v - base)) for t, w in zip(points, weights, strict=True))
                found = mean * (v - base)
                return mean, v - base, found, f(v) - f(base) - found.sum(-1)
            case attrib.Patching():
                gradient = self.gradient(v)
                found = gradient * (self.other - v)
                return gradient, self.other - v, found, f(self.other) - f(v) - found.sum(-1)
            case attrib.Ablation():
                found = torch.stack([f(v) - f(v.where(~row, 0)) for row in one_by_one], dim=-1)
                return found / v, v, found, f(v) - f(torch.zeros_like(v)) - found.sum(-1)
        raise AssertionError(rule)


def encoded(sae: Any, x: Tensor) -> Tensor:
    """All latents, where x may be a functorch tensor."""
    return dense.encode(sae, x)


def recipe(family: Family, source: Lens | None, read: dense.Read, stop: Site | None, number: int, rule: Any) -> Recipe:
    """What `read` makes of the value at `stop`, by the latents of a lens, or by token scales."""
    model, ids, other = reference_model(family), prompts(*LENGTHS)[number], OTHERS[number]
    is_beside = attrib.core.rules.other_prompts(rule) is not None
    if source is None:
        embedded, beside = (dense.embed(model, tokens).detach() for tokens in (ids, other))
        beside = beside if is_beside else torch.zeros_like(beside)
        one = torch.ones(len(ids), dtype=embedded.dtype)

        def from_scales(scales: Tensor) -> Tensor:
            return read(dense.run(model, Site(0, "resid_pre"), beside + (embedded - beside) * scales[:, None], stop))

        return Recipe(from_scales, one, torch.zeros_like(one), torch.arange(len(ids)), ids)
    sae, start = source.sae(family), Site.parse(source.site)
    x, there = dense.true_value(model, ids, start), dense.true_value(model, other, start)
    stream = dense.true_value(model, ids, Site(start.layer, "resid_pre"))
    latents, others, decode = dense.encode(sae, x).detach(), dense.encode(sae, there).detach(), dense.decoder_at(sae, x)
    rest = (x - decode(latents)).detach()
    position, latent = ((latents != 0) | ((others != 0) & is_beside)).nonzero(as_tuple=True)

    def from_latents(values: Tensor) -> Tensor:
        whole = torch.zeros_like(latents).index_put((position, latent), values)
        return read(dense.run(model, start, decode(whole) + rest, stop, stream))

    return Recipe(from_latents, latents[position, latent], others[position, latent], position, latent)


def assert_rule(edges: attrib.Edges, rule: Any, of_prompt: Callable[[int], Recipe]) -> None:
    assert edges.call["rule"].startswith(type(rule).__name__)
    for number in range(len(LENGTHS)):
        part, want = edges.prompt(number), of_prompt(number)
        gradient, change, attribution, gap = (None if each is None else each.detach() for each in want.expected(rule))
        assert part.sources.position.tolist() == want.position.tolist()
        assert part.sources.latent.tolist() == want.latent.tolist()
        assert_same(part.sources.activation, want.value, "activation")
        assert_same(part.sources.step, change, "change")
        assert_same(edges.dense(number), gradient, "gradient")
        assert_same(edges.dense(number, "attribution"), attribution, "attribution")
        assert_same(part.total, attribution.sum(-1), "total")
        assert (part.gap is None) == (gap is None)
        if gap is not None:
            scale = attribution.abs().sum(-1).max().clamp(min=1.0)
            assert ((part.gap - gap).abs() / scale).max() <= 1e-9


@pytest.mark.few
@rules
@families
def test_latent_to_logit(family: Family, rule: Any):
    source = Lens("jumprelu")
    edges = attrib.latent_to_logit(
        build(family, torch.float64), source.dictionary(family), prompts(*LENGTHS), logits=TokenLogits(IDS), rule=rule
    )
    read = lambda logits: logits[-1, list(IDS)]  # noqa: E731
    assert_rule(edges, rule, lambda number: recipe(family, source, read, None, number, rule))


@pytest.mark.few
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["adjoint", "torch.func"])
@pytest.mark.parametrize("rule", RULES[1:], ids=rule_text)
def test_latent_to_latent(kind: Kind, rule: Any, method: Any):
    """Targets are encoded anew at every point: thresholds are passed and places won there."""
    if method == "torch.func" and isinstance(rule, attrib.Ablation):
        pytest.skip("an ablation has no method")
    family: Family = "llama"
    source, target = lenses(kind)
    edges = attrib.latent_to_latent(
        build(family, torch.float64), source.dictionary(family), target.dictionary(family), prompts(*LENGTHS), rule=rule, method=method
    )

    def of_prompt(number: int) -> Recipe:
        ids, sae = prompts(*LENGTHS)[number], target.sae(family)
        at = dense.active(sae, dense.true_value(reference_model(family), ids, dense.site_of(sae)))
        return recipe(family, source, lambda x: encoded(sae, x)[at.position, at.latent], dense.site_of(sae), number, rule)

    assert_rule(edges, rule, of_prompt)


@pytest.mark.few
@rules
def test_token_to_latent(rule: Any):
    family: Family = "gpt2"
    target = Lens("standard", "blocks.2.hook_resid_pre", seed=7)
    edges = attrib.token_to_latent(build(family, torch.float64), target.dictionary(family), prompts(*LENGTHS), rule=rule)

    def of_prompt(number: int) -> Recipe:
        ids, sae = prompts(*LENGTHS)[number], target.sae(family)
        at = dense.active(sae, dense.true_value(reference_model(family), ids, dense.site_of(sae)))
        return recipe(family, None, lambda x: encoded(sae, x)[at.position, at.latent], dense.site_of(sae), number, rule)

    assert_rule(edges, rule, of_prompt)


@pytest.mark.few
@rules
@families
def test_latent_to_metric(family: Family, rule: Any):
    source = Lens("topk", "blocks.1.attn.hook_z") if family == "gpt2" else Lens("topk")
    edges = attrib.latent_to_metric(build(family, torch.float64), source.dictionary(family), prompts(*LENGTHS), metric, rule=rule)
    assert_rule(edges, rule, lambda number: recipe(family, source, lambda logits: metric(logits)[None], None, number, rule))


@pytest.mark.few
@pytest.mark.parametrize("rule", RULES, ids=rule_text)
def test_with_dictionaries_on_the_way(rule: Any):
    """The function of such a path is held against interventions in test_cuts.py: here each rule is what it says of that function."""
    model, ids = build("gpt2", torch.float64), prompts(6)[0]
    other = (ids * 7 + 3) % builders.D_VOCAB
    source, cut = Lens("standard").dictionary("gpt2"), Lens("jumprelu", "blocks.2.hook_resid_pre", seed=5).dictionary("gpt2")
    given = attrib.Patching([other]) if isinstance(rule, attrib.Patching) else rule
    given = attrib.IntegratedGradients(4, [other], "midpoint") if rule is RULES[2] else given
    edges = attrib.latent_to_logit(model, source, ids, logits=TokenLogits(IDS), cuts=[cut], effect="total", rule=given)
    opened = attrib.path(model, source, TokenLogits(IDS), ids, cuts=[cut], effect="total")
    here, there = (dense.Nodes(*attrib.encode_sparse(source, attrib.capture(model, t, source.site)[source.site])) for t in (ids, other))
    nodes = sorted({*zip(here.position.tolist(), here.latent.tolist(), strict=True)})
    known = dict(zip(zip(here.position.tolist(), here.latent.tolist(), strict=True), here[2], strict=True))
    if attrib.core.rules.other_prompts(given) is None:
        found = Recipe(opened.function, opened.sources.value, torch.zeros_like(opened.sources.value), opened.sources.position, here.latent)
        _, _, attribution, gap = found.expected(given)
    else:
        after = dict(zip(zip(there.position.tolist(), there.latent.tolist(), strict=True), there[2], strict=True))
        nodes = sorted({*known, *after})
        none = here[2].new_zeros(())
        v, w = (torch.stack([values.get(at, none) for at in nodes]) for values in (known, after))
        replaced, (position, latent) = attrib.replace(model, [source, cut]), torch.tensor(nodes).T
        leaves = replaced.leaves(ids)
        union = leaves.cuts[0]._replace(latents=attrib.core.types.SparseLatents(position, latent, v))

        def function(values: Tensor) -> Tensor:
            first = union._replace(latents=union.latents._replace(value=values))
            at = leaves._replace(cuts=(first, *leaves.cuts[1:]))
            return replaced.forward(at, effect="total", sources=[0])[-1, list(IDS)]

        _, _, attribution, gap = Recipe(function, v, w, position, latent).expected(given)
    assert list(zip(edges.sources.position.tolist(), edges.sources.latent.tolist(), strict=True)) == nodes
    assert_same(edges.dense(0, "attribution"), attribution.detach(), "attribution")
    if gap is not None:
        assert (edges.gap - gap.detach()).abs().max() <= 1e-9


@pytest.mark.long
def test_an_integral_is_complete_in_the_limit():
    """Gauss-Legendre's gap falls with the number of nodes to rounding, where a target is smooth; midpoints' by a quarter each time."""
    model, source, (ids,) = build("gpt2", torch.float64), Lens("standard").dictionary("gpt2"), prompts(5)

    def gap(rule: attrib.IntegratedGradients) -> float:
        edges = attrib.latent_to_logit(model, source, ids, logits=TokenLogits(IDS), rule=rule)
        return float(edges.gap.abs().max() / edges.l1.max())

    exact = [gap(attrib.IntegratedGradients(steps)) for steps in (2, 8, 48)]
    assert exact[0] > exact[1] > exact[2]
    assert exact[2] < 1e-6
    rough = [gap(attrib.IntegratedGradients(steps, nodes="midpoint")) for steps in (32, 64)]
    assert 3 < rough[0] / rough[1] < 5


def test_of_a_linear_path_all_rules_agree():
    """A direction at the source's own site is linear in its latents: their mean gradient, and what they leave, is their gradient."""
    model, source, (ids,) = build("llama", torch.float64), Lens("standard").dictionary("llama"), prompts(5)
    what = attrib.Direction(builders.normal(builders.D_MODEL, dtype=torch.float64), source.site)
    given = [None, attrib.IntegratedGradients(1), attrib.Ablation()]
    found = [attrib.latent_to_logit(model, source, ids, logits=what, **({} if rule is None else {"rule": rule})) for rule in given]
    for edges in found[1:]:
        assert_same(edges.attribution, found[0].attribution, "attribution")
        assert edges.gap.abs().max() < 1e-12


def test_small_budgets_change_nothing():
    """Rows of an integral, and ablations, in as many pieces as a budget asks for."""
    model, (source, target), ids = build("gpt2", torch.float32), lenses("standard"), prompts(*LENGTHS)
    ends = source.dictionary("gpt2", torch.float32), target.dictionary("gpt2", torch.float32)
    for rule in (attrib.IntegratedGradients(2), attrib.Ablation()):
        call = partial(attrib.latent_to_latent, model, *ends, ids, rule=rule)
        with pytest.raises(InputError, match=r"needs at least [\d,]+\.") as raised:
            call(budget=1)
        least = int(str(raised.value).split("at least ")[1].split(".")[0].replace(",", ""))
        few, many = call(budget=least), call()
        for number in range(len(LENGTHS)):
            assert_same(few.dense(number, "attribution"), many.dense(number, "attribution"), "attribution")


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "ig"}, r"rule: 'ig'; expected GradientTimesActivation\(\)"),
        ({"rule": (0,)}, r"rule: IntegratedGradients of 0 steps; expected a whole number from 1"),
        ({"rule": (True,)}, r"of True steps"),
        ({"rule": (4, "zero", "simpson")}, r"nodes 'simpson'; expected 'legendre' or 'midpoint'"),
        ({"rule": attrib.IntegratedGradients(4, "corrupt")}, r"from 'corrupt'; expected 'zero', or the prompts"),
        ({"rule": attrib.IntegratedGradients(4, None)}, r"from None; expected 'zero'"),
        ({"rule": attrib.Patching()}, r"Patching without corrupt prompts"),
        ({"rule": attrib.Patching(OTHERS[:2])}, r"rule: 2 corrupt prompts for 3 prompts; expected one for each"),
        ({"rule": attrib.Patching([OTHERS[0], OTHERS[0], OTHERS[2]])}, r"corrupt prompt 1 has 1 tokens, .* goes with 9"),
        ({"rule": attrib.IntegratedGradients(2, OTHERS[::-1])}, r"baseline prompt 0 has 4 tokens"),
        ({"rule": attrib.Ablation(), "policy": attrib.LINEAR}, r"rule: ablation computes forward passes, .* expected attrib.EXACT"),
        ({"rule": attrib.Ablation(), "method": "torch.func"}, r"leave out method='torch.func'"),
        ({"rule": attrib.Ablation(), "dtype": "bfloat16"}, r"expected float32 or float64"),
        ({"rule": attrib.Patching(OTHERS), "error": "source"}, r"error: 'source' beside patching of other prompts"),
        ({"rule": attrib.Ablation(), "error": "source", "bias": True}, r"bias: .* the rule is ablation"),
        ({"error": "sources"}, r"error: 'sources'; expected True or False, or 'source'"),
        ({"bias": 1, "error": "source"}, r"bias: 1; expected True or False"),
        ({"bias": True}, r"bias: True with error=True"),
        ({"bias": True, "error": "source"}, r"bias: under .* expected attrib.LINEAR"),
        ({"bias": True, "error": "source", "policy": attrib.LINEAR}, r"the MLP at blocks.1.hook_mlp_out is on the way"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(options: dict[str, Any], message: str):
    model, source = build("gpt2", torch.float32), Lens("standard").dictionary("gpt2", torch.float32)
    with without_shape_checks():
        if isinstance(options.get("rule"), tuple):
            options = {"rule": attrib.IntegratedGradients(*options["rule"])}
        with pytest.raises(InputError, match=message):
            attrib.latent_to_logit(model, source, prompts(*LENGTHS), **options)


def test_sweeps_of_many_pairs_refuse_other_rules():
    model, source = build("gpt2", torch.float32), Lens("standard").dictionary("gpt2", torch.float32)
    for function in (attrib.jacobian, attrib.plan_jacobian):
        with pytest.raises(InputError, match=r"rule: ablation; sweeps that many pairs share"):
            function(model, source, attrib.TopLogits(2), prompts(3), rule=attrib.Ablation())


@pytest.mark.parametrize(
    "text", [*(name for name in NAMES if name != "ig"), "ig:16", "ig:3:midpoint", "ig:16:corrupt", "ig:2:corrupt:midpoint"]
)
def test_a_rule_reads_its_own_text(text: str):
    assert rule_text(parse_rule(text)) == text
    assert parse_rule(parse_rule(text)) is not None


@pytest.mark.parametrize("text", ["", "ig:0", f"ig:{MOST_STEPS + 1}", "ig:x", "ig:2:2", "ablation:3", "ig:-1", "IG", "gradient:", "ig:1e9"])
def test_what_is_no_rule_says_what_is(text: str):
    with pytest.raises(ValueError, match=r"is not a rule; expected gradient_times_activation, .*ig:STEPS"):
        parse_rule(text)


# ------------------------------------------------------------------------------------- what is at an edge


def _never(dictionary: attrib.Dictionary) -> attrib.Dictionary:
    """The dictionary with biases so low that no latent is active."""
    return replace(dictionary, params=dictionary.params._replace(b_enc=dictionary.params.b_enc - 1e6))


@pytest.mark.few
@rules
def test_no_sources_and_no_targets(rule: Any):
    model, source, target = build("gpt2"), Lens("standard").dictionary("gpt2", torch.float32), Lens("standard", "blocks.3.hook_resid_pre")
    later = target.dictionary("gpt2", torch.float32)
    without = attrib.latent_to_logit(model, _never(source), prompts(*LENGTHS), rule=rule)
    assert (len(without.sources), len(without)) == (0, 0)
    assert without.total.abs().max() == 0
    assert without.gap is None or without.gap.abs().max() < 1e-5  # rounding alone
    aimless = attrib.latent_to_latent(model, source, _never(later), prompts(*LENGTHS), rule=rule)
    assert (len(aimless.targets), len(aimless)) == (0, 0)
    assert len(attrib.latent_to_metric(model, _never(source), prompts(*LENGTHS), metric, rule=rule)) == 0


@pytest.mark.few
@pytest.mark.parametrize("rule", RULES, ids=rule_text)
def test_a_model_in_halves(rule: Any):
    """Results are float32; means are taken in it, so that they are as near as one gradient is."""
    model, source = build("llama"), Lens("jumprelu").dictionary("llama", torch.float32)
    exact = attrib.latent_to_logit(model, source, prompts(*LENGTHS), logits=TokenLogits(IDS), rule=rule)
    half = attrib.latent_to_logit(
        model.to(dtype=torch.bfloat16), source, prompts(*LENGTHS), logits=TokenLogits(IDS), rule=rule, precision_rows=0
    )
    assert half.attribution.dtype == torch.float32
    assert half.gap is None or half.gap.dtype == torch.float32
    scale = exact.l1.abs().max()
    assert (half.total[: len(IDS)] - exact.total[: len(IDS)]).abs().max() < 0.5 * scale


def test_numbers_that_are_none_name_their_prompt():
    model, source = build("gpt2"), Lens("standard").dictionary("gpt2", torch.float32)
    broken = replace(model, params=model.params._replace(W_E=model.params.W_E.index_fill(0, torch.tensor([5]), torch.nan)))
    clean = [torch.tensor([1, 2]), torch.tensor([3, 4])]
    with pytest.raises(NotFiniteError, match=r"prompt 1 gives nan at blocks.1.hook_resid_pre of the corrupt prompt"):
        attrib.latent_to_logit(broken, source, clean, rule=attrib.Patching([torch.tensor([1, 2]), torch.tensor([3, 5])]))
