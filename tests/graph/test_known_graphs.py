"""Networks that were set by hand, whose graphs can be written down: every edge by a formula, and no other edges.

Most have RMSNorms, whose denominators are known here as well, and MLPs that write nothing; one is of attention alone. Patterns are
exact: a score is larger than another by so much that a softmax in float64 has 1 and 0, or all scores are equal.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import Dense, TokenLogits
from attrib.graph.graph import Graph
from attrib.graph.neurons import Neurons
from attrib.graph.qk import QKAttribution, qk_attribution
from tests.support.builders import normal

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:HookedTransformer is deprecated")

EPS, EXACTLY = 1e-5, 1e-12


def network(**facts: Any) -> Any:
    """A HookedTransformer of two layers of one head each, in which all parameters are zero."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    common = {"n_layers": 2, "n_heads": 1, "n_ctx": 8, "d_mlp": 4, "act_fn": "relu", "normalization_type": "RMSPre", "eps": EPS}
    common |= {"use_attn_scale": False, "device": "cpu", "dtype": torch.float64, "init_weights": False}
    model = HookedTransformer(HookedTransformerConfig(**common | facts))
    for parameter in model.parameters():
        parameter.data.zero_()
    return model.eval()


def rms(square: Any, width: int) -> Any:
    """The denominator of a vector whose squares sum to so much."""
    return (square / width + EPS) ** 0.5


def edges_of(graph: Graph) -> dict[tuple[str, str], float]:
    """All edges that are not zero, by the names of their ends: from, to."""
    ends = zip(graph.indices.tolist(), graph.target.tolist(), graph.weight.tolist(), strict=True)
    return {(graph.nodes.label(source), graph.nodes.label(target)): weight for source, target, weight in ends if abs(weight) > EXACTLY}


def assert_edges(graph: Graph, want: dict[tuple[str, str], float]) -> None:
    got = edges_of(graph)
    assert got.keys() == want.keys(), (got.keys() - want.keys(), want.keys() - got.keys())
    assert got == pytest.approx(want, rel=EXACTLY)
    assert graph.worst < EXACTLY


# ----------------------------------------------------------------------------------------------- an induction head

VOCABULARY, CONTEXT, HEAD = 7, 8, 8
TOKEN, POSITION, PREVIOUS, OUT = (slice(first, first + size) for first, size in ((0, 7), (7, 8), (15, 7), (22, 7)))
"""Four parts of the stream: what the token is, where it stands, what stood before it, and what is to come."""
WIDTH = 29
SHARP, G0, G1, AFTER, ITSELF, READ = 100.0, 0.7, 1.3, 0.8, 0.25, 1.7
"""Scores; what each head writes; of that, the token it looks at and the one before that; and what a logit reads."""
START, A, B, C = 0, 3, 5, 1
PROMPT = torch.tensor([START, A, B, C, A])
"""The last token stood at 1, and B came after it at 2."""
LAST, SEEN = 4, 2


@lru_cache
def induction(**facts: Any) -> Any:
    """Head 0 of layer 0 looks one position back; head 0 of layer 1 where the token before is the present one, and copies what is there."""
    model = network(d_model=WIDTH, d_head=HEAD, d_vocab=VOCABULARY, **facts)
    one = torch.eye(HEAD, dtype=torch.float64)
    model.embed.W_E.data[:, TOKEN] = one[:VOCABULARY, :VOCABULARY]
    model.pos_embed.W_pos.data[:, POSITION] = one
    back, match = (block.attn for block in model.blocks)
    before = torch.arange(CONTEXT).sub(1).clamp_min(0)
    back.W_Q.data[0, POSITION] = SHARP * one[before]
    back.W_K.data[0, POSITION] = one
    back.W_V.data[0, TOKEN] = one[:VOCABULARY]
    back.W_O.data[0, :VOCABULARY, PREVIOUS] = G0 * one[:VOCABULARY, :VOCABULARY]
    match.W_Q.data[0, TOKEN] = SHARP * one[:VOCABULARY]
    match.W_K.data[0, PREVIOUS] = one[:VOCABULARY]
    match.W_V.data[0, TOKEN] = AFTER * one[:VOCABULARY]
    match.W_V.data[0, PREVIOUS] = ITSELF * one[:VOCABULARY]
    match.W_O.data[0, :VOCABULARY, OUT] = G1 * one[:VOCABULARY, :VOCABULARY]
    model.unembed.W_U.data[OUT] = READ * one[:VOCABULARY, :VOCABULARY]
    return attrib.from_transformer_lens(model, name="induction")


S0 = rms(2.0, WIDTH)  # a token and a position
MOVED = G0 / S0  # what the first head writes of a token
S1 = rms(2.0 + MOVED**2, WIDTH)
COPIED, REPEATED = AFTER * G1 / S1, ITSELF * MOVED * G1 / S1  # what the second head writes: B, and A by the first head
END = READ / rms(2.0 + MOVED**2 + COPIED**2 + REPEATED**2, WIDTH)  # what a logit reads of what is to come


def bits(site: str, part: slice, bias: float, write: float) -> attrib.Dictionary:
    """One latent for each token in a part of the stream: what is there, less a bias; and it writes a share of itself."""
    read = torch.zeros(WIDTH, VOCABULARY, dtype=torch.float64)
    read[part] = torch.eye(VOCABULARY, dtype=torch.float64)
    return from_tensors(site=site, W_enc=read, b_enc=torch.full((VOCABULARY,), -bias, dtype=torch.float64), W_dec=write * read.T)


def graph_of(model: Any, given: list[attrib.Dictionary], tokens: Tensor, **options: Any) -> Graph:
    (graph,) = attrib.graph.build(model, given, tokens, targets=every(model), **({"keep": Dense(), "demean": False} | options))
    return graph


def every(model: Any) -> TokenLogits:
    """All of a model's logits."""
    return TokenLogits(tuple(range(model.config.d_vocab)))


def token(position: int) -> str:
    return f"token '{int(PROMPT[position])}' @{position}"


def logit(which: int) -> str:
    return f"logit '{which}' @{LAST}"


BACK, MATCH = "blocks.0.hook_attn_out", "blocks.1.hook_attn_out"


def test_an_induction_head_without_dictionaries():
    """B is copied from where it stands; A by the first head, from 1 to 2, and from there by the second."""
    graph = graph_of(induction(), [], PROMPT)
    assert_edges(graph, {(token(SEEN), logit(B)): COPIED * END, (token(1), logit(A)): REPEATED * END})
    values = graph.value[graph.row_of[graph.nodes.of_kind("logit")]]
    assert values.tolist() == pytest.approx([{A: REPEATED, B: COPIED}.get(n, 0.0) * END for n in range(VOCABULARY)], rel=EXACTLY)


def test_an_induction_head_of_attention_alone():
    """The same without norms and MLPs, where all is a product of what was set."""
    model = induction(attn_only=True, normalization_type=None, act_fn=None, d_mlp=None)
    copied, repeated = AFTER * G1, ITSELF * G0 * G1
    assert_edges(graph_of(model, [], PROMPT), {(token(SEEN), logit(B)): copied * READ, (token(1), logit(A)): repeated * READ})
    (score,) = attrib.attention_patterns(model, PROMPT, 1).values()
    assert float(score[0, LAST, SEEN]) == 1
    with pytest.raises(attrib.InputError, match="is of an MLP, and induction has none"):
        attrib.capture(model, PROMPT, "blocks.0.mlp.hook_in")
    with pytest.raises(attrib.InputError, match="has no MLPs"):
        graph_of(model, [Neurons(0)], PROMPT)  # type: ignore[list-item]


def pairs_of(found: QKAttribution, score: int) -> dict[tuple[str, str], float]:
    """The pairs of a score that are not zero, by the names of the query's node and of the key's."""
    begin, end = found.indptr[score : score + 2].tolist()
    sides = ([found.label(node) for node in side[begin:end].tolist()] for side in (found.query_node, found.key_node))
    return {
        pair: weight for pair, weight in zip(zip(*sides, strict=True), found.weight[begin:end].tolist(), strict=True) if abs(weight) > 1e-9
    }


def test_why_an_induction_head_looks_there():
    """The first head's scores are of two positions; the second's of the query's token, and the one before the key, moved there."""
    every_score = [(layer, 0, query, key) for layer in (0, 1) for query in range(len(PROMPT)) for key in range(query + 1)]
    first, second = (SHARP / square for square in (S0**2, S1**2))
    for given in ([], [bits(BACK, PREVIOUS, 0.0, 1.0)]):
        found = qk_attribution(induction(), given, PROMPT, every_score, keep=Dense())
        assert found.worst < EXACTLY
        for score, (layer, _, query, key) in enumerate(every_score):
            if layer == 0:
                want = {(f"position pos_embed @{query}", f"position pos_embed @{key}"): first} if key == max(0, query - 1) else {}
            else:
                before = max(0, key - 1)  # the first position has none before it, and looks at itself
                said = f"{BACK}[{int(PROMPT[before])}] @{key}" if given else token(before)
                want = {(token(query), said): second * MOVED} if PROMPT[query] == PROMPT[before] else {}
            assert pairs_of(found, score) == pytest.approx(want, rel=EXACTLY), found.name(score)
        assert found.top(every_score.index((1, 0, LAST, SEEN)), 1)[0][1:] == (token(LAST), f"{BACK}[{A}] @{SEEN}" if given else token(1))


def test_logits_less_their_mean():
    """What makes one logit larger takes a share of that from all others."""
    graph = graph_of(induction(), [], PROMPT, demean=True)
    moved = {token(SEEN): (B, COPIED * END), token(1): (A, REPEATED * END)}
    assert_edges(graph, {
        (node, logit(n)): size * ((n == which) - 1 / VOCABULARY) for node, (which, size) in moved.items() for n in range(VOCABULARY)
    })  # fmt: skip


def test_an_induction_head_through_its_latents():
    """Previous-token latents stand behind the first head, latents of what is to come behind the second; their errors are the rest."""
    bias, write = 0.4, 0.9
    graph = graph_of(induction(), [bits(BACK, PREVIOUS, bias, write), bits(MATCH, OUT, bias, write)], PROMPT)
    before = [max(position - 1, 0) for position in range(len(PROMPT))]
    active = MOVED - bias
    last = {B: COPIED, A: REPEATED}
    coming = {which: size - bias for which, size in last.items() if size > bias}
    assert coming.keys() == {A, B}, "both are to be active"
    want = {(token(seen), f"{BACK}[{int(PROMPT[seen])}] @{at}"): MOVED for at, seen in enumerate(before)}
    want[token(SEEN), f"{MATCH}[{B}] @{LAST}"] = COPIED
    # what is written at 2 of A: the latent's share, and the error's
    shares = {f"{BACK}[{A}] @{SEEN}": write * active / MOVED, f"error {BACK} @{SEEN}": 1 - write * active / MOVED}
    want |= {(node, f"{MATCH}[{A}] @{LAST}"): share * REPEATED for node, share in shares.items()}
    for which, size in last.items():
        want[f"{MATCH}[{which}] @{LAST}", logit(which)] = write * coming[which] * END
        want[f"error {MATCH} @{LAST}", logit(which)] = (size - write * coming[which]) * END
    found = edges_of(graph)
    others = {pair for pair in found if pair[1].startswith(MATCH) and not pair[1].endswith(f"@{LAST}")}  # where nothing is to be found
    assert {pair: weight for pair, weight in found.items() if pair not in others} == pytest.approx(want, rel=EXACTLY)
    assert graph.worst < EXACTLY


def test_the_heads_that_an_induction_head_is_made_of():
    """The edge from B goes through the second head alone, which looks at 2 for the token now and the one that stood before."""
    model, given = induction(), [bits(BACK, PREVIOUS, 0.4, 0.9)]
    graph = graph_of(model, given, PROMPT)
    loadings = attrib.graph.head_loadings(model, given, graph, targets=every(model))
    source, target = (next(n for n in range(len(graph.nodes)) if graph.nodes.label(n) == name) for name in (token(SEEN), logit(B)))
    edge = next(n for n in range(len(loadings.weight)) if (int(loadings.source[n]), int(loadings.target[n])) == (source, target))
    ways = {str(way): share for share, way in loadings.top(edge, 3) if abs(share) > EXACTLY}
    assert ways == pytest.approx({f"attn1[0]@{SEEN}": COPIED * END}, rel=EXACTLY)
    scores = attrib.graph.qk_attribution(model, given, graph, [(1, 0, LAST, SEEN)], targets=every(model))
    score = SHARP * MOVED / S1**2
    assert float(scores.value[0]) == pytest.approx(score, rel=EXACTLY)
    assert float(scores.pattern[0]) == 1
    share = 0.9 * (MOVED - 0.4) / MOVED
    pairs = {(str(of_query), str(of_key)): weight for weight, of_query, of_key in scores.top(0, 4) if abs(weight) > EXACTLY}
    assert pairs == pytest.approx({
        (token(LAST), f"{BACK}[{A}] @{SEEN}"): score * share, (token(LAST), f"error {BACK} @{SEEN}"): score * (1 - share)
    }, rel=1e-10)  # fmt: skip


# --------------------------------------------------------------------------------------- two layers that are linear

LENGTH, SIZE, SIZE_OF_VOCABULARY, LATENTS = 4, 6, 9, 5
IDS = torch.tensor([2, 7, 0, 5])


class Linear(NamedTuple):
    """Two layers: attention that looks everywhere alike, and transcoders of which every latent is active."""

    W_E: Tensor
    W_pos: Tensor
    W_V: Tensor
    W_U: Tensor
    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


B_ENC = 50.0
"""So that no latent is ever off."""


def linear(attends: float) -> Linear:
    sizes = [(SIZE_OF_VOCABULARY, SIZE), (8, SIZE), (2, SIZE, SIZE), (SIZE, SIZE_OF_VOCABULARY)]
    sizes += [(2, SIZE, LATENTS), (2, LATENTS, SIZE), (2, SIZE)]
    made = Linear(*(normal(*shape, dtype=torch.float64, seed=20 + n) for n, shape in enumerate(sizes)))
    return made._replace(W_V=attends * made.W_V)


def as_model(w: Linear) -> Any:
    model = network(d_model=SIZE, d_head=SIZE, d_vocab=SIZE_OF_VOCABULARY)
    model.embed.W_E.data.copy_(w.W_E)
    model.pos_embed.W_pos.data.copy_(w.W_pos)
    model.unembed.W_U.data.copy_(w.W_U)
    for layer, block in enumerate(model.blocks):
        block.attn.W_V.data[0] = w.W_V[layer]
        block.attn.W_O.data[0] = torch.eye(SIZE, dtype=torch.float64)
    return attrib.from_transformer_lens(model, name="linear")


def written_out(w: Linear) -> dict[tuple[str, str], Tensor]:
    """Edges from each kind of node to latents of both layers and to logits, [positions, …, positions, …], as products of matrices.

    With a pattern A[t,s] = 1/(t+1), and s and m the denominators before attention and MLP, a layer's attention takes x_s to
    x_s B[t,s] = x_s ([t=s] + A[t,s] W_V / s_s) at t. Latents read by W_enc / m_t, and logits by W_U / s at the end.
    """
    pattern = torch.ones(LENGTH, LENGTH).double().tril() / torch.arange(1, LENGTH + 1)[:, None]
    same, one = torch.eye(LENGTH).double(), torch.eye(SIZE).double()
    x, B, reads, active = w.W_E[IDS] + w.W_pos[:LENGTH], [], [], []
    for layer in range(2):
        scale = rms((x**2).sum(1), SIZE)
        B.append(torch.einsum("ts,de->tsde", same, one) + torch.einsum("ts,s,de->tsde", pattern, 1 / scale, w.W_V[layer]))
        x = torch.einsum("sd,tsde->te", x, B[layer])
        reads.append(torch.einsum("t,de->tde", 1 / rms((x**2).sum(1), SIZE), w.W_enc[layer]))
        active.append(torch.einsum("td,tdi->ti", x, reads[layer]) + B_ENC)
        # what an MLP writes is nothing, so latents, bias and error together are nothing
    reads.append(torch.einsum("t,de->tde", 1 / rms((x**2).sum(1), SIZE), w.W_U)[-1:])
    brought = {"token": w.W_E[IDS], "position": w.W_pos[:LENGTH]}
    through = {0: B[0], 1: torch.einsum("usde,tuef->tsdf", B[0], B[1])}
    through[2] = through[1][-1:]
    found = {}
    for kind, rows in brought.items():
        for to, read in enumerate(reads):
            found[kind, str(to)] = torch.einsum("sd,tsde,tei->tis", rows, through[to], read)
    straight = torch.einsum("ts,de->tsde", same, one)[-1:]
    for layer in range(2):
        rows = {
            "latent": active[layer][..., None] * w.W_dec[layer],
            "error": -(active[layer] @ w.W_dec[layer] + w.b_dec[layer])[:, None],
            "bias": w.b_dec[layer].expand(LENGTH, 1, SIZE),
        }
        ways = {1: B[1], 2: B[1][-1:]} if layer == 0 else {2: straight}
        for kind, each in rows.items():
            for to, way in ways.items():
                found[f"{kind} {layer}", str(to)] = torch.einsum("sjd,tsde,tei->tisj", each, way, reads[to])
    return found


@pytest.mark.parametrize("attends", [0.0, 1.0], ids=["attention does nothing", "attention looks everywhere"])
def test_a_linear_network_is_products_of_its_matrices(attends: float):
    w = linear(attends)
    given = [
        from_tensors(
            site=f"blocks.{layer}.mlp.hook_in", writes=f"blocks.{layer}.hook_mlp_out", W_enc=w.W_enc[layer], W_dec=w.W_dec[layer],
            b_enc=torch.full((LATENTS,), B_ENC).double(), b_dec=w.b_dec[layer],
        )
        for layer in range(2)
    ]  # fmt: skip
    graph = graph_of(as_model(w), given, IDS)
    nodes, dense = graph.nodes, torch.from_numpy(graph.to_scipy().toarray())
    places = {f"{each.kind} {each.site}": nodes.rows(number) for number, each in enumerate(nodes.sets)}
    sources = {"token": places["token embed"], "position": places["position pos_embed"]}
    for layer in range(2):
        sources[f"latent {layer}"] = places[f"latent blocks.{layer}.mlp.hook_in"]
        sources |= {f"{kind} {layer}": places[f"{kind} blocks.{layer}.hook_mlp_out"] for kind in ("error", "bias")}
    rows = {"0": sources["latent 0"], "1": sources["latent 1"], "2": slice(len(nodes) - SIZE_OF_VOCABULARY, len(nodes))}
    left = dense.clone()
    for (source, target), want in written_out(w).items():
        got = dense[rows[target], sources[source]]
        assert want.abs().max() > 1e-3
        assert (got - want.reshape(got.shape)).abs().max() < EXACTLY * graph.scale.max(), (source, target)
        left[rows[target], sources[source]] = 0
    assert not left.any(), "no other edges"
    assert graph.worst < EXACTLY
