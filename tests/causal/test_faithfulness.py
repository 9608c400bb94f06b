"""Curves of what rankings keep, on models where it is known which latents matter; each pass against hooks and other ways to the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Contrast, EdgeRanking, Ranking, bootstrap, edge_faithfulness, faithfulness, rank, rank_edges
from attrib.causal.components import Components
from attrib.causal.intervals import DRAWS
from attrib.causal.keeping import ablation, aligned
from attrib.core.types import InputError, UnsupportedError
from tests.support.builders import build, dictionary, prompt, tiny, transformers_values
from tests.support.cut_cases import editing

F64 = torch.float64
SITES = ("blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre")
COUNTS = [1, 5, 40]


def examples(count: int = 5, length: int = 6, seed: int = 0) -> list[Contrast]:
    return [Contrast("", tuple(prompt(length, seed=seed + n).tolist()), 3 + n % 2, 7, "") for n in range(count)]


def both() -> list[attrib.Dictionary]:
    return [dictionary("topk", SITES[0], F64, seed=4), dictionary("jumprelu_skip_transcoder", "blocks.2.mlp.hook_in", F64, seed=5)]


def mean_of(model: attrib.Model, some: list[Contrast]) -> float:
    logits = attrib.forward(model, aligned(some, "examples"))[:, -1]
    return float(sum(row[one.answer] - row[one.distractor] for row, one in zip(logits, some, strict=True))) / len(some)


@pytest.mark.parametrize("ablate", ["zero", "mean"])
def test_latents_that_are_taken_out_are_out_of_transformers_too(ablate: Any) -> None:
    """By hooks on transformers' own modules: what the latents that are taken out write is replaced."""
    model, foreign, (sae, transcoder), some = build("gpt2", F64), tiny("gpt2", F64), both(), examples()
    there, tokens = ablation(model, (sae, transcoder), some, ablate), aligned(some, "examples")
    out = [(torch.rand(each.shape, generator=torch.Generator().manual_seed(1)) < 0.5).to(F64) for each in there.reference]
    got = there.logits(there.streams(tokens), out)
    true = [attrib.encode(one, attrib.capture(model, tokens, [one.site])[one.site]) for one in (sae, transcoder)]
    reference = [each.mean(0) if ablate == "mean" else 0 * each[0] for each in true]
    written = {}

    def stream(x: Tensor) -> Tensor:
        return x + ((reference[0] - attrib.encode(sae, x)) * out[0]) @ sae.params.W_dec

    def entering(x: Tensor) -> Tensor:
        written["mlp"] = ((reference[1] - attrib.encode(transcoder, x)) * out[1]) @ transcoder.params.W_dec
        return x

    edits = {sae.site: stream, transcoder.site: entering, transcoder.writes[0]: lambda y: y + written["mlp"]}
    with editing(foreign, edits):
        want = foreign(tokens, use_cache=False).logits
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(got, attrib.forward(model, tokens), atol=1e-3)


def test_the_ends_of_curves_are_the_model_and_none_of_its_latents() -> None:
    model, some, other = build("gpt2", F64), examples(), examples(4, seed=50)
    ranking = rank(model, both(), some, "attribution")
    found = faithfulness(model, both(), some, ranking, held_out=other, keep=COUNTS)
    assert found.whole["train"] == pytest.approx(mean_of(model, some), rel=1e-9)
    assert found.whole["held out"] == pytest.approx(mean_of(model, other), rel=1e-9)
    table = found.table.set_index(["curve", "n"])
    assert list(found.table[found.table.curve == "necessity"].n) == [0, *COUNTS, found.units] == [0, 1, 5, 40, 6 * 160]
    for curve in ("completeness", "sufficiency"):
        assert (table.share[curve, 0], table.share[curve, found.units]) == pytest.approx((0, 1))
    assert (table.share["necessity", 0], table.share["necessity", found.units]) == pytest.approx((1, 0))
    assert set(faithfulness(model, both(), some, ranking, keep=[]).table.curve) == {"completeness"}


def test_rankings_agree_on_which_latents_there_are() -> None:
    model, some, sae = build("gpt2", F64), examples(3), dictionary("standard", SITES[1], F64, seed=6)
    gradient, many, passes = (rank(model, sae, some, rule).scores[0] for rule in ("attribution", "integrated gradients", "ablation"))
    for each in (gradient, many):
        assert torch.corrcoef(torch.stack([passes.flatten(), each.flatten()]))[0, 1] > 0.5
        assert ((each > 0) == (passes > 0)).double().mean() > 0.99


def test_attribution_is_what_the_public_function_gives_and_integrals_add_up() -> None:
    model, some, sae = build("llama", F64), examples(2), dictionary("topk", SITES[0], F64, seed=4)
    got = rank(model, sae, some, "attribution").scores[0]
    want = torch.zeros_like(got)
    for one in some:
        edges = attrib.latent_to_metric(
            model, sae, [torch.tensor(one.tokens)], lambda logits, one=one: logits[-1, one.answer] - logits[-1, one.distractor]
        )
        want[edges.sources.position, edges.sources.latent] += edges.dense(0, "attribution")[0] / len(some)
    assert torch.allclose(got, want.abs(), atol=1e-9)
    [one] = some[:1]  # the integrals of one prompt's latents add up to what all of them bring: completeness of integrated gradients
    there = ablation(model, [sae], [one])
    from attrib.causal.rankings import _by_gradient

    [found] = _by_gradient(there, [one], attrib.causal.logit_difference, [(n + 0.5) / 60 for n in range(60)])
    whole = faithfulness(model, sae, [one], rank(model, sae, [one], "random"), keep=[])
    assert float(found.sum()) == pytest.approx(whole.whole["train"] - whole.empty["train"], abs=2e-2)


def test_a_ranking_that_knows_is_better_than_a_random_one() -> None:
    """Of latents that are not active none matters, and all of those that are stand first where a ranking knows them."""
    model, some, other = build("gpt2", F64), examples(3), examples(2, seed=30)
    sae = dictionary("topk", SITES[1], F64, seed=6)
    for ablate in ("zero", "mean"):
        known, drawn = (
            faithfulness(model, sae, some, rank(model, sae, some, rule, ablate=ablate), held_out=other, ablate=ablate)
            for rule in ("ablation", "random")
        )
        active = int((rank(model, sae, some, "ablation", ablate=ablate).flat > 0).sum())
        assert active < known.units
        late = known.table[(known.table.curve == "completeness") & (known.table.n >= active)]
        assert (late.share - 1).abs().max() < 1e-9
        assert (drawn.table.share.iloc[-2] - 1) != pytest.approx(0, abs=1e-3)
        assert "by ablation of 480: areas completeness" in repr(known)


def test_intervals_are_of_prompts_drawn_again_from_those_that_were_measured() -> None:
    model, some, other = build("gpt2", F64), examples(5), examples(4, seed=30)
    sae = dictionary("topk", SITES[1], F64, seed=6)
    known, drawn = (
        faithfulness(model, sae, some, rank(model, sae, some, rule), held_out=other, keep=COUNTS, seed=3) for rule in ("ablation", "random")
    )
    logits = attrib.forward(model, aligned(other, "examples"))[:, -1]
    apart = torch.stack([row[one.answer] - row[one.distractor] for row, one in zip(logits, other, strict=True)])
    assert torch.allclose(known.each["sufficiency"][:, -1], apart)
    assert torch.allclose(known.each["necessity"][:, 0], apart)
    assert list(known.table.prompts.unique()) == [5, 4]
    each = known.each["necessity"]
    draws = torch.randint(4, (DRAWS, 4), generator=torch.Generator().manual_seed(3))

    def told(metrics: Tensor) -> list[float]:
        mean = metrics.mean(0)  # of curves of necessity: all of the latents first, none last
        return [float((m - mean[-1]) / (mean[0] - mean[-1])) for m in mean]

    plain = torch.tensor([told(each[draw]) for draw in draws], dtype=F64)
    want = plain.nanquantile(torch.tensor([0.025, 0.975], dtype=F64), 0)
    table = known.table[known.table.curve == "necessity"]
    assert torch.allclose(torch.from_numpy(table[["low", "high"]].to_numpy()).T, want)
    assert table.share.to_list() == pytest.approx(told(each))
    at = torch.tensor([0, *COUNTS, 480], dtype=F64).log1p()
    areas = [torch.trapezoid(line, at) / at[-1] for line in (torch.tensor(told(each), dtype=F64), *plain)]
    area = known.area("necessity")
    assert (area.mean, area.n) == (pytest.approx(float(areas[0])), 4)
    assert [area.low, area.high] == pytest.approx(torch.stack(areas[1:]).quantile(torch.tensor([0.025, 0.975], dtype=F64)).tolist())
    less = drawn.area("completeness", less=known)
    assert less.mean == pytest.approx(drawn.area("completeness").mean - known.area("completeness").mean)
    assert known.area("completeness", less=known)[:3] == (0, 0, 0)
    assert less.high - less.low < sum(one.area("completeness").high - one.area("completeness").low for one in (known, drawn))
    with pytest.raises(InputError, match="less: curves of other prompts"):
        known.area("completeness", less=faithfulness(model, sae, other, rank(model, sae, other, "random"), keep=COUNTS))


def test_bootstrap_intervals_are_those_of_a_normal_mean_and_of_functions_of_means() -> None:
    values = torch.randn(400, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) + torch.tensor([3.0, 0.0])
    [one, two] = bootstrap(values, level=0.9, draws=4000)
    deviation = float(values[:, 0].std()) / 20
    assert (one.mean, one.n) == (pytest.approx(float(values[:, 0].mean())), 400)
    assert [one.low, one.high] == pytest.approx([one.mean - 1.645 * deviation, one.mean + 1.645 * deviation], abs=0.1 * deviation)
    assert bootstrap(values, seed=1)[0] == bootstrap(values, seed=1)[0] != bootstrap(values, seed=2)[0]
    [difference] = bootstrap(values, lambda means: means[..., :1] - means[..., 1:])
    assert difference.mean == pytest.approx(one.mean - two.mean)
    [same] = bootstrap(values[:, [0, 0]], lambda means: means[..., :1] / means[..., 1:])
    assert same == (1, 1, 1, 400)  # the same draw for all quantities
    nothing = bootstrap(torch.zeros(3, 1), lambda means: means / means)[0]
    assert nothing.mean != nothing.mean
    [alone] = bootstrap(values[:1, :1])
    assert (alone.mean, alone.n) == (float(values[0, 0]), 1)
    assert alone.low != alone.low  # of one prompt there is no interval
    wrong: list[tuple[Any, Any, str]] = [
        (values[:0], {}, "values: of no prompts"),
        (values, {"level": 1}, "level: 1; expected a number between 0 and 1"),
        (values, {"draws": 0}, "draws: 0"),
        (values, {"seed": True}, "seed: True"),
    ]
    for given, options, said in wrong:
        with pytest.raises(InputError, match=said):
            bootstrap(given, **options)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_components_make_up_the_model_and_edges_are_those_between_them(family: Any) -> None:
    model, some = build(family, F64), examples(3)
    there, tokens = Components(model), aligned(some, "examples")
    embedded = attrib.embed(model, tokens)
    logits, written = there.run(embedded)
    _, seen = transformers_values(tiny(family, F64), tokens)
    assert torch.allclose(logits, attrib.forward(model, tokens), atol=1e-9)
    heads = written[1:5].sum(0) + model.params.blocks[0].attention.b_O
    tolerance = 1e-5 if family == "llama" else 1e-9  # whose norms transformers computes in float32
    assert torch.allclose(heads, seen[attrib.Site(0, "attn_out")], atol=tolerance)
    assert torch.allclose(written[5], seen[attrib.Site(0, "mlp_out")], atol=tolerance)
    reader, writer = there.edges
    every = torch.zeros(there.count, there.count, dtype=F64).index_put((reader, writer), torch.ones(len(reader), dtype=F64))
    reference = torch.randn(there.count, tokens.shape[1], 32, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(there.run(embedded, every, reference)[0], logits, atol=1e-9)
    names = there.names
    assert (len(names), names[1], names[5], names[-1]) == (22, "attn0[0]", "mlp0", "logits")
    pairs = {(names[w], names[r + 1]) for r, w in zip(reader.tolist(), writer.tolist(), strict=True)}
    assert ("attn0[1]", "mlp0") in pairs
    assert ("mlp0", "attn1[0]") in pairs
    assert not {("attn0[0]", "attn0[1]"), ("mlp0", "attn0[0]"), ("mlp0", "mlp0")} & pairs
    assert len(pairs) == sum(4 * (1 + 5 * layer) + (5 + 5 * layer) for layer in range(4)) + 21


def test_an_edge_s_score_is_the_derivative_of_taking_it_out() -> None:
    model, some = build("llama", F64), examples(2)
    there, tokens = Components(model), aligned(some, "examples")
    embedded = attrib.embed(model, tokens)
    reference = there.run(embedded)[1].mean(1)
    reader, writer = there.edges
    got = rank_edges(model, some, "EAP").scores
    kept = torch.zeros_like(got).index_put((reader, writer), torch.ones(len(reader), dtype=F64))

    def metric(kept: Tensor) -> Tensor:
        logits = there.run(embedded, kept, reference)[0][:, -1]
        return sum(row[one.answer] - row[one.distractor] for row, one in zip(logits, some, strict=True)) / len(some)

    want = torch.func.grad(metric)(kept)
    assert torch.allclose(got[reader, writer], want[reader, writer].abs(), atol=1e-9)
    found = edge_faithfulness(model, some, rank_edges(model, some, points=3), held_out=examples(2, seed=9), keep=[10, 100])
    table = found.table.set_index(["curve", "n"]).share
    assert (found.units, found.whole["train"]) == (len(reader), pytest.approx(mean_of(model, some)))
    assert (table["necessity", 0], table["necessity", found.units]) == pytest.approx((1, 0))


def test_what_cannot_be_ranked_or_kept_is_refused() -> None:
    model, some, sae = build("gpt2", F64), examples(2), dictionary("topk", SITES[0], F64)
    ranking = rank(model, sae, some, "random")
    cases: list[tuple[Any, str]] = [
        (lambda: rank(model, sae, [], "random"), "examples: none"),
        (lambda: rank(model, sae, [*some, *examples(1, 4)], "random"), "examples: prompts of 4 to 6 tokens"),
        (lambda: rank(model, sae, some, "eap"), "rule: 'eap'"),
        (lambda: rank(model, sae, some, points=0), "points: 0"),
        (lambda: rank(model, [], some), "dictionaries: none"),
        (lambda: rank(model, [sae, sae], some), "both replace"),
        (lambda: rank(model, sae, some, ablate="half"), "ablate: 'half'"),
        (lambda: rank(model, sae, some, metric=lambda logits, one: logits[-1]), r"metric: gave \[60\]"),
        (lambda: faithfulness(model, sae, some, Ranking("x", (torch.zeros(6, 3),))), r"ranking: scores of shapes \[\[6, 3\]\]"),
        (lambda: faithfulness(model, sae, some, Ranking("x", (torch.full((6, 80), torch.nan),))), "is NaN"),
        (lambda: faithfulness(model, sae, some, ranking, keep=[481]), "keep: 481; expected whole numbers from 0 to 480"),
        (lambda: faithfulness(model, sae, some, ranking, held_out=examples(1, 4)), "held_out: prompts of another length"),
        (lambda: faithfulness(model, sae, some, ranking).area("x"), "curve: 'x'"),
        (lambda: rank_edges(model, some, "x"), "rule: 'x'"),
        (lambda: edge_faithfulness(model, some, EdgeRanking("x", torch.zeros(2, 2))), r"ranking: expected numbers of \[21, 21\]"),
    ]
    for call, said in cases:
        with pytest.raises(InputError, match=said):
            call()
    with pytest.raises(UnsupportedError, match="side by side"):
        rank_edges(build("gptj", F64), some)
