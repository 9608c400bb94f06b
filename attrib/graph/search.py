"""The strongest paths into a node, exactly or by a greedy search; and all there are.

Edges go from lower sets of nodes to higher ones, so one pass up the sets finds for every node the size of the best path into it:

    best[v] = max over edges u -> v of min(|factor| · best[u], cap[v]),      1 where a path may begin

(for each node, each state of what a rule has seen of the path, see `patterns`, and, where that counts, each sign). Then the paths come out
in order, best first: a path that has come down from the node asked about to v can be completed to min(c, g · best[v]) and to no more, with
the product g of its factors and the bound c that its caps put on it, so the open path for which that is largest is gone on with. Every
step is one of a path that is given, or of the next best (A* with an exact bound).
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.factors import Contribution, Factors, factors_into
from attrib.graph.graph import Graph
from attrib.graph.levels import check_node, edges_of, levels
from attrib.graph.paths import Path
from attrib.graph.patterns import PathFilter, Sign, machine, may_begin, may_pass, signed
from attrib.graph.where import NodeFilter

_EVERY = PathFilter()


def strongest(graph: Graph, node: int, k: int = 10, *, which: PathFilter = _EVERY, contribution: Contribution = "raw") -> list[Path]:
    """The k paths into a node whose values are largest in size, exactly, in that order; fewer where there are no more.

    Args:
        node: its number; `Where(kind="logit", label=" Paris").find(graph.nodes)` finds it.
        which: rules that paths follow. By default they begin at nodes that no edge goes to: embeddings, errors, biases.
        contribution: what edges count; see `attrib.graph.Contribution`.

    Raises:
        InputError: where the node has no row, or an argument makes no sense.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k: {k!r}; expected a number of paths of at least 1.")
    return list(islice(_in_order(graph, node, which, contribution), k))


def every_path(
    graph: Graph, node: int, *, which: PathFilter = _EVERY, contribution: Contribution = "raw", most: int = 10_000
) -> list[Path]:
    """All paths into a node, the largest in size first: of a small graph, such as `graph_of` makes of paths.

    Raises:
        InputError: where there are more than `most`; and as of `strongest`.
    """
    found = list(islice(_in_order(graph, node, which, contribution), most + 1))
    if len(found) > most:
        raise InputError(
            f"most: there are more than {most:,} paths into node {node}. Ask for the strongest(graph, node, k), allow more, or give rules."
        )
    return found


def _in_order(graph: Graph, node: int, which: PathFilter, contribution: Contribution) -> Iterator[Path]:
    """All paths into a node, the largest in size first."""
    row = check_node(graph, node)
    search = _Search(graph, int(node), row, which, contribution)
    for value, nodes, edges in search.paths():
        if abs(value) < which.least:
            return
        yield Path(nodes, tuple(graph.weight[edges].tolist()), value)


class _Choice(NamedTuple):
    """What can stand next on a path that has come down to one node in one state, the best first."""

    bound: list[float]
    """The size of the best that each leads to; 1 for the end of the path."""
    edge: list[int]
    """The edge that each takes, or -1 where the path begins here."""
    column: list[int]
    """The state at that edge's source."""


class _Open(NamedTuple):
    """A path that has come down to a node, and which choice is to be made there. The first number is the size it can still have."""

    rank: tuple[float, int]
    """That size, less than zero, and of equal ones the earlier."""
    slope: float
    """The product of its factors."""
    cap: float
    edges: tuple[int, ...]
    at: tuple[int, int]
    choice: int


class _Search:
    """One search. A column is a state of the rules, and where the sign counts, the sign of the product so far."""

    def __init__(self, graph: Graph, node: int, row: int, which: PathFilter, contribution: Contribution) -> None:
        self.graph, self.node, self.which, self.target = graph, node, which, graph.target
        self.rules, self.begins, self.passes = machine(which, graph.nodes), may_begin(which, graph), may_pass(which, graph.nodes)
        self.signs = 1 if which.sign == "both" and contribution != "capped" else 2
        self.factor, self.cap = factors_into(graph, node, row, contribution)
        self.factor[~self.passes[graph.indices]] = 0.0
        self.best = self._best()
        self.choices: dict[tuple[int, int], _Choice] = {}

    def paths(self) -> Iterator[tuple[float, tuple[int, ...], list[int]]]:
        """The value, the nodes and the edges of each path, the largest in size first."""
        ties, opened = count(), list[_Open]()

        def push(slope: float, cap: float, edges: tuple[int, ...], at: tuple[int, int], choice: int) -> None:
            found = self._choice(*at)
            if choice < len(found.bound):
                size = min(cap, abs(slope) * found.bound[choice])
                heapq.heappush(opened, _Open((-size, next(ties)), slope, cap, edges, at, choice))

        for column in self._accepted():
            push(1.0, math.inf, (), (self.node, column), 0)
        while opened:
            _, slope, cap, edges, at, choice = heapq.heappop(opened)
            push(slope, cap, edges, at, choice + 1)
            edge, column = (each[choice] for each in self._choice(*at)[1:])
            if edge < 0:
                yield math.copysign(min(cap, abs(slope)), slope), (self.node, *self.graph.indices[list(edges)].tolist()), list(edges)
            else:
                cap = min(cap, abs(slope) * self._most(*at))
                push(slope * float(self.factor[edge]), cap, (*edges, edge), (int(self.graph.indices[edge]), column), 0)

    def _accepted(self) -> list[int]:
        """The columns in which a path may arrive."""
        signs = {"both": range(self.signs), "positive": [0], "negative": [1]}[self.which.sign]
        return [int(state) * self.signs + sign for state in self.rules.accepts.nonzero()[:, 0] for sign in signs]

    def _best(self) -> Float[Tensor, "nodes columns"]:
        """The size of the best way into each node in each state, from where a path may begin."""
        best = torch.zeros(len(self.graph.nodes), max(1, len(self.rules.accepts)) * self.signs, dtype=torch.float64)
        ends = self.begins.nonzero()[:, 0]
        ends = ends[(self.rules.start[self.rules.node_class[ends]] >= 0) & (ends != self.node)]
        best[ends, self.rules.start[self.rules.node_class[ends]] * self.signs] = 1.0
        for edges in levels(self.graph, self.node):
            target, source, factor = self.target[edges], self.graph.indices[edges], self.factor[edges]
            after = self._after(target, factor)
            place = target[:, None] * best.shape[1] + after.clamp_min(0)
            size = self._capped(factor.abs()[:, None] * best[source], target, after).where(after >= 0, 0.0)
            best.view(-1).scatter_reduce_(0, place.flatten(), size.flatten(), "amax")
        return best

    def _capped(
        self, size: Float[Tensor, "edges columns"], target: Int[Tensor, " edges"], after: Int[Tensor, "edges columns"]
    ) -> Float[Tensor, "edges columns"]:
        """Sizes at the edges' targets, those that are positive at most the cap there."""
        return size if self.signs == 1 else torch.where(after % 2 == 0, size.minimum(self.cap[target][:, None]), size)

    def _most(self, node: int, column: int) -> float:
        """The most that the size at a node in a column may be."""
        return float(self.cap[node]) if self.signs == 2 and column % 2 == 0 else math.inf

    def _after(self, target: Int[Tensor, " edges"], factor: Float[Tensor, " edges"]) -> Int[Tensor, "edges columns"]:
        """The column at each edge's target, of each column at its source; -1 where a path may not come so."""
        state = self.rules.step.T[self.rules.node_class[target]]
        if self.signs == 1:
            return state
        flip = (factor < 0).long()[:, None]
        after = torch.stack([state * 2 + flip, state * 2 + 1 - flip], dim=-1)
        return after.where(state[:, :, None] >= 0, -1).flatten(1)

    def _choice(self, node: int, column: int) -> _Choice:
        """What can stand next, once for each node and state that a path comes to."""
        if (node, column) not in self.choices:
            self.choices[node, column] = self._choose(node, column)
        return self.choices[node, column]

    def _choose(self, node: int, column: int) -> _Choice:
        row = int(torch.searchsorted(self.graph.targets, node))
        has_row = row < len(self.graph.targets) and int(self.graph.targets[row]) == node
        edges = edges_of(self.graph, row) if has_row else slice(0, 0)
        factor = self.factor[edges]
        comes = self._after(self.target[edges], factor) == column
        size = (factor.abs()[:, None] * self.best[self.graph.indices[edges]]).where(comes, 0.0).clamp_max(self._most(node, column))
        at, before = (size > 0).nonzero(as_tuple=True)
        bound, edge = size[at, before], at + edges.start
        if self._begins_at(node, column):
            bound, edge, before = (torch.cat([each.new_tensor([own]), each]) for own, each in ((1, bound), (-1, edge), (0, before)))
        order = bound.argsort(descending=True, stable=True)
        return _Choice(bound[order].tolist(), edge[order].tolist(), before[order].tolist())

    def _begins_at(self, node: int, column: int) -> bool:
        start = int(self.rules.start[self.rules.node_class[node]]) * self.signs
        return node != self.node and bool(self.begins[node]) and start == column


def greedy(
    graph: Graph,
    node: int,
    branches: int | Sequence[int] = (5, 5),
    *,
    through: NodeFilter | None = None,
    sign: Sign = "both",
    contribution: Contribution = "raw",
) -> list[list[Path]]:
    """Paths found level by level: each of a level's is continued by its best edges, and the best of all these are the next level.

    It is quick and reads as it goes, but what leads through a weak edge is lost; `strongest` loses nothing. With `contribution="capped"`
    and `sign="positive"` it ranks as transcoder_circuits does (Dunefsky, Chlenski, Nanda 2024).

    Args:
        branches: how many are kept of each level, and of the continuations of each path: a number for each level. Paths of the last
            level have as many edges.
        through: which nodes may be on a path, behind the first. `select` applies further rules to what is found.
        sign: of the values that are looked for.

    Returns:
        for each level its paths, the best first: those of one edge, of two, and so on.

    Raises:
        InputError: where the node has no row, or an argument makes no sense.
    """
    row, row_of = check_node(graph, node), graph.row_of
    known = factors_into(graph, int(node), row, contribution)
    passes = may_pass(PathFilter(through=through, sign=sign), graph.nodes)
    level, found = [_Grown(Path((int(node),), (), 1.0), ())], []
    for most in _branches(branches):
        longer = [
            each for grown in level for each in _continued(graph, grown, int(row_of[grown.path.nodes[-1]]), known, passes, sign, most)
        ]
        level = sorted(longer, key=lambda grown: -abs(grown.path.value))[:most]
        found.append([grown.path for grown in level])
    return found


class _Grown(NamedTuple):
    """A path of a level, and the factors of its edges."""

    path: Path
    factors: tuple[float, ...]


def _branches(branches: int | Sequence[int]) -> tuple[int, ...]:
    """How many paths are kept of each level."""
    several = (branches,) if isinstance(branches, int) else tuple(branches)
    if not several or not all(isinstance(most, int) and not isinstance(most, bool) and most >= 1 for most in several):
        raise InputError(f"branches: {branches!r}; expected a number of at least 1 for each level, such as (5, 5).")
    return several


def _continued(
    graph: Graph, grown: _Grown, row: int, known: Factors, passes: Bool[Tensor, " nodes"], sign: Sign, most: int
) -> list[_Grown]:
    """A path's best continuations by one edge; none where its last node has no row."""
    if row < 0:
        return []
    path, edges = grown.path, edges_of(graph, row)
    source, factor = graph.indices[edges], known.edge[edges]
    value = _up(grown, factor, known.cap)
    rank = signed(value, sign).where(passes[source], -torch.inf)
    best = rank.argsort(descending=True, stable=True)[:most]
    best = best[rank[best] > 0]
    columns = (column[best].tolist() for column in (source, graph.weight[edges], value, factor))
    return [
        _Grown(Path((*path.nodes, at), (*path.weights, weight), total), (*grown.factors, own))
        for at, weight, total, own in zip(*columns, strict=True)
    ]


def _up(grown: _Grown, factor: Float[Tensor, " edges"], cap: Float[Tensor, " nodes"]) -> Float[Tensor, " edges"]:
    """The value of a path continued by each of some edges: products from the new source up, at each node no more than its cap."""
    *nodes, last = grown.path.nodes
    value = factor.clamp_max(float(cap[last]))
    for node, own in zip(reversed(nodes), reversed(grown.factors), strict=True):
        value = (value * own).clamp_max(float(cap[node]))
    return value
