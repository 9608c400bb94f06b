"""Edges against interventions: true ones agree, planted ones are found, and the interventions are those that hooks would make."""

import re
from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.edges import Edges
from attrib.core.types import InputError, Policy, UnsupportedError
from tests.support.attribution_cases import prompts
from tests.support.builders import build, dictionary, prompt
from tests.support.cut_cases import SETS, ours

F64 = torch.float64
FROZEN = Policy("frozen", "frozen", "frozen")
POLICIES = {"exact": attrib.EXACT, "linear": attrib.LINEAR, "norms": Policy(norm="frozen"), "mlps": Policy(mlp="frozen")}
EARLY, LATE = "blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"


def the_metric(logits: Tensor) -> Tensor:
    return logits[-1].logsumexp(-1) + logits[0, 3]


def ends(kind: str = "jumprelu", at: str = EARLY) -> tuple[attrib.Dictionary, attrib.Dictionary]:
    return dictionary("topk", at, F64, seed=4), dictionary(kind, LATE, F64, seed=5)


def verified(edges: Any, model: attrib.Model, *dictionaries: attrib.Dictionary, **options: Any) -> attrib.causal.Agreement:
    return attrib.causal.verify(edges, model, dictionaries=dictionaries, **({} if "n_edges" in options else {"n": 12}) | options)


def agree(found: attrib.causal.Agreement, step: float, tolerance: float) -> None:
    """All edges whose target stays active; nearly all do."""
    table = found.table[found.table.step == step]
    stays = table[~table.silent.astype(bool)]
    assert len(stays) >= 0.9 * len(table) > 0
    scale = table.predicted.abs().max()
    assert (stays.error.abs() <= tolerance * (stays.predicted.abs() + 1e-2 * scale)).all(), stays.loc[stays.error.abs().idxmax()]


@pytest.mark.few
@pytest.mark.parametrize(
    ("family", "policy"), [*product(["gpt2", "gemma2", "gptj"], POLICIES), *product(["qwen3", "olmo2"], ["norms", "linear"])]
)
def test_true_edges_agree(family: Any, policy: str) -> None:
    model, (source, target), tokens = build(family, F64), ends(), prompts(7, 1, 4)
    options: dict[str, Any] = {"policy": POLICIES[policy]}
    every = [
        attrib.latent_to_latent(model, source, target, tokens, **options),
        attrib.latent_to_latent(model, source, target, tokens, error=False, **options),
        attrib.token_to_latent(model, target, tokens, **options),
        attrib.latent_to_logit(model, source, tokens, logits=attrib.TopLogits(3), positions=[-1, 0], **options),
        attrib.latent_to_logit(model, target, tokens, logits=attrib.Difference(3, (4, 5)), **options),
    ]
    found = verified(every, model, source, target, steps=1e-4, n=5)
    agree(found, 1e-4, 1e-4)
    assert found.table.prompt.nunique() > 1
    assert found.summary().pair.nunique() == 4  # two of them have the same ends


@pytest.mark.few
@pytest.mark.parametrize(
    ("which", "policy", "effect"),
    [
        ("transcoders", "exact", "direct"), ("transcoders", "linear", "total"), ("cross", "linear", "direct"), ("cross", "exact", "total"),
        ("all", "exact", "total"), ("z", "linear", "direct"),
    ],
)  # fmt: skip
def test_edges_through_cuts_agree(which: str, effect: Any, policy: str) -> None:
    model, tokens = build("llama", F64), prompts(6, 3)
    source, target = (
        dictionary("standard", "blocks.0.hook_mlp_out", F64, seed=4),
        dictionary("standard", "blocks.3.hook_mlp_out", F64, seed=5),
    )
    put_in = ours(SETS[which](model))
    cuts = [cut for cut in put_in if not {str(s) for s in cut.writes} & {str(source.site), str(target.site)} or which == "cross"]
    if which == "cross":
        source, target = cuts[0], dictionary("standard", LATE, F64, seed=5)
    for error in (True, False):
        edges = attrib.latent_to_latent(model, source, target, tokens, cuts=cuts, effect=effect, policy=POLICIES[policy], error=error)
        agree(verified(edges, model, source, target, *cuts, steps=1e-5, n=6), 1e-5, 1e-3)


def test_tokens_errors_metrics_and_directions_agree() -> None:
    model, (source, target), tokens = build("gpt2", F64), ends(), prompts(6, 4)
    direction = attrib.Direction(torch.randn(32, dtype=F64, generator=torch.Generator().manual_seed(0)))
    kinds = ("tokens", attrib.ErrorAt(EARLY))
    found = attrib.jacobian(model, kinds, [target, attrib.TokenLogits([5, 6])], tokens, cuts=[source])
    assert {edges.kind for edges in found.values()} == {"token_to_latent", "token_to_logit", "error_to_latent", "error_to_logit"}
    agree(verified(found, model, source, target, steps=1e-4), 1e-4, 1e-4)
    for goal, edges in (
        (the_metric, attrib.latent_to_metric(model, source, tokens, the_metric, policy=attrib.LINEAR)),
        (direction, attrib.latent_to_logit(model, source, tokens, logits=direction)),
    ):
        agree(verified(edges, model, source, target=goal, steps=1e-4), 1e-4, 1e-4)
        with pytest.raises(UnsupportedError, match="target: the edges go to"):
            verified(edges, model, source)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_linear_model_agrees_at_every_step(family: Any) -> None:
    model, (source, target), tokens = build(family, F64), ends("standard"), prompts(8, 3)
    edges = [
        attrib.latent_to_logit(model, source, tokens, policy=FROZEN),
        attrib.latent_to_latent(model, source, target, tokens, policy=FROZEN),
        attrib.token_to_latent(model, target, tokens, policy=FROZEN),
    ]
    found = verified(edges, model, source, target, steps=(0.25, 1))
    table = found.table[~found.table.silent.astype(bool)]
    assert set(table.step) == {0.25, 1}
    assert found.table.silent.any()
    assert (table.error.abs() <= 1e-9 * table.predicted.abs().max()).all()
    assert not found.table[found.table.pair.str.endswith("logits")].silent.any()


def test_a_notebook_shows_the_summary() -> None:
    table = {"pair": "<b>", "step": 0.5, "prompt": 0, "edge": [0, 1], "source": "s", "target": "t", "predicted": [1.0, 2.0]}
    table |= {"measured": [1.0, 1.0], "error": [0.0, -1.0], "relative": [0.0, 0.5], "silent": False, "lost": ""}
    passes = pd.DataFrame({"pair": ["<b>"], "step": [0.5], "sources": [2], "activated": [0]})
    found = attrib.causal.Agreement(pd.DataFrame(table), passes, {"dtype": "float32", "steps": (0.5,)})
    shown = found._repr_html_()
    assert "<b>" not in shown
    [cells] = re.findall(r"<td>(.*?)</td>" * 10, shown)
    assert cells == ("&lt;b&gt;", "0.5", "2", "2", "0.6", "nan", "0.25", "0.5", "0", "0")


def test_a_planted_edge_is_the_worst_case() -> None:
    model, (source, target), tokens = build("gpt2", F64), ends(), prompts(7, 5)
    edges = attrib.latent_to_latent(model, source, target, tokens)
    entry = int(edges.attribution.abs().argsort()[len(edges) * 3 // 4])
    wrong = edges.attribution.clone()
    wrong[entry] *= -1
    planted = replace(edges, attribution=wrong)
    found = verified(planted, model, source, target, steps=1e-4, n=len(edges.sources))
    stays = found.table[~found.table.silent.astype(bool)]
    assert len(found) == len(edges)
    worst = stays.loc[stays.relative.idxmax()]
    assert found.worst(1 + int(found.table.silent.sum()), by="relative").index.isin([worst.name]).any()
    i, j = int(edges.indices[entry]), int(edges.row[entry])
    assert worst.source.startswith(f"{source.site}[{int(edges.sources.latent[i])}] @{int(edges.sources.position[i])} ")
    assert worst.target.startswith(f"{target.site}[{int(edges.targets.latent[j])}] @{int(edges.targets.position[j])} ")
    assert worst.predicted == pytest.approx(-worst.measured, rel=1e-3)
    right = verified(edges, model, source, target, steps=1e-4, n=len(edges.sources)).table
    assert right[~right.silent.astype(bool)].relative.max() < 0.01 < stays.relative.max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:HookedTransformer is deprecated")
def test_hooks_of_transformer_lens_measure_the_same() -> None:
    """The source's decoder row is added to the stream by TransformerLens' own hook, and the target read from its own cache."""
    from tests.support.hooked import hooked

    lens = hooked("gpt2", F64, n_layers=4).requires_grad_(False)
    model, tokens = attrib.from_transformer_lens(lens), prompts(7)[0]
    source, target = (dictionary(kind, site, F64, seed=4, d_in=lens.cfg.d_model) for kind, site in (("topk", EARLY), ("standard", LATE)))
    edges = attrib.latent_to_latent(model, source, target, [tokens])
    found = verified(edges, model, source, target, steps=(0.05, 1), n=3)

    def latents(position: int, row: Tensor) -> Tensor:
        def add(value: Tensor, hook: Any) -> Tensor:
            value[0, position] += row
            return value

        seen: list[Tensor] = []
        lens.run_with_hooks(tokens[None], fwd_hooks=[(EARLY, add), (LATE, lambda value, hook: seen.append(value[0].clone()))])
        x = seen[0] - target.params.b_dec if target.config.apply_b_dec_to_input else seen[0]
        return (x @ target.params.W_enc + target.params.b_enc).relu()

    names = {}
    for i in range(len(edges.sources)):
        position, latent = int(edges.sources.position[i]), int(edges.sources.latent[i])
        row = source.params.W_dec[latent] * edges.sources.activation[i]
        names[f"{source.site}[{latent}] @{position} "] = position, row
    for (name, step), part in found.table.groupby(["source", "step"]):
        position, row = names[name[: name.index("'")]]
        below = latents(position, -step * row)
        above = latents(position, 0 * row if step == 1 else step * row)
        change = (above - below) / (1 if step == 1 else 2 * step)
        for line in part.itertuples():
            at, latent = int(line.target.split("@")[1].split()[0]), int(line.target.split("[")[1].split("]")[0])
            assert line.measured == pytest.approx(float(change[at, latent]), rel=1e-9, abs=1e-9)


def test_float32_edges_are_measured_without_rounding_and_with_it() -> None:
    model, tokens = build("llama"), prompts(7)
    source, target = (d.to(dtype=torch.float32) for d in ends())
    edges = attrib.latent_to_latent(model, source, target, tokens)
    exact, rounded = (verified(edges, model, source, target, steps=1e-3, n=9, dtype=dtype) for dtype in ("float64", "float32"))
    stays = exact.table[~exact.table.silent.astype(bool)]
    assert stays.relative.median() < 1e-4 < rounded.table.relative.median()
    assert rounded.summary().slope[0] == pytest.approx(1, abs=0.05)


def test_draws_are_of_the_seed_and_counts_are_said() -> None:
    model, (source, target), tokens = build("gpt2", F64), ends(), prompts(7, 4)
    edges = attrib.latent_to_latent(model, source, target, tokens)
    one, same, other = (verified(edges, model, source, target, seed=seed, n=3).table for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one.source.equals(other.source)
    every = verified(edges, model, source, target, n=10**6, steps=1)
    assert every.summary().sources[0] == len(edges.indices.unique())
    assert len(every) == len(edges)
    assert every.summary().silent[0] == every.table.silent.sum() > 0
    assert every.summary().activated[0] > 0
    some = verified(edges, model, source, target, n_edges=7, steps=1)
    assert (len(some), some.call["n"], some.call["n_edges"]) == (7, None, 7)
    assert some.summary().sources[0] == len(some.table.groupby(["prompt", "source"]))
    both = some.table.merge(every.table, on=["prompt", "source", "target"])  # the same edges, by the same passes
    assert len(both) == 7
    assert both.measured_x.to_list() == pytest.approx(both.measured_y.to_list())
    assert verified(edges, model, source, target, n_edges=10**6, steps=1).table.measured.equals(every.table.measured)
    assert attrib.causal.verify(edges, model, dictionaries=(source, target), steps=1).call["n"] == 32


def test_what_cannot_be_measured_is_refused() -> None:
    model, (source, target), tokens = build("gpt2", F64), ends(), prompts(4)
    edges = attrib.latent_to_latent(model, source, target, tokens)
    for options, said in (
        ({"n": 0}, "n: 0; expected a whole number"), ({"n": True}, "n: True"), ({"steps": ()}, r"steps: \(\); expected numbers above 0"),
        ({"steps": 2.0}, "steps: 2.0"), ({"steps": float("nan")}, "steps: nan"), ({"seed": -1}, "seed: -1"),
        ({"n_edges": 0}, "n_edges: 0; expected a whole number"), ({"n": 3, "n_edges": 4}, "n_edges: 4 edges beside n, 3 sources"),
        ({"dtype": "bf16"}, "dtype: 'bf16'"), ({"steps": True}, "steps: True"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            verified(edges, model, source, target, **options)
    with pytest.raises(InputError, match=r"model: .* is not the one"):
        verified(edges, build("gpt2", F64, seed=9), source, target)
    with pytest.raises(InputError, match=r"an attribution of Edges.* is NaN"):
        verified(replace(edges, attribution=edges.attribution * torch.nan), model, source, target)
    with pytest.raises(InputError, match="edges: none"):
        verified([], model)
    with pytest.raises(InputError, match="edges: str"):
        verified(["x"], model)
    with pytest.raises(InputError, match="has no 'model'"):
        verified(replace(edges, call={}), model)


def test_no_edges_are_no_measurements() -> None:
    model, (source, target), tokens = build("gpt2", F64), ends(), prompts(4)
    edges: Edges = attrib.latent_to_latent(model, source, target, tokens, keep=attrib.Threshold(1e9))
    found = verified(edges, model, source, target)
    assert len(found) == len(found.summary()) == 0
    assert "0 measurements" in repr(found)


def test_relevance_is_no_prediction_of_an_intervention() -> None:
    model, source = build("gpt2", torch.float64), dictionary("topk", "blocks.1.hook_resid_pre", torch.float64)
    edges = attrib.latent_to_logit(model, source, prompt(4), policy=attrib.RELP)
    with pytest.raises(attrib.UnsupportedError, match="relp holds ratios of activations, which no intervention on the model does"):
        attrib.causal.verify(edges, model, dictionaries=[source], n=1)
