"""Through which heads an edge goes: a sum over the last head before its target, and the position that this head reads.

Every way from a node to a target passes attentions or none. Of those that it passes one is the last, where it comes from a position s
through a head h of a layer l to the target's own position p, and goes on by what is at one position: the stream, MLPs, skip connections.

    edge  =  direct + Σ_l Σ_h Σ_s  a[p,s] (o[l,h] · v_i[l,h,s])

with o the target's cotangent at z that has met no attention on its way down (engine/sweep/alone.py), a the head's pattern, and v_i what the
node brings to the head's values at s by whatever way (head_space.py). Where patterns are differentiated, with c the scale of scores,

    ... + Σ_s ds[s] (q_i[p] · k[s] + q[p] · k_i[s]),        ds[s] = c a[p,s] (o · v[s] - o · z[p])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_model, takes
from attrib.attribution.options import with_options
from attrib.core.keep import kept
from attrib.core.room import memory_named
from attrib.core.sparse import to_csr
from attrib.core.types import BudgetError, InputError, Keep, Site, TopK, TopLogits
from attrib.engine.blocks.passing import place_of
from attrib.engine.bundle import SourceEnd, TargetEnd
from attrib.engine.precision import products
from attrib.engine.sweep.alone import Alone
from attrib.engine.sweep.primal import seeds
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.again import Again, numbers_among, open_graph
from attrib.graph.given import as_given
from attrib.graph.graph import Graph
from attrib.graph.head_space import InHeads, Vectors, Wanted, in_heads, primal_of
from attrib.graph.latents import Given
from attrib.graph.nodes import Nodes
from attrib.graph.outputs import Output
from attrib.models.transformer import Model, width

STRONGEST = 256
"""How many edges are looked at where none are named."""


@dataclass(frozen=True, repr=False)
class HeadLoadings:
    """Edges of a graph, each as a sum over heads. Edge n has the loadings `indptr[n]:indptr[n + 1]`.

        weight  =  total + remainder,        total = direct + sum of all loadings, kept or not

    The remainder is zero up to rounding under every policy: an edge is a derivative, and so is each of its loadings.
    """

    nodes: Nodes
    edge: Int[Tensor, " edges"]
    """The number of each among the graph's edges."""
    source: Int[Tensor, " edges"]
    target: Int[Tensor, " edges"]
    weight: Float[Tensor, " edges"]
    """As the graph has it."""
    direct: Float[Tensor, " edges"]
    """The share that passes no attention: zero between nodes of different positions."""
    total: Float[Tensor, " edges"]
    indptr: Int[Tensor, " edges_plus_1"]
    layer: Int[Tensor, " loadings"]
    head: Int[Tensor, " loadings"]
    position: Int[Tensor, " loadings"]
    """That the head reads from; it writes at the target's own."""
    loading: Float[Tensor, " loadings"]
    """In the order of layers, heads and positions."""
    strings: tuple[str, ...]
    call: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.edge)

    def __repr__(self) -> str:
        return f"HeadLoadings({len(self):,} edges, {len(self.loading):,} loadings; remainder at most {self.worst:.1e} of the largest edge)"

    @property
    def remainder(self) -> Float[Tensor, " edges"]:
        """What the ways do not account for."""
        return self.weight - self.total

    @property
    def dropped(self) -> Float[Tensor, " edges"]:
        """What of each edge's total `keep` has dropped."""
        return self.total - self.direct - torch.zeros_like(self.total).index_add(0, self.row, self.loading)

    @property
    def worst(self) -> float:
        """The largest remainder, of the largest edge; 0 where there are no edges."""
        if not len(self):
            return 0.0
        return float(self.remainder.abs().max() / self.weight.abs().max().clamp_min(torch.finfo(self.weight.dtype).tiny))

    @cached_property
    def row(self) -> Int[Tensor, " loadings"]:
        """The number, among these edges, of the one that each loading is of."""
        return torch.arange(len(self)).repeat_interleave(self.indptr.diff())

    def top(self, edge: int, k: int = 5) -> list[tuple[float, str]]:
        """The largest shares of one of these edges that were kept, and the way of each: 'attn6[3]@9', or 'direct'.

        Raises:
            InputError: for an edge that is not there.
        """
        if not -len(self) <= edge < len(self):
            raise InputError(f"edge: {edge} of {len(self)}; expected one of them.")
        begin, end = (int(at) for at in self.indptr[(edge % len(self)) :][:2])
        ways = [(float(self.direct[edge]), "direct")] if self.direct[edge] else []
        for at in range(begin, end):
            ways.append((float(self.loading[at]), f"attn{int(self.layer[at])}[{int(self.head[at])}]@{int(self.position[at])}"))
        return sorted(ways, key=lambda way: -abs(way[0]))[:k]

    def path(self, edge: int) -> str:
        """The largest way of one of these edges: 'mlp.hook_in[355] @12 ← attn6[3]@9 ← mlp.hook_in[77] @9'."""
        ways = [way for _, way in self.top(edge, 1) if way != "direct"]
        return " ← ".join([self.nodes.label(int(self.target[edge])), *ways, self.nodes.label(int(self.source[edge]))])

    def scores(self, k: int = 64) -> list[tuple[int, int, int, int]]:
        """The scores whose patterns matter most to these edges, as `qk_attribution` takes them: layer, head, query and key.

        They are ranked by the sizes of the loadings that were kept. Queries of the first position, which see nothing else, are left out.
        """
        query = self.nodes.position[self.target[self.row]]
        chooses = query > 0
        named = torch.stack([self.layer, self.head, query, self.position], dim=1)[chooses]
        every, place = named.unique(dim=0, return_inverse=True)
        size = torch.zeros(len(every), dtype=self.loading.dtype).index_add(0, place, self.loading[chooses].abs())
        return [tuple(every[at].tolist()) for at in size.argsort(descending=True, stable=True)[:k].tolist()]


class LoadingOptions(TypedDict, total=False):
    """The options of `head_loadings`; what each means is said there."""

    targets: Output | Sequence[Output]
    keep: Keep
    budget: int


@dataclass(frozen=True)
class LoadingsAsked:
    """Their defaults."""

    targets: Any = TopLogits(10, mass=0.95)  # noqa: RUF009 - an immutable value
    keep: Keep = TopK(8)  # noqa: RUF009 - an immutable value
    budget: int = DEFAULT_BUDGET


@takes(model=as_model, dictionaries=as_given, budget=as_bytes)
@partial(with_options, asked=LoadingsAsked)
def head_loadings(
    model: Model,
    dictionaries: Given | Sequence[Given],
    graph: Graph,
    edges: int | Int[Tensor, " edges"] = STRONGEST,
    **options: Unpack[LoadingOptions],
) -> HeadLoadings:
    """Edges of a graph as sums over the last head before the target, and the position that it reads from.

    Args:
        dictionaries: those that the graph was built with.
        graph: one that `build` made, or a part of it.
        edges: which of the graph's edges, by their numbers; or how many, the largest.
        targets: those that the graph was built with, where they were no default.
        keep: which loadings of each edge are stored; totals are of all.
        budget: bytes of working memory, beside the parameters and the result.

    Raises:
        InputError: for an edge that is not there; for a graph of another model, other dictionaries or other targets.
        BudgetError: where what is asked for does not fit.
    """
    several: Any = dictionaries
    again = open_graph(model, several, graph, {"keep": LoadingsAsked().keep, **options})
    chosen = _edges(graph, edges)
    number = numbers_among(graph.nodes, again.opened.nodes)
    with memory_named("finding the heads of edges", "Ask for fewer of them."), torch.no_grad(), products(again.precision):
        found = _Found(again, number[graph.indices[chosen]], number[graph.target[chosen]])
        found.run()
    return found.result(graph, chosen)


def _edges(graph: Graph, edges: int | Int[Tensor, " edges"]) -> Int[Tensor, " edges"]:
    """Their numbers."""
    if isinstance(edges, Tensor):
        if edges.ndim != 1 or edges.is_floating_point() or edges.dtype == torch.bool or edges.is_complex():
            raise InputError(f"edges: {edges.dtype} of shape {list(edges.shape)}; expected a row of numbers of the graph's edges.")
        edges = edges.long().cpu()
        if len(edges) and not 0 <= int(edges.min()) <= int(edges.max()) < len(graph):
            raise InputError(f"edges: from {int(edges.min())} to {int(edges.max())}; the graph has edges 0 to {len(graph) - 1}.")
        return edges
    if isinstance(edges, bool) or not isinstance(edges, int) or edges < 0:
        raise InputError(f"edges: {edges!r}; expected numbers of the graph's edges in a tensor, or how many of the largest.")
    return graph.weight.abs().argsort(descending=True, stable=True)[:edges].sort().values


# ------------------------------------------------------------------------------------- the computation


class _Ends(NamedTuple):
    """The edges of a call whose targets are of one kind."""

    edge: Int[Tensor, " some"]
    row: Int[Tensor, " some"]
    """Of each, which of `target` it goes to."""
    target: Int[Tensor, " targets"]
    """Which targets of their kind these are, in order of position."""
    position: Int[Tensor, " some"]
    taken: dict[int, Float[Tensor, "targets d_q"]]
    """By layer, what its heads would take: cotangents of z."""


class _Found:
    """One call's edges, and what is found of them."""

    def __init__(self, again: Again, source: Int[Tensor, " edges"], target: Int[Tensor, " edges"]) -> None:
        self.again, self.source, self.target = again, source, target
        self.bundle, self.keep = again.opened.bundle, again.asked.keep
        self.on = primal_of(self.bundle, again.precision)
        dtype = self.bundle.model.dtype
        self.direct, self.total = (torch.zeros(len(source), dtype=dtype) for _ in range(2))
        whole = torch.zeros(0, dtype=torch.int64)
        self.counts, self.place, self.loading = [whole], [whole], [torch.zeros(0, dtype=dtype)]
        self.set_of, self.column_of = _columns(again)

    def run(self) -> None:
        """In runs of as many edges as fit beside their ways up; where not many do, one by one."""
        budget, first = self.again.asked.budget, 0
        at_once = max(1, budget // (4 * self._each))
        while first < len(self.source):
            edges = torch.arange(first, min(first + at_once, len(self.source)))
            try:
                self._some(edges)
            except BudgetError:
                if at_once == 1:
                    raise
                at_once = 1
                continue
            first += len(edges)

    @property
    def _each(self) -> int:
        """Bytes that are held for each edge: what its target's heads would take, and its loadings where the largest are chosen."""
        config = self.bundle.model.config
        numbers = 2 * config.d_head + _LOADINGS * self.bundle.length
        return config.n_layers * config.n_heads * numbers * self.bundle.model.dtype.itemsize

    def _some(self, edges: Int[Tensor, " some"]) -> None:
        self.direct[edges] = 0
        ends = [end for number in range(len(self.bundle.targets)) if (end := self._alone(number, edges)) is not None]
        config, wanted = self.bundle.model.config, self._wanted(ends)
        loading = torch.zeros(len(edges), config.n_layers, config.n_heads, self.bundle.length, dtype=self.direct.dtype)
        if wanted:
            again, nodes = self.again, self.source[edges].unique()
            for there in in_heads(again.opened, wanted, again.precision, again.asked.budget, nodes, self._each * len(edges)):
                for end in ends:
                    if there.layer in end.taken:
                        loading[end.edge - int(edges[0]), there.layer] = self._of_layer(there, end).cpu().to(loading)
        self.total[edges] = self.direct[edges] + loading.flatten(1).sum(1)
        flat = loading.flatten(1)
        indptr, column, place = to_csr(kept(self.keep, flat, flat))
        self.counts.append(indptr.diff())
        self.place.append(column)
        self.loading.append(flat.flatten()[place])

    def _wanted(self, ends: Sequence[_Ends]) -> dict[int, Wanted]:
        """Which values (and, where patterns move, queries and keys) of each layer are needed."""
        found: dict[int, Wanted] = {}
        moves = self.bundle.policy.attention == "exact"
        for end in ends:
            seen, own = frozenset(range(int(end.position.max()) + 1)), frozenset(end.position.tolist())
            for layer in end.taken:
                before = found.get(layer, Wanted())
                found[layer] = Wanted(
                    before.query | own if moves else before.query, before.key | seen if moves else before.key, before.value | seen
                )
        return found

    # ------------------------------------------------------------------------------- without attention

    def _alone(self, number: int, edges: Int[Tensor, " some"]) -> _Ends | None:
        """Targets of one kind on their way down without any attention: the direct share is found, and what heads would take."""
        first, end = self.again.opened.rows[number], self.bundle.targets[number]
        if not len(first):
            return None
        mine = edges[(self.target[edges] >= first[0]) & (self.target[edges] <= first[-1])]
        if not len(mine):
            return None
        target, row = (self.target[mine] - first[0]).unique(return_inverse=True)
        order = end.targets.position.cpu()[target].argsort(stable=True)
        target, row = target[order], order.argsort()[row]
        position = end.targets.position.cpu()[target]
        found = _Ends(mine, row, target, position[row], {})
        self._fall(end, found)
        return found

    def _fall(self, end: TargetEnd, found: _Ends) -> None:
        on, chosen = self.on, found.target.to(end.targets.position.device)
        own = seeds(on, [end.targets.position[chosen]], [end.targets.cotangent[chosen]])
        wanted, brought = (
            {place_of(at) for each in self.bundle.sources if each.is_brought == is_it for at in each.writes} for is_it in (False, True)
        )
        stop = place_of(end.stop)

        def read(site: Site, rows: Tensor, is_brought: bool) -> None:
            for number, source in enumerate(self.bundle.sources):
                if source.is_brought == is_brought and not (site == stop and number in end.barred):
                    self._read(number, source, site, rows, found)

        Alone(on, stop, own, wanted, brought, self.bundle.between, read, found.taken.__setitem__, stops_below=end.stops_below).fall()

    def _read(self, number: int, source: SourceEnd, site: Site, rows: Float[Tensor, "targets _"], found: _Ends) -> None:
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

    def _of_layer(self, there: InHeads, end: _Ends) -> Float[Tensor, "some heads positions"]:
        """The loadings of edges on the heads of one layer."""
        space, config, moves = there.space, there.space.config, self.bundle.policy.attention == "exact"
        device = self.bundle.model.device
        group, row, at = config.n_heads // config.n_kv_heads, end.row.to(device), end.position.to(device)
        o = end.taken[there.layer].to(space.W.dtype).unflatten(-1, (config.n_heads, -1)).index_select(0, row)
        out = o.new_zeros(len(row), config.n_heads, self.bundle.length)
        node = self.source[end.edge]
        pattern = space.pattern
        for position, values in there.value.items():
            of, is_there = _places(node, values)
            is_there &= end.position >= position
            some = is_there.nonzero()[:, 0].to(device)
            if len(some):
                v = values.vector.index_select(0, of[is_there].to(device)).repeat_interleave(group, dim=1)
                out[some, :, position] = pattern[:, at[some], position].T * (o.index_select(0, some) * v).sum(-1)
        return out + self._by_patterns(there, end, o) if moves else out

    def _by_patterns(self, there: InHeads, end: _Ends, o: Float[Tensor, "some heads d_head"]) -> Float[Tensor, "some heads positions"]:
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
        for position, keys in there.key.items():
            of, is_there = _places(node, keys)
            some = is_there.nonzero()[:, 0].to(o.device)
            if len(some):
                k_of = keys.vector.index_select(0, of[is_there].to(o.device)).repeat_interleave(group, dim=1)
                moved[some, :, position] += (q.index_select(0, some) * k_of).sum(-1)
        return ds * moved

    def _at_query(self, there: InHeads, end: _Ends, o: Float[Tensor, "some heads d_head"]) -> Float[Tensor, "some heads d_head"]:
        """What each edge's source brings to the queries at its target's position."""
        found = torch.zeros_like(o)
        for position, queries in there.query.items():
            of, is_there = _places(self.source[end.edge], queries)
            is_there &= end.position == position
            found[is_there.to(o.device)] = queries.vector.index_select(0, of[is_there].to(o.device))
        return found

    # ------------------------------------------------------------------------------------- the result

    def result(self, graph: Graph, chosen: Int[Tensor, " edges"]) -> HeadLoadings:
        """All of them."""
        config, length = self.bundle.model.config, self.bundle.length
        counts, place = torch.cat(self.counts), torch.cat(self.place)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        layer, head, position = place // (config.n_heads * length), place // length % config.n_heads, place % length
        call = {"kind": "head_loadings", "keep": repr(self.keep), "graph": dict(graph.call)}
        return HeadLoadings(
            graph.nodes, chosen, graph.indices[chosen], graph.target[chosen], graph.weight[chosen], self.direct, self.total, indptr, layer,
            head, position, torch.cat(self.loading), graph.strings, call,
        )  # fmt: skip


_LOADINGS = 6
"""How many numbers there are for each edge, head and position at the fullest moment: where the largest are chosen."""


def _columns(again: Again) -> tuple[Int[Tensor, " nodes"], Int[Tensor, " nodes"]]:
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
