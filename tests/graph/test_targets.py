"""What graphs are of: latents as targets, against torch.func on the pass with everything put in; and lists as others write them."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

import attrib
from attrib.core.types import EXACT, LINEAR, Dense, InputError, Policy, Site, TokenLogits, TopLogits
from attrib.dictionaries.dictionary import Dictionary, encode, pre_activations
from attrib.graph import Custom, Graph, Latents, Neurons, Where, compare, influence, key_of, merge_positions, prune, scores, strongest
from attrib.graph.building import build as build_graphs
from attrib.graph.constants import embeddings
from attrib.graph.files.circuit_tracer_reading import from_circuit_tracer
from attrib.graph.files.circuit_tracer_writing import to_circuit_tracer
from attrib.graph.files.neuronpedia_reading import from_neuronpedia
from attrib.graph.files.neuronpedia_writing import to_neuronpedia
from attrib.graph.neurons import hidden_units
from attrib.models.transformer import Model, normalise
from attrib.passes.replacement import Replacement
from tests.graph.test_build import FEW, by_hand, dense, dictionaries
from tests.support.builders import Family, build, normal, prompt
from tests.support.covering import each_pair
from tests.support.tolerances import FOREIGN, ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PROMPT = prompt(6)


def graph_of(model: Model, given: Any, targets: Any, tokens: Tensor = PROMPT, **options: Any) -> Graph:
    (graph,) = build_graphs(model, given, tokens, targets=targets, **({"keep": Dense()} | options))
    return graph


def some_of(cuts: list[Dictionary], reads: tuple[Tensor, ...]) -> list[tuple[int, int, int]]:
    """Of each dictionary two latents that are active and two that are not, at positions of the first and the second half."""
    chosen = []
    for number, (d, x) in enumerate(zip(cuts, reads, strict=True)):
        found = encode(d, x)
        for is_wanted in (found != 0, found == 0):
            for half in (0, len(x) // 2):
                position, latent = is_wanted[half:].nonzero()[1].tolist()
                chosen.append((number, latent, position + half - len(x) * (half > 0)))  # from the end, for once
    return chosen


# --------------------------------------------------------------------------------- latents, by value


@pytest.mark.few
@each_pair(family=FEW, which=["transcoders", "residual", "attn_out", "z", "cross", "all"], policy=[EXACT, LINEAR])
def test_a_latent_is_read_of_the_replaced_pass_whether_it_is_active_or_not(family: Family, which: str, policy: Policy):
    model = build(family, torch.float64)
    cuts = dictionaries(model, which)
    replaced: Replacement = attrib.replace(model, cuts, policy=policy)
    leaves = replaced.leaves(PROMPT)
    chosen = some_of(cuts, replaced.reads(leaves, effect="direct"))
    graph = graph_of(model, cuts, Latents(chosen, 0.5), policy=policy)
    in_order = [(n, p, i) for n, p, i in sorted((n, p % len(PROMPT), i) for n, i, p in chosen)]
    token, position = embeddings(model, PROMPT)
    sizes = [len(each) for each in leaves.activations]

    def function(activations: Tensor, embedded: Tensor) -> Tensor:
        parts = tuple(a * f for a, f in zip(leaves.activations, activations.split(sizes), strict=True))
        brought = token * embedded[:, None] + (0 if position is None else position)
        reads = replaced.reads(leaves.with_activations(parts)._replace(embedded=brought), effect="direct")
        return torch.stack([pre_activations(cuts[n], reads[n])[p, i] for n, p, i in in_order])

    ones = torch.ones(sum(sizes)).double(), torch.ones(len(PROMPT)).double()
    targets = graph.nodes.of_kind("target")
    rows, nodes = graph.row_of[targets], graph.nodes
    assert_close(graph.value[rows], function(*ones), FOREIGN)
    assert graph.importance.unique().tolist() == [0.0, 0.5]
    want, got = jacrev(function, (0, 1))(*ones), dense(graph)[rows]
    number = {d.name + str(d.site): n for n, d in enumerate(cuts)}
    begin = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    order = torch.cat([
        torch.arange(begin[n := number[each.name + each.site]], begin[n + 1]) for each in nodes.sets if each.kind == "latent"
    ])  # fmt: skip
    assert_close(got[:, nodes.of_kind("latent")], want[0][:, order], FOREIGN)
    assert_close(got[:, nodes.of_kind("token")], want[1], FOREIGN)
    assert nodes.latent[targets].tolist() == [i for _, _, i in in_order]
    assert nodes.position[targets].tolist() == [p for _, p, _ in in_order]
    assert graph.worst < (1e-10 if policy == LINEAR else torch.inf)
    active = [node for node in targets.tolist() if len(same_latent(graph, node))]
    assert len(active) == len(chosen) // 2
    for node in active:
        twin = same_latent(graph, node)
        assert_close(dense(graph)[graph.row_of[node]], dense(graph)[graph.row_of[twin[0]]], ROUNDING)


def same_latent(graph: Graph, target: int) -> list[int]:
    """The latent's own node, where it is active."""
    nodes = graph.nodes
    site, latent, position = nodes.sets[int(nodes.set_of[target])].site, int(nodes.latent[target]), int(nodes.position[target])
    name = nodes.label(target).split("'")[1].partition("] of ")[0]
    assert name.startswith(f"{site}[{latent}" if " of " not in name else site)
    at = Where(kind="latent", site=site, latent=latent, position=position).find(nodes).tolist()
    return [node for node in at if torch.isclose(nodes.activation[node], nodes.activation[target], rtol=1e-5, atol=1e-6)]


@pytest.mark.few
@each_pair(family=FEW, k=[5, None], dtype=[torch.float64, torch.float32])
def test_a_unit_of_an_mlp_is_a_target_whether_it_is_a_node_or_not(family: Family, k: int | None, dtype: torch.dtype):
    model = build(family, dtype)
    hidden = hidden_units(model, 2, attrib.capture(model, PROMPT, ["blocks.2.mlp.hook_in"])[Site(2, "mlp_in")])
    given = [Neurons(2, k), *dictionaries(model, "residual")]
    graph = graph_of(model, given, Latents([(0, 3, 2), (0, 17, -1), ("neurons", 40, 0)]))
    rows = graph.row_of[graph.nodes.of_kind("target")]
    assert_close(graph.value[rows], hidden[[0, 2, 5], [40, 3, 17]], ROUNDING if dtype == torch.float64 else FOREIGN)
    assert graph.worst < (1e-10 if dtype == torch.float64 else 1e-4)
    twins = [same_latent(graph, node) for node in graph.nodes.of_kind("target").tolist()]
    assert k is not None or all(twin or graph.value[row] == 0 for row, twin in zip(rows, twins, strict=True))
    for row, twin in zip(rows.tolist(), twins, strict=True):
        for node in twin:
            assert_close(dense(graph)[row], dense(graph)[graph.row_of[node]], ROUNDING if dtype == torch.float64 else FOREIGN)


def test_dictionaries_go_by_number_name_and_site():
    model = build("gpt2", torch.float64)
    cuts = dictionaries(model, "transcoders")
    named = [replace(d, name=f"t{number}") for number, d in enumerate(cuts)]
    ways: list[Any] = [1, "t1", "blocks.2.mlp.hook_in", "blocks.2.ln2.hook_normalized", Site(2, "mlp_in")]
    graphs = [graph_of(model, named, Latents([(way, torch.tensor(7), -1)])) for way in ways]
    for graph in graphs:
        assert graph.nodes.label(len(graph.nodes) - 1) == "target 'blocks.2.mlp.hook_in[7]' @5"
        assert torch.equal(graph.value, graphs[0].value)
    twice = [Neurons(0, 3), *named]
    assert graph_of(model, twice, Latents([(2, 7, -1)])).nodes.labels[-1] == "blocks.2.mlp.hook_in[7]"


def test_a_latent_at_a_position_without_latents_is_read_all_the_same():
    model = build("gpt2", torch.float64)
    cuts = dictionaries(model, "transcoders")
    whole, skipped = (graph_of(model, cuts, Latents([(1, 7, 0), (1, 7, 4)]), skip_positions=count) for count in (0, 2))
    assert torch.equal(*(graph.value[graph.row_of[graph.nodes.of_kind("target")]] for graph in (whole, skipped)))
    assert skipped.worst < 1e-10


def test_prompts_of_any_length_have_their_own_last_position():
    model = build("gpt2", torch.float64)
    prompts = [prompt(3), prompt(8, seed=1)]
    graphs = build_graphs(model, dictionaries(model, "transcoders"), prompts, targets=[Latents([(1, 7, -1)]), TopLogits(2)])
    assert [graph.nodes.position[graph.nodes.of_kind("target")].tolist() for graph in graphs] == [[2], [7]]
    assert all(len(graph.nodes.of_kind("logit")) == 2 for graph in graphs)


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        (Latents([(4, 0, 0)]), r"latents of 4, which is none of the dictionaries; expected one of them: 0 is .* at blocks.1"),
        (Latents([(-1, 0, 0)]), "latents of -1"),
        (Latents([("blocks.3.mlp.hook_in", 0, 0)]), "latents of 'blocks.3.mlp.hook_in', which is none"),
        (Latents([(1, 48, 0)]), r"latent 48 in \(1, 48, 0\); expected 0 to 47"),
        (Latents([(1, -1, 0)]), r"latent -1"),
        (Latents([(1, 0, 6)]), r"position 6 in \(1, 0, 6\) for prompt 0, which has 6 tokens; expected -6 to 5"),
        (Latents([(1, 0, -7)]), r"position -7"),
        (Latents([(1, 0, 5), (1, 0, -1)]), r"blocks.2.mlp.hook_in\[0\] at position 5 twice"),
        ([Latents([(1, 0, 5)]), Latents([(1, 0, 5)], 2.0)], "twice"),
        (Latents([]), "Latents of none"),
        (Latents([(1, 0)]), r"expected Latents\(\[\(dictionary, latent, position\)"),
        (Latents([(1, 0.5, 0)]), r"expected Latents\("),
        (Latents([(True, 0, 0)]), r"expected Latents\("),
        (Latents((1, 0, 0)), r"expected Latents\("),
        (Latents([(1, 0, 0)], -1.0), r"weight=-1.0"),
        (Latents([(1, 0, 0)], float("nan")), r"weight=nan"),
        (Custom("x", torch.ones(32), site=Site(1, "resid_pre"), unembeds=True), "expected no site where the last norm is passed"),
        (Custom("x", torch.ones(32), weight=float("inf")), "and finite"),
        ([Custom("x", torch.ones(32)), 1.5], "logits: 1.5"),
        (("x", 1.0, torch.ones(3)), "Direction of shape"),
    ],
)
def test_targets_that_are_not_there_are_refused_by_name(targets: Any, match: str):
    model = build("gpt2", torch.float64)
    with pytest.raises(InputError, match=match):
        graph_of(model, dictionaries(model, "transcoders"), targets)


def test_a_name_of_two_dictionaries_is_refused():
    model = build("gpt2", torch.float64)
    with pytest.raises(InputError, match="'neurons', which is 2 of the dictionaries"):
        graph_of(model, [Neurons(1), Neurons(2)], Latents([("neurons", 0, 0)]))


# ----------------------------------------------------------------------- what is asked of such graphs


def of_a_latent(**options: Any) -> tuple[Graph, int, int]:
    """A graph of a latent that is active, below others; its number as a target and as a latent."""
    model = build("gpt2", torch.float64)
    cuts = dictionaries(model, "cross")
    x = attrib.capture(model, PROMPT, [cuts[1].site])[cuts[1].site]
    latent = int(encode(cuts[1], x)[-1].argmax())
    graph = graph_of(model, cuts, Latents([(1, latent, -1)]), **options)
    (target,) = graph.nodes.of_kind("target").tolist()
    twin = same_latent(graph, target)
    return graph, target, twin[0] if twin else -1


def test_influence_begins_at_the_latent():
    graph, target, twin = of_a_latent()
    found = influence(graph)
    importance = torch.zeros_like(graph.importance)
    importance[graph.row_of[twin]] = 1.0
    assert_close(found, influence(replace(graph, importance=importance)), ROUNDING)
    assert found[Where(layer=1, kind="latent").find(graph.nodes)].sum() > 0
    assert not found[Where(layer=range(2, 4), kind="latent").find(graph.nodes)].any()
    assert 0 < scores(graph).replacement < 1
    for path in strongest(graph, target, 5):
        assert path.nodes[0] == target
        assert path.value != 0


def test_what_is_pruned_is_what_the_latent_does_not_depend_on():
    graph, target, twin = of_a_latent()
    pruned, kept = prune(graph, nodes=1.0, edges=1.0)
    assert target in kept.tolist()
    assert twin not in kept.tolist()
    assert not len(Where(layer=range(3, 4)).find(pruned.nodes))
    assert len(Where(layer=1, kind="latent").find(pruned.nodes))
    few = prune(graph, nodes=0.5, edges=0.8).graph
    assert len(few.nodes.of_kind("target")) == 1
    assert len(few.nodes.of_kind("latent")) < len(pruned.nodes.of_kind("latent"))


def test_the_rows_that_matter_are_those_below_the_latent():
    whole, *_ = of_a_latent()
    few, *_ = of_a_latent(max_nodes=15, block=4)
    others = set(range(len(whole.nodes))) - set(whole.nodes.of_kind("latent").tolist())
    want = whole.take(torch.tensor(sorted({*others, *by_hand(whole, 15, 4)})))
    assert few.nodes.sets == want.nodes.sets
    assert torch.equal(few.nodes.latent, want.nodes.latent)
    assert_close(dense(few), dense(want), ROUNDING)


def test_what_is_written_of_such_a_graph_comes_back(tmp_path: Any):
    graph, target, _ = of_a_latent()
    with attrib.open_graphs(attrib.save(tmp_path / "graph.h5", graph)) as graphs:
        stored = graphs[0]
    assert stored.nodes.sets == graph.nodes.sets
    assert stored.nodes.labels == graph.nodes.labels
    assert torch.equal(stored.importance, graph.importance)
    assert stored.call["targets"] == graph.call["targets"]
    other = from_neuronpedia(to_neuronpedia(graph, tmp_path / "graph.json", influence=influence(graph)))
    assert other.nodes.label(target) == graph.nodes.label(target)
    written = json.loads((tmp_path / "graph.json").read_text())["nodes"]
    assert [node["clerp"] for node in written if node["is_target_logit"]] == [f'Output "{graph.nodes.labels[-1]}" (p=1.000)']
    assert_close(influence(other), influence(graph), FOREIGN)
    few = graph.take((~torch.isin(graph.nodes.set_of, graph.nodes.set_of[graph.nodes.of_kind("bias", "position", "mlp")])).nonzero()[:, 0])
    with pytest.raises(InputError, match="is no token's logit"):
        to_circuit_tracer(few, tmp_path / "none.pt")
    third = from_circuit_tracer(to_circuit_tracer(few, tmp_path / "graph.pt", config={"n_layers": 4, "d_vocab": 50}))
    assert third.nodes.kind(len(third.nodes) - 1) == "target"
    assert third.nodes.labels[-1] == graph.nodes.labels[-1]
    assert third.importance[-1] == 1


def test_such_graphs_are_compared_and_merged():
    graph, target, _ = of_a_latent()
    found = compare(graph, graph)
    assert found.is_in.all()
    assert torch.equal(found.weight[:, 0], found.weight[:, 1])
    merged = merge_positions(graph)
    assert merged.names[int(merged.member_of[target])] == f"target {graph.nodes.labels[-1]!r}"
    key = key_of(graph.nodes, target)
    assert (key.kind, key.name, key.latent) == ("target", graph.nodes.labels[-1], int(graph.nodes.latent[target]))


# --------------------------------------------------------------------------------------- lists of others


def test_lists_are_read_as_circuit_tracer_reads_them():
    """Ids and texts are tokens; a label, a weight and a vector are read where columns of W_U are."""
    model = build("gpt2", torch.float64)
    vector = normal(32).double()
    cuts = dictionaries(model, "transcoders")
    graph = graph_of(model, cuts, [3, ("up", 0.4, vector), 8, torch.tensor(5)])
    nodes, rows = graph.nodes, graph.row_of
    assert [nodes.label(node) for node in nodes.of_kind("target").tolist()] == ["target 'up' @5"]
    assert nodes.latent[nodes.of_kind("logit")].tolist() == [3, 8, 5]
    x = attrib.capture(model, PROMPT, [model.config.last])[model.config.last]
    (up,) = rows[nodes.of_kind("target")].tolist()
    assert_close(graph.value[up], normalise(model.config, model.params.norm_final, x, EXACT)[-1] @ vector, ROUNDING)
    assert graph.importance[up] == 0.4
    probability = attrib.forward(model, PROMPT)[-1].softmax(-1)
    assert_close(graph.importance[rows[nodes.of_kind("logit")]], probability[[3, 8, 5]], ROUNDING)
    assert graph.worst < 1e-10
    for same in (torch.tensor([3, 8, 5]), [3, 8, 5], TokenLogits((3, 8, 5)), [[3, 8, 5]]):
        alone = graph_of(model, cuts, same)
        assert_close(alone.value[alone.row_of[alone.nodes.of_kind("logit")]], graph.value[rows[nodes.of_kind("logit")]], ROUNDING)


@pytest.mark.few
@pytest.mark.parametrize("policy", [LINEAR, EXACT])
@pytest.mark.parametrize("family", FEW)
def test_a_vector_behind_the_last_norm_sums_logits_before_their_cap(family: Family, policy: Policy):
    """Its row is the sum of the rows of logits, which are read less their mean and before a cap."""
    model = build(family, torch.float64)
    W_U = model.params.W_U
    column = W_U[:, 3] - W_U[:, 8]
    cuts = dictionaries(model, "transcoders")
    graph = graph_of(model, cuts, [Custom("3 - 8", column, unembeds=True), TokenLogits((3, 8))], policy=policy, positions=[2, 4])
    asked = Where(kind="target"), Where(kind="logit", latent=3), Where(kind="logit", latent=8)
    both, first, second = (dense(graph)[graph.row_of[which.find(graph.nodes)]] for which in asked)
    assert len(both) == 2
    assert_close(both, first - second, FOREIGN)
    assert both.abs().max() > 1e-3
