"""What every source brings to the stream that each layer's attention reads: tangents of several places on one way up.

The mirror of join.py, for one prompt. Sources of all sets are numbered together, set by set; on their way they lie by position, and those
of one position set by set. A set goes by itself until an attention has spread it, and then with all that have been spread below.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import Between
from attrib.engine.sweep.ascent import climb
from attrib.engine.sweep.cells import Cells, Cone, cells_among, cells_of, cone
from attrib.engine.sweep.join import SourceSet
from attrib.engine.sweep.primal import Primal, Seeds
from attrib.engine.sweep.steps import Flat
from attrib.engine.sweep.up import Up


@dataclass(frozen=True)
class Brought:
    """What sources bring to the stream that a layer's attention reads."""

    ways: "Sequence[RisingUp]"
    number: Int[Tensor, " sources"]
    """The number of each source, by its turn on the way."""

    def at(self, position: int) -> tuple[Int[Tensor, " there"], Float[Tensor, "there d_model"]]:
        """The sources that bring something to a position, by their numbers, in no order; and what each of them brings."""
        rows, values = zip(*(way.at(position) for way in self.ways), strict=True)
        return self.number[torch.cat(rows)], torch.cat(values)


def rise(primal: Primal, sources: Sequence[SourceSet], top: int, between: Between) -> Iterator[tuple[int, Brought]]:
    """Every layer up to `top`, from the lowest that sources reach, with what they bring to its attention. Look at one before the next.

    Args:
        primal: of one prompt.
        sources: what they write, as often as they are there; all that they bring is linear in that.
        between: what stands on the way; of dictionaries that are passed, skip connections alone.
    """
    assert len(primal.lengths) == 1
    assert not any(len(passing.token) for passing in between.passing)
    token = torch.cat([next(iter(source.writes.values())).token for source in sources])
    number = token.argsort(stable=True)
    turn = torch.empty_like(number).index_copy_(0, number, torch.arange(len(number), device=number.device))
    ways, first, end = list[RisingUp](), 0, Site(top, "resid_pre")
    for source in sources:
        count = len(next(iter(source.writes.values())).token)
        if count and min(site.depth for site in source.writes) <= end.depth:
            ways.append(RisingUp(primal, turn[first : first + count], source, Site(top, "z"), between))
        first += count
    for layer, going in _ascend(ways, end):
        there = [way for way in going if way.stream is not None]
        if there:
            yield layer, Brought(there, number)


def _ascend(ways: "Sequence[RisingUp]", top: Site) -> "Iterator[tuple[int, list[RisingUp]]]":
    """Every layer's attention from the lowest beginning up to the last, with all that is under way: the mirror of `route.descend`."""
    joining = sorted(ways, key=lambda way: way.start.depth, reverse=True)  # the next to join is the last
    going: list[RisingUp] = []
    for site in climb(joining[-1].start, top) if joining else ():
        while joining and joining[-1].start == site:
            going.append(joining.pop())
            going[-1].part = going[-1].begin()
        _step(going, site)
        if site.kind == "resid_pre":
            going = _come_together([way for way in going if not way.is_over(site)])
            yield site.layer, going


def _step(ways: "Sequence[RisingUp]", site: Site) -> None:
    """All of them to the next place. A function of its own, so that no name is left of one that goes on within another."""
    for way in ways:
        way.step(site)


def _come_together(going: "list[RisingUp]") -> "list[RisingUp]":
    """Those that go on, at a place of the stream: of all that have been spread, one."""
    spread = [way for way in going if way.is_spread]
    if len(spread) < 2:
        return going
    spread[0].take_in(spread[1:])
    return [spread[0], *(way for way in going if not way.is_spread)]


class RisingUp(Up):
    """One set of sources on its way up, or those that have come together."""

    def __init__(self, primal: Primal, rows: Int[Tensor, " sources"], source: SourceSet, to: Site, between: Between) -> None:
        """Make one.

        Args:
            rows: the turn of each source among all, ascending.
        """
        start = min(source.writes, key=lambda site: site.depth)
        self.rows, self.token, self.is_brought = rows, source.writes[start].token, source.is_brought
        self.parts: list[tuple[Tensor, Mapping[Site, Seeds]]] = [(rows, source.writes)]
        super().__init__(primal, start, source.writes, _cone(primal, self.token), to, between)
        if not source.is_brought:  # then they come in where all that is written comes in, behind what the model brings
            self.written |= {self.start}

    def begin(self) -> Tensor | None:
        """A copy of the rows that the model brings to `start`, which may be overwritten; None where sources write there."""
        return self.first.value.clone() if self.is_brought else None

    def is_over(self, site: Site) -> bool:
        """Whether nothing is left of the rows above a place of the stream."""
        return self.stream is None and not self.waiting and not any(each.depth > site.depth for each in self.written)

    def at(self, position: int) -> tuple[Int[Tensor, " there"], Flat]:
        """The turns of the rows that live at a position, and what stands there."""
        assert self.stream is not None
        cells = cells_of(self.cone, 0, self.primal.lengths[0], self.token.device)
        first, end = cells.alive[position]
        return self.rows[first:end], self.stream.index_select(0, cells.at(position))

    def seeded(self, site: Site) -> Tensor:
        """What some of the rows write at a place."""
        if not self.is_spread:
            return super().seeded(site)
        (length,) = self.primal.lengths
        out = self.token.new_zeros(self.up.cells, self.first.value.shape[1], dtype=self.first.value.dtype)
        cells = cells_of(self.up, 0, length, self.token.device)
        for rows, writes in self.parts:
            if (seeds := writes.get(site)) is not None:
                out = out if seeds.value.shape[1] == out.shape[1] else out.new_zeros(self.up.cells, seeds.value.shape[1])
                place = torch.searchsorted(self.rows, rows)
                out.index_copy_(0, cells.start[place] + cells.step[place] * seeds.token, seeds.value)
        return out

    def take_in(self, others: "Sequence[RisingUp]") -> None:
        """Go on with others' rows too, in one cone, at a place of the stream: all have been spread."""
        ways = [self, *others]
        rows, order = torch.cat([way.rows for way in ways]).sort()
        token = torch.cat([way.token for way in ways]).index_select(0, order)
        whole = _cone(self.primal, token)
        cells = cells_of(whole, 0, self.primal.lengths[0], token.device)
        moves = [cells_among(way.up, [torch.searchsorted(rows, way.rows)], [cells]) for way in ways]
        self.stream = _together(moves, [way.stream for way in ways], whole.cells)
        for number, waiting in enumerate(self.waits):
            waiting.skip = _together(moves, [way.waits[number].skip for way in ways], whole.cells)
        self.waiting = set[int]().union(*(way.waiting for way in ways))
        self.written = set[Site]().union(*(way.written for way in ways))
        self.parts = [part for way in ways for part in way.parts]
        self.rows, self.token, self.up = rows, token, whole
        self.cone, self.cells = whole, list[Cells]()
        for way in others:  # whoever still knows them shall not keep their rows
            way.stream, way.waits = None, []


def _cone(primal: Primal, token: Int[Tensor, " rows"]) -> Cone:
    return cone([token.tolist()], primal.lengths, "up", primal.pieces.band)


def _together(moves: Sequence[Tensor], parts: Sequence[Flat | None], cells: int) -> Flat | None:
    """Rows of all ways in one cone; None are zeros."""
    there = [(move, flat) for move, flat in zip(moves, parts, strict=True) if flat is not None]
    if not there:
        return None
    out = there[0][1].new_zeros(cells, there[0][1].shape[1])
    for move, flat in there:
        out.index_copy_(0, move, flat)
    return out
