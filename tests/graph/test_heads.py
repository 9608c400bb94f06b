"""Edges as sums over the last head on their way, against dense products of what torch.func says of the pieces."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, einsum
from torch.func import jvp, vmap

import attrib
from attrib.core.keep import kept
from attrib.core.types import EXACT, LINEAR, BudgetError, Dense, InputError, Mass, Policy, Site, TopK
from attrib.dictionaries.dictionary import encode_at, selected
from attrib.graph.building import build as build_graphs
from attrib.graph.graph import Graph
from attrib.graph.heads import HeadLoadings, head_loadings
from attrib.graph.outputs import Custom, Span
from attrib.graph.qk import qk_attribution
from attrib.models.transformer import Model, attend, attention_written, enter, mlp
from tests.support.brought import PROMPT, brought, dictionaries
from tests.support.builders import Family, build, normal
from tests.support.covering import each_pair
from tests.support.cut_cases import BARE, SETS, fits
from tests.support.tolerances import FOREIGN, ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FEW: list[Family] = ["gpt2", "llama", "qwen3", "gemma2", "gpt_neox"]
UP = Custom("up", normal(32, dtype=torch.float64), site=Site(3, "resid_pre"))


def graph_of(model: Model, which: str | None, tokens: Tensor = PROMPT, **options: Any) -> Graph:
    (graph,) = build_graphs(model, dictionaries(model, which), tokens, **({"keep": TopK(40)} | options))
    return graph


def dense(model: Model, result: HeadLoadings) -> Tensor:
    """[edges, layers, heads, positions]."""
    shape = len(result), model.config.n_layers, model.config.n_heads, len(result.strings)
    at = result.row, result.layer, result.head, result.position
    return torch.zeros(shape, dtype=result.loading.dtype).index_put(at, result.loading)


# ------------------------------------------------------------------------------------------ a plain reference


def without_attention(model: Model, which: str | None, policy: Policy, layer: int, at: int, read: tuple[str, Any], z: Tensor) -> Tensor:
    """What a change of z of a layer at a position is to what is read at a place, where no attention above moves.

    Args:
        read: "direction", a vector at layer 3's resid_pre; or "latents", those of a transcoder at layer 2.
    """
    config, cuts = model.config, dictionaries(model, which)
    written = {site: d for d in cuts for site in d.writes}
    seen = attrib.capture(model, PROMPT, [Site(n, kind) for n in range(4) for kind in ("resid_pre", "z", "resid_mid", "mlp_in")])
    true = seen[Site(layer, "z")][at]
    _, stream = jvp(lambda given: attention_written(model, layer, given, policy), (true,), (z,))
    stream = torch.zeros_like(stream) if Site(layer, "attn_out") in written else stream
    before = torch.zeros_like(stream)  # what the MLP of a parallel block reads
    for n in range(layer, 4):
        if read[0] == "latents" and n == 2:
            d, latent = read[1], torch.arange(read[1].d_sae)
            x, moved = _entered(model, n, seen, at, before if config.parallel else stream, policy)
            return jvp(
                lambda given, d=d, latent=latent: encode_at(selected(d), given.expand(len(latent), -1), latent * 0, latent), (x,), (moved,)
            )[1]
        if read[0] == "direction" and n == 3:
            return stream @ read[1]
        x, moved = _entered(model, n, seen, at, before if config.parallel else stream, policy)
        if (d := written.get(Site(n, "mlp_out"))) is not None:
            out = moved @ d.params.W_skip if d.has_skip else torch.zeros_like(stream)
        else:
            _, out = jvp(lambda given, n=n: mlp(model, n, given, policy), (x,), (moved,))
        stream = stream + out
        before = stream
    raise AssertionError


def _entered(model: Model, layer: int, seen: Any, at: int, moved: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
    """What an MLP reads, and how that moves with the stream."""
    x = seen[Site(layer, "resid_pre" if model.config.parallel else "resid_mid")][at]
    return jvp(lambda given: enter(model.config, model.params.blocks[layer].norm_2, given, policy), (x,), (moved,))


@pytest.mark.few
@each_pair(fits, family=[*FEW, *BARE[:2]], which=[None, "transcoders", "attn_out"], policy=[LINEAR, EXACT])
def test_loadings_are_what_each_head_brings_last(family: Family, which: str | None, policy: Policy):
    model = build(family, torch.float64)
    config, cuts = model.config, dictionaries(model, which)
    graph = graph_of(model, which, policy=policy, targets=UP, positions=[3, 5], keep=Dense())
    numbers, brings = brought(model, which, graph.nodes, policy)
    streams = attrib.capture(model, PROMPT, list(brings))
    is_known = torch.isin(graph.indices, numbers)
    of_direction = torch.isin(graph.target, graph.nodes.of_kind("target"))
    of_latents = torch.zeros_like(of_direction)
    if which == "transcoders":
        (there,) = [n for n, each in enumerate(graph.nodes.sets) if each.kind == "latent" and each.site.startswith("blocks.2")]
        rows = graph.nodes.rows(there)
        of_latents = (graph.target >= rows.start) & (graph.target < rows.stop) & (graph.nodes.position[graph.target] == 4)
    edges = (is_known & (of_direction | of_latents)).nonzero()[:, 0]
    result = head_loadings(model, cuts, graph, edges, targets=UP, keep=Dense())
    assert result.worst < 1e-10
    got = dense(model, result)
    place = torch.full((len(graph.nodes),), -1).index_copy(0, numbers, torch.arange(len(numbers)))[result.source]
    at, group = graph.nodes.position[result.target], config.n_heads // config.n_kv_heads
    is_latent = torch.isin(result.target, graph.nodes.of_kind("latent"))
    for read, mine in ((("direction", UP.vector), ~is_latent), (("latents", cuts[-1] if cuts else None), is_latent)):
        for position in at[mine].unique().tolist():
            some = (mine & (at == position)).nonzero()[:, 0]
            column = graph.nodes.latent[result.target[some]] if read[0] == "latents" else torch.zeros_like(some)
            for layer in range(3):
                down = partial(without_attention, model, which, policy, layer, position, read)
                basis = torch.eye(config.n_heads * config.d_head).double()
                o = vmap(down)(basis).reshape(config.n_heads, config.d_head, -1)[:, :, column]  # [heads, d_head, edges]
                x, norm = brings[Site(layer, "resid_pre")][place[some]], model.params.blocks[layer].norm_1
                heads = attrib.attention_heads(model, layer, streams[Site(layer, "resid_pre")])
                _, entered = jvp(
                    lambda given, norm=norm: enter(config, norm, given, policy),
                    (streams[Site(layer, "resid_pre")].expand_as(x).clone(),),
                    (x,),
                )
                if policy == LINEAR:
                    v = (entered @ model.params.blocks[layer].attention.W_V).unflatten(-1, (config.n_kv_heads, -1))
                    v = v.repeat_interleave(group, dim=2)
                    want = einsum("hs,eshd,hde->ehs", heads.pattern[:, position], v, o)
                    assert_close(got[some, layer], want, FOREIGN, f"layer {layer}")
                else:
                    true = enter(config, norm, streams[Site(layer, "resid_pre")])
                    _, z = jvp(lambda given, layer=layer: attend(model, layer, given), (true.expand_as(entered).clone(),), (entered,))
                    want = einsum("ehd,hde->eh", z[:, position].unflatten(-1, (config.n_heads, -1)), o)
                    assert_close(got[some, layer].sum(-1), want, FOREIGN, f"layer {layer}")
            assert not got[some, 3].any()
    assert got.abs().max() > 1e-3


@pytest.mark.few
@each_pair(fits, family=[*FEW, *BARE], which=[None, *SETS], policy=[LINEAR, EXACT], mlps=["exact", "leaf"])
def test_every_edge_is_the_sum_of_its_loadings(family: Family, which: str | None, policy: Policy, mlps: Any):
    model = build(family, torch.float64)
    targets = [Span(3, 5), UP]
    graph = graph_of(model, which, policy=policy, mlps=mlps, targets=targets)
    result = head_loadings(model, dictionaries(model, which), graph, len(graph), targets=targets)
    assert len(result) == len(graph)
    assert result.worst < 1e-10
    assert result.direct.abs().max() > 0
    assert result.loading.abs().max() > 0
    apart = graph.nodes.position[result.source] != graph.nodes.position[result.target]
    assert not result.direct[apart].any()
    query, is_causal = graph.nodes.position[result.target[result.row]], model.config.causal
    assert bool((result.position <= query).all()) == is_causal
    if policy == LINEAR and is_causal:  # else a head looks elsewhere for what comes to its query
        assert (result.position >= graph.nodes.position[result.source[result.row]]).all()


@pytest.mark.parametrize("keep", [TopK(3), Mass(0.7)])
def test_what_is_kept_is_chosen_over_all_heads_of_an_edge(keep: Any):
    model = build("llama", torch.float64)
    graph = graph_of(model, "all")
    whole, some = (head_loadings(model, dictionaries(model, "all"), graph, 50, keep=each) for each in (Dense(), keep))
    every = dense(model, whole).flatten(1)
    assert_close(dense(model, some).flatten(1), every * kept(keep, every, every), ROUNDING)
    assert_close(some.dropped, every.sum(1) - dense(model, some).flatten(1).sum(1), ROUNDING)
    assert_close(some.total, whole.total, ROUNDING)


def test_a_small_budget_takes_edges_some_at_a_time():
    model = build("gpt2", torch.float64)
    graph, cuts = graph_of(model, "transcoders"), dictionaries(build("gpt2", torch.float64), "transcoders")
    whole = head_loadings(model, cuts, graph, 64)
    with pytest.raises(BudgetError) as refused:
        head_loadings(model, cuts, graph, 64, budget=10)
    least = int(str(refused.value).split("at least ")[1].split(".")[0].replace(",", ""))
    told = list[tuple[int, int]]()
    few = head_loadings(model, cuts, graph, 64, budget=least + least // 50, progress=lambda *counts: told.append(counts))
    assert told == sorted(set(told))
    assert len(told) > 1
    assert told[-1] == (64, 64)
    for column in ("edge", "indptr", "layer", "head", "position"):
        assert torch.equal(getattr(whole, column), getattr(few, column))
    assert_close(few.loading, whole.loading, ROUNDING)


def test_edges_of_a_part_of_a_graph_have_its_numbers():
    model = build("gpt2", torch.float64)
    graph, cuts = graph_of(model, "transcoders"), dictionaries(model, "transcoders")
    chosen = torch.cat([torch.arange(0, len(graph.nodes) - 5, 3), torch.arange(len(graph.nodes) - 5, len(graph.nodes))])
    part = graph.take(chosen)
    result = head_loadings(model, cuts, part, len(part))
    assert result.worst < 1e-10
    assert_close(result.weight, part.weight, ROUNDING)
    assert torch.equal(result.source, part.indices)


def test_edges_lead_to_the_scores_behind_them():
    model = build("qwen3", torch.float64)
    graph, cuts = graph_of(model, "transcoders"), dictionaries(model, "transcoders")
    chosen = [len(graph) - 5, 700, 5]
    result = head_loadings(model, cuts, graph, torch.tensor(chosen), keep=Dense())
    assert result.edge.tolist() == chosen
    assert result.source.tolist() == graph.indices[chosen].tolist()
    assert sorted((graph.nodes.position[result.target] > 0).tolist()) == [False, True, True]
    scores = result.scores(4)
    assert len(scores) == 4
    every = dense(model, result).abs()
    query = graph.nodes.position[result.target]
    size = {
        (layer, head, at, key): float(every[query == at][:, layer, head, key].sum())
        for layer in range(4) for head in range(4) for at in query.unique().tolist() if at for key in range(at + 1)
    }  # fmt: skip
    assert scores == sorted(size, key=lambda score: -size[score])[:4]
    assert qk_attribution(model, cuts, graph, scores).worst < 1e-10
    ways = result.top(1, 3)
    assert [abs(share) for share, _ in ways] == sorted((abs(share) for share, _ in ways), reverse=True)
    assert result.path(1).startswith(graph.nodes.label(int(result.target[1])))
    assert result.path(1).endswith(graph.nodes.label(int(result.source[1])))
    assert "3 edges" in repr(result)


def test_no_edges_have_no_loadings():
    model = build("gpt2", torch.float64)
    result = head_loadings(model, [], graph_of(model, None), 0)
    assert len(result) == 0
    assert result.worst == 0.0


@pytest.mark.few
@pytest.mark.parametrize(
    ("edges", "match"),
    [
        (torch.tensor([0, 10_000_000]), "the graph has edges 0 to"),
        (torch.tensor([-1]), "from -1 to -1"),
        (-1, "edges: -1"),
        (True, "edges: True"),
    ],
)
def test_edges_that_are_not_there_are_refused(edges: Any, match: str):
    model = build("gpt2", torch.float64)
    with pytest.raises(InputError, match=match):
        head_loadings(model, [], graph_of(model, None), edges)
    result = head_loadings(model, [], graph_of(model, None), 3)
    with pytest.raises(InputError, match="edge: 3 of 3"):
        result.top(3)


def test_a_graph_of_something_else_is_refused():
    model = build("gpt2", torch.float64)
    graph, cuts = graph_of(model, "transcoders", targets=UP), dictionaries(model, "transcoders")
    with pytest.raises(InputError, match=r"targets: .*the graph was built with Custom"):
        head_loadings(model, cuts, graph)
    with pytest.raises(InputError, match="dictionaries: 0 that are not those"):
        head_loadings(model, [], graph, targets=UP)
