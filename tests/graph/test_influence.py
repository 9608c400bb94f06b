"""Influence and scores against the closed form, all paths one by one, power iteration, and rules written out on dense matrices."""

from dataclasses import replace

import pytest
import torch

from attrib.core.types import InputError
from attrib.graph import CONSTANTS, Graph, influence, scores
from attrib.graph.nodes import Nodes, NodeSet
from tests.support.graphs import random_graph


def complete(graph: Graph) -> Graph:
    """The same graph, as if `keep` had dropped nothing."""
    dense = torch.from_numpy(graph.to_scipy().toarray())[graph.targets]
    return replace(graph, total=dense.sum(1), l1=dense.abs().sum(1), value=graph.own + dense.sum(1))


def adjacency(graph: Graph, normalise: str, without: tuple[str, ...] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """A of the module's docstring, in full, and what each of its rows was divided by."""
    dense = torch.from_numpy(graph.to_scipy().toarray()).abs()
    out = [node for node in range(len(graph.nodes)) if graph.nodes.kind(node) in without]
    whole = dense.sum(1)
    if normalise == "all":
        whole[graph.targets] = graph.l1
    whole = whole - dense[:, out].sum(1)
    dense[:, out] = 0
    return torch.where(whole[:, None] > 1e-12, dense / whole[:, None], 0), whole


def importance(graph: Graph) -> torch.Tensor:
    return torch.zeros(len(graph.nodes), dtype=torch.float64).index_copy(0, graph.targets, graph.importance)


@pytest.mark.parametrize("normalise", ["all", "kept"])
@pytest.mark.parametrize("without", [(), ("position", "bias"), ("error",)])
@pytest.mark.parametrize("seed", range(3))
def test_influence_is_the_closed_form(normalise, without, seed):
    graph = random_graph(seed, layers=4)
    A, w = adjacency(graph, normalise, without)[0], importance(graph)
    eye = torch.eye(len(A), dtype=torch.float64)
    want = torch.linalg.solve((eye - A).T, w) - w
    found = influence(graph, normalise=normalise, without=without)
    assert found.dtype == torch.float64
    assert torch.allclose(found, want, rtol=1e-12, atol=1e-15)
    assert found.sum() > 0.3


def test_influence_is_the_sum_over_paths():
    graph = random_graph(3, positions=2, latents=3, layers=2)
    A, w = adjacency(graph, "all")[0], importance(graph)
    want = torch.zeros(len(A), dtype=torch.float64)

    def walk(node: int, product: float) -> None:
        for source in A[node].nonzero()[:, 0].tolist():
            want[source] += product * A[node, source]
            walk(source, product * float(A[node, source]))

    for node in w.nonzero()[:, 0].tolist():
        walk(node, float(w[node]))
    assert torch.allclose(influence(graph), want)


def test_of_a_complete_graph_influence_is_power_iteration():
    graph = complete(random_graph(4))
    A, step = adjacency(graph, "kept")[0], importance(graph)
    want = torch.zeros_like(step)
    while (step := step @ A).any():
        want += step
    assert torch.allclose(influence(graph), want)
    assert torch.allclose(influence(graph, normalise="kept"), want)


def test_what_was_dropped_reaches_nothing():
    graph = random_graph(5)
    strong = graph.only(graph.weight.abs() > 0.5)
    assert (influence(strong) <= influence(graph) + 1e-12).all()
    assert influence(strong).sum() < influence(graph).sum() < influence(graph, normalise="kept").sum()
    leaves = ~torch.isin(torch.arange(len(graph.nodes)), graph.targets)
    whole = complete(graph)
    reached = influence(whole)
    ends = sum(float(reached[node]) for node in whole.targets[whole.indptr.diff() == 0])  # latents that nothing leads to
    assert float(reached[leaves].sum()) + ends == pytest.approx(float(graph.importance.sum()))  # nothing gets lost on the way


@pytest.mark.parametrize("normalise", ["all", "kept"])
@pytest.mark.parametrize("without", [(), CONSTANTS])
def test_scores_are_those_of_their_definition(normalise, without):
    graph = random_graph(6)
    (A, whole), w = adjacency(graph, normalise, without), importance(graph)
    reached = torch.linalg.solve((torch.eye(len(A), dtype=torch.float64) - A).T, w)
    kinds = [graph.nodes.kind(node) for node in range(len(A))]
    explained = sum(float(reached[n]) for n, kind in enumerate(kinds) if kind in ("token", "position", "bias") and kind not in without)
    errors = sum(float(reached[n]) for n, kind in enumerate(kinds) if kind == "error")
    fraction = torch.ones(len(A), dtype=torch.float64)
    for row in graph.targets[(whole > 1e-12)[graph.targets]].tolist():
        fraction[row] = sum(float(A[row, n]) for n, kind in enumerate(kinds) if kind != "error")
    found = scores(graph, normalise=normalise, without=without)
    assert found.replacement == pytest.approx(explained / (explained + errors))
    assert found.completeness == pytest.approx(float((fraction * reached).sum() / reached.sum()))
    assert 0 < found.replacement < 1
    assert 0 < found.completeness < 1


def test_what_counts_as_unexplained_is_a_choice():
    graph = complete(random_graph(7))
    assert scores(graph, unexplained=()) == pytest.approx((1, 1))
    harsh = scores(graph, without=(), unexplained=("error", "bias"))
    assert harsh.replacement < scores(graph, without=()).replacement
    assert harsh.completeness < scores(graph, without=()).completeness
    as_mlp = replace(
        graph, nodes=replace(graph.nodes, sets=tuple(s._replace(kind="mlp") if s.kind == "error" else s for s in graph.nodes.sets))
    )
    assert scores(as_mlp) == scores(graph)


def test_a_row_of_constants_alone_is_complete():
    """Its whole is zero but for rounding, which must not count as dropped."""
    nodes = Nodes(
        (NodeSet("bias", "x", "", 7), NodeSet("logit", "y", "", 1)), torch.zeros(8).long(), torch.arange(8), torch.ones(8), ("out",)
    )
    weight = torch.full((7,), 0.1)
    one = torch.ones(1)
    l1 = weight.sum()[None] * (1 + 2e-7)
    graph = Graph(nodes, torch.tensor([7]), torch.tensor([0, 7]), torch.arange(7), weight, one, one, one, l1, one,
                  torch.zeros(0).long(), ())  # fmt: skip
    assert scores(graph).completeness == 1
    assert influence(graph, without=CONSTANTS).sum() == 0
    assert influence(graph).sum() == pytest.approx(1)


def test_graphs_without_edges_have_no_influence():
    graph = random_graph(8)
    bare = graph.only(torch.zeros(len(graph), dtype=torch.bool))
    assert influence(bare).sum() == 0
    assert scores(bare).replacement != scores(bare).replacement  # NaN: nothing arrives at any leaf
    assert scores(bare).completeness == 0
    empty = graph.take(torch.zeros(0, dtype=torch.int64))
    assert influence(empty).shape == (0,)
    assert scores(empty).completeness != scores(empty).completeness
    row = graph.take(torch.cat([torch.arange(4), graph.targets[-2:-1]]))
    want = row.importance[0] * row.weight.abs() / row.l1[0]
    assert torch.allclose(influence(row)[row.indices], want)


def test_float32_and_float64_agree():
    graph = random_graph(9)
    columns = {name: getattr(graph, name).float() for name in ("weight", "value", "own", "total", "l1", "importance")}
    assert torch.allclose(influence(replace(graph, **columns)), influence(graph), atol=1e-6)


def changed(graph: Graph, name: str, at: int, value: float) -> Graph:
    column = getattr(graph, name).clone()
    column[at] = value
    return replace(graph, **{name: column})


def test_what_cannot_be_is_refused():
    graph = random_graph(10)
    nan = float("nan")
    with pytest.raises(InputError, match=r"weight: nan of the edge .* -> .*\(nodes \d+ and \d+\)"):
        influence(changed(graph, "weight", 3, nan))
    with pytest.raises(InputError, match=r"l1: inf of row 2, blocks"):
        influence(changed(graph, "l1", 2, float("inf")))
    with pytest.raises(InputError, match=r"importance: -1.0 of row 19, logit"):
        scores(changed(graph, "importance", 19, -1))
    with pytest.raises(InputError, match=r"importance: nan"):
        influence(changed(graph, "importance", 0, nan))
    with pytest.raises(InputError, match=r"l1: .*expected at least as much"):
        influence(changed(graph, "l1", 20, float(graph.l1[20]) / 2))
    with pytest.raises(InputError, match=r"normalise: 'rows'; expected one of all, kept"):
        influence(graph, normalise="rows")
    with pytest.raises(InputError, match=r"unexplained: 'latent', which other nodes explain"):
        scores(graph, unexplained=("error", "latent"))
    with pytest.raises(InputError, match=r"without: 'word'"):
        influence(graph, without=("word",))
    with pytest.raises(InputError, match=r"without: 'error'; expected kinds in a list"):
        influence(graph, without="error")


@pytest.mark.parametrize("back", [0, 1])
def test_an_edge_within_a_set_or_backwards_is_refused(back):
    graph = random_graph(11)
    target = int(graph.targets[2 + 6 * back])
    source = target - 1 if not back else int(graph.nodes.first[-1]) - 1
    edge = int(graph.indptr[3 + 6 * back]) - 1
    with pytest.raises(InputError, match=rf"indices: the edge .* \(nodes {source} and {target}\) leads to its own set"):
        influence(changed(graph, "indices", edge, source))
