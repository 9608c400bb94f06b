"""Heads as nodes: every route against dense products of the matrices that each head is, and all of them against the edges they make."""

from itertools import pairwise, product
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import EXACT, LINEAR, BudgetError, Dense, InputError, Mass, Site, TopK
from attrib.graph.building import build as build_graphs
from attrib.graph.comparing import compare
from attrib.graph.files.circuit_tracer_writing import to_circuit_tracer
from attrib.graph.files.neuronpedia_reading import from_neuronpedia
from attrib.graph.files.neuronpedia_writing import to_neuronpedia
from attrib.graph.graph import Graph
from attrib.graph.headed import with_heads
from attrib.graph.merging import merge_positions
from attrib.graph.outputs import Custom, Span
from attrib.graph.paths import Path, graph_of, without_positions
from attrib.graph.patterns import PathFilter, select
from attrib.graph.ranking import sources
from attrib.graph.search import every_path, greedy, strongest
from attrib.graph.wellformed import checked
from attrib.graph.where import Where
from attrib.models.transformer import Model, centres, mlp, rms
from tests.support.brought import PROMPT as LONGER
from tests.support.brought import dictionaries
from tests.support.builders import D_MODEL, Family, build, normal
from tests.support.covering import each_pair
from tests.support.cut_cases import BARE, fits
from tests.support.tolerances import ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PROMPT = LONGER[:3]
UP = Custom("up", normal(D_MODEL, dtype=torch.float64), site=Site(3, "resid_pre"))
HEADS = Where(kind="head")


def graph_with(model: Model, cuts: list[attrib.Dictionary], targets: Any = UP, **options: Any) -> Graph:
    (graph,) = build_graphs(model, cuts, PROMPT, **({"keep": Dense(), "targets": targets} | options))
    return graph


def routes_between(headed: Graph, target: int, source: int) -> list[Path]:
    """All paths from a source to a target that pass heads alone."""
    only = _Is(source)
    return every_path(headed, target, which=PathFilter(through=HEADS | only, ends=only))


class _Is(attrib.graph.NodeFilter):
    """One node."""

    def __init__(self, node: int) -> None:
        self.node = node

    def mask(self, nodes: Any) -> Tensor:
        return torch.arange(len(nodes)) == self.node


def apart(headed: Graph) -> Tensor:
    """The new numbers of the nodes that are no heads: those that the graph had, in their order."""
    return (~HEADS).find(headed.nodes)


# ------------------------------------------------------------------------------------------- dense products


def without_mlps(model: Model) -> list[attrib.Dictionary]:
    """Transcoders in place of every MLP, without skip connections: between latents there are heads and the stream alone."""
    made = []
    for layer in range(4):
        made.append(
            from_tensors(
                site=Site(layer, "mlp_in"), writes=(Site(layer, "mlp_out"),), W_enc=normal(D_MODEL, 20, seed=layer).to(model.dtype),
                b_enc=normal(20, seed=9 + layer).to(model.dtype), W_dec=normal(20, D_MODEL, seed=20 + layer).to(model.dtype),
                b_dec=normal(D_MODEL, seed=30 + layer).to(model.dtype),
            )
        )  # fmt: skip
    return made


def head_matrices(model: Model) -> Tensor:
    """What every head is, as a matrix of the stream: [layers, heads, queries, keys, d_model, d_model], of rows x M."""
    config, found = model.config, []
    seen = attrib.capture(model, PROMPT, [Site(layer, kind) for layer in range(3) for kind in ("resid_pre", "z")])
    for layer in range(3):
        x, z, block, W = (
            seen[Site(layer, "resid_pre")],
            seen[Site(layer, "z")],
            model.params.blocks[layer],
            attrib.head_weights(model, layer),
        )
        eye = torch.eye(config.d_model).double()
        enter = (eye - 1 / config.d_model if centres(config) else eye) * (block.norm_1.weight if config.pre_norm else 1)
        scale = (
            1 / rms(config, x - x.mean(-1, keepdim=True) if centres(config) else x) if config.pre_norm else torch.ones(len(x), 1).double()
        )
        W_OV = W.W_V @ W.W_O
        pattern = attrib.attention_heads(model, layer, x).pattern
        found.append(torch.einsum("hqk,kz,ij,hjm->hqkim", pattern, scale, enter, W_OV))
        if config.post_norm:
            written = z @ block.attention.W_O + block.attention.b_O
            found[-1] = found[-1] * block.post_1.weight / rms(config, written)[None, :, None, None]
    return torch.stack(found)


def dense_routes(
    model: Model, M: Tensor, written: Tensor, first: int, position: int, at: int
) -> dict[tuple[tuple[int, int, int], ...], float]:
    """The value of every route from a vector in the stream of layer `first` at a position, to `UP` at another; last head first."""
    found = {}
    for count in range(4):
        for layers in product(range(first, 3), repeat=count):
            if list(layers) != sorted(set(layers), reverse=True):
                continue
            for heads in product(range(model.config.n_heads), repeat=count):
                for read in product(range(position, at + 1), repeat=count):
                    stops = (at, *read)
                    if any(b > a for a, b in pairwise(stops)) or stops[-1] != position:
                        continue
                    x = written
                    for n in reversed(range(count)):
                        x = x @ M[layers[n], heads[n], stops[n], stops[n + 1]]
                    value = float(x @ UP.vector)
                    if value:
                        found[tuple(zip(layers, heads, read, strict=True))] = value
    return found


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gpt_neox", "gemma2"])
def test_routes_are_products_of_the_heads_that_they_pass(family: Family):
    model = build(family, torch.float64)
    cuts, at = without_mlps(model), 2
    graph = graph_with(model, cuts, positions=at)
    target = int(graph.nodes.of_kind("target"))
    headed = with_heads(model, cuts, graph.only(graph.target == target), targets=UP, least=0)
    checked("headed", headed)
    M, old = head_matrices(model), apart(headed)
    latents = graph.nodes.of_kind("latent")
    latents = latents[(graph.nodes.position[latents] == 0) & (graph.row_of[latents] >= 0)]
    layer = torch.tensor([int(graph.nodes.sets[n].site.split(".")[1]) for n in graph.nodes.set_of[latents].tolist()])
    chosen = [(node, n) for node, n in zip(latents.tolist(), layer.tolist(), strict=True) if n < 3][::9]
    assert len({n for _, n in chosen}) >= 2
    token = int(graph.nodes.of_kind("token")[0])
    written = model.params.W_E[PROMPT[0]] * model.config.embedding_scale
    want = {token: dense_routes(model, M, written, 0, 0, at)}
    for node, n in chosen:
        row = cuts[n].params.W_dec[graph.nodes.latent[node]] * graph.nodes.activation[node]
        want[node] = dense_routes(model, M, row, n + 1, 0, at)
    compared = 0
    for node, routes in want.items():
        got = {}
        for path in routes_between(headed, int(old[target]), int(old[node])):
            heads = path.nodes[1:-1]
            sites = [headed.nodes.sets[int(headed.nodes.set_of[head])].site for head in heads]
            assert all(site.endswith("attn.hook_z") for site in sites)
            key = tuple(
                (int(s.split(".")[1]), int(headed.nodes.latent[h]), int(headed.nodes.position[h]))
                for s, h in zip(sites, heads, strict=True)
            )
            assert key not in got
            got[key] = path.value
        assert got.keys() == routes.keys()
        values = ([each[key] for key in routes] for each in (got, routes))
        assert_close(*(torch.tensor(each, dtype=torch.float64) for each in values), 1e-10, node)
        compared += len(routes)
    assert compared > 200


@pytest.mark.few
@each_pair(
    fits, family=["gpt2", "gemma2", "gpt_neox", *BARE], which=[None, "residual", "transcoders", "z", "cross"], mlps=["exact", "leaf"]
)
def test_all_routes_of_an_edge_are_the_edge(family: Family, which: str | None, mlps: Any):
    model = build(family, torch.float64)
    cuts, targets = dictionaries(model, which), [Span(2), UP]
    graph = graph_with(model, cuts, targets, mlps=mlps, positions=2)
    # whole rows of some targets, which say whether they add up; what follows is of their edges
    latents = graph.targets[graph.nodes.position[graph.targets] == 2][:1]
    rows = torch.cat([latents, graph.nodes.of_kind("logit", "target")]).unique()
    graph = graph.only(torch.isin(graph.target, rows))
    headed = with_heads(model, cuts, graph, targets=targets, least=0)
    checked("headed", headed)
    old = apart(headed)
    assert headed.nodes.take(old).labels == graph.nodes.labels
    scale = headed.scale.clamp_min(1e-9)
    with_edges = headed.indptr.diff() > 0
    assert (headed.remainder.abs() / scale)[with_edges].max() < 1e-10
    # nothing was left out of rows that had all their sources; a head knows the sources of its row alone
    assert (headed.dropped.abs() / scale)[with_edges].max() < 1e-10
    # and the sum over all paths of heads is the edge
    totals = {}
    for target in rows.tolist():
        totals[target] = through_heads(headed, int(old[target]))
    for target, source, weight in zip(graph.target.tolist(), graph.indices.tolist(), graph.weight.tolist(), strict=True):
        assert abs(totals[target].get(source, 0.0) - weight) < 1e-10 * float(graph.l1[graph.row_of[target]]), (target, source)


def through_heads(headed: Graph, target: int) -> dict[int, float]:
    """What each node of the graph that was given is to a target, by all ways that pass heads alone: a plain walk down."""
    back = {node: number for number, node in enumerate(apart(headed).tolist())}
    rows, found = headed.row_of.tolist(), dict[int, float]()
    waiting = [target]
    while waiting:
        row = rows[waiting.pop()]
        for edge in range(int(headed.indptr[row]), int(headed.indptr[row + 1])):
            source = int(headed.indices[edge])
            if source in back:
                found[back[source]] = found.get(back[source], 0.0) + float(headed.weight[edge])
            else:
                waiting.append(source)
    return found


# ------------------------------------------------------------------------------------------- what is left out


def small(least: float = 0.05, which: str = "transcoders", dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Graph, Graph]:
    """A part of a graph, and the same with heads."""
    model = build("qwen3", dtype)
    cuts = dictionaries(model, which)
    graph = graph_with(model, cuts, positions=2, keep=Mass(0.9))
    part = graph_of(graph, strongest(graph, int(graph.nodes.of_kind("target")), 4))
    return part, with_heads(model, cuts, part, targets=UP, least=least, **options)


@pytest.mark.long
def test_what_is_left_out_is_said_and_the_rest_is_as_it_was():
    (part, whole), (_, some) = small(0.0), small(0.1)
    assert len(some.nodes) < len(whole.nodes) / 2
    every, few = (edges_by_name(graph) for graph in (whole, some))
    assert 0 < len(few) < len(every)
    assert few.keys() <= every.keys()
    assert list(few.values()) == pytest.approx([every[ends] for ends in few], abs=1e-10)
    # a head stays where what it brings of its row's sources is, in sizes, a tenth of the row or more
    mass, row = masses(whole, part), {node: part.row_of[node] for node in part.targets.tolist()}
    kept = {name(some, node) for node in HEADS.find(some.nodes).tolist()}
    scale = torch.zeros(len(part.targets), dtype=torch.float64).index_add(0, part.row, part.weight.abs())
    for node, (root, size) in mass.items():
        expected = size >= 0.1 * float(scale[row[root]])
        assert (name(whole, node) in kept) <= expected
    first = [node for node in mass if parents(whole)[node] in set(apart(whole).tolist())]
    assert {name(whole, node) for node in first if mass[node][1] >= 0.1 * float(scale[row[mass[node][0]]])} == {
        each for each in kept if "←" not in each.split(" of ", 1)[1]
    }
    target = some.row_of[into(some)]
    stored = float(some.weight[some.row == target].sum())
    assert float(some.dropped[target]) == pytest.approx(float(some.total[target]) - stored)


def into(graph: Graph) -> int:
    return int(graph.nodes.of_kind("target"))


def edges_by_name(graph: Graph) -> dict[tuple[str, str], float]:
    ends = zip(graph.target.tolist(), graph.indices.tolist(), strict=True)
    names = [(name(graph, target), name(graph, source)) for target, source in ends]
    assert len(set(names)) == len(names)
    return dict(zip(names, graph.weight.tolist(), strict=True))


def name(graph: Graph, node: int) -> str:
    return f"{graph.nodes.label(node)} of {graph.nodes.sets[int(graph.nodes.set_of[node])].name}"


def parents(graph: Graph) -> dict[int, int]:
    """The one node that each head leads to."""
    found = {source: target for target, source in zip(graph.target.tolist(), graph.indices.tolist(), strict=True)}
    return {node: found[node] for node in HEADS.find(graph.nodes).tolist()}


def masses(headed: Graph, part: Graph) -> dict[int, tuple[int, float]]:
    """Of each head the target of the part at its end, and the sizes of what it brings of each source, added up."""
    old, up = apart(headed).tolist(), parents(headed)
    found = {}
    for node in up:
        root = node
        while root in up:
            root = up[root]
        found[node] = old.index(root), sum(map(abs, through_heads(headed, node).values()))
    assert part.nodes.labels
    return found


@pytest.mark.long
def test_routes_have_at_most_so_many_heads():
    (_, one), (_, two), (_, every) = small(0.0, longest=1), small(0.0, longest=2), small(0.0)
    lengths = [max(deep(graph, node) for node in parents(graph)) for graph in (one, two, every)]
    assert lengths == [1, 2, 3]
    assert_close(one.weight.abs().max(), every.weight.abs().max(), ROUNDING)
    # whatever is cut further down, each row has the same entries past no attention, the same heads, and the same size in all
    first = {name(one, node) for node in parents(one)}
    assert first == {name(every, node) for node in parents(every) if deep(every, node) == 1}
    shared = one.targets[torch.isin(one.targets, apart(one))]
    assert_close(one.l1[one.row_of[shared]], every.l1[every.row_of[apart(every)[torch.searchsorted(apart(one), shared)]]], ROUNDING)


def deep(graph: Graph, node: int) -> int:
    up, count = parents(graph), 0
    while node in up:
        node, count = up[node], count + 1
    return count


def test_l1_is_the_size_of_all_that_a_row_is_cut_into():
    model = build("gpt2", torch.float64)
    cuts = dictionaries(model, "cross")  # whose latents write at several places
    graph = graph_with(model, cuts, positions=2)
    graph = graph.only(graph.target == into(graph))
    headed = with_heads(model, cuts, graph, targets=UP, least=0)
    row = headed.row_of[into(headed)]
    assert_close(headed.l1[row], headed.weight[headed.row == row].abs().sum(), ROUNDING)
    few = with_heads(model, cuts, graph, targets=UP, least=0.3)
    assert len(few) < len(headed)
    assert_close(few.l1[few.row_of[into(few)]], headed.l1[row], ROUNDING)


def test_float32_gives_what_float64_does():
    (_, single), (_, double) = small(0.0, dtype=torch.float32), small(0.0)
    assert single.weight.dtype == torch.float32
    checked("single", single)
    first = [strongest(graph, into(graph), 20) for graph in (single, double)]
    assert [path.value for path in first[0]] == pytest.approx([path.value for path in first[1]], rel=1e-3)


# ------------------------------------------------------------------------------------------- searching


def test_paths_are_found_and_chosen_by_their_heads():
    _, headed = small(0.03)
    node, nodes = into(headed), headed.nodes
    every = every_path(headed, node, most=200_000)
    head = int(nodes.latent[HEADS.find(nodes)[-1]])
    mine = HEADS & Where(layer=range(1, 3), head=head)
    assert mine.find(nodes).tolist() == [
        each for each in HEADS.find(nodes).tolist()
        if int(nodes.latent[each]) == head and nodes.sets[int(nodes.set_of[each])].site in ("blocks.1.attn.hook_z", "blocks.2.attn.hook_z")
    ]  # fmt: skip
    assert not (Where(latent=head) & HEADS).mask(nodes).any()
    assert not (Where(head=head) & ~HEADS).mask(nodes).any()
    for which in (PathFilter(containing=[mine]), PathFilter(through=~mine), PathFilter(ending=[mine, Where(kind="token")])):
        want = [path.value for path in select(headed, every, which)][:8]
        assert want
        assert [path.value for path in strongest(headed, node, 8, which=which)] == pytest.approx(want)
    levels = greedy(headed, node, (6, 6))
    assert any(nodes.kind(path.nodes[1]) == "head" for path in levels[0])
    assert len(levels[1]) == 6


def test_paths_read_as_they_are_written():
    _, headed = small(0.03)
    found = strongest(headed, into(headed), 1, which=PathFilter(containing=[HEADS], ending=[Where(kind="token")]))
    node, nodes = next(at for at in found[0].nodes if headed.nodes.kind(at) == "head"), headed.nodes
    each = nodes.sets[int(nodes.set_of[node])]
    short = f"attn{each.site.split('.')[1]}[{int(nodes.latent[node])}]@{int(nodes.position[node])}"
    assert nodes.short(node) == short
    assert nodes.label(node) == short.replace("@", " @")
    text = found[0].text(nodes, short=True)
    assert text.split("  ")[1].startswith("target 'up'@2 ← ")
    assert f" ← {short} ← " in text
    assert text.endswith(f"token '{nodes.labels[int(nodes.position[found[0].nodes[-1]])]}'@{int(nodes.position[found[0].nodes[-1]])}")
    names = {nodes.short(at).rsplit("@", 1)[0] for at in range(len(nodes)) if nodes.kind(at) not in ("token", "target", "head")}
    assert any(name.startswith(("mlp1[", "mlp2[")) for name in names) or {"mlp_out1 error", "mlp_out2 error"} & names
    (pattern,) = without_positions(found, nodes)
    assert f"{short.split('@')[0]} <- " in pattern.text()
    assert "of blocks" not in pattern.text().split("attn")[1]


def test_all_that_a_direction_is_made_of_is_one_ranking():
    model = build("llama", torch.float64)
    graph = graph_with(model, [], positions=2)
    headed = with_heads(model, [], graph, targets=UP, least=0, longest=1)
    ranking = sources(headed, into(headed), through=HEADS)
    seen = attrib.capture(model, PROMPT, [Site(2, "resid_pre")])[Site(2, "resid_pre")]
    heads = attrib.attention_heads(model, 2, seen)
    W_O = attrib.head_weights(model, 2).W_O
    x = attrib.capture(model, PROMPT, [Site(2, "resid_mid")])[Site(2, "resid_mid")][2]
    g = torch.func.grad(lambda given: frozen_mlp(model, given, x) @ UP.vector)(x)
    want = heads.pattern[:, 2] * torch.einsum("hsd,hdm,m->hs", heads.value, W_O, g)
    of_layer = (HEADS & Where(layer=2)).find(headed.nodes).tolist()
    got = torch.zeros_like(want)
    direct = dict(zip(ranking.node.tolist(), ranking.direct.tolist(), strict=True))
    for node in of_layer:
        got[int(headed.nodes.latent[node]), int(headed.nodes.position[node])] = direct[node]
    assert_close(got, want, 1e-10)


def frozen_mlp(model: Model, x: Tensor, at: Tensor) -> Tensor:
    """The stream behind the MLP of layer 2, whose norm has its denominator at a point."""
    return x + mlp(model, 2, x * model.params.blocks[2].norm_2.weight / rms(model.config, at), LINEAR)


# ------------------------------------------------------------------------------------------- beside searching


def test_graphs_with_heads_are_kept_compared_and_merged(tmp_path: File):
    _, headed = small(0.05)
    path = attrib.save(tmp_path / "headed.h5", headed)
    with attrib.open_graphs(path) as graphs:
        back = graphs[0]
    assert torch.equal(back.weight, headed.weight)
    assert back.nodes.sets == headed.nodes.sets
    again = from_neuronpedia(to_neuronpedia(headed, tmp_path / "headed.json"))
    assert torch.equal(again.indices, headed.indices)
    assert compare(headed, back).is_in.all()
    merged = merge_positions(headed)
    by_name = {(each.site, int(headed.nodes.latent[node]), stripped(each.name)) for node, each in of_heads(headed)}
    assert len(by_name) < len(HEADS.find(headed.nodes))
    assert sum("attn" in name for name in merged.names) == len(by_name)
    with pytest.raises(InputError, match="of its nodes are heads"):
        to_circuit_tracer(headed, tmp_path / "graph.pt")


def of_heads(graph: Graph) -> list[tuple[int, Any]]:
    return [(node, graph.nodes.sets[int(graph.nodes.set_of[node])]) for node in HEADS.find(graph.nodes).tolist()]


def stripped(name: str) -> str:
    return " ← ".join(part.rsplit(" @", 1)[0] for part in name.split(" ← "))


def test_a_small_budget_takes_rows_some_at_a_time():
    _, whole = small(0.02)
    with pytest.raises(BudgetError) as refused:
        small(0.02, budget=10)
    least = int(str(refused.value).split("at least ")[1].split(".")[0].replace(",", ""))
    _, few = small(0.02, budget=4 * least)
    assert few.nodes.sets == whole.nodes.sets
    assert torch.equal(few.indices, whole.indices)
    assert_close(few.weight, whole.weight, ROUNDING)


def test_a_graph_without_edges_stays_as_it_is():
    model = build("gpt2", torch.float64)
    graph = graph_with(model, [])
    headed = with_heads(model, [], graph.only(torch.zeros(len(graph), dtype=torch.bool)), targets=UP)
    assert len(headed) == 0
    assert headed.nodes.sets == graph.nodes.sets


@pytest.mark.few
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"least": -0.1}, "least: -0.1"),
        ({"least": True}, "least: True"),
        ({"longest": 0}, "longest: 0"),
        ({"longest": 1.5}, "longest: 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Any, match: str):
    model = build("gpt2", torch.float64)
    with pytest.raises(InputError, match=match):
        with_heads(model, [], graph_with(model, []), targets=UP, **options)


def test_graphs_that_are_no_sums_over_heads_are_refused():
    model = build("gpt2", torch.float64)
    with pytest.raises(InputError, match="expected attention and norms frozen"):
        with_heads(model, [], graph_with(model, [], policy=EXACT), targets=UP)
    with pytest.raises(InputError, match=r"targets: .*the graph was built with Custom"):
        with_heads(model, [], graph_with(model, []))
    with pytest.raises(InputError, match="dictionaries: 1 that are not those"):
        with_heads(model, dictionaries(model, "attn_out"), graph_with(model, []), targets=UP)
    headed = with_heads(model, [], graph_with(model, [], keep=TopK(5)), targets=UP)
    with pytest.raises(InputError, match="does not say how it was built"):
        with_heads(model, [], headed, targets=UP)
