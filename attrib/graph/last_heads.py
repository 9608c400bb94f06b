"""Edges as sums over the last head on their way: what comes down past no attention meets what goes up to every head's values.

What is computed, and why it adds up, is said in heads.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import place_of
from attrib.engine.bundle import SourceEnd, TargetEnd
from attrib.engine.sweep.alone import Alone
from attrib.engine.sweep.primal import seeds
from attrib.graph.again import Again
from attrib.graph.head_space import InHeads, Vectors, Wanted, in_heads, primal_of
from attrib.models.transformer import width


class Ends(NamedTuple):
    """Edges whose targets are of one kind."""

    kind: int
    edge: Int[Tensor, " some"]
    row: Int[Tensor, " some"]
    """Of each, which of `target` it goes to."""
    target: Int[Tensor, " targets"]
    """Which targets of their kind these are, in order of position."""
    position: Int[Tensor, " some"]
    taken: dict[int, Float[Tensor, "targets d_q"]]
    """By layer, what its heads would take: cotangents of z."""


class LastHeads:
    """Edges of one prompt, from its nodes to targets of any kinds, as sums over the last head on the way."""

    def __init__(
        self,
        again: Again,
        targets: Sequence[TargetEnd],
        numbers: Sequence[Int[Tensor, " _"]],
        source: Int[Tensor, " edges"],
        target: Int[Tensor, " edges"],
    ) -> None:
        """Make one.

        Args:
            targets: by kind.
            numbers: what each target of a kind is called in `target`; those of a kind have numbers that follow each other.
        """
        self.again, self.targets, self.numbers, self.source, self.target = again, targets, numbers, source, target
        self.bundle = again.opened.bundle
        self.on = primal_of(self.bundle, again.precision)
        self.direct = torch.zeros(len(source), dtype=self.bundle.model.dtype)
        self.set_of, self.column_of = columns_of(again)

    @property
    def each(self) -> int:
        """Bytes that are held for each edge: what its target's heads would take, and its loadings where the largest are chosen."""
        config = self.bundle.model.config
        numbers = 2 * config.d_head + _LOADINGS * self.bundle.length
        return config.n_layers * config.n_heads * numbers * self.bundle.model.dtype.itemsize

    def ends(self, edges: Int[Tensor, " some"]) -> list[Ends]:
        """Some of the edges, kind by kind: what passes no attention is found, and what heads would take."""
        self.direct[edges] = 0
        return [end for number in range(len(self.targets)) if (end := self._alone(number, edges)) is not None]

    def loadings(self, ends: Sequence[Ends], edges: Int[Tensor, " some"]) -> Float[Tensor, "some layers heads positions"]:
        """What comes through each head last, from each position that it reads.

        Args:
            edges: that `ends` are of; their numbers follow each other.
        """
        config, wanted = self.bundle.model.config, self._wanted(ends)
        loading = torch.zeros(len(edges), config.n_layers, config.n_heads, self.bundle.length, dtype=self.direct.dtype)
        if wanted:
            again, nodes = self.again, self.source[edges].unique()
            for there in in_heads(again.opened, wanted, again.precision, again.asked.budget, nodes, self.each * len(edges)):
                for end in ends:
                    if there.layer in end.taken:
                        loading[end.edge - int(edges[0]), there.layer] = self._of_layer(there, end).cpu().to(loading)
        return loading

    def _wanted(self, ends: Sequence[Ends]) -> dict[int, Wanted]:
        """Which values (and, where patterns move, queries and keys) of each layer are needed."""
        found: dict[int, Wanted] = {}
        moves = self.bundle.policy.attention == "exact"
        for end in ends:
            seen = frozenset(self.bundle.model.config.seen(int(end.position.max()), self.bundle.length))
            own = frozenset(end.position.tolist())
            for layer in end.taken:
                before = found.get(layer, Wanted())
                found[layer] = Wanted(
                    before.query | own if moves else before.query, before.key | seen if moves else before.key, before.value | seen
                )
        return found

    # ------------------------------------------------------------------------------- without attention

    def _alone(self, number: int, edges: Int[Tensor, " some"]) -> Ends | None:
        """Targets of one kind on their way down without any attention: the direct share is found, and what heads would take."""
        first, end = self.numbers[number], self.targets[number]
        if not len(first):
            return None
        mine = edges[(self.target[edges] >= first[0]) & (self.target[edges] <= first[-1])]
        if not len(mine):
            return None
        target, row = (self.target[mine] - first[0]).unique(return_inverse=True)
        order = end.targets.position.cpu()[target].argsort(stable=True)
        target, row = target[order], order.argsort()[row]
        position = end.targets.position.cpu()[target]
        found = Ends(number, mine, row, target, position[row], {})
        self.fall(end, found)
        return found

    def fall(self, end: TargetEnd, found: Ends) -> None:
        """Bring them down, and read on the way."""
        on, chosen = self.on, found.target.to(end.targets.position.device)
        own = seeds(on, [end.targets.position[chosen]], [end.targets.cotangent[chosen]])
        wanted, brought = (
            {place_of(at) for each in self.bundle.sources if each.is_brought == is_it for at in each.writes} for is_it in (False, True)
        )
        stop = place_of(end.stop)

        def read(site: Site, rows: Tensor, is_brought: bool) -> None:
            for number, source in enumerate(self.bundle.sources):
                if source.is_brought == is_brought and not (site == stop and number in end.barred):
                    self.read(number, source, site, rows, found)

        Alone(on, stop, own, wanted, brought, self.bundle.between, read, found.taken.__setitem__, stops_below=end.stops_below).fall()

    def read(self, number: int, source: SourceEnd, site: Site, rows: Float[Tensor, "targets _"], found: Ends) -> None:
        """The direct share of the edges from one kind of sources, of what they write at one place."""
        if site not in (names := [place_of(at) for at in source.writes]):
            return
        node = self.source[found.edge]
        some = (self.set_of[node] == number).nonzero()[:, 0]
        some = some[source.sources.position.cpu()[self.column_of[node[some]]] == found.position[some]]
        column = self.column_of[node[some]].to(rows.device)
        widths = [width(self.bundle.model.config, at) for at in source.writes]
        direction = source.sources.direction.split(widths, dim=1)[names.index(site)].index_select(0, column)
        share = (rows.index_select(0, found.row[some].to(rows.device)) * direction.to(rows)).sum(-1) * source.sources.value[column]
        self.direct.index_add_(0, found.edge[some], share.cpu().to(self.direct))

    # ---------------------------------------------------------------------------------- through heads

    def _of_layer(self, there: InHeads, end: Ends) -> Float[Tensor, "some heads positions"]:
        """The loadings of edges on the heads of one layer."""
        space, config, moves = there.space, there.space.config, self.bundle.policy.attention == "exact"
        device = self.bundle.model.device
        group, row, at = config.n_heads // config.n_kv_heads, end.row.to(device), end.position.to(device)
        o = end.taken[there.layer].to(space.W.dtype).unflatten(-1, (config.n_heads, -1)).index_select(0, row)
        out = o.new_zeros(len(row), config.n_heads, self.bundle.length)
        node = self.source[end.edge]
        pattern = space.pattern
        for position, values in there.stacks.value.items():
            of, is_there = _places(node, values)
            if config.causal:
                is_there &= end.position >= position
            some = is_there.nonzero()[:, 0].to(device)
            if len(some):
                v = values.vector.index_select(0, of[is_there].to(device)).repeat_interleave(group, dim=1)
                out[some, :, position] = pattern[:, at[some], position].T * (o.index_select(0, some) * v).sum(-1)
        return out + self._by_patterns(there, end, o) if moves else out

    def _by_patterns(self, there: InHeads, end: Ends, o: Float[Tensor, "some heads d_head"]) -> Float[Tensor, "some heads positions"]:
        """What comes through a head's scores: of the query at the target's position, and of the key at each."""
        point, config = there.space.point, there.space.config
        group, node = config.n_heads // config.n_kv_heads, self.source[end.edge]
        at = end.position.to(o.device)
        q, z = (part.flatten(0, 1)[:, at].transpose(0, 1) for part in (point.q, point.z))
        k, v = (part.repeat_interleave(group, dim=0) for part in (point.k, point.v))
        gain = point.pattern.flatten(0, 1)[:, at].transpose(0, 1) * config.attention_scale
        if point.slope.numel():
            gain = gain * point.slope.flatten(0, 1)[:, at].transpose(0, 1)
        ds = gain * (torch.einsum("ehd,hsd->ehs", o, v) - (o * z).sum(-1, keepdim=True))
        moved = torch.einsum("ehd,hsd->ehs", self._at_query(there, end, o), k)
        for position, keys in there.stacks.key.items():
            of, is_there = _places(node, keys)
            some = is_there.nonzero()[:, 0].to(o.device)
            if len(some):
                k_of = keys.vector.index_select(0, of[is_there].to(o.device)).repeat_interleave(group, dim=1)
                moved[some, :, position] += (q.index_select(0, some) * k_of).sum(-1)
        return ds * moved

    def _at_query(self, there: InHeads, end: Ends, o: Float[Tensor, "some heads d_head"]) -> Float[Tensor, "some heads d_head"]:
        """What each edge's source brings to the queries at its target's position."""
        found = torch.zeros_like(o)
        for position, queries in there.stacks.query.items():
            of, is_there = _places(self.source[end.edge], queries)
            is_there &= end.position == position
            found[is_there.to(o.device)] = queries.vector.index_select(0, of[is_there].to(o.device))
        return found


_LOADINGS = 6
"""How many numbers there are for each edge, head and position at the fullest moment: where the largest are chosen."""


def columns_of(again: Again) -> tuple[Int[Tensor, " nodes"], Int[Tensor, " nodes"]]:
    """Of each node the set of sources that it is in, and its column there; -1 where it is none."""
    count = len(again.opened.nodes)
    set_of, column = torch.full((count,), -1), torch.full((count,), -1)
    for number, nodes in enumerate(again.opened.columns):
        set_of[nodes] = number
        column[nodes] = torch.arange(len(nodes))
    return set_of, column


def _places(node: Int[Tensor, " some"], among: Vectors) -> tuple[Int[Tensor, " some"], Bool[Tensor, " some"]]:
    """Where nodes are among those that bring something, and whether they are."""
    if not len(among.node):
        return torch.zeros_like(node), torch.zeros_like(node, dtype=torch.bool)
    place = torch.searchsorted(among.node, node).clamp_max(len(among.node) - 1)
    return place, among.node[place] == node
