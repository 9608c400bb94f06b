"""Paths through a graph, held to all of them: each written out one by one, and valued and judged by itself."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
import torch

from attrib.core.types import InputError
from attrib.graph.factors import Contribution
from attrib.graph.graph import Graph
from attrib.graph.nodes import Nodes, NodeSet
from attrib.graph.paths import Path, graph_of, where_paths_begin, without_positions
from attrib.graph.patterns import MOST_STATES, PathFilter, select
from attrib.graph.ranking import sources
from attrib.graph.search import every_path, greedy, strongest
from attrib.graph.where import NodeFilter, Where
from tests.support.graphs import random_graph

CONTRIBUTIONS: tuple[Contribution, ...] = ("raw", "capped", "share")
GRAPHS = [random_graph(0), random_graph(1, positions=3, latents=4, layers=4, share=0.7), random_graph(2, positions=2, latents=3, layers=5)]
every_graph = pytest.mark.parametrize("graph", GRAPHS, ids=["wide", "dense", "deep"])
every_contribution = pytest.mark.parametrize("contribution", CONTRIBUTIONS)


def edges_into(graph: Graph) -> dict[int, dict[int, float]]:
    """The weight of every edge, by target and source."""
    found: dict[int, dict[int, float]] = {}
    for target, source, weight in zip(graph.target.tolist(), graph.indices.tolist(), graph.weight.tolist(), strict=True):
        found.setdefault(target, {})[source] = weight
    return found


def value_of(graph: Graph, nodes: tuple[int, ...], weights: list[float], contribution: Contribution) -> float:
    """A path's value, from where it begins up: what the source makes of each node in turn, in units of that node."""
    share, row_of = 1.0, graph.row_of.tolist()
    for target, weight in reversed(list(zip(nodes, weights, strict=False))):
        activation = float(graph.nodes.activation[target])
        if contribution == "share":
            share *= weight / float(graph.l1[row_of[target]])
            continue
        lost = weight * share
        if contribution == "capped" and graph.nodes.kind(target) == "latent" and activation > 0:
            lost = min(lost, activation)
        share = lost / activation
    return share if contribution == "share" else share * float(graph.nodes.activation[nodes[0]])


def ways(graph: Graph, node: int, contribution: Contribution = "raw") -> list[Path]:
    """Every path of at least one edge into a node, from wherever it begins."""
    into = edges_into(graph)

    def below(nodes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        for source in into.get(nodes[-1], {}):
            yield (*nodes, source)
            yield from below((*nodes, source))

    found = []
    for nodes in below((node,)):
        weights = [into[target][source] for target, source in pairwise(nodes)]
        found.append(Path(nodes, tuple(weights), value_of(graph, nodes, weights, contribution)))
    return sorted(found, key=lambda path: -abs(path.value))


def whole(graph: Graph, node: int, contribution: Contribution = "raw") -> list[Path]:
    """Those that cannot be continued."""
    into = edges_into(graph)
    return [path for path in ways(graph, node, contribution) if path.nodes[-1] not in into]


def assert_first(got: list[Path], want: list[Path], count: int) -> None:
    """The first paths of those that are wanted, which of equal size may stand in any order: caps make many equal."""
    sizes = [abs(path.value) for path in want[:count]]
    assert [abs(path.value) for path in got] == pytest.approx(sizes, rel=1e-12, abs=0)
    known = {path.nodes: path for path in want}
    assert len({path.nodes for path in got}) == len(got)
    for path in got:
        assert path.weights == known[path.nodes].weights
        assert path.value == pytest.approx(known[path.nodes].value, rel=1e-12, abs=0)


def assert_same(got: list[Path], want: list[Path]) -> None:
    assert_first(got, want, len(want))


def asked(graph: Graph) -> list[int]:
    """A logit, a direction, and the last latent that has edges."""
    latents = [node for node in graph.nodes.of_kind("latent").tolist() if node in edges_into(graph)]
    return [int(graph.nodes.of_kind("logit")[0]), int(graph.nodes.of_kind("target")[0]), latents[-1]]


# ------------------------------------------------------------------------------------------- the strongest


@pytest.mark.few
@every_graph
@every_contribution
def test_the_strongest_paths_are_those_of_all(graph: Graph, contribution: Contribution):
    for node in asked(graph):
        want = whole(graph, node, contribution)
        assert len(want) > 3
        assert_first(strongest(graph, node, 3, contribution=contribution), want, 3)
        assert_same(every_path(graph, node, contribution=contribution), want)
        assert_same(every_path(graph, node, contribution=contribution, which=PathFilter(ends=Where())), ways(graph, node, contribution))


def test_a_path_through_a_latent_is_the_derivative_by_its_source_through_it():
    graph = random_graph(3)
    node, into, a = asked(graph)[0], edges_into(graph), graph.nodes.activation.tolist()
    path = next(path for path in strongest(graph, node, 50) if len(path.nodes) == 4)
    _, first, second, end = path.nodes
    slopes = into[node][first] / a[first] * into[first][second] / a[second] * into[second][end] / a[end]
    assert path.value == pytest.approx(slopes * a[end], rel=1e-12)


def test_a_cap_holds_each_latent_to_its_value():
    graph = random_graph(0)
    latent = asked(graph)[2]
    most = float(graph.nodes.activation[latent])
    raw, capped = (every_path(graph, latent, contribution=each) for each in ("raw", "capped"))
    assert max(path.value for path in raw if len(path.weights) == 1) > most
    assert max(path.value for path in capped if len(path.weights) == 1) == most


def test_a_row_that_lost_all_its_edges_is_where_paths_begin():
    graph = GRAPHS[0]
    node = asked(graph)[0]
    middle = next(path.nodes[1] for path in strongest(graph, node, 9) if len(path.nodes) > 2)
    cut = graph.only(graph.target != middle)
    assert middle in {path.nodes[-1] for path in strongest(cut, node, 200)}
    assert_same(every_path(cut, node), whole(cut, node))


def test_nothing_goes_through_a_latent_that_is_zero():
    graph = random_graph(0)
    node = asked(graph)[0]
    middle = next(path.nodes[1] for path in strongest(graph, node, 9) if len(path.nodes) > 2)
    activation = graph.nodes.activation.clone()
    activation[middle] = 0.0
    dead = replace(graph, nodes=replace(graph.nodes, activation=activation))
    assert not any(middle in path.nodes[1:-1] for path in every_path(dead, node))
    assert_same(every_path(dead, node), [path for path in whole(graph, node) if middle not in path.nodes])


# ------------------------------------------------------------------------------------------------- rules

LATENT, ERROR = Where(kind="latent"), Where(kind=("error", "bias"))
Judge = Callable[[Graph, Path], bool]


def passes(graph: Graph, each: NodeFilter, node: int) -> bool:
    return bool(each.mask(graph.nodes)[node])


def has(pattern: list[NodeFilter]) -> Judge:
    """Whether some neighbouring nodes of a path are a pattern."""
    size = len(pattern)
    return lambda graph, path: any(
        all(passes(graph, each, node) for each, node in zip(pattern, path.nodes[at : at + size], strict=True))
        for at in range(len(path.nodes) - size + 1)
    )


def ends_in(pattern: list[NodeFilter]) -> Judge:
    size = len(pattern)
    return lambda graph, path: (
        len(path.nodes) >= size and all(passes(graph, each, node) for each, node in zip(pattern, path.nodes[-size:], strict=True))
    )


RULES: dict[str, tuple[PathFilter, Judge]] = {
    "without errors": (
        PathFilter(through=~ERROR),
        lambda graph, path: not any(graph.nodes.kind(node) in ("error", "bias") for node in path.nodes[1:]),
    ),
    "from tokens": (PathFilter(ends=Where(kind="token")), lambda graph, path: graph.nodes.kind(path.nodes[-1]) == "token"),
    "at most two edges": (PathFilter(longest=2), lambda graph, path: len(path.nodes) <= 3),
    "positive": (PathFilter(sign="positive"), lambda graph, path: path.value > 0),
    "negative": (PathFilter(sign="negative"), lambda graph, path: path.value < 0),
    "of a size": (PathFilter(least=0.5), lambda graph, path: abs(path.value) >= 0.5),
    "containing one": (PathFilter(containing=[Where(layer=1)]), has([Where(layer=1)])),
    "containing two": (PathFilter(containing=[LATENT, LATENT]), has([LATENT, LATENT])),
    "containing the first": (PathFilter(containing=[~LATENT, LATENT]), has([~LATENT, LATENT])),
    "containing what overlaps": (
        PathFilter(containing=[LATENT, LATENT, Where(position=range(2))]),
        has([LATENT, LATENT, Where(position=range(2))]),
    ),
    "without two": (PathFilter(without=[LATENT, LATENT]), lambda graph, path: not has([LATENT, LATENT])(graph, path)),
    "ending": (PathFilter(ending=[LATENT, Where(kind="token")]), ends_in([LATENT, Where(kind="token")])),
    "ending in all of it": (PathFilter(ending=[Where(), Where(), Where()], longest=2), lambda graph, path: len(path.nodes) == 3),
    "all at once": (
        PathFilter(containing=[LATENT, LATENT], ending=[LATENT, ~LATENT], without=[Where(layer=0), ERROR], longest=4, sign="negative"),
        lambda graph, path: (
            has([LATENT, LATENT])(graph, path) and ends_in([LATENT, ~LATENT])(graph, path) and not has([Where(layer=0), ERROR])(graph, path)
            and len(path.nodes) <= 5 and path.value < 0
        ),
    ),
}  # fmt: skip


@pytest.mark.few
@every_graph
@pytest.mark.parametrize("name", RULES)
def test_the_strongest_that_follow_rules_are_those_of_all(name: str, graph: Graph):
    which, judge = RULES[name]
    for node in asked(graph):
        every = whole(graph, node)
        want = [path for path in every if judge(graph, path)]
        assert_first(strongest(graph, node, 5, which=which), want, 5)
        assert_same(every_path(graph, node, which=which), want)
        assert_same(select(graph, every, which), want)


@pytest.mark.few
@every_graph
@every_contribution
@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_the_strongest_of_a_sign_are_those_of_all(sign: Literal["positive", "negative"], graph: Graph, contribution: Contribution):
    for node in asked(graph):
        want = [path for path in whole(graph, node, contribution) if (path.value > 0) == (sign == "positive")]
        which = PathFilter(sign=sign, through=~Where(kind="position"))
        want = [path for path in want if graph.nodes.kind(path.nodes[-1]) != "position"]
        assert_same(every_path(graph, node, which=which, contribution=contribution), want)


def test_a_cap_bounds_no_node_that_is_not_positive():
    graph = GRAPHS[0]
    activation = graph.nodes.activation.clone()
    activation[graph.nodes.of_kind("latent")[::2]] *= -1
    graph = replace(graph, nodes=replace(graph.nodes, activation=activation))
    for node in asked(graph):
        assert_same(every_path(graph, node, contribution="capped"), whole(graph, node, "capped"))


@pytest.mark.few
@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_some_and_drops_some(name: str):
    _, judge = RULES[name]
    judged = [judge(graph, path) for graph in GRAPHS for node in asked(graph) for path in whole(graph, node)]
    assert any(judged)
    assert not all(judged)


def site_of(graph: Graph, node: int) -> str:
    return graph.nodes.sets[int(graph.nodes.set_of[node])].site


WHERES: dict[str, tuple[NodeFilter, Callable[[Graph, int], bool]]] = {
    "all": (Where(), lambda graph, node: True),
    "kind": (Where(kind="latent"), lambda graph, node: graph.nodes.kind(node) == "latent"),
    "kinds": (Where(kind=["token", "logit"]), lambda graph, node: graph.nodes.kind(node) in ("token", "logit")),
    "site": (Where(site="blocks.1.hook_mlp_out"), lambda graph, node: "blocks.1.hook_mlp_out" in graph.nodes.label(node)),
    "name": (Where(name="transcoder 2"), lambda graph, node: "blocks.2.mlp.hook_in[" in graph.nodes.label(node)),
    "layer": (Where(layer=1), lambda graph, node: site_of(graph, node).startswith("blocks.1.")),
    "layers": (Where(layer=range(1, 9)), lambda graph, node: site_of(graph, node).startswith(("blocks.1.", "blocks.2."))),
    "position": (Where(position=(0, 2)), lambda graph, node: int(graph.nodes.position[node]) in (0, 2)),
    "latent": (Where(latent=range(4)), lambda graph, node: 0 <= int(graph.nodes.latent[node]) < 4),
    "label": (Where(label=[" t1", " w2"]), lambda graph, node: "' t1'" in graph.nodes.label(node) or "' w2'" in graph.nodes.label(node)),
    "not": (~Where(kind="latent"), lambda graph, node: graph.nodes.kind(node) != "latent"),
    "both": (LATENT & ~Where(position=0), lambda graph, node: graph.nodes.kind(node) == "latent" and int(graph.nodes.position[node]) != 0),
    "either": (LATENT | Where(position=1), lambda graph, node: graph.nodes.kind(node) == "latent" or int(graph.nodes.position[node]) == 1),
}  # fmt: skip


@pytest.mark.parametrize("name", WHERES)
def test_a_filter_means_the_nodes_that_it_says(name: str):
    graph = GRAPHS[0]
    which, judge = WHERES[name]
    want = [node for node in range(len(graph.nodes)) if judge(graph, node)]
    assert want
    assert which.find(graph.nodes).tolist() == want
    assert len(want) < len(graph.nodes) or name == "all"


# ------------------------------------------------------------------------------------------------ greedy


@pytest.mark.few
@every_contribution
def test_greedy_with_room_for_all_is_all_of_each_length(contribution: Contribution):
    graph = GRAPHS[1]
    for node in asked(graph):
        every = ways(graph, node, contribution)
        for length, level in enumerate(greedy(graph, node, (10_000,) * 3, contribution=contribution), 1):
            assert_same(level, [path for path in every if len(path.weights) == length])


@pytest.mark.parametrize("sign", ["both", "positive"])
def test_greedy_goes_on_with_the_best_of_each_level(sign: str):
    graph, branches = GRAPHS[0], (3, 5, 4)
    for node in asked(graph)[:2]:
        kept = [(node,)]
        every = [path for path in ways(graph, node) if not any(graph.nodes.kind(each) == "error" for each in path.nodes)]
        found = greedy(graph, node, branches, through=~Where(kind="error"), sign=sign)  # type: ignore[arg-type]
        assert len(found[0]) == 3
        assert found[1]
        for most, level in zip(branches, found, strict=True):
            longer = [path for path in every if path.nodes[:-1] in kept and (sign == "both" or path.value > 0)]
            best = [path for before in kept for path in [each for each in longer if each.nodes[:-1] == before][:most]]
            best = sorted(best, key=lambda path: -abs(path.value))[:most]
            assert_same(level, best)
            kept = [path.nodes for path in best]


# --------------------------------------------------------------------------------- sources, sums and graphs


@every_graph
@pytest.mark.parametrize("contribution", ["raw", "share"])
def test_a_total_is_the_sum_of_all_paths(graph: Graph, contribution: Literal["raw", "share"]):
    first, second, latent = asked(graph)
    of = {first: 2.0, second: -0.5, latent: 1.5}
    direct, total = (torch.zeros(len(graph.nodes), dtype=torch.float64) for _ in range(2))
    for node, number in of.items():
        for path in ways(graph, node, contribution):
            total[path.nodes[-1]] += number * path.value
            direct[path.nodes[-1]] += number * path.value * (len(path.weights) == 1)
    found = sources(graph, of, contribution=contribution)
    assert set(found.node.tolist()) == set(((total != 0) | (direct != 0)).nonzero()[:, 0].tolist())
    assert torch.allclose(found.total, total[found.node], rtol=1e-10, atol=1e-12)
    assert torch.allclose(found.direct, direct[found.node], rtol=1e-12, atol=0)
    assert (found.total.abs().diff() <= 0).all()


def test_a_total_through_some_nodes_is_that_of_paths_through_them():
    graph, through = GRAPHS[0], ~Where(kind="error") & ~Where(kind="latent", layer=1)
    node = asked(graph)[0]
    want = torch.zeros(len(graph.nodes), dtype=torch.float64)
    for path in ways(graph, node):
        if all(passes(graph, through, each) for each in path.nodes[1:]):
            want[path.nodes[-1]] += path.value
    found = sources(graph, node, through=through)
    assert torch.allclose(found.total, want[found.node], rtol=1e-10)
    assert set(found.node.tolist()) == set(want.nonzero()[:, 0].tolist())
    assert graph.nodes.label(int(found.node[0])) in found.text(graph.nodes, 1)


def test_the_totals_of_what_has_no_edges_make_up_the_whole_of_a_node():
    """Where all latents are the sum of their rows, so is a logit of what goes in at the bottom."""
    graph = GRAPHS[0]
    into = edges_into(graph)
    sums = {node: sum(row.values()) for node, row in into.items()}
    activation = graph.nodes.activation.clone()
    for node in graph.nodes.of_kind("latent").tolist():
        activation[node] = sums.get(node, activation[node])
    exact = replace(graph, nodes=replace(graph.nodes, activation=activation))
    node = asked(graph)[0]
    found = sources(exact, node)
    is_leaf = torch.tensor([each not in into for each in found.node.tolist()])
    assert float(found.total[is_leaf].sum()) == pytest.approx(sums[node], rel=1e-9)


def test_the_graph_of_paths_is_their_nodes_and_edges():
    graph = GRAPHS[0]
    node = asked(graph)[0]
    paths = strongest(graph, node, 6)
    part = graph_of(graph, paths)
    numbers = sorted({each for path in paths for each in path.nodes})
    edges = {(numbers[target], numbers[source]) for target, source in zip(part.target.tolist(), part.indices.tolist(), strict=True)}
    assert edges == {pair for path in paths for pair in pairwise(path.nodes)}
    again = every_path(part, numbers.index(node))
    named = {tuple(numbers[each] for each in path.nodes): path for path in again}
    for path in paths:
        assert (named[path.nodes].weights, named[path.nodes].value) == (path.weights, pytest.approx(path.value, rel=1e-12))
    assert torch.equal(part.total, graph.total[graph.row_of[torch.tensor(numbers)[part.targets]]])
    other = next(path for path in strongest(graph, node, 50) if len(path.nodes) > 2)
    with pytest.raises(InputError, match=r"^paths: .*which the graph has not"):
        graph_of(part, [other._replace(nodes=(other.nodes[-1], other.nodes[0]))])
    assert len(graph_of(graph, []).nodes) == 0


def test_patterns_are_paths_summed_over_positions():
    graph = GRAPHS[0]
    node = asked(graph)[0]
    paths = every_path(graph, node)

    def unplaced(each: int) -> tuple[object, ...]:
        latent = () if graph.nodes.kind(each) == "position" else int(graph.nodes.latent[each])
        return int(graph.nodes.set_of[each]), latent

    for found, key in (
        (without_positions(paths, graph.nodes), lambda path: tuple(map(unplaced, path.nodes))),
        (where_paths_begin(paths, graph.nodes), lambda path: path.nodes[-1]),
        (where_paths_begin(paths, graph.nodes, positions=False), lambda path: unplaced(path.nodes[-1])),
    ):
        sums: dict[object, list[float]] = {}
        for path in paths:
            sums.setdefault(key(path), []).append(path.value)
        assert [each.value for each in found] == pytest.approx(sorted(map(math.fsum, sums.values()), key=abs, reverse=True), rel=1e-9)
        assert sorted(each.paths for each in found) == sorted(map(len, sums.values()))
        assert 1 < len(found) < len(paths)
        assert len({each.steps for each in found}) == len(found)
    assert not any("@" in step for each in without_positions(paths, graph.nodes) for step in each.steps)


def test_latents_of_two_dictionaries_at_one_place_are_two():
    sets = (*(NodeSet("latent", "blocks.0.hook_resid_pre", name, 1) for name in ("one", "other")), NodeSet("target", "x", "", 1))
    nodes = Nodes(sets, torch.tensor([0, 0, 1]), torch.tensor([5, 5, -1]), torch.ones(3), ("direction",))
    paths = [Path((2, 0), (1.0,), 1.0), Path((2, 1), (2.0,), 2.0)]
    assert [pattern.value for pattern in where_paths_begin(paths, nodes, positions=False)] == [2.0, 1.0]
    assert [pattern.value for pattern in without_positions(paths, nodes)] == [2.0, 1.0]


def test_a_path_reads_from_the_node_asked_about_down():
    graph = GRAPHS[0]
    [path] = strongest(graph, asked(graph)[0], 1, which=PathFilter(ending=[LATENT, Where(kind="token")]))
    value, text = path.text(graph.nodes).split("  ", 1)
    assert float(value) == pytest.approx(path.value, rel=1e-2)
    assert text == " <- ".join(graph.nodes.label(node) for node in path.nodes)
    [pattern] = without_positions([path], graph.nodes)
    assert pattern.text().endswith("  (1)")


# ----------------------------------------------------------------------------------------------- refusals

LOGIT = asked(GRAPHS[0])[0]
WRONG: dict[str, tuple[Callable[[Graph], object], str]] = {
    "a node beyond": (lambda graph: strongest(graph, 10_000), r"^node: 10000; expected the number of one of the graph's"),
    "a node that is none": (lambda graph: greedy(graph, "logit"), r"^node: 'logit'; expected"),  # type: ignore[arg-type]
    "a node without a row": (lambda graph: sources(graph, 0), r"^of: no row was computed of token ' t0' @0"),
    "no node": (lambda graph: sources(graph, {}), r"^of: no node"),
    "no coefficient": (lambda graph: sources(graph, {LOGIT: float("nan")}), r"^of: the coefficient of node \d+ is nan"),
    "no paths": (lambda graph: strongest(graph, LOGIT, 0), r"^k: 0; expected"),
    "too many": (lambda graph: every_path(graph, LOGIT, most=20), r"^most: there are more than 20 paths"),
    "no branches": (lambda graph: greedy(graph, LOGIT, ()), r"^branches: \(\); expected"),
    "no contribution": (lambda graph: strongest(graph, LOGIT, contribution="cooked"), r"^contribution: 'cooked'; .*raw, capped, share"),  # type: ignore[arg-type]
    "a cap on sums": (lambda graph: sources(graph, LOGIT, contribution="capped"), r"^contribution: 'capped'; expected 'raw' or 'share'"),  # type: ignore[arg-type]
    "no sign": (lambda graph: PathFilter(sign="plus"), r"^sign: 'plus'; expected"),  # type: ignore[arg-type]
    "no length": (lambda graph: PathFilter(longest=0), r"^longest: 0; expected"),
    "no size": (lambda graph: PathFilter(least=float("nan")), r"^least: nan; expected"),
    "no filter": (lambda graph: PathFilter(through="error"), r"^through: 'error'; expected a filter"),  # type: ignore[arg-type]
    "no pattern": (lambda graph: PathFilter(ending=["token"]), r"^ending: \['token'\]; expected filters"),  # type: ignore[list-item]
    "a long pattern": (lambda graph: strongest(graph, LOGIT, which=PathFilter(longest=MOST_STATES)), r"^which: .* more than 1024 states"),
    "no kind": (lambda graph: Where(kind="neuron"), r"^kind: 'neuron'; expected one of token"),
    "no layer": (lambda graph: Where(layer="last"), r"^layer: 'last'; expected"),  # type: ignore[arg-type]
    "no number": (lambda graph: Where(position=[0, -1]), r"^position: -1; expected a whole number"),
    "no word": (lambda graph: Where(site=[3]), r"^site: 3; expected a string"),  # type: ignore[list-item]
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_understood_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.support.checked.CALLS", 0)  # as where types are not checked
    ask, said = WRONG[name]
    with pytest.raises(InputError, match=said):
        ask(GRAPHS[0])


def test_a_graph_out_of_order_is_refused():
    nodes = Nodes((NodeSet("latent", "blocks.0.mlp.hook_in", "", 2),), *torch.zeros(2, 2).long(), torch.ones(2))
    number, none = torch.zeros(1, dtype=torch.float64), torch.tensor([1])
    graph = Graph(nodes, none, torch.tensor([0, 1]), torch.tensor([0]), number + 1, *[number] * 5, torch.tensor([7]), ("t",))
    with pytest.raises(InputError, match=r"^graph: node 1 has an edge from node 0, whose set is not below"):
        strongest(graph, 1)


def test_a_weight_that_is_no_number_is_refused():
    graph = GRAPHS[0]
    weight = graph.weight.clone()
    weight[0] = torch.nan
    with pytest.raises(InputError, match=r"^graph: the edge into node \d+ from \d+ has no finite factor"):
        strongest(replace(graph, weight=weight), LOGIT)
