"""What a way holds, step by step: the ways down and up of route.py and ascent.py, taken by the sizes of rows in place of the rows.

Whatever is under way when a step is taken is counted, with what the step makes and what its products are made in (sizes.py).
So nothing that a sweep keeps alive can be missing, whatever stands between. Rows change in place where compute.py and up.py
change them in place: there the same object comes out that went in.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

from attrib.core.types import Site
from attrib.engine.blocks.passing import place_of
from attrib.engine.plan.sizes import Sizes
from attrib.engine.plan.task import Counts, Task
from attrib.engine.sweep.ascent import Ascent
from attrib.engine.sweep.route import Descent
from attrib.models.transformer import width


@lru_cache(maxsize=64)
def sizes_of(task: Task) -> Sizes:
    """Of the steps of one piece of work, which every way of its plan shares."""
    return Sizes(task)


class Held:
    """So many numbers in one piece of memory; the same object is the same memory."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class Waits(NamedTuple):
    """What waits in a dictionary: numbers of its terms, and what its skip connection reads."""

    terms: Held
    skip: Held | None


@runtime_checkable
class Holder(Protocol):
    """A way, or several in one room, that keep rows alive."""

    def under_way(self) -> Iterator[Held | None]:
        """All rows that it has."""


@dataclass
class Room:
    """Where rows of one or more ways are, and the most that there has been at once."""

    kept: int = 0
    """Beside the ways: tangents that were lifted."""
    most: int = 0
    ways: list[Holder] = field(default_factory=list)

    def take(self, *rows: Held | None, made: int = 0) -> None:
        """Have a step taken: with these rows, which may be under way as well, and this beside them."""
        there = {id(held): held.size for way in self.ways for held in way.under_way() if held is not None}
        there |= {id(held): held.size for held in rows if held is not None}
        self.most = max(self.most, self.kept + sum(there.values()) + made)

    def make(self, size: int, *rows: Held | None, made: int = 0) -> Held:
        """Have a step make so many numbers anew."""
        out = Held(size)
        self.take(out, *rows, made=made)
        return out

    def change(self, rows: Held, *others: Held | None, made: int = 0) -> Held:
        """Have a step change rows in place."""
        self.take(rows, *others, made=made)
        return rows


class DownSizes(Descent[Held]):
    """What compute.py's `Down` holds, step by step."""

    def __init__(
        self,
        room: Room,
        task: Task,
        wanted: Collection[Site],
        brought: Collection[Site],
        *,
        stop: Site | None = None,
        stops_below: bool = False,
        in_heads: bool = False,
    ) -> None:
        super().__init__(
            task.config, task.policy, stop or task.stop, task.held, task.passed, wanted, brought=brought, stops_below=stops_below,
            in_heads=in_heads,
        )  # fmt: skip
        self.room, self.task, self.sizes = room, task, sizes_of(task)
        self.waits: dict[int, Waits] = {}
        self.is_met = False
        room.ways.append(self)

    def under_way(self) -> Iterator[Held | None]:
        """The rows of route.py, and what waits in dictionaries."""
        yield from (self.stream, self.part, self.beside, self.written)
        for waits in self.waits.values():
            yield from waits

    @property
    def cells(self) -> int:
        """Rows at all positions where they live."""
        return self.sizes.cells(True, self.is_spread)

    def _mlp(self, layer: int) -> int:
        return self.sizes.mlp(True, self.is_spread) if self.task.passes_mlp(layer) else 0

    def add(self, a: Held, b: Held) -> Held:
        """In the memory of `b`."""
        return self.room.change(b, a)

    def through_mlp(self, layer: int, stream: Held, keeps: bool) -> Held:
        """In place, or on a copy."""
        made = self._mlp(layer)
        return self.room.make(stream.size, stream, made=made) if keeps else self.room.change(stream, made=made)

    def through_mlp_alone(self, layer: int, rows: Held) -> Held:
        """In place."""
        return self.room.change(rows, made=self._mlp(layer))

    def through_matrices(self, layer: int, rows: Held) -> Held:
        """Anew."""
        return self.room.make(rows.size, rows, made=self.sizes.matrices(True, self.is_spread))

    def through_norm(self, layer: int, rows: Held) -> Held:
        """Anew."""
        return self.room.make(rows.size, rows, made=self.sizes.norm(True, self.is_spread))

    def through_output(self, layer: int, rows: Held) -> Held:
        """Anew, in the width of all heads."""
        return self.room.make(self.cells * self.task.d_q, rows, made=self.sizes.output(True, self.is_spread))

    def through_attention(self, layer: int, below: Held | None, written: Held) -> Held:
        """In the memory of what goes by beside it, where that is."""
        return self._attended(below, written, written.size)

    def through_heads(self, layer: int, below: Held | None, z: Held) -> Held:
        """The same."""
        return self._attended(below, z, self.cells * self.config.d_model)

    def _attended(self, below: Held | None, given: Held, size: int) -> Held:
        made = self.sizes.attention(is_down=True)
        return self.room.make(size, given, made=made) if below is None else self.room.change(below, given, made=made)

    def spread(self, layer: int, below: Held | None, z: Held) -> Held:
        """To the cone, and then what waits in skip connections too."""
        out = self.room.make(self.sizes.down * self.config.d_model, below, z, made=self.sizes.spread(is_down=True))
        for number, waits in self.waits.items():
            if waits.skip is not None:
                wide = self.room.make(self.sizes.down * self.task.passed[number].d_in, out, z, below)
                self.waits[number] = waits._replace(skip=wide)
            if not self.config.causal:
                terms = self.room.make(self.sizes.met(self.task.passed[number], self.task.down()), out, z, below)
                self.waits[number] = self.waits[number]._replace(terms=terms)
        return out

    def enter(self, number: int, site: Site, rows: Held) -> None:
        """As numbers of the terms; those that have come before through another place are added to."""
        passed = self.task.passed[number]
        alive: Counts = self.task.down() if self.is_spread else self.task.targets
        terms = self.room.make(self.sizes.met(passed, alive), rows, made=self.sizes.writing(passed, width(self.config, site)))
        before = self.waits.get(number)
        skip = self.room.make(self.cells * passed.d_in, terms, rows) if passed.has_skip else None
        self.waits[number] = Waits(terms, skip if before is None or skip is None or before.skip is None else before.skip)

    def arrive(self, number: int) -> Held:
        """In the memory of what the skip connection reads, where there is one."""
        passed, (_, skip) = self.task.passed[number], self.waits[number]
        made = self.sizes.reading(passed)
        out = self.room.make(self.cells * passed.d_in, made=made) if skip is None else self.room.change(skip, made=made)
        del self.waits[number]
        return out

    def read_heads(self, layer: int, stream: Held, z: Held | None) -> None:
        """Chunk by chunk, beside the sources in head space, which in a parallel block pass the MLP."""
        self._reads_heads(layer, stream, z, self.sizes)

    def _reads_heads(self, layer: int, stream: Held, z: Held | None, sizes: Sizes, beside: int = 0) -> None:
        """Against the sources of `sizes`, with so many numbers beside."""
        self.room.take(stream, z, made=sizes.heads() + beside)
        if self.config.parallel and self.task.passes_mlp(layer):
            self.room.take(stream, z, made=sizes.with_mlp() + beside)

    def read(self, site: Site, rows: Held, is_brought: bool) -> None:
        """Against what is seeded there."""
        self.is_met = self.is_met or is_brought
        self.room.take(rows, made=self.sizes.read(width(self.config, site)) if self.is_spread else 0)


def size_of_meeting(sizes: Sizes, is_down_spread: bool, is_up_spread: bool, width: int, layer: int | None = None) -> int:
    """What rows of both sides are contracted in, at one place, or about the MLP of a layer.

    Args:
        sizes: of the targets of the one side and the sources of the other.
    """
    passes = layer is not None and sizes.task.passes_mlp(layer)
    if is_down_spread and is_up_spread:
        return sizes.meeting(passes, width)
    # whichever side is still at its own positions goes through the MLP
    made = (sizes.mlp(True, False) if is_up_spread else sizes.with_mlp()) if passes else 0
    return max(made, sizes.gathered(not is_up_spread) * width if is_down_spread or is_up_spread else 0)


class UpSizes(Ascent[Held]):
    """What up.py's `Up` holds, step by step."""

    def __init__(
        self,
        room: Room,
        task: Task,
        start: Site,
        to: Site,
        writes: Collection[Site],
        *,
        meets: Collection[Site] = (),
        is_written: bool = False,
    ) -> None:
        below = [site for site in map(place_of, writes) if site.depth < to.depth]
        super().__init__(task.config, task.policy, start, to, task.held, task.passed, below, meets=meets, is_written=is_written)
        self.room, self.task, self.sizes = room, task, sizes_of(task)
        self.waits: dict[int, Waits] = {}
        room.ways.append(self)

    def under_way(self) -> Iterator[Held | None]:
        """The rows of ascent.py, and what waits in dictionaries."""
        yield from (self.stream, self.part, self.read, self.kept)
        for waits in self.waits.values():
            yield from waits

    def _rows(self, size: int, made: int, *rows: Held | None) -> Held:
        """Rows of this width that a step makes anew, on all cells."""
        return self.room.make(self.sizes.cells(False, self.is_spread) * size, *rows, made=made)

    def _spread_rows(self, size: int, made: int, *rows: Held | None) -> Held:
        """Rows of this width on the cone, which are not yet counted as spread."""
        return self.room.make(self.sizes.up * size, *rows, made=made)

    def add(self, a: Held, b: Held) -> Held:
        """In the memory of `b`."""
        return self.room.change(b, a)

    def through_attention(self, layer: int, stream: Held, read: Held, keeps: bool) -> Held:
        """From seeds to the cone; there in place, or on a copy."""
        if not self.is_spread:
            return self._spread_rows(self.config.d_model, self.sizes.spread(is_down=False), stream, read)
        if keeps:
            return self._rows(self.config.d_model, self.sizes.attention(is_down=False), stream, read)
        return self.room.change(stream, read, made=self.sizes.attention(is_down=False))

    def through_attention_alone(self, layer: int, read: Held) -> Held:
        """Anew."""
        return self.through_attention(layer, read, read, keeps=True)

    def through_heads(self, layer: int, read: Held) -> Held:
        """Anew, in the width of all heads."""
        made = self.sizes.attention(is_down=False) if self.is_spread else self.sizes.spread_heads()
        return self._spread_rows(self.task.d_q, made, read)

    def through_output(self, layer: int, rows: Held) -> Held:
        """Anew."""
        return self._rows(self.config.d_model, self.sizes.output(False, self.is_spread), rows)

    def through_mlp(self, layer: int, stream: Held, keeps: bool) -> Held:
        """In place, or on a copy; seeded rows anew, beside the pieces that they are put together from."""
        if not self.task.passes_mlp(layer):
            return self._rows(self.config.d_model, 0, stream) if keeps and self.is_spread else stream
        made = self.sizes.mlp(False, self.is_spread)
        if not self.is_spread:
            return self._rows(self.config.d_model, made + 2 * self.task.n_sources * self.config.d_model, stream)
        if keeps:
            return self._rows(self.config.d_model, made, stream)
        return self.room.change(stream, made=made)

    def through_mlp_alone(self, layer: int, read: Held) -> Held:
        """On a copy."""
        return self._rows(self.config.d_model, self.sizes.mlp(False, self.is_spread) if self.task.passes_mlp(layer) else 0, read)

    def through_norm(self, layer: int, read: Held) -> Held:
        """Anew."""
        return self._rows(self.config.d_model, self.sizes.norm(False, self.is_spread), read)

    def through_matrices(self, layer: int, rows: Held) -> Held:
        """Anew."""
        return self._rows(self.config.d_model, self.sizes.matrices(False, self.is_spread), rows)

    def widen(self, rows: Held) -> Held:
        """On the cone."""
        return self._spread_rows(self.config.d_model, 0, rows)

    def widen_waiting(self) -> None:
        """What skip connections read."""
        for number, waits in self.waits.items():
            if waits.skip is not None:
                self.waits[number] = waits._replace(skip=self._spread_rows(self.task.passed[number].d_in, 0))
            if not self.config.causal:
                terms = self.room.make(self.sizes.met(self.task.passed[number], self.task.up()))
                self.waits[number] = self.waits[number]._replace(terms=terms)

    def enter(self, number: int, rows: Held) -> None:
        """As numbers of the terms, and as they are for the skip connection."""
        passed = self.task.passed[number]
        alive: Counts = self.task.up() if self.is_spread else self.task.sources
        terms = self.room.make(self.sizes.met(passed, alive), rows, made=self.sizes.reading(passed))
        self.waits[number] = Waits(terms, self._rows(passed.d_in, 0, terms, rows) if passed.has_skip else None)

    def arrive(self, number: int, site: Site, is_last: bool) -> Held:
        """Anew."""
        size = width(self.config, site)
        out = self._rows(size, self.sizes.writing(self.task.passed[number], size))
        if is_last:
            del self.waits[number]
        return out

    def seeded(self, site: Site) -> Held:
        """Anew, where the others are."""
        return self._rows(width(self.config, site), 0)
