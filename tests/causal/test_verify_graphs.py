"""Graphs against interventions on their nodes of every kind, and planted edges."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import attrib
from attrib.causal.graph_measuring import GraphQuestion
from attrib.core.types import InputError, Policy
from attrib.graph import Custom, Latents, Neurons
from attrib.graph.graph import Graph
from tests.support.builders import build, dictionary, prompt
from tests.support.cut_cases import SETS, ours

F64 = torch.float64
TOKENS = prompt(6)
EXACT_STEP = 1e-4


def built(family: Any, which: str | Sequence[Any], **options: Any) -> tuple[Any, list[Any], Graph]:
    model = build(family, F64)
    given = ours(SETS[which](model)) if isinstance(which, str) else list(which)
    (graph,) = attrib.graph.build(model, given, TOKENS, keep=attrib.Dense(), **options)
    return model, given, graph


def verified(graph: Any, model: Any, given: list[Any], **options: Any) -> Any:
    return attrib.causal.verify(graph, model, dictionaries=[d for d in given if isinstance(d, attrib.Dictionary)], **options)


@pytest.mark.few
@pytest.mark.parametrize(
    ("family", "which", "options"),
    [
        ("gpt2", "residual", {}), ("llama", "all", {"mlps": "leaf"}), ("gemma2", "transcoders", {"skip_positions": 1}),
        ("gptj", "cross", {"demean": False}), ("gpt2", (Neurons(2, 5), Neurons(1, None)), {"positions": [-1, 2]}),
    ],
)  # fmt: skip
def test_linear_graphs_agree(family: Any, which: Any, options: dict[str, Any]) -> None:
    """What lies between dictionaries is linear but for MLPs; where there is none on the way, at every step."""
    targets = [attrib.TopLogits(3), attrib.Difference(3, 5)]
    model, given, graph = built(family, which, targets=targets, **options)
    found = verified(graph, model, given, steps=EXACT_STEP, n=400)
    scale = graph.weight.abs().max().item()
    assert (found.table.error.abs() <= 1e-5 * scale).all(), found.worst(3)
    assert found.summary().edges.sum() > 200
    kinds = {pair.split(" -> ")[0] for pair in found.summary().pair}
    assert {"token", "bias"} <= kinds


@pytest.mark.long
@pytest.mark.parametrize(("which", "kinds"), [("all", {"error", "latent"}), ("attn_out", {"mlp", "error", "latent"})])
def test_all_that_is_linear_agrees_at_every_step(which: str, kinds: set[str]) -> None:
    model, given, graph = built("llama", which, mlps="leaf")
    found = verified(graph, model, given, steps=1, n=10**6)
    assert verified(graph, model, given, steps=(0.5, 1), n=9).table.error.abs().max() <= found.table.error.abs().max() + 1e-9
    assert set(found.table.source) == {graph.nodes.label(i) for i in graph.indices.unique().tolist()}
    assert {pair.split(" -> ")[0] for pair in found.summary().pair} >= {"token", "bias"} | kinds
    plain = found.table[~found.table.target.str.contains("hook_attn_out")]  # of which one dictionary normalises what it reads
    assert (plain.error.abs() <= 1e-9 * graph.weight.abs().max().item()).all(), found.worst(3)


def test_exact_graphs_latents_and_vectors_agree() -> None:
    model, transcoders = build("llama", F64), ours(SETS["transcoders"](build("llama", F64)))
    targets = [Latents([(1, 3, -1), (0, 5, 2)]), Custom("mean", torch.ones(32, dtype=F64) / 32), attrib.TokenLogits([5])]
    _, _, graph = built("llama", transcoders, targets=targets, policy=attrib.EXACT)
    found = verified(graph, model, transcoders, steps=EXACT_STEP, n=40, target=targets)
    assert (found.table.error.abs() <= 1e-4 * graph.weight.abs().max().item()).all(), found.worst(3)
    with pytest.raises(attrib.UnsupportedError, match="does not say enough"):
        verified(graph, model, transcoders)


@pytest.mark.parametrize(("family", "which"), [("gpt2", "residual"), ("llama", "transcoders"), ("gemma2", "all")])
def test_passes_that_are_shared_measure_what_each_edge_alone_does(family: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources of one place, steps up and down and what the passes hold share their computation; the reference shares none of it."""
    model, given, graph = built(family, which)
    steps, progress = (0.01, 0.5, 1), list[tuple[int, int]]()
    together = verified(graph, model, given, steps=steps, n_edges=50, progress=lambda done, total: progress.append((done, total))).table
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})
    assert progress[-1] == (50, 50)
    assert len(progress) > 2
    assert {total for _, total in progress} == {50}
    monkeypatch.setattr(GraphQuestion, "_pass", lambda self, start: replace(self._whole, start=start, also=frozenset()))
    scale = graph.weight.abs().max().item()
    compared = 0
    for edge in together.edge.unique()[::7].tolist():
        only = graph.only(torch.arange(len(graph)) == edge)
        for step in steps:
            [alone] = verified(only, model, given, steps=step, n_edges=1).table.measured
            [measured] = together[(together.edge == edge) & (together.step == step)].measured
            assert measured == pytest.approx(alone, abs=1e-9 * scale, rel=1e-9)
            compared += 1
    assert compared > 20


def test_a_planted_edge_is_the_worst_case() -> None:
    model, given, graph = built("gpt2", "residual")
    weight = graph.weight.clone()
    at = int(weight.abs().argsort()[len(weight) // 2])
    weight[at] += weight.abs().max()
    found = verified(replace(graph, weight=weight), model, given, steps=EXACT_STEP, n=10**6)
    worst = found.worst(1).iloc[0]
    node, target = int(graph.indices[at]), int(graph.target[at])
    assert (worst.source, worst.target) == (graph.nodes.label(node), graph.nodes.label(target))
    assert worst.measured == pytest.approx(float(graph.weight[at]), abs=1e-6 * float(weight.abs().max()))
    assert found.worst(2).error.abs().iloc[1] < 1e-4 * abs(worst.error)


def test_a_pruned_float32_graph_is_measured_by_the_nodes_that_it_has() -> None:
    model, given = build("llama"), [dictionary("transcoder", "blocks.2.mlp.hook_in"), dictionary("topk", "blocks.1.hook_resid_pre")]
    (graph,) = attrib.graph.build(model, given, TOKENS)
    pruned = attrib.graph.prune(graph).graph
    found = verified(pruned, model, given, steps=1e-3, n=200)
    assert 0 < len(found) == len(pruned)
    assert found.table.relative.median() < 1e-4


def test_what_cannot_be_measured_is_refused() -> None:
    model, given, graph = built("gpt2", "residual")
    for wrong, said in (
        (replace(graph, call={}), "does not say how it was built"),
        (replace(graph, weight=graph.weight * torch.nan), "a weight is NaN"),
    ):
        with pytest.raises(InputError, match=said):
            verified(wrong, model, given)
    with pytest.raises(InputError, match=r"model: .* is not the one"):
        verified(graph, build("gpt2", F64, seed=3), given)
    frozen = Policy("frozen", "frozen", "frozen")
    _, _, held = built("gpt2", "residual", policy=frozen)
    assert len(verified(held, model, given, steps=1)) > 0
