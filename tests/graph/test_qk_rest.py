"""Scores of heads as sums over the nodes of a part of a graph, all others as one: what is told apart stays, and the rest adds up."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attrib.core.types import EXACT, LINEAR, BudgetError, Dense, InputError, TopK
from attrib.graph.building import build as build_graphs
from attrib.graph.heads import head_loadings
from attrib.graph.layer_scores import OWN
from attrib.graph.pruning import prune
from attrib.graph.qk import Attended, QKAttribution, qk_attribution
from attrib.graph.rest import REST
from tests.support.brought import PROMPT, dictionaries
from tests.support.builders import Family, build
from tests.support.covering import each_pair
from tests.support.cut_cases import BARE, SETS, fits
from tests.support.tolerances import ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FAMILIES: list[Family] = ["gpt2", "llama", "qwen3", "gemma2", "gpt_neox", BARE[0]]
SCORES = [(1, 0, 5, 3), (2, 3, 5, 1), (2, 2, 4, 4), (0, 1, 2, 0), (3, 1, 5, 2)]


def matrix(result: QKAttribution, score: int, called: Tensor, size: int) -> Tensor:
    """[nodes, rest and own, the same] of a score, by what each node of the result is called among all."""
    pairs = slice(int(result.indptr[score]), int(result.indptr[score + 1]))
    place = torch.cat([called, torch.tensor([size, size + 1])])  # REST is the last but one, and OWN the last
    out = torch.zeros(size + 2, size + 2, dtype=result.weight.dtype)
    rows, columns = (place[node[pairs]] for node in (result.query_node, result.key_node))
    return out.index_put((rows, columns), result.weight[pairs], accumulate=True)


@pytest.mark.few
@each_pair(
    fits, family=FAMILIES, which=[None, *SETS], mlps=["exact", "leaf"], share=[0.0, 0.3, 0.9], policy=[LINEAR, EXACT], skip_positions=[0, 2]
)
def test_nodes_of_a_part_stay_and_the_others_are_one(
    family: Family, which: str | None, mlps: Any, share: float, policy: Any, skip_positions: int
):
    model = build(family, torch.float64)
    cuts = dictionaries(model, which)
    (graph,) = build_graphs(model, cuts, PROMPT, mlps=mlps, policy=policy, skip_positions=skip_positions)
    size = len(graph.nodes)
    chosen = (torch.rand(size, generator=torch.Generator().manual_seed(1)) < share).nonzero()[:, 0]
    whole, some = (qk_attribution(model, cuts, each, SCORES, keep=Dense()) for each in (graph, graph.take(chosen)))
    assert some.call["rest"] == size - len(chosen)
    assert "rest" not in whole.call
    assert len(some.nodes) == len(chosen)
    is_rest = torch.ones(size + 2, dtype=torch.bool)
    is_rest[chosen], is_rest[-1] = False, False
    for score in range(len(SCORES)):
        want, got = (matrix(each, score, called, size) for each, called in ((whole, torch.arange(size)), (some, chosen)))
        for axis in (0, 1):
            rest = want.movedim(axis, 0)[is_rest].sum(0)
            want.movedim(axis, 0)[is_rest] = 0
            want.movedim(axis, 0)[size] = rest
        assert_close(got, want, 1e-10, some.name(score))
        for sums, axis in ((some.query_sums, 1), (some.key_sums, 0)):
            there = slice(int(sums.indptr[score]), int(sums.indptr[score + 1]))
            place = torch.cat([chosen, torch.tensor([size, size + 1])])[sums.node[there]]
            assert_close(torch.zeros(size + 2).double().index_put((place,), sums.weight[there]), want.sum(axis), 1e-10)
    assert_close(some.total, whole.total, ROUNDING)
    assert some.worst < 1e-10 or policy == EXACT


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_pruned_graph_is_explained_by_what_its_edges_use(family: Family):
    model = build(family, torch.float64)
    cuts = dictionaries(model, "transcoders")
    pruned = prune(build_graphs(model, cuts, PROMPT)[0], nodes=0.5).graph
    loadings = head_loadings(model, cuts, pruned, len(pruned))
    used = loadings.used(0.8)
    every = loadings.scores(1_000_000)
    assert used == every[: len(used)]
    assert 0 < len(used) < len(every) == len(loadings.used(1.0))
    size = dict.fromkeys(every, 0.0)
    for at in range(len(loadings.loading)):
        query = int(pruned.nodes.position[loadings.target[loadings.row[at]]])
        if (one := (int(loadings.layer[at]), int(loadings.head[at]), query, int(loadings.position[at]))) in size:
            size[one] += abs(float(loadings.loading[at]))
    whole = sum(size.values())
    assert sum(size[one] for one in used) >= 0.8 * whole > sum(size[one] for one in used[:-1])
    assert max(layer for layer, *_ in used) > 1, "the logits' own heads lie above those that latents see"
    scores = qk_attribution(model, cuts, pruned, used)
    assert scores.worst < 1e-10
    assert {scores.label(int(node)) for node in scores.query_node[scores.query_node < 0]} <= {"rest", "own"}
    assert REST in scores.query_sums.node.tolist()
    assert f"{scores.call['rest']:,} others as one" in repr(scores)
    with pytest.raises(InputError, match=r"share: 0.0; expected a share of the loadings, above 0 and at most 1"):
        loadings.used(0.0)


def test_several_ways_up_have_one_rest():
    model = build("llama", torch.float64)
    cuts = dictionaries(model, "transcoders")
    (graph,) = build_graphs(model, cuts, PROMPT)
    part = graph.take(torch.arange(0, len(graph.nodes), 5))
    whole = qk_attribution(model, cuts, part, Attended(0.05, (1, 2)), keep=TopK(9))
    with pytest.raises(BudgetError) as refused:
        qk_attribution(model, cuts, part, Attended(0.05, (1, 2)), keep=TopK(9), budget=10)
    least = int(str(refused.value).split("at least ")[1].split(".")[0].replace(",", ""))
    tight = qk_attribution(model, cuts, part, Attended(0.05, (1, 2)), keep=TopK(9), budget=least)
    assert {OWN, REST} <= set(whole.key_node.tolist())
    for column in ("indptr", "query_node", "key_node"):
        assert torch.equal(getattr(whole, column), getattr(tight, column))
    assert_close(tight.weight, whole.weight, ROUNDING)
    assert tight.worst < 1e-10
