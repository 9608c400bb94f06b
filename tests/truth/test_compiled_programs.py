"""Circuits that are known: RASP programs that tracr has compiled, and every edge of their graphs held against what the program says.

What is true comes from the program's selectors, as RASP's own interpreter evaluates them, and from craft's matrices over named directions;
see tests/support/compiled.py. No derivative has a part in it.
"""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import attrib
from attrib.core.types import EXACT, LINEAR, Dense, Direction, Policy, Site, TokenLogits
from attrib.graph.qk import qk_attribution
from tests.support.compiled import BOS, Compiled, auroc, compiled, graph_of, identity, outputs_of, programs, tracr
from tests.support.tolerances import assert_close

pytest.importorskip("tracr", reason="pip install --no-deps tracr-pypi")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LONG = ("shuffle_dyck2_2", "shuffle_dyck2_3", "shuffle_dyck3_1", "shuffle_dyck3_2", "shuffle_dyck3_3")
"""Programs with thousands of nodes, whose like is among the others; `python -m bench.truth` has them all."""
SHORT = [name for name in programs() if name not in LONG]
FALSE = 1e-9
"""The largest edge that there may be where the program has none."""
ACTIVE = 1e-6
"""From what size on a node counts as active: a softmax leaves 1e-22 of what it does not select."""


def rows(known: Compiled, graph: attrib.graph.Graph) -> tuple[np.ndarray, np.ndarray]:
    """Edges as attrib has them and as the program has them, of targets that are active at positions of the program's input."""
    nodes, got = graph.nodes, graph.to_scipy().toarray()[graph.targets.numpy()]
    chosen = ((nodes.position[graph.targets] > 0) & (graph.value.abs() > ACTIVE)).numpy()
    return got[chosen], known.wanted(graph)[chosen]


def test_there_are_enough_programs_and_both_kinds_of_attention():
    assert len(SHORT) >= 50
    kinds = {programs()[name].causal for name in SHORT}
    assert kinds == {False, True}
    models = [compiled(name).model.config for name in ("hist", "own_first", "causal_shift_by_one", "own_map")]
    assert [config.has_mlps for config in models] == [True, False, False, True]
    assert [config.causal for config in models] == [False, False, True, False]
    assert all(config.norm == "none" for config in models)


@pytest.mark.few
@pytest.mark.parametrize("name", SHORT)
def test_edges_are_those_of_the_program(name: str):
    known = compiled(name)
    with torch.no_grad():
        logits = attrib.forward(known.model, known.tokens)
        assert_close(logits, known.foreign(known.tokens[None])[0])
    numbers = known.run.outputs[1:], logits[1:, : len(known.outputs)].numpy()
    assert np.abs(numbers[0] - numbers[1]).max() < FALSE
    assert is_said(known.said(logits), known.program.wanted)
    patterns = attrib.attention_patterns(known.model, known.tokens)
    for layer, heads in known.heads.items():
        for number, head in enumerate(heads):
            assert np.abs(patterns[layer][number].numpy() - known.pattern(head))[1:].max() < FALSE
    assert known.graph.worst < 1e-10
    got, wanted = rows(known, known.graph)
    is_true = wanted != 0
    assert is_true.any()
    assert np.abs(got[~is_true]).max() < FALSE
    assert auroc(np.abs(got).ravel(), is_true.ravel()) >= 0.99
    assert np.abs(got - wanted).max() < FALSE * max(1, np.abs(wanted).max())


def is_said(got: list[Any], wanted: tuple[Any, ...]) -> bool:
    """Whether a model says what the program does: numbers up to what its MLPs round, and anything where the program says nothing."""

    def is_same(one: Any, other: Any) -> bool:
        return other is None or one == other or (not isinstance(other, str | bool) and abs(one - other) < 1e-6)

    return len(got) == len(wanted) and all(map(is_same, got, wanted))


def test_a_wrong_circuit_is_seen():
    """Where two positions have each other's embedding a head reads what the program does not select: edges that there must not be.

    Most pairs of nodes are no edges in either circuit, which is why a ranking alone says little, and the bound and the weights more.
    """
    known = compiled("reverse_1")
    order = torch.tensor([0, 2, 1, 3, 4, 5])
    params = known.model.params._replace(W_pos=known.model.params.W_pos[order])
    graph = graph_of(known, replace(known.model, params=params), LINEAR)
    got, wanted = rows(known, graph)
    assert auroc(np.abs(got).ravel(), (wanted != 0).ravel()) < 1
    assert np.abs(got[wanted == 0]).max() > 0.5


@pytest.mark.parametrize("name", ["frac_prevs_2", "hist", "sort_3", "pair_balance_1", "causal_detect_pattern_ab"])
def test_where_patterns_move_heads_are_moved_by_what_their_selectors_read_alone(name: str):
    """Values where they are selected; beside them keys anywhere, and queries at the target's own position."""
    known = compiled(name)
    graph = graph_of(known, known.model, Policy(attention="exact", norm="frozen", mlp="exact"))
    nodes, moved = graph.nodes, 0
    got, wanted = graph.to_scipy().toarray()[graph.targets.numpy()], known.wanted(graph)
    for row, node in enumerate(graph.targets.tolist()):
        each, at = nodes.sets[int(nodes.set_of[node])], int(nodes.position[node])
        if at == 0 or not each.site.endswith("attn_out") or abs(graph.value[row]) < ACTIVE:
            continue
        (head,) = [one for one in known.heads[Site.parse(each.site).layer] if known.into_head(one)[:, int(nodes.latent[node])].any()]
        for source in np.flatnonzero(np.abs(got[row]) > FALSE):
            written, where = known._written(graph, int(source))[0], int(nodes.position[source])
            reads = {"keys": head.block.w_qk.right_space, "queries": head.block.w_qk.left_space}
            read = {side for side, space in reads.items() if (written @ known._from(space)).any()}
            assert wanted[row, source] or "keys" in read or ("queries" in read and where == at), nodes.label(int(source))
            moved += not wanted[row, source]
    assert moved or name in ("sort_3", "causal_detect_pattern_ab", "pair_balance_1")


SELECTORS = (
    "frac_prevs_2", "shift_by_two", "detect_pattern_ab", "pair_balance_1", "hist", "sort_1", "make_count_1", "causal_shift_by_one",
    "causal_selector_width", "own_first", "own_share_of_a",
)  # fmt: skip
"""Programs whose selectors read tokens, positions, and what other heads and MLPs have made."""


@pytest.mark.parametrize("name", SELECTORS)
def test_queries_and_keys_are_of_the_variables_that_the_selector_reads(name: str):
    """Pairs of nodes in the scores of every head, at all positions: a query of the selector's queries, and a key of its keys.

    Which variable is which the program tells, and where two of their values have a score: where the selector's predicate holds of them.
    How large it is, and what there is at the compiler's own first token, tells craft's matrix.
    """
    known = compiled(name)
    graph, last = known.graph, len(known.tokens)
    (vectors, depth), position = known.written(graph), graph.nodes.position.numpy()
    heads = {(layer, number): head for layer, several in known.heads.items() for number, head in enumerate(several)}
    places = [(query, key) for query in range(1, last) for key in range(query + 1 if known.program.causal else last)]
    asked = [(*head, *at) for head in heads for at in places]
    found = qk_attribution(known.model, known.dictionaries, graph, asked, keep=Dense(), targets=outputs_of(known))
    assert len(found.nodes) == len(graph.nodes)
    assert found.worst < 1e-10
    weight, truth = [], []
    for number, ((layer, _), head) in enumerate(heads.items()):
        whole = (vectors * (depth < 2 * layer)[:, None]) @ known.meeting(head) @ vectors.T
        said = by_predicate(known, head, vectors)
        for score, (query, key) in enumerate(places, number * len(places)):
            pairs = slice(int(found.indptr[score]), int(found.indptr[score + 1]))
            dense = np.zeros((len(graph.nodes) + 1,) * 2)  # the last is of a head's own, which has none
            dense[found.query_node[pairs].numpy(), found.key_node[pairs].numpy()] = found.weight[pairs].numpy()
            there = np.outer(position == query, position == key) & (depth < 2 * layer)
            wanted, size = np.where(there, whole, 0), max(1.0, float(np.abs(whole).max()))
            assert np.abs(dense[:-1, :-1] - wanted).max() < FALSE * size, found.name(score)
            assert not dense[-1].any()
            assert not dense[:, -1].any()
            if key > 0 and said is not None:
                assert np.array_equal(np.abs(dense[:-1, :-1]) > FALSE * size, there & said), found.name(score)
            weight.append(np.abs(dense[:-1, :-1][there]) / size)
            truth.append(wanted[there] != 0)
    is_true = np.concatenate(truth)
    assert is_true.any()
    assert auroc(np.concatenate(weight), is_true) >= 0.99


def by_predicate(known: Compiled, head: Any, vectors: np.ndarray) -> np.ndarray | None:
    """[nodes, nodes]: whether a node at the query and one at the key have a score, by the predicate; None for selectors of selectors."""
    selector = head.expression.selector
    if not isinstance(selector, tracr().rasp.Select):
        return None
    directions = list(enumerate(known.directions))
    holds = np.zeros((len(directions),) * 2)
    for (i, one), (j, other) in itertools.product(directions, directions):
        if one.name == selector.queries.label and other.name == selector.keys.label and one.value != BOS != other.value:
            holds[i, j] = selector.predicate(other.value, one.value)
    return np.asarray(np.abs(vectors @ holds @ vectors.T) > FALSE)


def test_a_step_has_no_derivative_and_an_intervention_sees_it():
    """What graphs of derivatives do not tell: the length moves with what its head gives, which its MLP rounds to whole numbers."""
    known = compiled("length_numerical_1")
    model, site = known.model, Site(0, "attn_out")
    source, (column,) = identity(model, site), known.unembedding.T
    edges = attrib.latent_to_logit(model, source, known.tokens, logits=Direction(torch.from_numpy(column)), positions=-1)
    of_head = [number for number, each in enumerate(edges.sources.latent.tolist()) if known.into_head(known.heads[0][0])[:, each].any()]
    assert not edges.dense(0)[:, of_head].any()
    said = [known.said(attrib.forward(model, known.tokens, put=put))[-1] for put in (None, {str(site): lambda x: 2 * x})]
    assert abs(said[0] - 3) < 1e-6  # 1 / (3 + 1) is what the head gives
    assert abs(said[1] - 1) < 1e-6  # and 1 / (1 + 1) that of one token


def test_what_is_attributed_in_other_ways_is_the_same_circuit():
    """One head of a program of attention alone: tokens and latents to latents and logits, by sweeps and by torch.func, in both policies."""
    known = compiled("own_first")
    model, tokens, first = known.model, known.tokens, 1
    for method in ("adjoint", "torch.func"):
        for policy in (LINEAR, EXACT):
            options: dict[str, Any] = {"policy": policy, "method": method}
            edges = attrib.token_to_latent(model, identity(model, Site(0, "attn_out")), tokens, **options)
            active = edges.targets.activation.abs() > ACTIVE
            got = edges.dense(0)[active & (edges.targets.position > 0)]
            want = torch.zeros_like(got)
            want[:, first] = 1
            assert_close(got, want, FALSE)
            before = identity(model, Site(0, "resid_pre"))
            logits = attrib.latent_to_logit(model, before, tokens, logits=TokenLogits((0, 1, 2)), positions=-1, **options)
            said = known.said(attrib.forward(model, tokens))[-1]
            which = [each.value for each in known.outputs].index(said)
            strong = (logits.dense(0, "attribution")[which].abs() > FALSE).nonzero()[:, 0]
            assert logits.sources.position[strong].unique().tolist() == [first]


def test_tracr_is_imported_without_what_it_would_import_itself():
    import sys

    assert tracr().rasp.tokens.label == "tokens"
    assert "tracr.compiler.assemble" not in sys.modules
