"""Rows cut at heads: targets as sums of what reaches them past no attention and of what heads bring them, and each head cut likewise.

What is computed, and why it adds up, is said in headed.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import place_of
from attrib.engine.bundle import SourceEnd, TargetEnd
from attrib.engine.path import Targets
from attrib.graph.again import Again, numbers_among
from attrib.graph.graph import Graph
from attrib.graph.head_space import HeadSpace
from attrib.graph.last_heads import Ends, LastHeads
from attrib.models.transformer import width


class HeadRow(NamedTuple):
    """A head on its way to a target. Rows are numbered through: those of the graph first, then those of heads."""

    parent: int
    """The row that it is a source of."""
    root: int
    """The row of the graph at the end of the route."""
    layer: int
    head: int
    position: int
    """That it reads."""


class Entries(NamedTuple):
    """Edges of rows."""

    row: Int[Tensor, " entries"]
    source: Int[Tensor, " entries"]
    weight: Float[Tensor, " entries"]


class _Level(NamedTuple):
    """Rows that are cut together, and the sources that each is asked about."""

    targets: Sequence[TargetEnd]
    numbers: Sequence[Int[Tensor, " _"]]
    """What each target is called in `target`."""
    row_of: Int[Tensor, " numbers"]
    """The row of each of these."""
    source: Int[Tensor, " pairs"]
    """Nodes, by their numbers among all of the prompt's."""
    origin: Int[Tensor, " pairs"]
    """The same by their numbers in the graph."""
    target: Int[Tensor, " pairs"]
    """Ascending."""


class _Chosen(NamedTuple):
    """Heads of one layer that are cut next."""

    row: Int[Tensor, " heads"]
    """Those that they are sources of."""
    head: Int[Tensor, " heads"]
    position: Int[Tensor, " heads"]
    value: Float[Tensor, " heads"]
    cotangent: Float[Tensor, "heads d_model"]
    asked: Int[Tensor, " pairs"]
    """Which of these heads each source comes to,"""
    pair: Int[Tensor, " pairs"]
    """and which pair of the level that source stands in."""


class _Cut(LastHeads):
    """Rows of a level, with the sizes of all that reaches them past no attention."""

    def ends(self, edges: Int[Tensor, " some"]) -> list[Ends]:
        """The same; `sizes` has one for each target of each end."""
        self.sizes = list[Tensor]()
        return super().ends(edges)

    def fall(self, end: TargetEnd, found: Ends) -> None:
        """The same."""
        self.at = end.targets.position.cpu()[found.target]
        self.shares = dict[tuple[int, int], Tensor]()
        super().fall(end, found)
        size = torch.zeros(len(found.target), dtype=self.direct.dtype)
        for (_, position), share in self.shares.items():
            size[self.at == position] += share.abs().sum(1).cpu().to(size)
        self.sizes.append(size)

    def read(self, number: int, source: SourceEnd, site: Site, rows: Float[Tensor, "targets _"], found: Ends) -> None:
        """The same, and position by position all sources there: the size of one that writes at several places is that of its sum."""
        super().read(number, source, site, rows, found)
        if site not in (names := [place_of(at) for at in source.writes]):
            return
        widths = [width(self.bundle.model.config, at) for at in source.writes]
        direction = source.sources.direction.split(widths, dim=1)[names.index(site)]
        there = source.sources.position.contiguous()
        for position in self.at.unique().tolist():
            first, end = torch.searchsorted(there, torch.tensor([position, position + 1], device=there.device)).tolist()
            if first < end:
                written = direction[first:end] * source.sources.value[first:end, None]
                share = rows[(self.at == position).to(rows.device)] @ written.to(rows).T
                before = self.shares.get((number, position))
                self.shares[number, position] = share if before is None else before + share


class Routes:
    """One call's rows, level by level: those of the graph, of heads that lead to them, of heads that lead to these, and so on."""

    def __init__(self, again: Again, graph: Graph, least: float, longest: int | None) -> None:
        self.again, self.given, self.least, self.longest = again, graph, least, longest
        self.heads = list[HeadRow]()
        self.value = graph.weight[:0]
        """What each head brings."""
        self.l1 = graph.l1.clone()
        """The sum of the sizes of all that each row is cut into, whether it is kept or not."""
        self.direct, self.through = list[Entries](), list[Entries]()
        """Edges from nodes of the graph, by their numbers; and from heads, by their rows."""
        self._scale = torch.zeros(len(graph.targets), dtype=torch.float64).index_add(0, graph.row, graph.weight.double().abs())

    def find(self) -> None:
        """All levels."""
        level, depth = self._first(), 0
        while level is not None:
            level, depth = self._cut(level, is_last=depth == self.longest), depth + 1

    def _first(self) -> _Level | None:
        graph, opened = self.given, self.again.opened
        if not len(graph):
            return None
        number = numbers_among(graph.nodes, opened.nodes)
        row_of = torch.full((len(opened.nodes),), -1).index_copy(0, number[graph.targets], torch.arange(len(graph.targets)))
        return _Level(opened.bundle.targets, opened.rows, row_of, number[graph.indices], graph.indices, number[graph.target])

    def _cut(self, level: _Level, *, is_last: bool) -> _Level | None:
        """Cut the rows of a level; what is returned are those of the heads that were found."""
        cut, chosen = _Cut(self.again, level.targets, level.numbers, level.source, level.target), dict[int, list[_Chosen]]()
        for edges in self._runs(cut, level):
            for layer, found in self._heads(cut, level, edges, is_last):
                chosen.setdefault(layer, []).append(found)
        there = cut.direct != 0
        self.direct.append(Entries(level.row_of[level.target[there]], level.origin[there], cut.direct[there].to(self.value)))
        return self._below(level, chosen)

    def _runs(self, cut: _Cut, level: _Level) -> Iterator[Int[Tensor, " some"]]:
        """The pairs of as many whole rows as fit; of one alone where it does not, which is refused on its way."""
        at_once = max(1, self.again.asked.budget // (4 * cut.each))
        starts = [0, *((level.target.diff() != 0).nonzero()[:, 0] + 1).tolist(), len(level.target)]
        first = 0
        for begin, end in pairwise(starts):
            if end - first > at_once and begin > first:
                yield torch.arange(first, begin)
                first = begin
        yield torch.arange(first, len(level.target))

    def _heads(self, cut: _Cut, level: _Level, edges: Int[Tensor, " some"], is_last: bool) -> Iterator[tuple[int, _Chosen]]:
        """By layer the heads that some rows are cut at, where these are cut in turn."""
        ends = cut.ends(edges)
        loading = None if is_last else cut.loadings(ends, edges)
        rows = [level.row_of[level.numbers[end.kind][end.target]] for end in ends]
        sizes = list(cut.sizes)
        for layer in sorted({layer for end in ends for layer in end.taken}):
            space = HeadSpace(cut.on, layer)
            values = space.streams_values()
            for number, end in enumerate(ends):
                if layer not in end.taken:
                    continue
                at = level.targets[end.kind].targets.position[end.target.to(values.device)]
                o = end.taken[layer].to(values.dtype).unflatten(-1, (space.config.n_heads, -1))
                pattern = space.pattern.transpose(0, 1).index_select(0, at)
                brought = pattern * torch.einsum("rhd,thd->rht", o, values)
                sizes[number] = sizes[number] + brought.abs().sum((1, 2)).cpu().to(sizes[number])
                if loading is not None:
                    yield layer, self._chosen(space, end, rows[number], o, pattern, brought, loading[end.edge - int(edges[0]), layer])
        for of, size in zip(rows, sizes, strict=True):
            self.l1[of] = size.to(self.l1)

    def _chosen(
        self,
        space: HeadSpace,
        end: Ends,
        rows: Int[Tensor, " rows"],
        o: Float[Tensor, "rows heads d_head"],
        pattern: Float[Tensor, "rows heads positions"],
        brought: Float[Tensor, "rows heads positions"],
        loading: Float[Tensor, "pairs heads positions"],
    ) -> _Chosen:
        """The heads of a layer that carry enough of what their rows are asked about."""
        mass = torch.zeros(brought.shape, dtype=torch.float64).index_add(0, end.row, loading.double().abs())
        enough = self.least * self._scale[self._roots(rows)]
        is_chosen = (mass > 0) & (mass >= enough[:, None, None])
        row, head, position = is_chosen.nonzero(as_tuple=True)
        number = torch.full(mass.shape, -1).index_put((row, head, position), torch.arange(len(row)))
        pair, *at = ((loading != 0) & is_chosen[end.row]).nonzero(as_tuple=True)
        there = tuple(index.to(o.device) for index in (row, head, position))
        cotangent = space.pulled(o[there[:2]] * pattern[there][:, None], *there[1:])
        return _Chosen(rows[row], head, position, brought[there], cotangent, number[end.row[pair], at[0], at[1]], end.edge[pair])

    def _roots(self, rows: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """The rows of the graph at the ends of rows."""
        first = len(self.given.targets)
        return torch.tensor([row if row < first else self.heads[row - first].root for row in rows.tolist()], dtype=torch.int64)

    def _below(self, level: _Level, chosen: Mapping[int, Sequence[_Chosen]]) -> _Level | None:
        """The rows of the heads that were chosen, layer by layer, and the sources that come to each."""
        first, targets, numbers, pairs = len(self.l1), list[TargetEnd](), list[Tensor](), list[Tensor]()
        for layer in sorted(chosen):
            several = [each for each in chosen[layer] if len(each.row)]
            for each in several:
                pairs.append(torch.stack([len(self.l1) + each.asked, each.pair]))
                self._add(layer, each)
            if several:
                column = {name: torch.cat([getattr(each, name) for each in several]) for name in ("head", "position", "value", "cotangent")}
                position, head = (column[name].to(column["value"].device) for name in ("position", "head"))
                there = Targets(position, head, column["value"], column["cotangent"])
                targets.append(TargetEnd(there, Site(layer, "resid_pre"), False, frozenset()))
                numbers.append(torch.arange(first, first := len(self.l1)))
        if not targets:
            return None
        target, pair = torch.cat(pairs, dim=1)
        target, order = target.sort(stable=True)
        pair = pair[order]
        return _Level(targets, numbers, torch.arange(len(self.l1)), level.source[pair], level.origin[pair], target)

    def _add(self, layer: int, each: _Chosen) -> None:
        """Number heads behind all rows so far."""
        count, weight = len(each.row), each.value.cpu().to(self.value)
        columns = each.row.tolist(), self._roots(each.row).tolist(), [layer] * count, each.head.tolist(), each.position.tolist()
        self.through.append(Entries(each.row, len(self.l1) + torch.arange(count), weight))
        self.heads += map(HeadRow, *columns)
        self.value = torch.cat([self.value, weight])
        self.l1 = torch.cat([self.l1, weight.abs()])
