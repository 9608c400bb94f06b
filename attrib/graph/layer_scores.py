"""What the scores of one layer are made of, all of them together: their pairs of nodes, and what each node of either side is to them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.keep import kept
from attrib.core.types import Keep
from attrib.graph.head_space import HeadSpace, InHeads, Stack
from attrib.graph.pairs import AT_ONCE, Rows, strongest
from attrib.models.transformer import cap

OWN = -1
"""The number of no node: what a head's queries or keys have of their own, biases, and that of the norm before them."""


class Sums(NamedTuple):
    """What nodes of one side are to some scores, whatever they meet."""

    score: Int[Tensor, " sums"]
    """The number of each one's score among all that were asked for. Those of a score are together, by their nodes, OWN last."""
    node: Int[Tensor, " sums"]
    weight: Float[Tensor, " sums"]


class Paired(NamedTuple):
    """Pairs of some scores."""

    score: Int[Tensor, " pairs"]
    """As of sums; those of a score are together, by their query's node and then their key's."""
    query_node: Int[Tensor, " pairs"]
    key_node: Int[Tensor, " pairs"]
    weight: Float[Tensor, " pairs"]


class LayerScores(NamedTuple):
    """The scores of one layer."""

    number: Int[Tensor, " scores"]
    """Among all that were asked for."""
    pattern: Float[Tensor, " scores"]
    value: Float[Tensor, " scores"]
    total: Float[Tensor, " scores"]
    pairs: Paired
    queries: Sums
    keys: Sums


class _Side:
    """One side of the layer's scores: what every node, and behind those of each position OWN, is to its heads."""

    def __init__(self, there: Stack, own: Float[Tensor, "positions heads d_head"], rest: int) -> None:
        there = there.summed(rest).filled(own)
        self.rows, self.node = Rows(there.vector, there.begins), there.node
        self._positions = torch.tensor(there.positions)

    def group(self, position: Int[Tensor, " scores"]) -> Int[Tensor, " scores"]:
        """The group of rows of each position, which is one of those that were asked for."""
        return torch.searchsorted(self._positions.to(position.device), position.contiguous())

    def sums(
        self, group: Tensor, head: Tensor, meets: Float[Tensor, "scores d_head"], keep: Keep, number: Int[Tensor, " scores"]
    ) -> Iterator[Sums]:
        """What nodes are to scores, whose other side is given whole; what the rule keeps of that."""
        for each in group.unique().tolist():
            begin, end = self.rows.begins[each : each + 2]
            rows = self.rows.vector[begin:end].permute(1, 2, 0)
            for some in (group == each).nonzero()[:, 0].split(max(1, AT_ONCE // (end - begin))):
                place = head[some], _turns(head[some])
                at_head = meets.new_zeros(len(rows), int(place[1].max()) + 1, meets.shape[1])
                at_head[place] = meets[some]
                weight = (at_head @ rows).flatten(0, 1).index_select(0, place[0] * at_head.shape[1] + place[1])
                at, row = kept(keep, weight, weight).nonzero(as_tuple=True)
                yield Sums(number[some[at].cpu()], self.node[begin + row.cpu()], weight[at, row].cpu())


def of_layer(there: InHeads, scores: Int[Tensor, "scores 4"], keep: Keep, rest: int) -> LayerScores:
    """The scores that are of a layer, of all that were asked for.

    Args:
        rest: from which number on rows are taken as one node, which has this number.
    """
    space, config = there.space, there.space.config
    number = (scores[:, 0] == there.layer).nonzero()[:, 0]
    _, head, query, key = scores[number].to(space.W.device).unbind(1)
    shared = head // (config.n_heads // config.n_kv_heads)
    queries, keys = _Side(there.stacks.query, space.own_queries(), rest), _Side(there.stacks.key, space.own_keys(), rest)
    at_query, at_key = queries.group(query), keys.group(key)
    scale, value = _scaled(space, head, query, key)
    pairs = strongest(queries.rows.runs(at_query, head), keys.rows.runs(at_key, shared), scale, keep)
    q, k = queries.rows.totals[at_query, head], keys.rows.totals[at_key, shared]
    return LayerScores(
        number, space.pattern[head, query, key].cpu(), value.cpu(), (scale * (q * k).sum(-1)).cpu(),
        Paired(number[pairs.form.cpu()], queries.node[pairs.left.cpu()], keys.node[pairs.right.cpu()], pairs.weight.cpu()),
        _joined(queries.sums(at_query, head, scale[:, None] * k, keep, number)),
        _joined(keys.sums(at_key, shared, scale[:, None] * q, keep, number)),
    )  # fmt: skip


def _turns(group: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
    """How many of the same group stand before each."""
    order, count = group.argsort(stable=True), torch.bincount(group)
    turn = torch.arange(len(group), device=group.device) - (count.cumsum(0) - count)[group[order]]
    return torch.empty_like(turn).index_copy_(0, order, turn)


def _joined(parts: Iterator[Sums]) -> Sums:
    return Sums(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _scaled(space: HeadSpace, head: Tensor, query: Tensor, key: Tensor) -> tuple[Float[Tensor, " scores"], Float[Tensor, " scores"]]:
    """What a product of a query and a key counts in each score, at the score's true value; and that."""
    config, point = space.config, space.point
    q, k = point.q.flatten(0, 1)[head, query], point.k[head // (config.n_heads // config.n_kv_heads), key]
    raw = (q * k).sum(-1) * config.attention_scale
    value = cap(raw, config.score_cap)
    counts = torch.where(raw == 0, 1.0, value / torch.where(raw == 0, 1.0, raw)) if config.score_cap is not None else torch.ones_like(raw)
    return config.attention_scale * counts, value
