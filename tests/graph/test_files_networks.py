"""NetworkX and GraphML: all nodes, edges and facts, and whatever characters tokens have."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attrib.core.types import InputError
from attrib.graph import Graph, to_networkx, write_graphml
from tests.support.graphs import random_graph

networkx = pytest.importorskip("networkx")


def odd_graph() -> Graph:
    graph = random_graph(2)
    value = graph.value.clone()
    value[0] = math.nan
    labels = ("\0", "\ud800", "<a>&\"'", " €\n", *graph.nodes.labels[4:])
    sets = tuple(each._replace(name="a\0b\ud800") if each.kind == "latent" else each for each in graph.nodes.sets)
    nodes = replace(graph.nodes, labels=labels, sets=sets)
    return replace(graph, value=value, nodes=nodes, strings=labels[:4], call={"seed": [1, None]})


def test_networkx_has_all_of_a_graph():
    graph = random_graph()
    found = to_networkx(graph)
    dense = torch.from_numpy(networkx.to_numpy_array(found, nodelist=range(len(graph.nodes)))).T
    assert torch.equal(dense, torch.from_numpy(graph.to_scipy().toarray()))
    assert found.number_of_edges() == len(graph)
    for node, facts in found.nodes(data=True):
        each = graph.nodes.sets[int(graph.nodes.set_of[node])]
        assert (facts["kind"], facts["site"], facts["dictionary"], facts["label"]) == (*each[:3], graph.nodes.label(node))
        for name in ("position", "latent", "activation"):
            assert facts[name] == getattr(graph.nodes, name)[node].item()
        row = int(graph.row_of[node])
        assert ("value" in facts) == (row >= 0)
        if row >= 0:
            assert [facts[name] for name in ("value", "own", "total", "l1", "importance")] == [
                getattr(graph, name)[row].item() for name in ("value", "own", "total", "l1", "importance")
            ]
    assert found.graph == {"tokens": [7, 8, 9, 10], "strings": [" t0", " t1", " t2", " t3"], "call": {}}


def test_graphml_comes_back(tmp_path: Path):
    graph = odd_graph()
    found = networkx.read_graphml(write_graphml(graph, tmp_path / "graph.graphml"), node_type=int)
    want = to_networkx(graph)
    assert {(a, b): facts for a, b, facts in found.edges(data=True)} == {(a, b): facts for a, b, facts in want.edges(data=True)}
    assert {name: json.loads(value) for name, value in found.graph.items() if name in want.graph} == want.graph
    first = int(graph.targets[0])
    for node, facts in found.nodes(data=True):
        expected = dict(want.nodes[node])
        if expected["kind"] == "latent":
            expected["dictionary"] = "a<U+0000>b<U+D800>"
        if node == first:
            del expected["value"]
        assert facts == expected
    assert found.number_of_nodes() == len(graph.nodes)


def test_a_failed_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(InputError, match="`call` cannot be written as JSON"):
        write_graphml(replace(random_graph(), call={"a": object()}), tmp_path / "graph.graphml")
    write_graphml(random_graph(), tmp_path / "there.graphml")
    with pytest.raises(InputError, match="exists already"):
        write_graphml(random_graph(), tmp_path / "there.graphml")
    assert [path.name for path in tmp_path.iterdir()] == ["there.graphml"]


def test_networkx_is_imported_on_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "networkx", None)
    with pytest.raises(InputError, match=r"to_networkx: needs the package networkx.*attrib\[graph\]"):
        to_networkx(random_graph())
