"""Edges taken out of graphs, against interventions on the model row by row, against a plain loop, and at the ends of curves."""

from collections import defaultdict
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Latents, PreActivations, Scale, Set, graph_faithfulness, intervene, values_with
from attrib.core.types import InputError
from attrib.graph import Graph
from tests.support.builders import build, dictionary, prompt
from tests.support.graphs import random_graph

F64, TOKENS = torch.float64, prompt(5)
WANTED = attrib.Difference(3, 5)


@lru_cache
def built() -> tuple[attrib.Model, list[attrib.Dictionary], Graph]:
    """A model each of whose MLPs has a transcoder, and a stream with an SAE, so that nothing but latents bends."""
    kinds = ("jumprelu_skip_transcoder", "transcoder", "skip_transcoder", "jumprelu_transcoder")
    given = [dictionary(kind, f"blocks.{layer}.mlp.hook_in", F64, seed=layer) for layer, kind in enumerate(kinds)]
    given.insert(2, dictionary("topk", "blocks.2.hook_resid_pre", F64, seed=7))
    model = build("llama", F64)
    (graph,) = attrib.graph.build(model, given, TOKENS, targets=WANTED, keep=attrib.Dense())
    return model, given, graph


def drawn(graph: Graph, seed: int) -> Tensor:
    """Half of the edges, and all that constants have."""
    kept = torch.rand(len(graph), generator=torch.Generator().manual_seed(seed)) < 0.5
    return kept | torch.isin(graph.indices, graph.nodes.of_kind("bias"))


def dictionary_of(graph: Graph, given: list[attrib.Dictionary], node: int) -> int:
    return [str(one.site) for one in given].index(graph.nodes.sets[int(graph.nodes.set_of[node])].site)


def test_edges_that_are_taken_out_are_interventions_row_by_row() -> None:
    """One intervention for each row: every latent has what the row's edge from it carries, and so have errors and tokens."""
    model, given, graph = built()
    nodes, kept = graph.nodes, drawn(graph, 0)
    reference = 0.3 * nodes.activation.flip(0).abs()
    values, active = values_with(graph, kept, reference), nodes.activation.clone()
    active[graph.targets] = values  # a row's own value is the activation that goes on
    some = {*range(0, len(graph.targets), 25), len(graph.targets) - 1}
    assert len(some) > 20
    for row in some:
        dense = [torch.zeros(len(TOKENS), one.d_sae, dtype=F64) for one in given]
        edits: list[Any] = []
        for edge in range(int(graph.indptr[row]), int(graph.indptr[row + 1])):
            node = int(graph.indices[edge])
            kind, position, latent = nodes.kind(node), int(nodes.position[node]), int(nodes.latent[node])
            stands = active[node] if kept[edge] else reference[node]
            if kind == "latent":
                dense[dictionary_of(graph, given, node)][position, latent] = stands
            elif kind in ("error", "token") and not kept[edge]:
                at = "blocks.0.hook_resid_pre" if kind == "token" else attrib.ErrorAt(nodes.sets[int(nodes.set_of[node])].site)
                edits.append(Scale(at, float(stands), positions=position))
        edits += [Set(Latents(number), each) for number, each in enumerate(dense)]
        options: dict[str, Any] = {"effect": "direct", "policy": attrib.LINEAR}
        target = int(graph.targets[row])
        if nodes.kind(target) == "latent":
            read = PreActivations(dictionary_of(graph, given, target), int(nodes.latent[target]))
            whole = intervene(model, given, TOKENS, edits, values=[read, "blocks.3.hook_resid_post"], **options)
            got = whole[read][int(nodes.position[target])]
        else:
            got = intervene(model, given, TOKENS, edits, metric=WANTED, **options)
        assert float(values[row]) == pytest.approx(float(got), rel=1e-9, abs=1e-9), nodes.label(target)
    assert (values - graph.value).abs().max() > 1


def test_nodes_moved_a_little_are_one_intervention_that_later_latents_see() -> None:
    """Where no latent falls silent, the affine recomputation is what intervene finds with effects that are total."""
    model, given, graph = built()
    nodes = graph.nodes
    taken = nodes.of_kind("latent")[::5]
    kept = ~torch.isin(graph.indices, taken)
    edits = [
        Set(
            Latents(dictionary_of(graph, given, node), int(nodes.latent[node])),
            float(0.9999 * nodes.activation[node]),
            int(nodes.position[node]),
        )
        for node in taken.tolist()
    ]
    got = intervene(model, given, TOKENS, edits, metric=WANTED, policy=attrib.LINEAR)
    moved = values_with(graph, kept, 0.9999 * nodes.activation)[-1] - graph.value[-1]
    assert float(moved) == pytest.approx(float(got) - float(intervene(model, [], TOKENS, metric=WANTED)), rel=1e-6)
    one_by_one = graph.weight[(graph.row == len(graph.targets) - 1) & ~kept].sum() * -1e-4
    assert float(moved) != pytest.approx(float(one_by_one), rel=1e-2)  # what goes on along kept edges is there


def activated(graph: Graph) -> Graph:
    """A drawn graph whose latents' rows are their activations."""
    is_latent = torch.isin(graph.targets, graph.nodes.of_kind("latent"))
    value = graph.nodes.activation[graph.targets].where(is_latent, graph.value)
    return replace(graph, value=value, own=value - graph.total)


def looped(graph: Graph, kept: Tensor, reference: Tensor) -> list[float]:
    """`values_with`, number by number."""
    activation = graph.nodes.activation.tolist()
    now, values, edges = dict(enumerate(activation)), [], defaultdict(list)
    for edge, row in enumerate(graph.row.tolist()):
        edges[row].append(edge)
    for row, target in enumerate(graph.targets.tolist()):
        value = float(graph.value[row])
        for edge in edges[row]:
            source = int(graph.indices[edge])
            carried = now[source] if kept[edge] else float(reference[source])
            value += float(graph.weight[edge]) / activation[source] * (carried - activation[source])
        values.append(value)
        if graph.nodes.kind(target) == "latent":
            now[target] = value
    return values


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_a_plain_loop_and_whole_graphs_add_up(seed: int) -> None:
    graph = activated(random_graph(seed))
    kept = torch.rand(3, len(graph), generator=torch.Generator().manual_seed(seed)) < 0.6
    reference = torch.rand(len(graph.nodes), generator=torch.Generator().manual_seed(seed), dtype=F64)
    for given in (None, reference):
        got = values_with(graph, kept, given)
        for mask, values in zip(kept, got, strict=True):
            assert values.tolist() == pytest.approx(
                looped(graph, mask, torch.zeros(len(graph.nodes)) if given is None else given), rel=1e-9
            )
    none, every = values_with(graph, torch.stack([torch.zeros_like(kept[0]), torch.ones_like(kept[0])]))
    assert torch.equal(every, graph.value)
    assert torch.allclose(none, graph.own + graph.dropped + graph.remainder)  # what no edge brings


@pytest.mark.parametrize("units", ["edges", "nodes"])
def test_curves_begin_without_edges_and_end_with_all(units: str) -> None:
    graphs = [activated(random_graph(seed)) for seed in range(3)]
    found = graph_faithfulness(graphs, "weight", units=units, keep=[2, 10], seed=1)
    table = found.table.set_index(["curve", "n"])
    assert (table.share["completeness", 0], table.share["completeness", found.units]) == pytest.approx((0, 1))
    assert (table.share["necessity", 0], table.share["necessity", found.units]) == pytest.approx((1, 0))
    whole = [float(one.value @ one.importance) for one in graphs]
    assert found.each["completeness"][:, -1].tolist() == pytest.approx(whole)
    assert found.whole == {"graphs": pytest.approx(sum(whole) / 3)}
    for number, graph in enumerate(graphs):  # the two largest, beside constants, by hand
        constant = torch.isin(graph.indices, graph.nodes.of_kind("position", "bias"))
        if units == "edges":
            first = graph.weight.abs().where(~constant, 0).topk(2).indices
            kept = constant.index_fill(0, first, True)
        else:
            size = torch.zeros(len(graph.nodes), dtype=F64).index_add(0, graph.indices, graph.weight.abs().where(~constant, 0))
            kept = constant | torch.isin(graph.indices, size.topk(2).indices)
        want = torch.tensor(looped(graph, kept, torch.zeros(len(graph.nodes))), dtype=F64) @ graph.importance
        assert float(found.each["completeness"][number, 1]) == pytest.approx(float(want))
        rest = torch.tensor(looped(graph, ~kept | constant, torch.zeros(len(graph.nodes))), dtype=F64) @ graph.importance
        assert float(found.each["necessity"][number, 1]) == pytest.approx(float(rest))
    stays = graph_faithfulness(graphs, "influence", units=units, always=("position", "bias", "error"))
    assert stays.units < found.units
    node = int(graphs[0].targets[-1])
    of_last = graph_faithfulness(graphs[0], "random", units=units, outputs=[{node: 2.0}])
    assert float(of_last.each["completeness"][0, -1]) == pytest.approx(2 * float(graphs[0].value[-1]))
    scores = [torch.arange(len(one if units == "edges" else one.nodes)).double() for one in graphs]
    assert graph_faithfulness(graphs, scores, units=units).ranking == "scores"


def test_what_cannot_be_taken_out_or_measured_is_refused() -> None:
    model, _, graph = built()
    (exact,) = attrib.graph.build(model, [], TOKENS, targets=WANTED, policy=attrib.EXACT)
    every = torch.ones(len(graph), dtype=torch.bool)
    cases: list[tuple[Any, str]] = [
        (lambda: values_with(exact, every[: len(exact)]), "built with attention and norm exact"),
        (lambda: values_with(replace(exact, call={}), every[: len(exact)]), "is made of its nodes but for .*, so it is not linear"),
        (
            lambda: values_with(replace(graph, nodes=replace(graph.nodes, activation=2 * graph.nodes.activation)), every),
            "is its activation but",
        ),
        (lambda: values_with(graph, every[1:]), "kept: .*; expected one entry for each of"),
        (lambda: values_with(graph, every, torch.zeros(3)), "reference: .3.; expected an activation"),
        (lambda: graph_faithfulness([]), "graphs: none"),
        (lambda: graph_faithfulness(graph, units="paths"), "units: 'paths'"),
        (lambda: graph_faithfulness(graph, "size"), "ranking: 'size'"),
        (lambda: graph_faithfulness(graph, [torch.zeros(3)]), "ranking: .3.; expected a number for each of the edges"),
        (lambda: graph_faithfulness(graph, [every.double()] * 2), "ranking: 2 of them for 1 graphs"),
        (lambda: graph_faithfulness(graph, outputs=[{0: 1.0}]), "outputs: 0; expected the number of a node that has a row"),
        (lambda: graph_faithfulness(graph, always=["glue"]), "always: 'glue'"),
        (lambda: graph_faithfulness(graph, keep=[10**9]), "keep: 1000000000"),
    ]
    for call, said in cases:
        with pytest.raises(InputError, match=said):
            call()
