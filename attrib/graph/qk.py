"""Why a head looks where it looks: its scores as sums over pairs of nodes, one at the query and one at the key.

With norms' denominators held, queries and keys are sums over the nodes below (head_space.py), and so is their product:

    score = c q[p] · k[s] = c Σ_i Σ_j q_i · k_j + c Σ_i q_i · b_k + c Σ_j b_q · k_j + c b_q · b_k

with c the scale of scores, times what a cap makes of this score where there is one. The biases are taken as one more node of each side,
`OWN`. Where a part of a graph is explained, all nodes of its prompt that it has not are one more, `REST` (rest.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_model, takes
from attrib.attribution.options import with_options
from attrib.attribution.record import products_record
from attrib.core.positions import PositionsLike
from attrib.core.room import memory_named
from attrib.core.slices import ptr_of
from attrib.core.types import LINEAR, InputError, Keep, Policy, TopK, TopLogits
from attrib.engine.blocks.passing import place_of
from attrib.engine.precision import products
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.again import Again, numbers_among, open_graph, open_prompt
from attrib.graph.given import as_given
from attrib.graph.graph import Graph
from attrib.graph.head_space import Wanted, in_heads, primal_of
from attrib.graph.latents import Given, reads_of
from attrib.graph.layer_scores import OWN, LayerScores, of_layer
from attrib.graph.nodes import Nodes
from attrib.graph.options import EndsOptions, GraphAsked, Mlps
from attrib.graph.rest import REST
from attrib.models.tokens import TokensLike, token_strings
from attrib.models.transformer import Model, ModelConfig, window


class Attended(NamedTuple):
    """The scores of all pairs of positions of which a head takes at least so much of the one to the other."""

    least: float = 0.1
    """Of the pattern, whose rows sum to 1."""
    layers: tuple[int, ...] | None = None
    """None is all layers up to the highest that a dictionary reads or writes: above, no latents come in that other heads do not see."""


Scores = Attended | Sequence[tuple[int, int, int, int]] | Int[Tensor, "scores 4"]
"""Scores by layer, head, query position and key position, or a rule by which they are chosen."""


@dataclass(frozen=True, repr=False)
class QKAttribution:
    """Scores of heads, each as a sum over pairs of nodes. Score n has the pairs `indptr[n]:indptr[n + 1]`.

        value  =  total + remainder,        total = sum of all pairs, kept or not

    The remainder is zero up to rounding where the policy is LINEAR; else it is what linearisation misses.
    """

    nodes: Nodes
    layer: Int[Tensor, " scores"]
    head: Int[Tensor, " scores"]
    query: Int[Tensor, " scores"]
    """The position of the query."""
    key: Int[Tensor, " scores"]
    pattern: Float[Tensor, " scores"]
    """How much of the query's attention the key gets."""
    value: Float[Tensor, " scores"]
    """The score, scaled and capped, before the softmax."""
    total: Float[Tensor, " scores"]
    indptr: Int[Tensor, " scores_plus_1"]
    query_node: Int[Tensor, " pairs"]
    key_node: Int[Tensor, " pairs"]
    """Numbers of nodes, REST or OWN; ascending by the query's node and then the key's, these two last."""
    weight: Float[Tensor, " pairs"]
    query_sums: "Marginals"
    """For each score what every node is to the query, whatever it meets: the sum of its pairs. They sum up to `total`."""
    key_sums: "Marginals"
    """The same by the key's nodes."""
    strings: tuple[str, ...]
    call: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.layer)

    def __repr__(self) -> str:
        others = f" and {self.call['rest']:,} others as one" if self.call.get("rest") else ""
        return (
            f"QKAttribution({len(self):,} scores of {len(self.strings)} tokens, {len(self.weight):,} pairs of {len(self.nodes):,} nodes"
            f"{others}; "
            f"remainder at most {self.worst:.1e} of the largest score)"
        )

    @property
    def remainder(self) -> Float[Tensor, " scores"]:
        """What the nodes do not account for."""
        return self.value - self.total

    @property
    def dropped(self) -> Float[Tensor, " scores"]:
        """What of each score's total `keep` has dropped."""
        return self.total - torch.zeros_like(self.total).index_add(0, self.row, self.weight)

    @property
    def worst(self) -> float:
        """The largest remainder, of the largest score; 0 where there are no scores."""
        if not len(self):
            return 0.0
        return float(self.remainder.abs().max() / self.value.abs().max().clamp_min(torch.finfo(self.value.dtype).tiny))

    @cached_property
    def row(self) -> Int[Tensor, " pairs"]:
        """The number of the score of each pair."""
        return torch.arange(len(self)).repeat_interleave(self.indptr.diff())

    def label(self, node: int) -> str:
        """A node in a few words, or "own", or "rest"."""
        return {OWN: "own", REST: "rest"}.get(node) or self.nodes.label(node)

    def name(self, score: int) -> str:
        """A score in a few words: 'attn6[3] 9 → 4'."""
        layer, head, query, key = (int(column[score]) for column in (self.layer, self.head, self.query, self.key))
        return f"attn{layer}[{head}] {query} → {key}"

    def top(self, score: int, k: int = 10) -> list[tuple[float, str, str]]:
        """The k largest pairs of a score that were kept: their weights, and the labels of both nodes.

        Raises:
            InputError: for a score that is not there.
        """
        if not -len(self) <= score < len(self):
            raise InputError(f"score: {score} of {len(self)}; expected one of them.")
        begin, end = (int(at) for at in self.indptr[(score % len(self)) :][:2])
        order = begin + self.weight[begin:end].abs().argsort(descending=True, stable=True)[:k]
        return [(float(self.weight[at]), self.label(int(self.query_node[at])), self.label(int(self.key_node[at]))) for at in order.tolist()]


class Marginals(NamedTuple):
    """Sums over the other side's nodes, sparse: score n has `indptr[n]:indptr[n + 1]`."""

    indptr: Int[Tensor, " scores_plus_1"]
    node: Int[Tensor, " sums"]
    """Numbers of nodes, ascending, and REST and OWN last."""
    weight: Float[Tensor, " sums"]


@dataclass(frozen=True)
class QKAsked:
    """The options of `qk_attribution`, each with its default."""

    targets: Any = TopLogits(10, mass=0.95)  # noqa: RUF009 - an immutable value
    policy: Policy = LINEAR
    keep: Keep = TopK(32)  # noqa: RUF009 - an immutable value
    positions: PositionsLike = None
    mlps: Mlps = "exact"
    demean: bool = True
    skip_positions: int = 0
    dtype: torch.dtype | str | None = None
    budget: int = DEFAULT_BUDGET


@takes(model=as_model, dictionaries=as_given, budget=as_bytes)
@partial(with_options, asked=QKAsked)
def qk_attribution(
    model: Model,
    dictionaries: Given | Sequence[Given],
    prompt: TokensLike | Graph,
    scores: Scores = Attended(),  # noqa: B008 - an immutable value
    **options: Unpack[EndsOptions],
) -> QKAttribution:
    """Scores of attention heads as sums over pairs of nodes: one that is in the query, and one that is in the key.

    What a node is to a query or a key is its direct effect there, with every other node held, times its activation: through MLPs without
    dictionaries, skip connections and, from other positions, the values of lower heads, as for an edge of a graph.

    Args:
        dictionaries: as `build` takes them.
        prompt: one prompt, or a graph of it, whose options are then taken over. Of a part of a graph, as `prune` leaves it, its nodes are
            told apart, and all others of the prompt are one node, `REST`: few of them go up, and sums are the same.
        scores: which; by default all that matter to where a head looks, see `Attended`.
        keep: which pairs of each score are stored, and which marginals of each of its sides; totals are of all.
        targets: the graph's targets, with which its nodes are numbered.
        policy, mlps, demean, positions, skip_positions, dtype: as of `build`, with which the nodes are then the same.
        budget: bytes of working memory, beside the parameters and the result.

    Raises:
        InputError: for a score of a layer, head or position that is not there, or of a key that its query does not see; for a graph of
            another model or other dictionaries, and as `build`.
        BudgetError: where what is asked for does not fit.
    """
    several: Any = dictionaries
    given: Any = {"keep": QKAsked().keep, **options}
    if isinstance(prompt, Graph):
        again = open_graph(model, several, prompt, given)
    else:
        again = open_prompt(model, several, prompt, GraphAsked(**given))
    with memory_named("attributing attention scores", "Ask for fewer of them, or keep fewer pairs (keep=TopK(k))."), torch.no_grad():
        chosen, every = _choose(again, several, scores), len(again.opened.nodes)
        apart = numbers_among(prompt.nodes, again.opened.nodes) if isinstance(prompt, Graph) else torch.arange(every)
        some, found = apart if len(apart) < every else None, list[LayerScores]()
        if len(chosen):
            for there in in_heads(again.opened, _wanted(chosen), again.precision, again.asked.budget, some, rest=every):
                with products(again.precision):
                    found.append(of_layer(there, chosen, again.asked.keep, every))
    call = {"kind": "qk", "model": {"name": model.name}, "keep": repr(again.asked.keep), "scores": _text(scores)}
    call |= products_record(model, again.precision) | ({} if some is None else {"rest": every - len(some)})
    nodes = prompt.nodes if isinstance(prompt, Graph) else again.opened.nodes
    return _result(nodes, _called(apart, every), chosen, found, token_strings(model, again.tokens), call)


# ---------------------------------------------------------------------------------- which scores


def _text(scores: Scores) -> str:
    return repr(scores) if isinstance(scores, Attended) else f"{len(scores)} given"


def _choose(again: Again, dictionaries: Sequence[Given], scores: Scores) -> Int[Tensor, "scores 4"]:
    """Layer, head, query and key of each."""
    model, bundle = again.opened.bundle.model, again.opened.bundle
    highest = min(bundle.stop.depth[0], model.config.n_layers - 1)
    if isinstance(scores, Attended):
        return _attended(again, dictionaries, scores, highest)
    try:
        rows = [[_whole(one) for one in score] for score in (scores.tolist() if isinstance(scores, Tensor) else scores)]
        chosen = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), 4)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(
            "scores: expected Attended(least), or (layer, head, query position, key position) of each, in whole numbers."
        ) from None
    for row in rows:
        _check(model.config, bundle.length, highest, *row)
    return chosen


def _whole(one: Any) -> int:
    if isinstance(one, bool) or not hasattr(one, "__index__"):
        raise TypeError
    return int(one)


def _check(config: ModelConfig, length: int, highest: int, layer: int, head: int, query: int, key: int) -> None:
    """Raises InputError where there is no such score."""
    asked = f"scores: ({layer}, {head}, {query}, {key})"
    if not 0 <= layer < config.n_layers or not 0 <= head < config.n_heads:
        raise InputError(
            f"{asked}: layer {layer}, head {head}; expected layers 0 to {config.n_layers - 1} and heads 0 to {config.n_heads - 1}."
        )
    if layer > highest:
        raise InputError(
            f"{asked}: above the targets, where there are no nodes; give targets at the model's end, or layers up to {highest}."
        )
    if not 0 <= query < length or not 0 <= key < length:
        raise InputError(f"{asked}: positions {query} and {key}; expected 0 to {length - 1}, of a prompt of {length} tokens.")
    seen, wide = window(config, layer), query - key
    if (config.causal and wide < 0) or (seen is not None and wide >= seen):
        says = "" if seen is None else f", in a window of {seen}"
        raise InputError(f"{asked}: position {query} does not see {key}; expected a key at or before its query{says}.")


def _attended(again: Again, dictionaries: Sequence[Given], rule: Attended, highest: int) -> Int[Tensor, "scores 4"]:
    """By the patterns."""
    if isinstance(rule.least, bool) or not isinstance(rule.least, int | float) or not 0 < rule.least <= 1:
        raise InputError(f"scores: Attended({rule.least!r}); expected a share of attention, above 0 and at most 1.")
    layers = rule.layers
    if layers is None:
        reads = [place_of(reads_of(d)).layer for d in dictionaries]
        layers = tuple(range(min(highest, max(reads, default=highest)) + 1))
    wrong = [layer for layer in layers if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= highest]
    if wrong:
        raise InputError(f"scores: Attended(layers) has {wrong[0]!r}; expected layers from 0 to {highest}, which lie below the targets.")
    on, found = primal_of(again.opened.bundle, again.precision), []
    for layer in sorted(set(layers)):
        (point,) = on.attentions(layer)
        there = (point.pattern.flatten(0, 1) >= rule.least).nonzero().cpu()
        found.append(torch.cat([torch.full_like(there[:, :1], layer), there], dim=1))
    return torch.cat(found) if found else torch.zeros(0, 4, dtype=torch.int64)


def _wanted(scores: Int[Tensor, "scores 4"]) -> dict[int, Wanted]:
    """Whose queries and keys are needed."""
    found: dict[int, tuple[set[int], set[int]]] = {}
    for layer, _, query, key in scores.tolist():
        queries, keys = found.setdefault(layer, (set(), set()))
        queries.add(query)
        keys.add(key)
    return {layer: Wanted(frozenset(queries), frozenset(keys)) for layer, (queries, keys) in found.items()}


# ------------------------------------------------------------------------------------------- all of them


def _called(apart: Int[Tensor, " nodes"], every: int) -> Int[Tensor, " numbers"]:
    """What the result calls each number of a prompt's nodes, that behind the last, which is the rest, and the one before the first."""
    called = torch.full((every + 2,), REST)
    called[apart], called[OWN] = torch.arange(len(apart)), OWN
    return called


def _result(
    nodes: Nodes,
    called: Int[Tensor, " numbers"],
    chosen: Int[Tensor, "scores 4"],
    found: Sequence[LayerScores],
    strings: tuple[str, ...],
    call: dict[str, Any],
) -> QKAttribution:
    """Scores as they were asked for, from those of each layer."""
    dtype, (layer, head, query, key) = nodes.activation.dtype, chosen.unbind(1)
    order = _together([each.number for each in found], torch.int64).argsort()
    pattern, value, total = (
        _together(column, dtype)[order]
        for column in ([each.pattern for each in found], [each.value for each in found], [each.total for each in found])
    )
    indptr, query_node, key_node, weight = _by_score([each.pairs for each in found], len(chosen), 3, dtype)

    def marginals(sums: Sequence[Sequence[Tensor]]) -> Marginals:
        begins, node, size = _by_score(sums, len(chosen), 2, dtype)
        return Marginals(begins, called[node], size)

    return QKAttribution(
        nodes, layer, head, query, key, pattern, value, total, indptr, called[query_node], called[key_node], weight,
        marginals([each.queries for each in found]), marginals([each.keys for each in found]), strings, call,
    )  # fmt: skip


def _by_score(parts: Sequence[Sequence[Tensor]], scores: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    """Where each score begins, and the columns behind the first, which says of which score each entry is, in order of that."""
    score = _together([part[0] for part in parts], torch.int64)
    order = score.argsort(stable=True)
    kinds = [torch.int64] * (columns - 1) + [dtype]
    begins = ptr_of(torch.bincount(score, minlength=scores))
    return [begins, *(_together([part[column + 1] for part in parts], kind)[order] for column, kind in enumerate(kinds))]


def _together(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=dtype), *(part.to(dtype) for part in parts)])
