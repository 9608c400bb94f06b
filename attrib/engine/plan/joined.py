"""What a sweep that several sets of targets and of sources join costs and holds: the ways of sweep/join.py by counts and by sizes.

Each is its route (route.py, ascent.py), as every way's count and size is (cost.py, meeting.py, held.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from attrib.core.types import Site
from attrib.engine.blocks.passing import place_of
from attrib.engine.plan.cost import Cost, DescentCount, Moving, attention, meet_seeded, mlp_point, mlp_rows, readout
from attrib.engine.plan.held import DownSizes, Held, Room, UpSizes, Waits, size_of_meeting, sizes_of
from attrib.engine.plan.joint import Joint, SourceCounts, TargetCounts, added
from attrib.engine.plan.meeting import AscentCount, count_meeting
from attrib.engine.plan.task import Counts, Seeded
from attrib.engine.sweep.ascent import Rising, ascend, reading_place
from attrib.engine.sweep.primal import is_spread_above
from attrib.engine.sweep.route import Joining, descend
from attrib.models.transformer import width


def sources_at(joint: Joint, end: TargetCounts, stop: Site, site: Site, is_brought: bool) -> list[tuple[int, SourceCounts]]:
    """What a way of some targets reads out at a place, with the numbers of the sets."""
    barred = end.barred if site == stop else frozenset()
    return [
        (number, each)
        for number, each in enumerate(joint.sources)
        if each.is_brought == is_brought and number not in barred and site in map(place_of, each.writes)
    ]


# ------------------------------------------------------------------------------------ what it costs


class _JoiningCount(DescentCount, Joining[Moving]):
    """One set of targets on its way down, or those that have come together, counted."""

    def __init__(self, joint: Joint, end: TargetCounts, cost: Cost, to: Site | None) -> None:
        super().__init__(
            replace(joint.whole, targets=end.counts), joint.written(to), joint.brought(to), stop=end.stop, stops_below=end.stops_below
        )  # fmt: skip
        self.in_heads = to is None and joint.reads_in_heads and is_spread_above(joint.config, self.start, self.stop)
        self.joint, self.end, self.cost, self.to = joint, end, cost, to

    def begin(self) -> Moving:
        """Counts that are there."""
        return Moving()

    def take_in(self, others: Sequence[Any]) -> None:
        """Count the rows of all."""
        ways: list[_JoiningCount] = [self, *others]
        self.stream = self.part = Moving() if any(way.stream is not None for way in ways) else None
        self.task = replace(self.task, targets=added([way.task.targets for way in ways]))
        self.alive = self.task.down()
        self.waits = _waits_together(ways)
        self.waiting = set(self.waits)

    def read(self, site: Site, rows: Moving, is_brought: bool) -> None:
        if is_brought and site == self.to:
            return
        for _, each in sources_at(self.joint, self.end, self.stop, site, is_brought):
            task = replace(self.task, sources=each.counts)
            if self.is_spread:
                readout(task, self.cost, False, width(self.config, site))
            else:
                meet_seeded(task, self.cost, width(self.config, site))

    def read_heads(self, layer: int, stream: Moving, z: Moving | None) -> None:
        d, d_heads = self.config.d_model, self.task.d_heads
        attention(self.task, self.cost, up=False, is_from_z=z is not None, is_to_heads=True)
        for is_brought in (False, True):
            for _, each in sources_at(self.joint, self.end, self.stop, self.start, is_brought):
                task = replace(self.task, sources=each.counts)
                if self.config.parallel and task.passes_mlp(layer):  # which sources pass, and not the cone
                    mlp_rows(task, self.cost, "readout", task.n_sources)
                    mlp_point(task, self.cost)
                self.cost.mm("readout", task.n_sources, d, d_heads)
                readout(task, self.cost, False, d + d_heads)


class _RisingCount(AscentCount, Rising[Moving]):
    """One set of sources on its way up, or those that have come together, counted."""

    def __init__(self, joint: Joint, number: int, cost: Cost, to: Site, met: Mapping[Site, Sequence[_JoiningCount]]) -> None:
        each = joint.sources[number]
        super().__init__(
            replace(joint.whole, sources=each.counts), each.start, to, each.writes, meets=met, is_written=not each.is_brought
        )  # fmt: skip
        self.cost, self.met = cost, met

    def begin(self) -> Moving | None:
        """Counts that are there, of embeddings."""
        return None if self.start in self.written else Moving()

    def take_in(self, others: Sequence[Any]) -> None:
        """Count the rows of all."""
        ways: list[_RisingCount] = [self, *others]
        self.stream = Moving() if any(way.stream is not None for way in ways) else None
        self.task = replace(self.task, sources=added([way.task.sources for way in ways]))
        self.alive = self.task.up()
        self.waits = _waits_together(ways)
        self.waiting = set(self.waits)
        self.written = set[Site]().union(*(way.written for way in ways))

    def meet(self, site: Site, rows: Moving | None) -> None:
        for way in self.met[site]:
            count_met(way, self, rows, self.cost, site)


def count_met(way: _JoiningCount, up: _RisingCount, rows: Moving | None, cost: Cost, place: Site) -> None:
    """Count what meets at a place."""
    task = replace(way.task, sources=up.task.sources)
    count_meeting(task, cost, way, up, way.part is not None and rows is not None, place)


def _waits_together(ways: "Sequence[_JoiningCount] | Sequence[_RisingCount]") -> dict[int, Counts]:
    found: dict[int, list[Counts]] = {}
    for way in ways:
        for number in way.waiting:
            found.setdefault(number, []).append(way.waits[number])
    return {number: added(counts) for number, counts in found.items()}


class Raised(NamedTuple):
    """A way up that has been counted."""

    cost: Cost
    ways: Sequence[_RisingCount]
    """Those that have come to its end."""


def lift_cost(joint: Joint) -> Raised:
    """Count `join.lift`."""
    cost = Cost(joint.itemsize)
    if joint.meets is None:
        return Raised(cost, ())
    met: dict[Site, list[_JoiningCount]] = {}
    for number in joint.below:
        at = reading_place(joint.config, (end := joint.targets[number]).stop)
        for way in descend([_JoiningCount(joint, end, cost, at)] if _any(end.counts) else []):
            if way.part is not None or way.waiting:
                met.setdefault(at, []).append(way)
    ways = [_RisingCount(joint, number, cost, joint.meets, met) for number in joint.lifted if _any(joint.sources[number].counts)]
    return Raised(cost, ascend(ways))


def sweep_cost(joint: Joint, raised: Raised) -> Cost:
    """Count `join.join`, of all rows that stop above where sources have been lifted to."""
    cost = Cost(joint.itemsize)
    ways = [_JoiningCount(joint, end, cost, joint.meets) for end in joint.targets if _any(end.counts)]
    for way in descend(ways):
        for up in raised.ways:
            assert joint.meets is not None
            count_met(way, up, up.part, cost, joint.meets)
    return cost


def _any(counts: Counts) -> bool:
    return any(map(any, counts))


# ------------------------------------------------------------------------------------ what it holds


class _Tables:
    """What a sweep has found, as `_Sweep` of join.py keeps it."""

    def __init__(self, room: Room, rows: Seeded) -> None:
        self.room, self.rows, self.blocks = room, rows, dict[object, tuple[Counts, Held]]()
        room.ways.append(self)

    def under_way(self) -> Iterator[Held | None]:
        """All blocks."""
        yield from (held for _, held in self.blocks.values())

    @property
    def size(self) -> int:
        """Entries of all blocks."""
        return sum(held.size for _, held in self.blocks.values())

    def add(self, of: object, rows: Counts, columns: Counts, *there: Held | None, made: int) -> None:
        """Have some rows read out or met, in so many numbers beside."""
        own, block = self.blocks.get(of, (rows, None))
        if block is not None and own == rows:
            self.room.make(0, *there, made=made)
            return
        out = self.room.make(_entries(rows, columns), *there, made=made)
        if block is None:
            self.blocks[of] = rows, out
        elif own != self.rows:
            self.blocks[of] = self.rows, self.room.make(_entries(self.rows, columns), out, *there)


def _entries(rows: Counts, columns: Counts) -> int:
    return sum(sum(own) * sum(others) for own, others in zip(rows, columns, strict=True))


class _JoiningSizes(DownSizes, Joining[Held]):
    """One set of targets on its way down, or those that have come together, by what they hold."""

    def __init__(self, joint: Joint, end: TargetCounts, room: Room, tables: _Tables, to: Site | None) -> None:
        super().__init__(
            room, replace(joint.whole, targets=end.counts), joint.written(to), joint.brought(to), stop=end.stop,
            stops_below=end.stops_below,
        )  # fmt: skip
        self.in_heads = to is None and joint.reads_in_heads and is_spread_above(joint.config, self.start, self.stop)
        self.joint, self.end, self.tables, self.to = joint, end, tables, to

    def begin(self) -> Held:
        """A copy of the cotangents."""
        return Held(self.task.n_targets * width(self.config, self.stop))

    def take_in(self, others: Sequence[Any]) -> None:
        """Anew, in one cone, beside those that come together until all of them are in it."""
        ways: list[_JoiningSizes] = [self, *others]
        alive = sum(way.sizes.down for way in ways)
        self.task = replace(self.task, targets=added([way.task.targets for way in ways]))
        self.sizes = sizes_of(self.task)
        if any(way.stream is not None for way in ways):
            self.stream = self.part = self.room.make(alive * self.config.d_model, made=2 * alive)  # and the place of each cell
        _together(self, others)

    def read(self, site: Site, rows: Held, is_brought: bool) -> None:
        if is_brought and site == self.to:
            return
        read = self.sizes.read(width(self.config, site)) if self.is_spread else 0
        for number, each in sources_at(self.joint, self.end, self.stop, site, is_brought):
            self.tables.add(number, self.task.targets, each.counts, rows, made=read)

    def read_heads(self, layer: int, stream: Held, z: Held | None) -> None:
        chosen = [one for is_brought in (False, True) for one in sources_at(self.joint, self.end, self.stop, self.start, is_brought)]
        there = self.sizes.against(added([each.counts for _, each in chosen]))
        found = sum(_entries(self.task.targets, each.counts) for _, each in chosen)
        self._reads_heads(layer, stream, z, there, beside=found)
        for number, each in chosen:
            self.tables.add(number, self.task.targets, each.counts, stream, z, made=0)


class _RisingSizes(UpSizes, Rising[Held]):
    """One set of sources on its way up, or those that have come together, by what they hold."""

    def __init__(self, joint: Joint, number: int, room: Room, to: Site, met: Mapping[Site, Sequence[_JoiningSizes]]) -> None:
        each = joint.sources[number]
        super().__init__(
            room, replace(joint.whole, sources=each.counts), each.start, to, each.writes, meets=met, is_written=not each.is_brought
        )  # fmt: skip
        self.met = met

    def begin(self) -> Held | None:
        """Embeddings, which are there all the time."""
        return None if self.start in self.written else Held(0)

    def take_in(self, others: Sequence[Any]) -> None:
        """Anew, in one cone, beside those that come together until all of them are in it."""
        ways: list[_RisingSizes] = [self, *others]
        alive = sum(way.sizes.up for way in ways)
        self.task = replace(self.task, sources=added([way.task.sources for way in ways]))
        self.sizes = sizes_of(self.task)
        if any(way.stream is not None for way in ways):
            self.stream = self.room.make(alive * self.config.d_model, made=2 * alive)
        self.written = set[Site]().union(*(way.written for way in ways))
        _together(self, others)

    def meet(self, site: Site, rows: Held | None) -> None:
        for way in self.met[site]:
            hold_met(way, self, rows is not None, site, rows)


def _together(way: "_JoiningSizes | _RisingSizes", others: "Sequence[_JoiningSizes] | Sequence[_RisingSizes]") -> None:
    """What waits of all of them; and let go of the others."""
    ways = [way, *others]
    waiting = set[int]().union(*(each.waiting for each in ways))
    for number in waiting:
        there = [each.waits[number] for each in ways if number in each.waits]
        terms = way.room.make(sum(waits.terms.size for waits in there))
        skips = [waits.skip.size for waits in there if waits.skip is not None]
        way.waits[number] = Waits(terms, way.room.make(sum(skips), terms) if skips else None)
    way.waiting = waiting
    way.room.ways = [each for each in way.room.ways if each not in others]


def hold_met(way: _JoiningSizes, up: "_RisingSizes", is_up: bool, place: Site, *there: Held | None) -> None:
    """Have what has come to a place meet there.

    Args:
        is_up: whether tangents have.
        there: what is beside the ways in the room.
    """
    sizes = sizes_of(replace(way.task, sources=up.task.sources))
    waiting = way.waiting & up.waiting
    widths = [way.task.passed[number].d_in for number in waiting if way.task.passed[number].has_skip]
    if way.part is not None and is_up:
        widths.append(width(way.config, place))
    elif not waiting:
        return
    made = max((size_of_meeting(sizes, way.is_spread, up.is_spread, each) for each in widths), default=0)
    way.tables.add(up, way.task.targets, up.task.sources, way.part, *there, made=made)


class Kept(NamedTuple):
    """A way up by what it holds."""

    most: int
    """Numbers at its fullest moment."""
    kept: int
    """Numbers that stay for all sweeps: tangents, and what targets below have found."""
    ways: Sequence[_RisingSizes]
    found: int
    """Those of them that are found."""


def lift_held(joint: Joint) -> Kept:
    """What `join.lift` holds."""
    if joint.meets is None:
        return Kept(0, 0, (), 0)
    room, met, tables = Room(), dict[Site, list[_JoiningSizes]](), list[_Tables]()
    for number in joint.below:
        at = reading_place(joint.config, (end := joint.targets[number]).stop)
        tables.append(table := _Tables(room, end.counts))
        for way in descend([_JoiningSizes(joint, end, room, table, at)] if _any(end.counts) else []):
            if way.part is not None or way.waiting:
                met.setdefault(at, []).append(way)
    ways = [_RisingSizes(joint, number, room, joint.meets, met) for number in joint.lifted if _any(joint.sources[number].counts)]
    come = ascend(ways)
    kept = {id(held): held.size for way in come for held in way.under_way() if held is not None}
    found = sum(table.size for table in tables)
    return Kept(room.most, sum(kept.values()) + found, come, found)


class Sweep(NamedTuple):
    """A way down by what it holds."""

    most: int
    """Numbers at its fullest moment, with what stays of the way up."""
    found: int
    """Numbers of the Jacobian at its end."""


def sweep_held(joint: Joint, lifted: Kept) -> Sweep:
    """What `join.join` holds."""
    room = Room(kept=lifted.kept)
    tables = _Tables(room, added([end.counts for end in joint.targets]))
    ways = [_JoiningSizes(joint, end, room, tables, joint.meets) for end in joint.targets if _any(end.counts)]
    for way in descend(ways):
        for up in lifted.ways:
            assert joint.meets is not None
            hold_met(way, up, up.part is not None, joint.meets)
    return Sweep(room.most, tables.size)
