"""Graphs by RelP: edges against transformers' MLPs with detached ratios, rows that add up, and constants that are biases alone."""

from typing import Any

import pytest
import torch

import attrib
from attrib.core.types import InputError, TokenLogits
from attrib.graph.graph import Graph
from attrib.runs.again import Parts, graph_again
from tests.engine.test_relp import _without_biases, plain_without_bias, relevant
from tests.reference import dense
from tests.support.attribution_cases import Lens, assert_same, prompts, reference_model
from tests.support.builders import FAMILIES, Family, build
from tests.support.builders import dictionary as plain_dictionary

IDS = (7, 0, 59)


def built(model: attrib.Model, nodes: Any, **options: Any) -> Graph:
    [graph] = attrib.graph.build(model, nodes, prompts(6), targets=TokenLogits(IDS), policy=attrib.RELP, keep=attrib.Dense(), **options)
    return graph


def edges_between(graph: Graph, sources: str, targets: str) -> torch.Tensor:
    """[targets, sources], by the kinds of nodes."""
    whole = torch.zeros(len(graph.nodes), len(graph.nodes), dtype=graph.weight.dtype)
    whole[graph.targets[graph.row], graph.indices] = graph.weight
    return whole[graph.nodes.of_kind(targets)][:, graph.nodes.of_kind(sources)]


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_are_those_of_detached_ratios(family: Family):
    lens = Lens("standard")
    graph = built(build(family, torch.float64), [lens.dictionary(family)], demean=False)
    recipe = reference_model(family)
    with relevant(recipe):
        want = dense.latent_to_logit(recipe, lens.sae(family), prompts(6)[0], torch.tensor(IDS), linear=True)
        assert_same(edges_between(graph, "latent", "logit"), want.attribution, "latents to logits, past three MLPs")
    tokens = attrib.token_to_latent(build(family, torch.float64), lens.dictionary(family), prompts(6), policy=attrib.RELP)
    found = edges_between(graph, "token", "latent")
    if graph.nodes.of_kind("position").numel():  # the scale of a token's embedding sum moves both
        found = found + edges_between(graph, "position", "latent")
    assert_same(found, tokens.dense(0, "attribution"), "tokens to latents, past one MLP")
    exact = attrib.graph.build(build(family, torch.float64), [lens.dictionary(family)], prompts(6), keep=attrib.Dense())[0]
    assert (exact.l1[: len(graph.l1)] - graph.l1[: len(exact.l1)]).abs().max() > 1e-3


@pytest.mark.parametrize("nodes", ["stream", "neurons"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_add_up_and_what_is_left_is_biases(family: Family, nodes: str):
    model = build(family, torch.float64)
    what: Any = [Lens("standard").dictionary(family)] if nodes == "stream" else [attrib.graph.Neurons(1, None), attrib.graph.Neurons(2, 4)]
    graph = built(model, what)
    assert ((graph.total + graph.own - graph.value).abs() <= 1e-9 * graph.l1).all()
    bare = _without_biases(model)
    plain: Any = plain_dictionary("standard", "blocks.1.hook_resid_pre", torch.float64, apply_b_dec_to_input=False)
    graph = built(bare, [plain_without_bias(plain)] if nodes == "stream" else what)
    for kind in ("mlp", "bias"):
        for targets in ("latent", "logit"):
            assert not edges_between(graph, kind, targets).abs().gt(1e-10 * graph.l1.max()).any(), (
                "without biases no constant brings anything"
            )
    if nodes == "neurons":  # units are linear maps of what they read, and those without biases have nothing of their own
        assert graph.own.abs().max() <= 1e-10 * graph.l1.max()


def test_its_file_says_so_and_it_is_built_again(tmp_path: Any):
    model, source = build("llama", torch.float32), Lens("standard").dictionary("llama", torch.float32)
    graph = built(model, [source])
    attrib.save(tmp_path / "graph.h5", [graph])
    with attrib.open_graphs(tmp_path / "graph.h5") as graphs:
        stored = graphs[0]

    class Here(Parts):
        def model(self, named: Any) -> attrib.Model:
            return model

        def dictionary(self, named: Any) -> attrib.Dictionary:
            return source

    assert stored.call["policy"]["mlp"] == "relp"
    assert_same(graph_again(stored, Here({})).weight, stored.weight, "weights")


def test_rules_belong_to_the_attributions():
    model, source = build("gpt2", torch.float32), Lens("standard").dictionary("gpt2", torch.float32)
    for function in (attrib.graph.build, attrib.graph.plan):
        with pytest.raises(InputError, match="rule: ablation; an edge of a graph is gradient times activation, which makes rows add up"):
            function(model, [source], prompts(3), rule=attrib.Ablation())
    assert len(attrib.graph.build(model, [source], prompts(3), rule=attrib.GradientTimesActivation())) == 1
