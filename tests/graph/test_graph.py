"""The graph's containers: what a row is made of, and what is left of one when nodes or edges are taken."""

import pytest
import torch

from attrib.core.types import InputError
from attrib.graph.nodes import Nodes, NodeSet
from tests.support.graphs import random_graph


def test_a_row_adds_up_and_says_what_was_dropped():
    graph = random_graph()
    dense = torch.from_numpy(graph.to_scipy().toarray())
    assert dense.shape == (len(graph.nodes),) * 2
    assert torch.allclose(graph.total - dense[graph.targets].sum(1), graph.dropped)
    assert (graph.dropped > 0).all()
    assert graph.worst < 1e-12
    assert (graph.indices < graph.target).all()
    assert torch.equal(graph.row_of[graph.targets], torch.arange(len(graph.targets)))


def test_what_is_taken_keeps_its_edges_and_totals():
    graph = random_graph(1)
    chosen = torch.cat([torch.arange(0, len(graph.nodes) - 4, 2), torch.arange(len(graph.nodes) - 4, len(graph.nodes))])
    part = graph.take(chosen)
    want = torch.from_numpy(graph.to_scipy().toarray())[chosen][:, chosen]
    assert torch.equal(torch.from_numpy(part.to_scipy().toarray()), want)
    rows = graph.row_of[chosen[part.targets]]
    assert torch.equal(part.total, graph.total[rows])
    assert [part.nodes.label(n) for n in range(len(chosen))] == [graph.nodes.label(n) for n in chosen.tolist()]
    strong = graph.only(graph.weight.abs() > 1)
    assert 0 < len(strong) < len(graph)
    dense = torch.from_numpy(graph.to_scipy().toarray())
    assert torch.equal(torch.from_numpy(strong.to_scipy().toarray()), dense * (dense.abs() > 1))


def test_nodes_that_do_not_fit_together_are_refused():
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InputError, match=r"nodes: 1 positions.* 2 nodes"):
        Nodes((NodeSet("latent", "x", "", 2),), one, one, one.double())
    with pytest.raises(InputError, match=r"sets: .*expected a kind among"):
        Nodes((NodeSet("word", "x", "", 1),), one, one, one.double())  # type: ignore[arg-type]
