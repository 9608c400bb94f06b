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
from typing import Any, TypedDict, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_model, takes
from attrib.attribution.options import with_options
from attrib.attribution.record import products_record
from attrib.core.keep import kept
from attrib.core.room import memory_named
from attrib.core.sparse import to_csr
from attrib.core.types import BudgetError, InputError, Keep, Progress, TopK, TopLogits
from attrib.engine.precision import products
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.again import Again, numbers_among, open_graph
from attrib.graph.given import as_given
from attrib.graph.graph import Graph
from attrib.graph.last_heads import LastHeads
from attrib.graph.latents import Given
from attrib.graph.nodes import Nodes
from attrib.graph.outputs import Output
from attrib.graph.pruning import most
from attrib.models.transformer import Model

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
    first_query: int = 1
    """The first position whose queries see more than themselves."""

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

        They are ranked by the sizes of the loadings that were kept. Queries of the first position, which see nothing else, are left out; in
        attention that is not causal they see as much as others.
        """
        return self._by_size()[0][:k]

    def used(self, share: float = 0.9) -> list[tuple[int, int, int, int]]:
        """The scores that these edges use: the fewest, in the order of `scores`, that have this share of the sizes of all loadings kept.

        Raises:
            InputError: for a share that is none.
        """
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(f"share: {share!r}; expected a share of the loadings, above 0 and at most 1.")
        every, size = self._by_size()
        return every[: int(most(size, share).sum())]

    def _by_size(self) -> tuple[list[tuple[int, int, int, int]], Float[Tensor, " scores"]]:
        """All of them, the largest first, and how large each is."""
        query = self.nodes.position[self.target[self.row]]
        chooses = query >= self.first_query
        named = torch.stack([self.layer, self.head, query, self.position], dim=1)[chooses]
        every, place = named.unique(dim=0, return_inverse=True)
        size = torch.zeros(len(every), dtype=self.loading.dtype).index_add(0, place, self.loading[chooses].abs())
        order = size.argsort(descending=True, stable=True)
        return [(layer, head, at, key) for layer, head, at, key in every[order].tolist()], size[order]


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
    *,
    progress: Progress | None = None,
    **options: Unpack[LoadingOptions],
) -> HeadLoadings:
    """Edges of a graph as sums over the last head before the target, and the position that it reads from.

    Args:
        dictionaries: those that the graph was built with.
        graph: one that `build` made, or a part of it.
        edges: which of the graph's edges, by their numbers; or how many, the largest.
        progress: called with how many edges are split, and how many in all.
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
        found = _Loadings(again, number[graph.indices[chosen]], number[graph.target[chosen]])
        found.run(progress)
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


class _Loadings(LastHeads):
    """One call's edges, and what is found of them."""

    def __init__(self, again: Again, source: Int[Tensor, " edges"], target: Int[Tensor, " edges"]) -> None:
        super().__init__(again, again.opened.bundle.targets, again.opened.rows, source, target)
        self.total = torch.zeros_like(self.direct)
        whole = torch.zeros(0, dtype=torch.int64)
        self.counts, self.place, self.loading = [whole], [whole], [torch.zeros(0, dtype=self.direct.dtype)]

    def run(self, progress: Progress | None) -> None:
        """In runs of as many edges as fit beside their ways up; where not many do, one by one."""
        budget, first = self.again.asked.budget, 0
        at_once = max(1, budget // (4 * self.each))
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
            if progress is not None:
                progress(first, len(self.source))

    def _some(self, edges: Int[Tensor, " some"]) -> None:
        flat = self.loadings(self.ends(edges), edges).flatten(1)
        self.total[edges] = self.direct[edges] + flat.sum(1)
        indptr, column, place = to_csr(kept(self.again.asked.keep, flat, flat))
        self.counts.append(indptr.diff())
        self.place.append(column)
        self.loading.append(flat.flatten()[place])

    def result(self, graph: Graph, chosen: Int[Tensor, " edges"]) -> HeadLoadings:
        """All of them."""
        config, length = self.bundle.model.config, self.bundle.length
        counts, place = torch.cat(self.counts), torch.cat(self.place)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        layer, head, position = place // (config.n_heads * length), place // length % config.n_heads, place % length
        call = {"kind": "head_loadings", "keep": repr(self.again.asked.keep), "graph": dict(graph.call)}
        call |= products_record(self.bundle.model, self.again.precision)
        return HeadLoadings(
            graph.nodes, chosen, graph.indices[chosen], graph.target[chosen], graph.weight[chosen], self.direct, self.total, indptr, layer,
            head, position, torch.cat(self.loading), graph.strings, call, int(config.causal),
        )  # fmt: skip
