"""What nodes bring to the queries, keys and values of heads: with norms' denominators held, each is a sum over the nodes below, and a bias.

    q[p] = Σ_i q_i[p] + b_q[p],        q_i[p] = R_p N_q N(x_i[p]) W_Q,        k and v likewise

with x_i[p] what node i brings to the stream at position p (engine/sweep/rise.py), N the norm before attention, N_q that of queries where a
family has one, and R_p the rotation; each at its primal denominator. The bias is what is left where the stream is zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import EXACT, LINEAR, BudgetError, Policy, Site
from attrib.engine.blocks.attention import HeadNorm, attention_weights, head_norm_push, turn
from attrib.engine.blocks.norm_mlp import norm_map
from attrib.engine.bundle import Bundle, SourceEnd, joint_of, source_set
from attrib.engine.precision import Precision, products
from attrib.engine.sweep.primal import Primal, primal
from attrib.engine.sweep.rise import rise
from attrib.graph.ends import Opened


class Vectors(NamedTuple):
    """What some nodes bring to each head at one position."""

    node: Int[Tensor, " nodes"]
    """Ascending."""
    vector: Float[Tensor, "nodes heads d_head"]


class Wanted(NamedTuple):
    """At which positions of a layer nodes are asked for."""

    query: frozenset[int] = frozenset()
    key: frozenset[int] = frozenset()
    value: frozenset[int] = frozenset()

    @property
    def positions(self) -> list[int]:
        """All of them."""
        return sorted(self.query | self.key | self.value)


class HeadSpace:
    """The maps from the stream that one layer's attention reads to its queries, keys and values, for one prompt."""

    def __init__(self, on: Primal, layer: int) -> None:
        on = replace(on, weights=on.model)  # in all its digits, whatever a way up is computed in
        self.config, self.norm = on.model.config, on.norm_1(layer)
        self.W = attention_weights(on.weights, layer, EXACT).W_in
        self.stream = on.streams[Site(layer, "resid_pre")]
        (self.point,) = on.attentions(layer)

    @property
    def pattern(self) -> Float[Tensor, "heads positions positions"]:
        """What each head takes to each position from each."""
        return self.point.pattern.flatten(0, 1)

    def entered(self, x: Float[Tensor, "rows d_model"], position: int, policy: Policy) -> Float[Tensor, "rows d_model"]:
        """Rows at a position behind the norm, which may lie where they lay before it."""
        return norm_map(self.norm.at(slice(position, position + 1)), x[None].to(self.W.dtype), policy)[0]

    def queries(self, entered: Float[Tensor, "rows d_model"], position: int, policy: Policy) -> Float[Tensor, "rows heads d_head"]:
        """What rows behind the norm are to the queries at a position."""
        return self._turned((entered @ self.W[:, : self._d_q])[None], self.point.q_norm, slice(position, position + 1), policy)[0]

    def keys(self, entered: Float[Tensor, "rows d_model"], position: int, policy: Policy) -> Float[Tensor, "rows kv_heads d_head"]:
        """What they are to the keys."""
        y = entered @ self.W[:, self._d_q : -self._d_kv]
        return self._turned(y[None], self.point.k_norm, slice(position, position + 1), policy)[0]

    def values(self, entered: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows kv_heads d_head"]:
        """What they are to the values."""
        return rearrange(entered @ self.W[:, -self._d_kv :], "n (h d) -> n h d", d=self.config.d_head)

    def streams_values(self) -> Float[Tensor, "positions heads d_head"]:
        """What the whole stream is to the values of every head at every position, norms being held: all but their biases."""
        values = rearrange(self._stream_entered()[:, 0] @ self.W[:, -self._d_kv :], "t (h d) -> t h d", d=self.config.d_head)
        return values.repeat_interleave(self.config.n_heads // self.config.n_kv_heads, dim=1)

    def pulled(
        self, o: Float[Tensor, "rows d_head"], head: Int[Tensor, " rows"], position: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows d_model"]:
        """Cotangents of values, each of a head at a position, as cotangents of the stream there, norms being held."""
        W_V = rearrange(self.W[:, -self._d_kv :], "m (h d) -> h d m", d=self.config.d_head)
        shared, out = head // (self.config.n_heads // self.config.n_kv_heads), o.new_empty(len(o), self.config.d_model)
        for number in shared.unique().tolist():
            of = shared == number
            out[of] = o[of] @ W_V[number]
        return norm_map(self.norm.at(position), out[:, None], LINEAR)[:, 0]

    def own_queries(self) -> Float[Tensor, "positions heads d_head"]:
        """What the queries are beside what the stream brings, all norms being held."""
        there = self._turned(self._stream_entered() @ self.W[:, : self._d_q], self.point.q_norm, slice(None), LINEAR)
        return self.point.q.flatten(0, 1).transpose(0, 1) - there[:, 0]

    def own_keys(self) -> Float[Tensor, "positions kv_heads d_head"]:
        """What the keys are beside that."""
        there = self._turned(self._stream_entered() @ self.W[:, self._d_q : -self._d_kv], self.point.k_norm, slice(None), LINEAR)
        return self.point.k.transpose(0, 1) - there[:, 0]

    def _stream_entered(self) -> Float[Tensor, "positions 1 d_model"]:
        return norm_map(self.norm, self.stream[:, None].to(self.W.dtype, copy=True), LINEAR)

    @property
    def _d_q(self) -> int:
        return self.config.n_heads * self.config.d_head

    @property
    def _d_kv(self) -> int:
        return self.config.n_kv_heads * self.config.d_head

    def _turned(
        self, y: Float[Tensor, "positions rows width"], norm: HeadNorm, at: slice, policy: Policy
    ) -> Float[Tensor, "positions rows heads d_head"]:
        y = head_norm_push(norm.at(at), rearrange(y, "t n (h d) -> t n h d", d=self.config.d_head), policy)
        cos, sin = (table[at, None, None] for table in (self.point.cos, self.point.sin))
        return turn(y, cos, sin, back=False) if cos.shape[-1] else y


class Stack(NamedTuple):
    """What nodes bring to each head at several positions: those of one position behind those of the last, and behind each an empty row."""

    positions: tuple[int, ...]
    begins: tuple[int, ...]
    """Where the rows of each begin, and where the last end."""
    node: Int[Tensor, " rows"]
    """Ascending at each position; of an empty row -1."""
    vector: Float[Tensor, "rows heads d_head"]

    def items(self) -> Iterator[tuple[int, Vectors]]:
        """Position by position."""
        for position, (begin, end) in zip(self.positions, pairwise(self.begins), strict=True):
            yield position, Vectors(self.node[begin : end - 1], self.vector[begin : end - 1])

    def filled(self, own: Float[Tensor, "positions heads d_head"]) -> "Stack":
        """The same with its empty rows filled, from a row for each position of the prompt."""
        last = torch.tensor(self.begins[1:], device=own.device) - 1
        self.vector[last] = own[list(self.positions)].to(self.vector)
        return self


@dataclass(frozen=True)
class InHeads:
    """One layer, and what nodes bring to its heads at the positions that were asked for."""

    layer: int
    space: HeadSpace
    query: Stack
    key: Stack
    value: Stack


def in_heads(
    opened: Opened,
    wanted: Mapping[int, Wanted],
    precision: Precision,
    budget: int,
    nodes: Int[Tensor, " chosen"] | None = None,
    held: int = 0,
) -> Iterator[InHeads]:
    """Layer by layer what nodes bring to heads, in one way up; in several, each of some of the nodes, where the budget asks for that.

    Args:
        wanted: by layer.
        budget: bytes of working memory, beside the parameters.
        nodes: which are asked about; None is all of them.
        held: bytes of the budget that are taken already.

    Raises:
        BudgetError: where what is asked for, with the tangents of one node, does not fit.
    """
    bundle = opened.bundle
    on = primal_of(bundle, precision)
    ends, columns = chosen_sources(bundle.sources, opened.columns, nodes)
    kept = _Kept(on, wanted, precision)
    runs = _runs(on, ends, kept, budget, held)
    if len(runs) == 1:
        for layer in _risen(on, bundle, ends, columns, kept):
            yield kept.layer(layer)
        return
    for begin, end in runs:
        there = [(each.sources.position >= begin) & (each.sources.position < end) for each in ends]
        part = [_some(each, mask) for each, mask in zip(ends, there, strict=True)]
        for _ in _risen(on, bundle, part, [node[mask.cpu()] for node, mask in zip(columns, there, strict=True)], kept):
            pass
    for layer in sorted(wanted):
        yield kept.layer(layer)


def primal_of(bundle: Bundle, precision: Precision) -> Primal:
    """The point of one prompt's sweeps."""
    shut = joint_of([bundle]).whole.shut_mlps
    return primal(
        bundle.model, bundle.policy, bundle.start, bundle.stop, [bundle.streams], [bundle.length], dtype=precision.sweep, shut_mlps=shut
    )  # fmt: skip


def _some(end: SourceEnd, chosen: Tensor) -> SourceEnd:
    return end._replace(sources=type(end.sources)(*(column[chosen] for column in end.sources)))


def chosen_sources(
    ends: Sequence[SourceEnd], columns: Sequence[Tensor], nodes: Int[Tensor, " chosen"] | None
) -> tuple[list[SourceEnd], list[Tensor]]:
    """The sources that are asked about, each as large as it is there, with the node of each."""
    found, numbers = [], []
    for end, node in zip(ends, columns, strict=True):
        chosen = torch.ones_like(node, dtype=torch.bool) if nodes is None else torch.isin(node, nodes)
        part = _some(end, chosen.to(end.sources.position.device))
        scaled = part.sources.direction * part.sources.value[:, None]
        found.append(part._replace(sources=part.sources._replace(direction=scaled)))
        numbers.append(node[chosen])
    return found, numbers


class _Kept:
    """What has been read at each layer, from one way up or several."""

    def __init__(self, on: Primal, wanted: Mapping[int, Wanted], precision: Precision) -> None:
        self.on, self.wanted, self.precision = on, wanted, precision
        self.found: dict[tuple[int, str, int], list[Vectors]] = {}

    def most(self, ends: Sequence[SourceEnd], layer: int) -> int:
        """How many numbers it may hold of a layer: of each node at each position from its own on, or at all of them."""
        config, wanted = self.on.model.config, self.wanted[layer]
        below = [end.sources.position.cpu() for end in ends if min(site.depth for site in end.writes) <= (layer, 0)]
        length = self.on.lengths[0]
        seen = torch.bincount(torch.cat(below), minlength=length).cumsum(0).tolist() if below else [0] * length
        if not config.causal:
            seen = seen[-1:] * length
        queries, others = (sum(seen[at] for at in where) for where in (wanted.query, [*wanted.key, *wanted.value]))
        return int((queries * config.n_heads + others * config.n_kv_heads) * config.d_head)

    def add(self, layer: int, kind: str, position: int, node: Tensor, vector: Tensor) -> None:
        """What some nodes bring."""
        self.found.setdefault((layer, kind, position), []).append(Vectors(node, vector))

    def layer(self, layer: int) -> InHeads:
        """All that was read at a layer, which is then forgotten."""
        wanted = self.wanted[layer]
        with products(self.precision):
            space = HeadSpace(self.on, layer)
        by_kind = {"query": wanted.query, "key": wanted.key, "value": wanted.value}
        return InHeads(layer, space, **{kind: self._stack(layer, kind, sorted(where)) for kind, where in by_kind.items()})

    def _stack(self, layer: int, kind: str, positions: Sequence[int]) -> Stack:
        """All that was read of a kind, each part forgotten when it has its place."""
        model, config = self.on.model, self.on.model.config
        counts = [sum(len(part.node) for part in self.found.get((layer, kind, at), [])) + 1 for at in positions]
        begins = (0, *accumulate(counts))
        heads = config.n_heads if kind == "query" else config.n_kv_heads
        stack = Stack(
            tuple(positions), begins, torch.full((begins[-1],), -1),
            torch.zeros(begins[-1], heads, config.d_head, dtype=model.dtype, device=model.device),
        )  # fmt: skip
        for position, vectors in stack.items():
            self._put(self.found.pop((layer, kind, position), []), vectors)
        return stack

    @staticmethod
    def _put(parts: Sequence[Vectors], into: Vectors) -> None:
        if parts:
            place = torch.cat([part.node for part in parts]).argsort().argsort()
            for part, at in zip(parts, place.split([len(part.node) for part in parts]), strict=True):
                into.node[at] = part.node
                into.vector.index_copy_(0, at.to(part.vector.device), part.vector.to(into.vector))


@torch.no_grad()
def _risen(on: Primal, bundle: Bundle, ends: Sequence[SourceEnd], columns: Sequence[Tensor], kept: _Kept) -> Iterator[int]:
    """One way up: every layer that is wanted, when it has been read."""
    node, reached = torch.cat(list(columns)), set[int]()
    with products(kept.precision):
        sources = [source_set(on, [end]) for end in ends]
        for layer, brought in rise(on, sources, max(kept.wanted), bundle.between):
            if layer not in kept.wanted:
                continue
            wanted, space = kept.wanted[layer], HeadSpace(on, layer)
            for position in wanted.positions:
                number, x = brought.at(position)
                there = node[number.cpu()]
                entered = space.entered(x, position, on.policy)
                if position in wanted.query:
                    kept.add(layer, "query", position, there, space.queries(entered, position, on.policy))
                if position in wanted.key:
                    kept.add(layer, "key", position, there, space.keys(entered, position, on.policy))
                if position in wanted.value:
                    kept.add(layer, "value", position, there, space.values(entered))
            reached.add(layer)
            yield layer
    yield from sorted(kept.wanted.keys() - reached)  # which none of these sources reaches


def _runs(on: Primal, ends: Sequence[SourceEnd], kept: _Kept, budget: int, held: int) -> list[tuple[int, int]]:
    """Runs of positions `[begin, end)` whose nodes go up together: one, where all fit with what is kept of one layer at a time."""
    (length,), itemsize = on.lengths, on.model.dtype.itemsize
    counts = torch.zeros(length, dtype=torch.int64)
    for end in ends:
        if min(site.depth for site in end.writes) <= (max(kept.wanted), 0):
            counts += torch.bincount(end.sources.position.cpu(), minlength=length)
    config = on.model.config
    rows = [LOADS * config.d_model * int(count) * len(config.seeing(position, length)) for position, count in enumerate(counts)]
    sizes, beside = [kept.most(ends, layer) for layer in kept.wanted], _beside(on)
    whole = held + itemsize * (sum(rows) + max(sizes) + beside)
    if whole <= budget:
        return [(0, length)]
    least = min(whole, held + itemsize * (max(rows) + sum(sizes) + beside))
    if least > budget:
        raise BudgetError.of(budget, 0, least)
    room, runs, used = (budget - held) // itemsize - sum(sizes) - beside, [0], 0
    for position, size in enumerate(rows):
        if used + size > room:
            runs.append(position)
            used = 0
        used += size
    return list(pairwise([*runs, length]))


LOADS = 3
"""How many times all rows of a way up are there at its fullest moment: where they come together, and what they were."""


def _beside(on: Primal) -> int:
    """Numbers of what a layer's steps make beside rows: patterns, points and folded weights."""
    config, (length,) = on.model.config, on.lengths
    width = config.d_head * (config.n_heads + 2 * config.n_kv_heads)
    attention = 4 * config.n_heads * length**2 + 4 * length * width + 2 * config.d_model * width
    mlp = (length * 5 + 4 * on.pieces.mlp) * config.d_mlp + 3 * config.d_model * config.d_mlp + 3 * config.d_model**2
    return max(attention, mlp) + 4 * on.pieces.chunk * (width + config.d_model)
