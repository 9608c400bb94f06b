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
from attrib.engine.blocks.product import product, product_into
from attrib.engine.bundle import Bundle, SourceEnd, joint_of, source_set
from attrib.engine.precision import Precision, products
from attrib.engine.sweep.primal import Primal, primal
from attrib.engine.sweep.rise import Brought, rise
from attrib.graph.ends import Opened
from attrib.graph.rest import rest_of


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
        self.W_Q, self.W_K, self.W_V = (W.contiguous() for W in self.W.split([self._d_q, self._d_kv, self._d_kv], dim=1))
        self.stream = on.streams[Site(layer, "resid_pre")]
        (self.point,) = on.attentions(layer)

    @property
    def pattern(self) -> Float[Tensor, "heads positions positions"]:
        """What each head takes to each position from each."""
        return self.point.pattern.flatten(0, 1)

    def entered(self, x: Float[Tensor, "rows d_model"], position: int, policy: Policy) -> Float[Tensor, "rows d_model"]:
        """Rows at a position behind the norm, which may lie where they lay before it."""
        return norm_map(self.norm.at(slice(position, position + 1)), x[None].to(self.W.dtype), policy)[0]

    def queries(
        self, entered: Float[Tensor, "rows d_model"], position: int, policy: Policy, out: Float[Tensor, "rows heads d_head"]
    ) -> None:
        """What rows behind the norm are to the queries at a position."""
        self._turned(product(entered, self.W_Q)[None], self.point.q_norm, slice(position, position + 1), policy, out[None])

    def keys(
        self, entered: Float[Tensor, "rows d_model"], position: int, policy: Policy, out: Float[Tensor, "rows kv_heads d_head"]
    ) -> None:
        """What they are to the keys."""
        self._turned(product(entered, self.W_K)[None], self.point.k_norm, slice(position, position + 1), policy, out[None])

    def values(self, entered: Float[Tensor, "rows d_model"], out: Float[Tensor, "rows kv_heads d_head"]) -> None:
        """What they are to the values."""
        product_into(entered, self.W_V, out.flatten(1))

    def streams_values(self) -> Float[Tensor, "positions heads d_head"]:
        """What the whole stream is to the values of every head at every position, norms being held: all but their biases."""
        values = rearrange(self._stream_entered()[:, 0] @ self.W_V, "t (h d) -> t h d", d=self.config.d_head)
        return values.repeat_interleave(self.config.n_heads // self.config.n_kv_heads, dim=1)

    def pulled(
        self, o: Float[Tensor, "rows d_head"], head: Int[Tensor, " rows"], position: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows d_model"]:
        """Cotangents of values, each of a head at a position, as cotangents of the stream there, norms being held."""
        W_V = rearrange(self.W_V, "m (h d) -> h d m", d=self.config.d_head)
        shared, out = head // (self.config.n_heads // self.config.n_kv_heads), o.new_empty(len(o), self.config.d_model)
        for number in shared.unique().tolist():
            of = shared == number
            out[of] = o[of] @ W_V[number]
        return norm_map(self.norm.at(position), out[:, None], LINEAR)[:, 0]

    def own_queries(self) -> Float[Tensor, "positions heads d_head"]:
        """What the queries are beside what the stream brings, all norms being held."""
        there = self._turned(self._stream_entered() @ self.W_Q, self.point.q_norm, slice(None), LINEAR)
        return self.point.q.flatten(0, 1).transpose(0, 1) - there[:, 0]

    def own_keys(self) -> Float[Tensor, "positions kv_heads d_head"]:
        """What the keys are beside that."""
        there = self._turned(self._stream_entered() @ self.W_K, self.point.k_norm, slice(None), LINEAR)
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
        self,
        y: Float[Tensor, "positions rows width"],
        norm: HeadNorm,
        at: slice,
        policy: Policy,
        out: Float[Tensor, "positions rows heads d_head"] | None = None,
    ) -> Float[Tensor, "positions rows heads d_head"]:
        y = head_norm_push(norm.at(at), rearrange(y, "t n (h d) -> t n h d", d=self.config.d_head), policy)
        cos, sin = (table[at, None, None] for table in (self.point.cos, self.point.sin))
        return turn(y, cos, sin, back=False, out=out)


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

    @classmethod
    def empty(cls, positions: Sequence[int], counts: Sequence[int], like: Float[Tensor, "one heads d_head"]) -> "Stack":
        """One to be written to, with so many rows at each position, and empty ones behind them."""
        begins = (0, *accumulate(count + 1 for count in counts))
        vector = like.new_empty(begins[-1], *like.shape[1:])
        vector[torch.tensor(begins[1:], device=vector.device, dtype=torch.int64) - 1] = 0
        return cls(tuple(positions), begins, torch.full((begins[-1],), -1), vector)

    @classmethod
    def joined(cls, parts: "Sequence[Stack]") -> "Stack":
        """Those of several sets of nodes, at the same positions, as one."""
        if len(parts) == 1:
            return parts[0]
        there = list(zip(*(dict(part.items()).values() for part in parts), strict=True))
        whole = cls.empty(parts[0].positions, [sum(len(part.node) for part in each) for each in there], parts[0].vector[:1])
        for (_, into), each in zip(whole.items(), there, strict=True):
            place = torch.cat([part.node for part in each]).argsort().argsort()
            for part, at in zip(each, place.split([len(part.node) for part in each]), strict=True):
                into.node[at] = part.node
                into.vector.index_copy_(0, at.to(part.vector.device), part.vector)
        return whole

    def summed(self, first: int) -> "Stack":
        """The same with the rows of the numbers from `first` on as one at each position, which has that number. It takes its memory."""
        there = list(self.items())
        rest = [int((vectors.node >= first).sum()) for _, vectors in there]
        if not any(rest):
            return self
        begins = (0, *accumulate(len(vectors.node) - count + bool(count) + 1 for (_, vectors), count in zip(there, rest, strict=True)))
        whole = Stack(self.positions, begins, self.node[: begins[-1]], self.vector[: begins[-1]])
        for (_, vectors), count, (begin, end) in zip(there, rest, pairwise(begins), strict=True):
            own, total = len(vectors.node) - count, vectors.vector[len(vectors.node) - count :].sum(0)
            node, vector = vectors.node[:own].clone(), vectors.vector[:own].clone()  # which may lie where they go to
            whole.node[begin : begin + own], whole.vector[begin : begin + own] = node, vector
            whole.node[begin + own : end - 1], whole.vector[begin + own : end - 1] = first, total
            whole.node[end - 1], whole.vector[end - 1] = -1, 0
        return whole

    def filled(self, own: Float[Tensor, "positions heads d_head"]) -> "Stack":
        """The same with its empty rows filled, from a row for each position of the prompt."""
        last = torch.tensor(self.begins[1:], device=own.device) - 1
        self.vector[last] = own[list(self.positions)].to(self.vector)
        return self


class Stacks(NamedTuple):
    """What they bring to one layer's heads, as queries, keys and values; in the order of `Wanted`."""

    query: Stack
    key: Stack
    value: Stack


@dataclass(frozen=True)
class InHeads:
    """One layer, and what nodes bring to its heads at the positions that were asked for."""

    layer: int
    space: HeadSpace
    stacks: Stacks


def in_heads(
    opened: Opened,
    wanted: Mapping[int, Wanted],
    precision: Precision,
    budget: int,
    nodes: Int[Tensor, " chosen"] | None = None,
    held: int = 0,
    rest: int | None = None,
) -> Iterator[InHeads]:
    """Layer by layer what nodes bring to heads, in one way up; in several, each of some of the nodes, where the budget asks for that.

    Args:
        wanted: by layer.
        budget: bytes of working memory, beside the parameters.
        nodes: which are asked about; None is all of them.
        held: bytes of the budget that are taken already.
        rest: the number from which on rows are numbered that are all other nodes together (rest.py). None is without them.

    Raises:
        BudgetError: where what is asked for, with the tangents of one node, does not fit.
    """
    bundle = opened.bundle
    on = primal_of(bundle, precision)
    ends, columns = chosen_sources(bundle.sources, opened.columns, nodes)
    if rest is not None and nodes is not None:
        others, numbers = rest_of(bundle, opened.columns, nodes, rest)
        ends, columns = ends + others, columns + numbers
    runs = _runs(on, ends, wanted, budget, held)
    ends, columns = without_silent(ends, columns)  # which are room to spare in what was forecast
    if len(runs) == 1:
        yield from _risen(on, bundle, ends, columns, wanted, precision)
        return
    parts: dict[int, list[Stacks]] = {layer: [] for layer in sorted(wanted)}
    for begin, end in runs:
        there = [(each.sources.position >= begin) & (each.sources.position < end) for each in ends]
        part = [_some(each, mask) for each, mask in zip(ends, there, strict=True)]
        for risen in _risen(on, bundle, part, [node[mask.cpu()] for node, mask in zip(columns, there, strict=True)], wanted, precision):
            parts[risen.layer].append(risen.stacks)
            del risen  # and its weights with it
    for layer in list(parts):
        stacks = Stacks(*(Stack.joined(each) for each in zip(*parts.pop(layer), strict=True)))
        with products(precision):
            space = HeadSpace(on, layer)
        yield InHeads(layer, space, stacks)


def primal_of(bundle: Bundle, precision: Precision) -> Primal:
    """The point of one prompt's sweeps, in pieces that are not the largest: here no plan takes smaller ones where memory is short."""
    joint = joint_of([bundle])
    return primal(
        bundle.model, bundle.policy, bundle.start, bundle.stop, [bundle.streams], [bundle.length],
        dtype=precision.sweep, pieces=joint.pieces.smaller, shut_mlps=joint.whole.shut_mlps,
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


def without_silent(ends: Sequence[SourceEnd], columns: Sequence[Tensor]) -> tuple[list[SourceEnd], list[Tensor]]:
    """The sources that bring anything: a bias that a model has not is a node at every position, whose rows would go up as zeros."""
    loud = [end.sources.direction.any(dim=1) for end in ends]
    some = [_some(end, chosen) for end, chosen in zip(ends, loud, strict=True)]
    return some, [node[chosen.cpu()] for node, chosen in zip(columns, loud, strict=True)]


def _most(on: Primal, ends: Sequence[SourceEnd], layer: int, wanted: Wanted) -> int:
    """How many numbers stacks may hold of a layer: of each node at each position from its own on, or at all of them."""
    config = on.model.config
    below = [end.sources.position.cpu() for end in ends if min(site.depth for site in end.writes) <= (layer, 0)]
    length = on.lengths[0]
    seen = torch.bincount(torch.cat(below), minlength=length).cumsum(0).tolist() if below else [0] * length
    if not config.causal:
        seen = seen[-1:] * length
    queries, others = (sum(seen[at] for at in where) for where in (wanted.query, [*wanted.key, *wanted.value]))
    return int((queries * config.n_heads + others * config.n_kv_heads) * config.d_head)


@torch.no_grad()
def _risen(
    on: Primal, bundle: Bundle, ends: Sequence[SourceEnd], columns: Sequence[Tensor], wanted: Mapping[int, Wanted], precision: Precision
) -> Iterator[InHeads]:
    """One way up: every layer that is wanted, as it is read; at last those that none of these sources reaches."""
    node, reached = torch.cat(list(columns)), set[int]()
    with products(precision):
        sources = [source_set(on, [end]) for end in ends]
        for layer, brought in rise(on, sources, max(wanted), bundle.between, node.to(on.model.device)):
            if layer in wanted:
                reached.add(layer)
                yield _read(on, layer, brought, wanted[layer])
        for layer in sorted(wanted.keys() - reached):
            yield _read(on, layer, None, wanted[layer])


def _read(on: Primal, layer: int, brought: Brought | None, wanted: Wanted) -> InHeads:
    """What sources bring to the heads of a layer."""
    space, config, where = HeadSpace(on, layer), on.model.config, [sorted(positions) for positions in wanted]
    stacks = Stacks(*(
        Stack.empty(positions, [brought.count(at) if brought else 0 for at in positions], space.W.new_empty(1, heads, config.d_head))
        for positions, heads in zip(where, (config.n_heads, config.n_kv_heads, config.n_kv_heads), strict=True)
    ))  # fmt: skip
    if brought is None:
        return InHeads(layer, space, stacks)
    query, key, value = (dict(stack.items()) for stack in stacks)
    for position in wanted.positions:
        node, x = brought.at(position)
        entered = space.entered(x, position, on.policy)
        there = [each[position] for each in (query, key, value) if position in each]
        for vectors in there:
            vectors.node.copy_(node)
        if position in query:
            space.queries(entered, position, on.policy, query[position].vector)
        if position in key:
            space.keys(entered, position, on.policy, key[position].vector)
        if position in value:
            space.values(entered, value[position].vector)
    return InHeads(layer, space, stacks)


def _runs(on: Primal, ends: Sequence[SourceEnd], wanted: Mapping[int, Wanted], budget: int, held: int) -> list[tuple[int, int]]:
    """Runs of positions `[begin, end)` whose nodes go up together: one, where all fit with what is kept of one layer at a time."""
    (length,), itemsize = on.lengths, on.model.dtype.itemsize
    counts = torch.zeros(length, dtype=torch.int64)
    for end in ends:
        if min(site.depth for site in end.writes) <= (max(wanted), 0):
            counts += torch.bincount(end.sources.position.cpu(), minlength=length)
    config = on.model.config
    rows = [LOADS * config.d_model * int(count) * len(config.seeing(position, length)) for position, count in enumerate(counts)]
    sizes, beside = [_most(on, ends, layer, here) for layer, here in wanted.items()], _beside(on)
    whole = held + itemsize * (sum(rows) + max(sizes) + beside)
    if whole <= budget:
        return [(0, length)]
    parts = sum(sizes) + max(sizes)  # of a layer both the parts and what they make
    least = min(whole, held + itemsize * (max(rows) + parts + beside))
    if least > budget:
        raise BudgetError.of(budget, 0, least)
    room, runs, used = (budget - held) // itemsize - parts - beside, [0], 0
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
