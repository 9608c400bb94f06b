"""What every source brings to the stream that each layer's attention reads: tangents of several places on one way up (join.py).

Of one prompt. Sources of all sets are numbered together, set by set; on their way they lie by position, and those of one position set by
set.
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
    number: Int[Tensor, " sources"]
    """The number of each source that goes up, by its turn on the way."""

    def at(self, position: int) -> tuple[Int[Tensor, " there"], Float[Tensor, "there d_model"]]:
        """The sources that bring something to a position, by their numbers, in no order; and what each of them brings."""
        turns, values = zip(*(way.at(0, position) for way in self.ways), strict=True)
        return self.number[torch.cat(turns)], torch.cat(values)


def rise(primal: Primal, sources: Sequence[SourceSet], top: int, between: Between) -> Iterator[tuple[int, Brought]]:
    """Every layer up to `top`, from the lowest that sources reach, with what they bring to its attention. Look at one before the next.

    Args:
        primal: of one prompt.
        sources: what they write, as often as they are there; all that they bring is linear in that.
        between: what stands on the way; of dictionaries that are passed, skip connections alone.
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
    every = torch.arange(sum(counts), device=turn[0].device).split(counts)
    number = torch.cat([every[each] for each in chosen])
    number = torch.empty_like(number).index_copy_(0, torch.cat(turn), number)
    for site, ways in ascending([RisingUp(lift, each) for each in chosen]):
        if there := [way for way in ways if way.stream is not None]:
            yield site.layer, Brought(there, number)
        if site.layer == top:
            return
