"""Ablations one by one and in pairs, against an intervention for each, and TransformerLens' hooks."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Ablations, Latents, Scale, Set, ablate_each, intervene
from attrib.causal.ablating import _is_affine
from attrib.causal.splicing import splice
from attrib.core.types import EXACT, LINEAR, BudgetError, InputError, NotFiniteError, Policy
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model
from tests.support.builders import Family, build, dictionary, prompt
from tests.support.cut_cases import SETS, cross, ours
from tests.support.lens_splice import folded, lens_run, put_in
from tests.support.tolerances import assert_close

ORACLES: tuple[Family, ...] = ("gpt2", "llama", "gptj", "gemma2")
IDS, TARGETS = prompt(6), [3, 9]
HELD = Policy("frozen", "frozen", "frozen")


def sae(kind: str, site: str, seed: int = 3) -> Dictionary:
    return dictionary(kind, site, torch.float64, seed=seed, d_sae=24, **({"k": 4} if kind == "topk" else {}))


def check(model: Model, dictionaries: list[Dictionary], pairs: bool = False, **options: Any) -> Ablations:
    """Some of the ablations, the first and the last among them, are interventions."""
    first, *others = dictionaries
    found = ablate_each(model, first, IDS, logits=TARGETS, dictionaries=others, pairs=pairs, at=[0, 2, -1], **options)
    for n in {0, len(found) // 4, len(found) // 2, len(found) - 1}:
        edits = [Set(Latents(0, int(i)), 0.0, int(p)) for p, i in zip(found.position[n], found.latent[n], strict=True)]
        assert_close(found.ablated[n], intervene(model, dictionaries, IDS, edits, metric=TARGETS, **options), what=(n, edits))
    assert_close(found.base[0], intervene(model, dictionaries, IDS, metric=TARGETS, **options))
    assert found.change.abs().max() > 1e-4
    return found


@pytest.mark.few
@pytest.mark.parametrize("family", ORACLES)
@pytest.mark.parametrize(
    ("kind", "site"),
    [
        ("topk", "blocks.1.hook_resid_pre"), ("transcoder", "blocks.1.mlp.hook_in"), ("standard", "blocks.3.hook_resid_post"),
        ("jumprelu", "blocks.1.hook_attn_out"), ("standard", "blocks.2.hook_mlp_out"), ("standard", "blocks.0.mlp.hook_in"),
    ],
)  # fmt: skip
def test_each_is_an_intervention(family: Family, kind: str, site: str):
    found = check(build(family, torch.float64), [sae(kind, site)])
    one = sae(kind, site)
    latents = attrib.encode_sparse(one, attrib.capture(build(family, torch.float64), IDS, one.site)[one.site])
    at = torch.isin(latents.position, torch.tensor([0, 2, 5]))
    assert torch.equal(found.position[:, 0], latents.position[at])
    assert torch.equal(found.latent[:, 0], latents.latent[at])
    assert_close(found.activation[:, 0], latents.value[at])


@pytest.mark.few
@pytest.mark.parametrize("policy", [EXACT, LINEAR, Policy(norm="frozen"), HELD], ids=str)
@pytest.mark.parametrize(
    ("effect", "errors"), [("total", True), ("direct", True), ("total", False), (["total", "direct", "total"], "live")], ids=str
)
def test_with_other_dictionaries_behind_and_before(effect: Any, errors: Any, policy: Policy):
    others = [sae("transcoder", "blocks.2.mlp.hook_in", 5), sae("jumprelu", "blocks.0.hook_resid_mid", 6)]
    check(build("llama", torch.float64), [sae("topk", "blocks.1.hook_resid_pre"), *others], effect=effect, errors=errors, policy=policy)


@pytest.mark.few
@pytest.mark.parametrize("errors", [True, False, "live"])
@pytest.mark.parametrize("effect", ["total", "direct"])
def test_of_a_layer_of_a_cross_layer_transcoder(effect: str, errors: Any):
    model = build("gpt2", torch.float64)
    early, middle, late = ours(cross(model, range(1, 4)))
    others = {"total": [late, early], "direct": [early, late, sae("standard", "blocks.2.hook_resid_pre")]}[effect]
    check(model, [middle, *others], effect=effect, errors=errors)


@pytest.mark.few
@pytest.mark.parametrize("number", [0, 3, 5, 7])
def test_among_dictionaries_of_every_kind(number: int):
    """Skip connections, gates, decoder norms, and inputs that are normalised, of streams, heads, attention and MLPs."""
    model = build("llama", torch.float64)
    found = ours(SETS["all"](model))
    for errors in (True, "live"):
        check(model, [found[number], *found[:number], *found[number + 1 :]], errors=errors)


@pytest.mark.parametrize("policy", [EXACT, HELD], ids=["exact", "held"])
def test_pairs_are_both_at_once(policy: Policy):
    model, one = build("llama", torch.float64), sae("topk", "blocks.1.hook_resid_pre")
    pairs = check(model, [one], pairs=True, policy=policy)
    singles = ablate_each(model, one, IDS, logits=TARGETS, at=[0, 2, -1], policy=policy)
    known = [*zip(singles.position[:, 0].tolist(), singles.latent[:, 0].tolist(), strict=True)]
    got = [((p, i), (q, j)) for (p, q), (i, j) in zip(pairs.position.tolist(), pairs.latent.tolist(), strict=True)]
    assert got == [*combinations(known, 2)]


def test_transformer_lens_hooks_say_the_same():
    lens, model = folded("llama-3.1")
    foreign, dictionaries = put_in(["blocks.0.mlp.hook_in", "blocks.1.hook_resid_pre"])
    found = ablate_each(model, dictionaries[0], IDS, logits=TARGETS, dictionaries=dictionaries[1:])
    for n in range(0, len(found), 7):
        p, i = int(found.position[n]), int(found.latent[n])

        def without(a: Tensor, p: int = p, i: int = i) -> Tensor:
            return a.index_put((torch.tensor(p), torch.tensor(i)), a.new_zeros(()))

        want, _ = lens_run(lens, IDS, foreign, dictionaries, latents={0: without})
        assert_close(found.ablated[n], want[-1, TARGETS])


def test_what_is_affine_is_found_by_one_sweep():
    """And that it is affine is true: the passes say so too, for a change that is not small."""
    model, one = build("llama", torch.float64), sae("topk", "blocks.1.hook_resid_pre")
    cuts = [sae("transcoder", f"blocks.{layer}.mlp.hook_in", layer) for layer in (1, 2, 3)]
    cases: list[tuple[list[Dictionary], dict[str, Any], bool]] = [
        ([one], {"policy": HELD}, True),
        ([one, *cuts], {"policy": LINEAR, "effect": "direct"}, True),
        ([cuts[1], cuts[2]], {"policy": LINEAR, "effect": "direct"}, True),
        ([cuts[1], *cuts[::2]], {"policy": LINEAR, "effect": ["direct", "total", "direct"]}, True),
        ([one, *cuts], {"policy": LINEAR}, False),
        ([one, *cuts[:2]], {"policy": LINEAR, "effect": "direct"}, False),
        ([one, *cuts], {"policy": Policy(norm="frozen"), "effect": "direct"}, False),
        ([one, *cuts], {"policy": LINEAR, "effect": "direct", "errors": "live"}, False),
    ]
    for dictionaries, options, want in cases:
        made = splice(model, dictionaries, options.get("effect", "total"), options.get("errors", True), options["policy"])
        assert _is_affine(made) is want, options
        if want:
            first, *others = dictionaries
            ways = [
                ablate_each(model, first, IDS, logits=attrib.Difference(3, 9), dictionaries=others, to=2.5, method=method, **options)
                for method in ("auto", "passes")
            ]
            assert_close(ways[0].ablated, ways[1].ablated)
            assert ways[1].change.abs().max() > 1e-2


def test_under_linear_the_change_is_the_attribution():
    model, cuts = build("llama", torch.float64), [sae("transcoder", f"blocks.{layer}.mlp.hook_in", layer) for layer in range(4)]
    found = ablate_each(model, cuts[1], IDS, logits=TARGETS, dictionaries=[cuts[0], *cuts[2:]], effect="direct", policy=LINEAR)
    edges = attrib.latent_to_logit(model, cuts[1], IDS, logits=TARGETS, cuts=cuts, policy=LINEAR, keep=attrib.Dense())
    assert_close(-found.change.T, edges.dense(0, value="attribution"))


def test_prompts_of_any_lengths_and_a_small_budget_change_nothing():
    model, one = build("gpt2", torch.float64), sae("standard", "blocks.1.hook_resid_pre")
    prompts = [prompt(n, seed=n) for n in (5, 1, 7)]
    told: list[tuple[int, int]] = []
    found = ablate_each(model, one, prompts, logits=attrib.TopLogits(4), to=1.0, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    little = ablate_each(model, one, prompts, logits=attrib.TopLogits(4), to=1.0, budget=60_000)
    assert_close(little.ablated, found.ablated)
    for n, ids in enumerate(prompts):
        alone, of_it = ablate_each(model, one, ids, logits=attrib.TopLogits(4), to=1.0), found.prompt == n
        assert_close(found.ablated[of_it], alone.ablated)
        assert found.labels[n] == alone.labels[0] == tuple(map(str, attrib.forward(model, ids)[-1].topk(4).indices.tolist()))
        assert torch.equal(found.latent[of_it], alone.latent)
    with pytest.raises(BudgetError, match="prompt 0"):
        ablate_each(model, one, prompts, budget=1000)


def test_a_metric_of_all_logits():
    model, one = build("gpt2", torch.float64), sae("standard", "blocks.1.hook_resid_pre")

    def loss(logits: Tensor) -> Tensor:
        return -logits[:-1].log_softmax(-1)[torch.arange(5), IDS[1:]].mean()

    found = ablate_each(model, one, IDS, metric=loss, latents=[*range(12)], at="2:")
    assert found.labels == (("metric",),)
    assert found.latent.max() < 12
    assert found.position.min() == 2
    for n in range(0, len(found), 5):
        p, i = int(found.position[n]), int(found.latent[n])
        assert_close(found.ablated[n, 0], intervene(model, one, IDS, Scale(Latents(0, i), 0.0, p), metric=loss))
    assert_close(found.base[0, 0], loss(attrib.forward(model, IDS)))


def test_tables():
    model, one = build("gpt2", torch.float64), sae("standard", "blocks.1.hook_resid_pre")
    found = ablate_each(model, one, [IDS, prompt(3)], logits=TARGETS)
    frame = found.to_pandas()
    assert list(frame.columns) == ["prompt", "position", "latent", "activation", "target", "base", "ablated", "change"]
    assert len(frame) == 2 * len(found)
    row = frame.iloc[2 * len(found) - 1]
    assert (row["prompt"], row["target"], row["change"]) == (1, "9", float(found.change[-1, 1]))
    assert frame["change"].equals(frame["ablated"] - frame["base"])
    assert found.top(3)["change"].abs().tolist() == found.change.abs().flatten().topk(3).values.tolist()
    pairs = ablate_each(model, one, IDS, logits=TARGETS, pairs=True, at=0)
    assert list(pairs.to_pandas().columns[:5]) == ["prompt", "position_1", "position_2", "latent_1", "latent_2"]
    assert "pairs of latents" in repr(pairs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "fast"}, "method: 'fast'"),
        ({"latents": [99]}, "0 to 23"),
        ({"latents": []}, "latents"),
        ({"latents": "all"}, "latents: 'all'"),
        ({"at": 6}, "6 tokens"),
        ({"to": float("nan")}, "finite"),
        ({"to": "mean"}, "to: 'mean'"),
        ({"to": torch.zeros(5)}, r"shape \[5\]"),
        ({"metric": lambda logits: logits}, "one number, or a row"),
        ({"metric": lambda logits: 3}, "int"),
        ({"metric": [3]}, "given as `logits`"),
        ({"logits": attrib.Direction(torch.ones(32), "blocks.0.hook_resid_pre")}, "the last site"),
        ({"logits": attrib.TopLogits(0)}, "k >= 1"),
        ({"dictionaries": [sae("standard", "blocks.1.hook_resid_pre", 4)]}, "both replace"),
        ({"tokens": []}, "no prompts"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict[str, Any], said: str):
    given = {"tokens": IDS, "dictionary": sae("standard", "blocks.1.hook_resid_pre")} | options
    with pytest.raises(InputError, match=said):
        ablate_each(build("gpt2", torch.float64), **given)


def test_where_nothing_is_active_and_where_numbers_are_none():
    model, one = build("gpt2", torch.float64), sae("topk", "blocks.1.hook_resid_pre")
    found = ablate_each(model, one, IDS, logits=TARGETS)
    never = sorted({*range(24)} - {*found.latent[:, 0].tolist()})
    with pytest.raises(InputError, match="active"):
        ablate_each(model, one, IDS, latents=never[:1])
    weights = model.params._replace(b_U=model.params.b_U.index_fill(0, torch.tensor(3), torch.nan))
    with pytest.raises(NotFiniteError, match="prompt 0"):
        ablate_each(replace(model, params=weights), one, IDS, logits=TARGETS)
