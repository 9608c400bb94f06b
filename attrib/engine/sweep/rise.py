"""What every source brings to the stream that each layer's attention reads: tangents of several places on one way up (join.py).

Of one prompt. On their way sources lie by position, and those of one position set by set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import Between
from attrib.engine.sweep.ascent import ascending
from attrib.engine.sweep.join import Lift, RisingUp, SourceSet
from attrib.engine.sweep.primal import Primal


@dataclass(frozen=True)
class Brought:
    """What sources bring to the stream that a layer's attention reads."""

    ways: Sequence[RisingUp]
    name: Int[Tensor, " sources"]
    """What each source that goes up is called, by its turn on the way."""

    def count(self, position: int) -> int:
        """How many sources bring something to a position."""
        return sum(end - first for first, end in self._alive(position))

    def at(self, position: int) -> tuple[Int[Tensor, " there"], Float[Tensor, "there d_model"]]:
        """The sources that bring something to a position, by their names, which ascend; and what each of them brings."""
        ways = [way for way, (first, end) in zip(self.ways, self._alive(position), strict=True) if first < end]
        if not ways:
            return self.name[:0], self.ways[0].rows[:0]
        turns, cells = zip(*(way.where(0, position) for way in ways), strict=True)
        name, order = self.name[torch.cat(turns)].sort()
        places = order.argsort().split([len(turn) for turn in turns])
        # the rows of most are copied once, to where they belong, and those of the others over what stands in their places
        most = max(range(len(ways)), key=lambda number: len(turns[number]))
        x = ways[most].rows.index_select(0, cells[most].new_zeros(len(name)).index_copy_(0, places[most], cells[most]))
        for number, way in enumerate(ways):
            if number != most:
                x.index_copy_(0, places[number], way.rows.index_select(0, cells[number]))
        return name, x

    def _alive(self, position: int) -> list[tuple[int, int]]:
        return [way.places()[0].alive[position] for way in self.ways]


def rise(
    primal: Primal, sources: Sequence[SourceSet], top: int, between: Between, name: Int[Tensor, " sources"]
) -> Iterator[tuple[int, Brought]]:
    """Every layer up to `top`, from the lowest that sources reach, with what they bring to its attention. Look at one before the next.

    Args:
        primal: of one prompt.
        sources: what they write, as often as they are there; all that they bring is linear in that.
        between: what stands on the way; of dictionaries that are passed, skip connections alone.
        name: what each source is called, set by set; no two have one name.
    """
    assert len(primal.lengths) == 1
    assert not any(len(passing.token) for passing in between.passing)
    counts = [len(source.seeds.token) for source in sources]
    chosen = [number for number, source in enumerate(sources) if counts[number] and source.start.depth <= (top, 0)]
    if not chosen:
        return
    # the last place, which is never come to, lies behind what the highest attention reads
    lift = Lift(primal, Site(top, "z"), (), sources, chosen, between)
    (turn,) = zip(*(lift.columns[number] for number in chosen), strict=True)
    every = name.to(turn[0].device).split(counts)
    chosen_names = torch.cat([every[each] for each in chosen])
    by_turn = torch.empty_like(chosen_names).index_copy_(0, torch.cat(turn), chosen_names)
    for site, ways in ascending([RisingUp(lift, each) for each in chosen]):
        if there := [way for way in ways if way.stream is not None]:
            yield site.layer, Brought(there, by_turn)
        if site.layer == top:
            return
