"""Pruning against its rules written out node by node and edge by edge, on dense matrices."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from attrib.core.types import InputError
from attrib.graph import Graph, influence, prune
from attrib.graph.nodes import Nodes, NodeSet
from attrib.graph.pruning import most
from tests.support.graphs import random_graph

STAY = ("token", "logit", "target")


def reach(A: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve((torch.eye(len(A), dtype=torch.float64) - A).T, w)


def fewest(scores: dict, share: float) -> set:
    """Largest first, until the share is reached."""
    chosen, sum_of = set(), 0.0
    for item in sorted(scores, key=lambda item: -scores[item]):
        if scores[item] > 0 and sum_of < share * sum(scores.values()):
            chosen.add(item)
            sum_of += scores[item]
    return chosen


def expected(graph: Graph, nodes: float, edges: float, pinned: tuple[int, ...]) -> tuple[set[int], set[tuple[int, int]]]:
    dense = torch.from_numpy(graph.to_scipy().toarray()).abs()
    count, kinds = len(dense), [graph.nodes.kind(node) for node in range(len(dense))]
    w, whole = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    w[graph.targets], whole[graph.targets] = graph.importance, graph.l1
    score = reach(dense / whole[:, None], w) - w
    always = {node for node in range(count) if kinds[node] in STAY} | set(pinned)
    stays = fewest(dict(enumerate(score.tolist())), nodes) | always
    gone = [node for node in range(count) if node not in stays]
    dense[gone], dense[:, gone] = 0, 0
    A = dense / dense.sum(1, keepdim=True).clamp_min(1e-300)
    along = A * reach(A, w)[:, None]
    kept = fewest({(t, s): float(along[t, s]) for t, s in along.nonzero().tolist()}, edges)
    while True:
        leads, led_to = {s for _, s in kept}, {t for t, _ in kept}
        left = {n for n in stays if n in always or (n in leads and (kinds[n] != "latent" or n in led_to))}
        kept = {(t, s) for t, s in kept if t in left and s in left}
        if left == stays:
            return stays, kept
        stays = left


def edges_of(graph: Graph, numbers: torch.Tensor) -> set[tuple[int, int]]:
    return set(zip(numbers[graph.target].tolist(), numbers[graph.indices].tolist(), strict=True))


@pytest.mark.parametrize(("nodes", "edges"), [(0.8, 0.98), (0.5, 0.7), (0.95, 0.3), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.3, 0.1)])
@pytest.mark.parametrize("seed", range(3))
def test_what_stays_is_what_the_rules_say(seed, nodes, edges):
    graph = random_graph(seed, layers=4)
    stay, kept = expected(graph, nodes, edges, ())
    found = prune(graph, nodes, edges)
    assert set(found.nodes.tolist()) == stay
    assert edges_of(found.graph, found.nodes) == kept


def test_rounds_of_dropping_are_needed_and_made():
    """At some share of edges, nodes go because what they led to went."""
    graph, deep = random_graph(5, layers=5, share=0.3), 0
    for edges in (0.2, 0.4, 0.6):
        stay, kept = expected(graph, 0.9, edges, ())
        found = prune(graph, 0.9, edges)
        assert set(found.nodes.tolist()) == stay
        assert edges_of(found.graph, found.nodes) == kept
        at_once = set(prune(graph, 0.9, 1.0).nodes.tolist())
        deep += len(at_once - stay)
    assert deep > 0


def test_what_stays_has_its_weights_and_totals():
    graph = random_graph(6)
    found = prune(graph, 0.7, 0.8)
    assert 0 < len(found.graph) < len(graph)
    dense = torch.from_numpy(graph.to_scipy().toarray())
    for node, row in zip(found.graph.targets.tolist(), range(len(found.graph.targets)), strict=True):
        old = int(found.nodes[node])
        at = slice(int(found.graph.indptr[row]), int(found.graph.indptr[row + 1]))
        assert torch.equal(found.graph.weight[at], dense[old, found.nodes[found.graph.indices[at]]])
        assert found.graph.total[row] == graph.total[graph.row_of[old]]
        assert found.graph.l1[row] == graph.l1[graph.row_of[old]]
    assert found.graph.worst < 1e-12
    assert [found.graph.nodes.label(n) for n in range(len(found.nodes))] == [graph.nodes.label(n) for n in found.nodes.tolist()]


def test_nodes_that_are_pinned_stay_even_without_edges():
    graph = random_graph(7)
    weakest = int(influence(graph)[graph.nodes.of_kind("latent")].argmin())
    node = int(graph.nodes.of_kind("latent")[weakest])
    error = int(graph.nodes.of_kind("error")[-1])
    assert not {node, error} & set(prune(graph, 0.5, 0.5).nodes.tolist())
    found = prune(graph, 0.5, 0.5, pinned=[node, error])
    assert {node, error} < set(found.nodes.tolist())
    stay, kept = expected(graph, 0.5, 0.5, (node, error))
    assert set(found.nodes.tolist()) == stay
    assert edges_of(found.graph, found.nodes) == kept
    every = prune(graph, 0.0, 0.0, pinned=range(len(graph.nodes)))
    assert len(every.nodes) == len(graph.nodes)
    assert len(every.graph) == 0


def test_kinds_that_do_not_count_go():
    graph = random_graph(8)
    found = prune(graph, 1.0, 1.0, without=("bias", "position"))
    kinds = {graph.nodes.kind(node) for node in found.nodes.tolist()}
    assert kinds == {"token", "latent", "error", "logit", "target"}
    node = int(graph.nodes.of_kind("bias")[0])
    assert node in prune(graph, without=("bias",), pinned=[node]).nodes


def test_a_latent_without_a_row_is_not_asked_what_leads_to_it():
    """Only some rows were computed: latents of the first layer are known as sources alone."""
    graph = random_graph(9)
    first = graph.nodes.set_of[graph.targets] == graph.nodes.set_of[graph.targets[0]]
    rows = (~first).nonzero()[:, 0]
    edges = ~first[graph.row]
    part = replace(
        graph.only(edges), targets=graph.targets[rows], indptr=torch.cat([torch.zeros(1).long(), graph.indptr.diff()[rows].cumsum(0)]),
        **{name: getattr(graph, name)[rows] for name in ("value", "own", "total", "l1", "importance")},
    )  # fmt: skip
    found = prune(part, 1.0, 1.0)
    assert set(graph.targets[first].tolist()) & set(found.nodes.tolist())


def test_ties_stay_together_and_zeros_go():
    assert most(torch.tensor([1.0, 3, 1, 1, 0]), 0.5).tolist() == [False, True, False, False, False]
    assert most(torch.tensor([1.0, 3, 1, 1, 0]), 0.51).tolist() == [True, True, True, True, False]
    assert most(torch.tensor([1.0, 1e-30, 0]), 1.0).tolist() == [True, True, False]
    assert most(torch.tensor([1.0, 1e-30, 0]), 0.999).tolist() == [True, False, False]
    assert most(torch.tensor([1.0, 2]), 0.0).tolist() == [False, False]
    assert most(torch.zeros(2), 1.0).tolist() == [False, False]
    assert most(torch.zeros(0), 1.0).tolist() == []


def test_graphs_of_next_to_nothing():
    graph = random_graph(10)
    always = graph.nodes.of_kind(*STAY)
    bare = prune(graph.only(torch.zeros(len(graph), dtype=torch.bool)))
    assert torch.equal(bare.nodes, always)
    assert len(bare.graph) == 0
    empty = prune(graph.take(torch.zeros(0, dtype=torch.int64)))
    assert len(empty.nodes) == 0
    rowless = prune(graph.take(graph.nodes.of_kind("token", "error")))
    assert len(rowless.nodes) == len(graph.tokens)
    one = graph.take(torch.cat([torch.arange(8), graph.targets[-2:-1]]))
    assert len(one.targets) == 1
    assert set(prune(one, 1.0, 1.0).nodes.tolist()) == set(range(4)) | {8} | set(one.indices.tolist())


def test_smaller_shares_keep_less():
    graph = random_graph(11, layers=4)
    kept = [set(prune(graph, share, share).nodes.tolist()) for share in (0.2, 0.5, 0.8, 0.95, 1.0)]
    assert all(a <= b for a, b in pairwise(kept))
    assert len(kept[0]) < len(kept[-1])


def test_what_cannot_be_is_refused():
    graph = random_graph(12)
    for name, value in (("nodes", 1.5), ("nodes", float("nan")), ("edges", -0.1)):
        with pytest.raises(InputError, match=rf"{name}: {value}; expected a share"):
            prune(graph, **{name: value})
    for pinned in (-1, len(graph.nodes)):
        with pytest.raises(InputError, match=rf"pinned: {pinned}; expected numbers of nodes, from 0 to 65"):
            prune(graph, pinned=[pinned])
    with pytest.raises(InputError, match="graph: no row has importance"):
        prune(replace(graph, importance=torch.zeros_like(graph.importance)))
    with pytest.raises(InputError, match="weight: nan of the edge"):
        prune(replace(graph, weight=graph.weight.index_fill(0, torch.tensor([5]), float("nan"))))


def test_a_chain_that_ends_nowhere_goes_whole():
    """Token → three latents → two logits. What goes along each of the last two edges is half of what goes along the chain, so that at
    some share they go and the chain does not; it leads nowhere then, and goes from its end."""
    sets = (
        NodeSet("token", "embed", "", 2), *(NodeSet("latent", f"blocks.{n}.mlp.hook_in", "", 1) for n in range(3)),
        NodeSet("logit", "blocks.2.hook_resid_post", "", 2),
    )  # fmt: skip
    nodes = Nodes(sets, torch.zeros(7).long(), torch.arange(7), torch.ones(7).double(), ("a", "b", "x", "y"))
    indices, weight = torch.tensor([0, 2, 3, 1, 4, 1, 4]), torch.tensor([1.0, 1, 1, 0.9, 0.1, 0.9, 0.1]).double()
    one, importance = torch.ones(5).double(), torch.tensor([0, 0, 0, 0.5, 0.5]).double()
    graph = Graph(nodes, torch.tensor([2, 3, 4, 5, 6]), torch.tensor([0, 1, 2, 3, 5, 7]), indices, weight, one, one * 0, one, one,
                  importance, torch.tensor([1, 2]), ("a", "b"))  # fmt: skip
    assert prune(graph, 1.0, 1.0).nodes.tolist() == list(range(7))
    cut = prune(graph, 1.0, 0.92)
    assert cut.nodes.tolist() == [0, 1, 5, 6]
    assert edges_of(cut.graph, cut.nodes) == {(5, 1), (6, 1)}
