"""Scores of heads as sums over pairs of nodes, against dense products of what torch.func says that every node brings to the stream."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, einsum

import attrib
from attrib.core.keep import kept
from attrib.core.types import EXACT, LINEAR, BudgetError, Dense, InputError, Mass, Site, Threshold, TopK
from attrib.graph import pairs
from attrib.graph.again import open_prompt
from attrib.graph.building import build as build_graphs
from attrib.graph.head_space import Wanted, in_heads
from attrib.graph.layer_scores import OWN
from attrib.graph.neurons import Neurons
from attrib.graph.options import GraphAsked
from attrib.graph.outputs import Custom
from attrib.graph.pairs import Rows, strongest
from attrib.graph.qk import Attended, QKAttribution, qk_attribution
from attrib.models.transformer import Model, rotary, rotate
from tests.support.brought import PROMPT, brought, dictionaries
from tests.support.builders import Family, build, normal, prompt
from tests.support.covering import each_pair
from tests.support.cut_cases import BARE, SETS, TOKENS, fits
from tests.support.measured import peak
from tests.support.tolerances import FOREIGN, ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FEW: list[Family] = ["gpt2", "llama", "qwen3", "gemma2", "gpt_neox"]
SCORES = [(1, 0, 5, 3), (2, 3, 5, 1), (2, 2, 4, 4), (0, 1, 2, 0), (3, 1, 5, 2)]


def found(model: Model, which: str | None, scores: Any = SCORES, tokens: Tensor = PROMPT, **options: Any) -> QKAttribution:
    return qk_attribution(model, dictionaries(model, which), tokens, scores, **({"keep": Dense()} | options))


def matrix(result: QKAttribution, score: int) -> Tensor:
    """[nodes and own, nodes and own] of a score."""
    size, pairs = len(result.nodes) + 1, slice(int(result.indptr[score]), int(result.indptr[score + 1]))
    out = torch.zeros(size, size, dtype=result.weight.dtype)
    rows, columns = (node[pairs] % size for node in (result.query_node, result.key_node))  # OWN is the last
    return out.index_put((rows, columns), result.weight[pairs], accumulate=True)


# ------------------------------------------------------------------------------------------ a plain reference


def in_head(model: Model, layer: int, x: Tensor, stream: Tensor, which: str, head: int, at: int) -> Tensor:
    """The queries or keys [nodes, d_head] of one head at one position, of what nodes bring to the stream there [nodes, d]."""
    config, block = model.config, model.params.blocks[layer]
    p, true = block.attention, stream[at]
    if config.norm == "layer":
        x, true = x - x.mean(-1, keepdim=True), true - true.mean(-1, keepdim=True)
    scale = (true.square().mean() + config.eps).sqrt()
    W, b, weight = (p.W_Q, p.b_Q, p.q_norm) if which == "q" else (p.W_K, p.b_K, p.k_norm)
    columns = slice(head * config.d_head, (head + 1) * config.d_head)
    y = einsum("nm,md->nd", x / scale * block.norm_1.weight, W[:, columns])
    if config.qk_norm == "head":
        whole = (true / scale * block.norm_1.weight + block.norm_1.bias) @ W[:, columns] + b[columns]
        y = y / (whole.square().mean() + config.eps).sqrt() * weight
    if config.positions == "rotary":
        cos, sin = rotary(model, layer, at + 1)
        y = rotate(y[:, None], cos[at:], sin[at:])[:, 0]
    return y


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.few
@each_pair(fits, family=[*FEW, BARE[0]], which=[None, *SETS], mlps=["exact", "leaf"])
def test_pairs_are_products_of_what_nodes_bring(family: Family, which: str | None, mlps: Any):
    model = build(family, torch.float64)
    result = found(model, which, mlps=mlps)
    policy = LINEAR if mlps == "exact" else LINEAR._replace(mlp="frozen")
    numbers, brings = brought(model, which, result.nodes, policy)
    config = model.config
    streams = attrib.capture(model, PROMPT, list(brings))
    assert result.worst < 1e-10
    for score, (layer, head, query, key) in enumerate(SCORES):
        site = Site(layer, "resid_pre")
        heads = attrib.attention_heads(model, layer, streams[site])
        raw = heads.query[head, query] @ heads.key[head, key] * config.attention_scale
        value = raw if config.score_cap is None else config.score_cap * (raw / config.score_cap).tanh()
        assert_close(result.value[score], value, ROUNDING)
        assert_close(result.pattern[score], heads.pattern[head, query, key], ROUNDING)
        group = head // (config.n_heads // config.n_kv_heads)
        q = in_head(model, layer, brings[site][:, query], streams[site], "q", head, query)
        k = in_head(model, layer, brings[site][:, key], streams[site], "k", group, key)
        want = einsum("id,jd->ij", q, k) * config.attention_scale * (value / raw)
        got = matrix(result, score)
        assert_close(got[numbers][:, numbers], want, FOREIGN, result.name(score))
        assert_close(got.sum(), result.total[score], ROUNDING)
        assert_close(result.total[score], value, 1e-10)


@pytest.mark.few
@each_pair(
    fits, family=[*FEW, *BARE], which=[None, "transcoders", "attn_out", "all"], dtype=[torch.float64, torch.float32], skip_positions=[0, 2]
)
def test_every_score_adds_up(family: Family, which: str | None, dtype: torch.dtype, skip_positions: int):
    model = build(family, dtype)
    result = found(model, which, Attended(0.1, (1, 3)), TOKENS, keep=TopK(3), skip_positions=skip_positions)
    assert result.worst < (1e-10 if dtype == torch.float64 else 1e-4)
    assert len(result) > 100
    assert result.weight.dtype == dtype
    patterns = attrib.attention_patterns(model, TOKENS)
    chosen = torch.stack([result.layer, result.head, result.query, result.key], dim=1)
    assert torch.equal(chosen, torch.cat([_named(layer, patterns[layer] >= 0.1) for layer in (1, 3)]))


def _named(layer: int, mask: Tensor) -> Tensor:
    there = mask.nonzero()
    return torch.cat([torch.full_like(there[:, :1], layer), there], dim=1)


@pytest.mark.few
@pytest.mark.parametrize("family", FEW)
def test_marginals_are_sums_of_pairs(family: Family):
    result = found(build(family, torch.float64), "all")
    size = len(result.nodes) + 1
    for score in range(len(result)):
        whole = matrix(result, score)
        for sums, axis in ((result.query_sums, 1), (result.key_sums, 0)):
            there = slice(int(sums.indptr[score]), int(sums.indptr[score + 1]))
            got = torch.zeros(size).double().index_put((sums.node[there] % size,), sums.weight[there])
            assert_close(got, whole.sum(axis), ROUNDING)


@pytest.mark.few
@pytest.mark.parametrize("keep", [TopK(7), TopK(10_000_000), Threshold(0.01), Mass(0.8)])
def test_what_is_kept_is_chosen_over_all_pairs(keep: Any):
    model = build("llama", torch.float64)
    whole, some = (found(model, "all", keep=each) for each in (Dense(), keep))
    for score in range(len(SCORES)):
        every, few = (slice(int(r.indptr[score]), int(r.indptr[score + 1])) for r in (whole, some))
        mask = kept(keep, whole.weight[every][None], whole.weight[every][None])[0]
        for column in ("query_node", "key_node"):
            assert torch.equal(getattr(some, column)[few], getattr(whole, column)[every][mask])
        assert_close(some.weight[few], whole.weight[every][mask], ROUNDING)
    assert_close(some.dropped, some.total - torch.stack([matrix(some, score).sum() for score in range(len(SCORES))]), ROUNDING)


SIZES = [40, 0, 1, 30, 90, 2]
"""Rows of each group of one side of forms."""


def sides(dtype: torch.dtype) -> tuple[Rows, Rows]:
    """Rows of very different lengths, with some that are the same, of three heads and of one."""
    begins = (0, *itertools.accumulate(SIZES))
    both = []
    for seed, heads in enumerate((3, 1)):
        vector = normal(begins[-1], heads, 6, seed=seed) * normal(begins[-1], heads, 1, seed=5 + seed).exp()
        vector[4], vector[44] = vector[9], 0.0
        both.append(Rows(vector.to(dtype), begins))
    return both[0], both[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("at_once", [1, pairs.AT_ONCE])
@pytest.mark.parametrize("keep", [TopK(1), TopK(5), TopK(300), TopK(10_000_000), Threshold(4.0), Threshold(0.0), Mass(0.3), Dense()])
def test_strongest_pairs_are_those_of_all_products(keep: Any, at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pairs, "AT_ONCE", at_once)
    left, right = sides(dtype)
    form = [(a, head, b) for a in range(len(SIZES)) for head in range(3) for b in range(len(SIZES))][::2]
    a, head, b = torch.tensor(form).unbind(1)
    scale = normal(len(form)).exp().to(dtype)
    got = strongest(left.runs(a, head), right.runs(b, torch.zeros_like(b)), scale, keep)
    assert len(got.weight)
    for number, (left_group, of_head, right_group) in enumerate(form):
        there, begin, other = got.form == number, left.begins[left_group], right.begins[right_group]
        l, r = left.vector[begin : begin + SIZES[left_group], of_head], right.vector[other : other + SIZES[right_group], 0]
        weight = (l @ r.T).flatten()[None] * scale[number]
        mask = kept(keep, weight, weight)[0]
        place = (got.left[there] - begin) * len(r) + got.right[there] - other
        assert torch.equal(place, mask.nonzero()[:, 0])
        assert_close(got.weight[there], weight[0, mask], ROUNDING)


def test_no_forms_have_no_pairs():
    left, right = sides(torch.float64)
    none = torch.zeros(0, dtype=torch.int64)
    for keep in (TopK(3), Threshold(1.0), Mass(0.5), Dense()):
        assert len(strongest(left.runs(none, none), right.runs(none, none), left.vector[:0, 0, 0], keep).weight) == 0


@pytest.mark.few
@pytest.mark.parametrize("family", FEW)
def test_where_norms_and_patterns_move_the_remainder_says_what_is_missed(family: Family):
    model = build(family, torch.float64)
    held, moving = (found(model, "transcoders", policy=policy) for policy in (LINEAR, EXACT))
    assert held.worst < 1e-10
    assert moving.worst > 1e-3
    assert_close(moving.value, held.value, ROUNDING)


def test_several_ways_up_give_what_one_does():
    model = build("gpt2", torch.float64)
    cuts = dictionaries(model, "all")
    whole = qk_attribution(model, cuts, TOKENS, keep=TopK(20))
    with pytest.raises(BudgetError) as refused:
        qk_attribution(model, cuts, TOKENS, keep=TopK(20), budget=10)
    least = int(str(refused.value).split("at least ")[1].split(".")[0].replace(",", ""))
    tight = qk_attribution(model, cuts, TOKENS, keep=TopK(20), budget=least)
    for column in ("layer", "head", "query", "key", "indptr", "query_node", "key_node"):
        assert torch.equal(getattr(whole, column), getattr(tight, column))
    assert_close(tight.weight, whole.weight, ROUNDING)
    with pytest.raises(BudgetError):
        qk_attribution(model, cuts, TOKENS, keep=TopK(20), budget=least - 1)


@pytest.mark.few
@pytest.mark.parametrize(("family", "which"), [("llama", None), ("gpt2", "cross"), ("gemma2", "transcoders")])
@pytest.mark.parametrize("policy", [LINEAR, EXACT])
def test_a_way_up_holds_no_more_than_its_budget(family: Family, which: str | None, policy: Any):
    model = build(family, torch.float64)
    again = open_prompt(model, dictionaries(model, which), prompt(24), GraphAsked(policy=policy))
    every = frozenset(range(24))
    wanted = {layer: Wanted(every, every, every) for layer in range(4)}
    with pytest.raises(BudgetError) as refused:
        next(in_heads(again.opened, wanted, again.precision, 10))
    least = int(str(refused.value).split("at least ")[1].split(".")[0].replace(",", ""))
    for budget in (least, 4 * least):

        def run(budget: int = budget) -> None:
            for there in in_heads(again.opened, wanted, again.precision, budget):
                del there

        assert peak(run) <= budget


def test_fewer_digits_on_the_way_up_are_near_those_of_all():
    model = build("gpt2", torch.float32)
    whole, few = (found(model, "transcoders", dtype=dtype) for dtype in (None, "bfloat16"))
    assert_close(few.value, whole.value, ROUNDING)
    assert 1e-5 < few.worst < 0.05


def test_a_prompt_of_one_token():
    result = found(build("gpt_neox", torch.float64), "transcoders", Attended(), PROMPT[:1])
    assert len(result) == 3 * 4
    assert result.worst < 1e-10


def test_a_graph_says_how_its_nodes_are_found():
    model = build("llama", torch.float64)
    cuts = dictionaries(model, "transcoders")
    target = Custom("up", normal(32), site=Site(3, "resid_pre"))
    (graph,) = build_graphs(model, cuts, PROMPT, targets=target, mlps="leaf", skip_positions=1)
    asked = qk_attribution(model, cuts, PROMPT, SCORES, targets=target, mlps="leaf", skip_positions=1)
    by_graph = qk_attribution(model, cuts, graph, SCORES, targets=target)
    assert by_graph.nodes.sets == graph.nodes.sets
    assert torch.equal(by_graph.nodes.latent, graph.nodes.latent)
    assert_close(by_graph.weight, asked.weight, ROUNDING)
    with pytest.raises(InputError, match=r"targets: .*the graph was built with Custom"):
        qk_attribution(model, cuts, graph, SCORES)
    with pytest.raises(InputError, match="mlps: 'exact', but the graph was built with 'leaf'"):
        qk_attribution(model, cuts, graph, SCORES, targets=target, mlps="exact")
    with pytest.raises(InputError, match="dictionaries: 1 that are not those of the graph"):
        qk_attribution(model, cuts[:1], graph, SCORES, targets=target)
    with pytest.raises(InputError, match=r"model: .* is not that of the graph"):
        qk_attribution(build("qwen2", torch.float64), cuts, graph, SCORES, targets=target)
    (of_units,) = build_graphs(model, [Neurons(1)], PROMPT)
    with pytest.raises(InputError, match="dictionaries: 2 that are not those of the graph, in its order; expected neurons"):
        qk_attribution(model, cuts, of_units, SCORES)


def test_the_largest_pairs_are_named():
    model = build("gpt2", torch.float64)
    result = found(model, "transcoders")
    assert result.name(1) == "attn2[3] 5 → 1"
    top = result.top(1, 3)
    there = result.weight[result.indptr[1] : result.indptr[2]].abs().sort(descending=True).values
    assert [abs(weight) for weight, *_ in top] == there[:3].tolist()
    assert result.label(OWN) == "own"
    assert result.label(0).startswith("token")
    assert "5 scores of 6 tokens" in repr(result)
    with pytest.raises(InputError, match="score: 5 of 5"):
        result.top(5)


def test_by_default_all_layers_up_to_where_dictionaries_read():
    model = build("gpt2", torch.float64)
    assert qk_attribution(model, dictionaries(model, "attn_out"), PROMPT).layer.unique().tolist() == [0, 1]
    assert qk_attribution(model, [], PROMPT).layer.unique().tolist() == [0, 1, 2, 3]
    none = found(model, None, [])
    assert len(none) == 0
    assert none.worst == 0.0


@pytest.mark.parametrize(
    ("family", "scores", "match"),
    [
        ("gpt2", [(4, 0, 1, 0)], "layer 4, head 0; expected layers 0 to 3 and heads 0 to 3"),
        ("gpt2", [(-1, 0, 1, 0)], "layer -1"),
        ("llama", [(0, 4, 1, 0)], "heads 0 to 3"),
        ("gpt2", [(0, 0, 6, 0)], "expected 0 to 5, of a prompt of 6 tokens"),
        ("gpt2", [(0, 0, -1, 0)], "positions -1 and 0"),
        ("gpt2", [(0, 0, 1, 2)], "position 1 does not see 2"),
        ("gemma2", [(0, 0, 5, 0)], "in a window of 5"),
        ("gpt2", [(0, 0, 1)], "scores: expected Attended"),
        ("gpt2", [(0, 0, 1.0, 0)], "in whole numbers"),
        ("gpt2", Attended(0.0), "a share of attention"),
        ("gpt2", Attended(0.1, (9,)), "layers from 0 to 3"),
    ],
)
def test_scores_that_are_not_there_are_refused(family: Family, scores: Any, match: str):
    with pytest.raises(InputError, match=match):
        found(build(family, torch.float64), None, scores)


def test_above_the_targets_there_is_nothing_to_attribute_to():
    model = build("gpt2", torch.float64)
    target = Custom("up", normal(32), site=Site(2, "resid_pre"))
    assert found(model, None, [(2, 0, 3, 1)], targets=target).worst < 1e-10
    with pytest.raises(InputError, match="above the targets"):
        found(model, None, [(3, 0, 3, 1)], targets=target)
    with pytest.raises(InputError, match="2 prompts, where one"):
        found(model, None, SCORES, [PROMPT, PROMPT])
