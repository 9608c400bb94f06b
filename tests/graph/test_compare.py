"""Unions, comparisons, averages and stable cores against dictionaries of edges made one by one."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from attrib.core.types import InputError
from attrib.graph import EdgeTable, Graph, Key, average, compare, key_of, merge_positions, stability, union
from attrib.graph.keys import KeyTable
from tests.support.graphs import random_graph

SUMS = ("value", "own", "total", "l1", "importance")


def named(graph: Graph, node: int, positions: bool) -> Key:
    key = key_of(graph.nodes, node)
    if positions:
        return key
    return key._replace(position=None, latent=-1 if key.kind == "position" else key.latent)


def plain(graph: Graph, positions: bool) -> dict[tuple[Key, Key], float]:
    """(target, source) → weight, with what has one name added up."""
    found: dict[tuple[Key, Key], float] = defaultdict(float)
    for target, source, weight in zip(graph.target.tolist(), graph.indices.tolist(), graph.weight.tolist(), strict=True):
        found[named(graph, target, positions), named(graph, source, positions)] += weight
    return dict(found)


def of_table(nodes: KeyTable, target: torch.Tensor, source: torch.Tensor) -> list[tuple[Key, Key]]:
    return [(nodes.key(t), nodes.key(s)) for t, s in zip(target.tolist(), source.tolist(), strict=True)]


def entries(table: EdgeTable) -> list[dict[tuple[Key, Key], float]]:
    """What a table says of each graph."""
    ends = of_table(table.nodes, table.target, table.source)
    found: list[dict[tuple[Key, Key], float]] = [{} for _ in range(table.graphs)]
    for edge, end in enumerate(ends):
        for entry in range(int(table.ptr[edge]), int(table.ptr[edge + 1])):
            found[int(table.graph[entry])][end] = float(table.weight[entry])
    return found


def graphs() -> list[Graph]:
    """Three prompts of one length and one that is longer."""
    return [random_graph(0), random_graph(1), random_graph(2, positions=5, latents=10), random_graph(3)]


@pytest.mark.parametrize("positions", [True, False])
def test_a_union_has_every_edge_of_every_graph(positions):
    given = graphs()
    table = union(given, positions=positions)
    want = [plain(graph, positions) for graph in given]
    found = entries(table)
    for mine, theirs in zip(found, want, strict=True):
        assert mine.keys() == theirs.keys()
        assert [mine[end] for end in theirs] == pytest.approx(list(theirs.values()))
    assert len(table) == len(set().union(*want))
    assert len(table.weight) == sum(map(len, want))
    nodes = {named(graph, node, positions) for graph in given for node in range(len(graph.nodes))}
    assert {table.nodes.key(node) for node in range(len(table.nodes))} == nodes
    assert len(table.nodes) == len(nodes)
    ends = of_table(table.nodes, table.target, table.source)
    counts = [sum(end in each for each in want) for end in ends]
    assert table.count.tolist() == counts
    assert 1 in counts
    assert max(counts) > 2
    assert table.share.tolist() == [count / 4 for count in counts]
    sums = torch.tensor([sum(each.get(end, 0) for each in want) for end in ends], dtype=torch.float64)
    assert torch.allclose(table.mean, sums / 4)
    assert torch.allclose(table.mean_where_present, sums / torch.tensor(counts))


@pytest.mark.parametrize("positions", [True, False])
def test_order_does_not_depend_on_the_order_of_graphs(positions):
    given = graphs()
    one, other = union(given, positions=positions), union(given[::-1], positions=positions)
    assert one.nodes.places == other.nodes.places
    for name in ("place", "position", "latent"):
        assert torch.equal(getattr(one.nodes, name), getattr(other.nodes, name))
    assert torch.equal(one.target, other.target)
    assert torch.equal(one.source, other.source)
    assert (one.target * len(one.nodes) + one.source).diff().min() > 0
    assert one.nodes.labels == other.nodes.labels
    kinds = [one.nodes.key(node).kind for node in range(len(one.nodes))]
    assert (kinds[0], kinds[-1]) == ("token", "target")


def test_labels_say_where_a_node_is_unless_it_does_not_matter():
    graph = random_graph(0)
    with_positions, without = union([graph]).nodes, union([graph], positions=False).nodes
    assert {*with_positions.labels} == {graph.nodes.label(node) for node in range(len(graph.nodes))}
    assert {*without.labels} == {*merge_positions(graph).names}
    assert "error blocks.0.hook_mlp_out" in without.labels


def test_without_positions_a_union_is_what_merging_gives():
    graph = random_graph(4, positions=5, latents=20)
    table, merged = union([graph], positions=False), merge_positions(graph)
    ends = zip(merged.target.tolist(), merged.indices.tolist(), merged.weight.tolist(), strict=True)
    want = {(merged.names[target], merged.names[source]): weight for target, source, weight in ends}
    labels = table.nodes.labels
    found = {(labels[t], labels[s]): w for t, s, w in zip(table.target.tolist(), table.source.tolist(), table.mean.tolist(), strict=True)}
    assert found == pytest.approx(want)


@pytest.mark.parametrize("positions", [True, False])
def test_two_graphs_share_edges_and_have_others_alone(positions):
    first, second = random_graph(0), random_graph(1, positions=5)
    found, (a, b) = compare(first, second, positions=positions), (plain(graph, positions) for graph in (first, second))
    ends = of_table(found.nodes, found.target, found.source)
    assert set(ends) == a.keys() | b.keys()
    assert found.both.tolist() == [end in a and end in b for end in ends]
    assert found.only_first.tolist() == [end not in b for end in ends]
    assert found.only_second.tolist() == [end not in a for end in ends]
    assert torch.allclose(found.weight, torch.tensor([[a.get(end, 0), b.get(end, 0)] for end in ends], dtype=torch.float64))
    assert torch.equal(found.change, found.weight[:, 1] - found.weight[:, 0])
    assert all(mask.any() for mask in (found.both, found.only_first, found.only_second))
    assert repr(found).startswith(f"Comparison({int(found.both.sum()):,} edges in both")


def test_a_graph_differs_from_itself_in_nothing():
    graph = random_graph(5)
    found = compare(graph, graph)
    assert found.both.all()
    assert not found.change.any()
    assert len(found) == len(graph)


def test_the_same_prompt_with_other_tokens_has_other_token_nodes():
    graph = random_graph(6)
    latent = graph.nodes.latent.clone()
    latent[0] += 100
    other = replace(graph, nodes=replace(graph.nodes, latent=latent))
    found = compare(graph, other)
    moved = (graph.indices == 0).sum()
    assert (int(found.only_first.sum()), int(found.only_second.sum())) == (moved, moved)


@pytest.mark.parametrize("positions", [True, False])
def test_mean_rows_add_up_as_rows_do(positions):
    given = graphs()
    mean = average(given, positions=positions)
    keys = [[named(graph, node, positions) for node in range(len(graph.nodes))] for graph in given]
    nodes = mean.edges.nodes
    assert mean.nodes_in.tolist() == [sum(nodes.key(node) in each for each in keys) for node in range(len(nodes))]
    rows = [{each[node] for node in graph.targets.tolist()} for graph, each in zip(given, keys, strict=True)]
    targets = [nodes.key(node) for node in mean.targets.tolist()]
    assert set(targets) == set().union(*rows)
    assert mean.rows_in.tolist() == [sum(key in each for each in rows) for key in targets]
    for name in SUMS:
        want: dict[Key, float] = defaultdict(float)
        for graph, each in zip(given, keys, strict=True):
            for node, value in zip(graph.targets.tolist(), getattr(graph, name).tolist(), strict=True):
                want[each[node]] += value / len(given)
        assert getattr(mean, name).tolist() == pytest.approx([want[key] for key in targets])
    assert mean.remainder.abs().max() < 1e-12
    assert torch.equal(mean.edges.mean, union(given, positions=positions).mean)
    row = torch.full((len(nodes),), -1).index_copy(0, mean.targets, torch.arange(len(targets)))
    assert (row[mean.edges.target] >= 0).all()


def variants() -> list[Graph]:
    """One graph at three thresholds, and with a latent less."""
    graph = random_graph(7)
    kept = [graph.only(graph.weight.abs() > least) for least in (0.0, 0.5, 1.0)]
    gone = int(graph.nodes.of_kind("latent")[3])
    return [*kept, graph.take(torch.tensor([node for node in range(len(graph.nodes)) if node != gone]))]


@pytest.mark.parametrize("positions", [True, False])
def test_edges_survive_in_a_share_of_variants(positions):
    given = variants()
    found, want = stability(given, positions=positions), [plain(graph, positions) for graph in given]
    ends = of_table(found.edges.nodes, found.edges.target, found.edges.source)
    share = [sum(end in each for each in want) / 4 for end in ends]
    assert found.share.tolist() == share
    assert {0.25, 0.5, 0.75, 1.0} >= {*share} > {0.5, 1.0}
    for least in (0.0, 0.5, 0.75, 1.0):
        stable = {end for end, each in zip(ends, share, strict=True) if each >= least}
        core = found.core(least)
        assert {*of_table(core.nodes, core.target, core.source)} == stable
        for mine, theirs in zip(entries(core), want, strict=True):
            assert mine == pytest.approx({end: weight for end, weight in theirs.items() if end in stable})
        for number, graph in enumerate(given):
            part = found.core_of(number, least)
            assert {*plain(part, positions)} == stable & want[number].keys()
            assert torch.equal(part.total, graph.total)


def test_a_share_that_is_reached_is_reached_however_it_is_rounded():
    graph = random_graph(8)
    strong = graph.only(graph.weight.abs() > 0.5)
    found = stability([graph, graph, strong])
    assert found.is_stable(2 / 3).all()
    assert int(found.is_stable(0.67).sum()) == len(strong)
    assert 0.28 * 25 > 7
    assert stability([graph] * 7 + [strong] * 18).is_stable(0.28).all()
    assert repr(found) == f"Stability(3 variants, {len(graph)} edges, of which {len(strong)} are in all)"


def nothing(graph: Graph) -> Sequence[Graph]:
    bare = graph.only(torch.zeros(len(graph), dtype=torch.bool))
    return graph, bare, graph.take(torch.zeros(0, dtype=torch.int64))


def test_graphs_of_next_to_nothing_compare():
    graph, bare, empty = nothing(random_graph(9))
    for other in (bare, empty):
        found = compare(graph, other)
        assert found.only_first.all()
        assert len(found) == len(graph)
        assert not len(compare(other, other))
        assert torch.equal(union([other, graph]).mean * 2, union([graph]).mean)
    assert average([bare]).remainder.abs().max() < 1e-12
    assert len(average([empty]).targets) == 0
    assert len(stability([empty, bare]).core(0.0)) == 0


def test_a_table_is_shown_as_a_data_frame():
    graph = random_graph(10)
    frame = union([graph, graph.only(graph.weight > 0)]).to_pandas()
    assert list(frame) == ["source", "target", "count", "share", "mean", "mean_where_present"]
    edge = int(graph.weight.argmax())
    source, target = graph.nodes.label(int(graph.indices[edge])), graph.nodes.label(int(graph.target[edge]))
    (row,) = frame[(frame.source == source) & (frame.target == target)].to_dict("records")
    assert (row["count"], row["mean_where_present"]) == (2, float(graph.weight[edge]))
    low = frame[frame["count"] == 1]
    assert (low["mean"] * 2 - low["mean_where_present"]).abs().max() < 1e-12


def test_float32_weights_stay_float32():
    graph = random_graph(11)
    low = replace(graph, weight=graph.weight.float())
    assert compare(low, low).weight.dtype == torch.float32
    assert torch.allclose(union([low], positions=False).mean, union([graph], positions=False).mean, atol=1e-6)


def test_what_cannot_be_is_refused():
    graph = random_graph(12)
    for call in (union, average, stability):
        with pytest.raises(InputError, match=r"graphs: none"):
            call([])
    weight = graph.weight.index_fill(0, torch.tensor([5]), float("nan"))
    with pytest.raises(InputError, match=r"graphs: the edge .* of graph 1 weighs nan"):
        union([graph, replace(graph, weight=weight)])
    with pytest.raises(InputError, match=r"share: 1.5; expected"):
        stability([graph]).core(1.5)
    with pytest.raises(InputError, match=r"share: nan; expected"):
        stability([graph]).core_of(0, float("nan"))
    with pytest.raises(InputError, match=r"variant: 1; expected a number from 0 to 0"):
        stability([graph]).core_of(1, 0.5)
    with pytest.raises(InputError, match=r"number: -1; expected a graph, from 0 to 0"):
        union([graph]).in_graph(-1)


def test_two_nodes_of_one_key_are_refused_by_position_and_added_up_without():
    graph = random_graph(13)
    position, latent = graph.nodes.position.clone(), graph.nodes.latent.clone()
    a, b = graph.nodes.of_kind("latent")[:2].tolist()
    position[b], latent[b] = position[a], latent[a]
    twice = replace(graph, nodes=replace(graph.nodes, position=position, latent=latent))
    with pytest.raises(
        InputError, match=rf"graphs: nodes {a} and {b} of graph 1 are both latent blocks.0.mlp.hook_in\[\d\] of 'transcoder 0' @"
    ):
        compare(graph, twice)
    assert len(union([twice], positions=False))
