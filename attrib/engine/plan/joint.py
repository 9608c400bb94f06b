"""The plan of a sweep that several sets of targets join: what it costs, what it holds, and in which runs of rows it is done.

There is one way, down (sweep/join.py), so that what is to be chosen is how many rows go at once. Products and memory are those of
the same route on counts and on sizes, as for every way down (cost.py, held.py).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from attrib.core.types import BudgetError, Policy, Site
from attrib.engine.blocks.passing import Passed, place_of
from attrib.engine.plan.choose import PackPlan, most_that_fit, plan_pack
from attrib.engine.plan.cost import Cost, DescentCount, Moving, attention, heads_pay, meet_seeded, mlp_point, mlp_rows, readout
from attrib.engine.plan.held import DownSizes, Held, Room, Waits, sizes_of
from attrib.engine.plan.memory import fullest, tile
from attrib.engine.plan.task import NOTHING_OPENED, Counts, Opened, Task
from attrib.engine.sweep.cells import Pieces
from attrib.engine.sweep.primal import is_spread_above
from attrib.engine.sweep.route import Joining, descend
from attrib.models.transformer import ModelConfig, width

Seeded = tuple[tuple[int, ...], ...]
"""How many rows are seeded at each position of each prompt."""


class TargetCounts(NamedTuple):
    """How many targets of one kind there are, and where they are read."""

    stop: Site
    counts: Seeded
    stops_below: bool
    barred: frozenset[int]


class SourceCounts(NamedTuple):
    """How many sources of one kind there are, and where they write."""

    writes: tuple[Site, ...]
    counts: Seeded
    is_brought: bool


class PairWay(NamedTuple):
    """What stands on the way from one kind of sources to one kind of targets, where that is swept alone."""

    held: frozenset[Site]
    passed: tuple[int, ...]
    """Numbers of the dictionaries that derivatives pass."""


@dataclass(frozen=True)
class Joint:
    """One pack's work."""

    config: ModelConfig
    policy: Policy
    start: Site
    stop: Site
    targets: tuple[TargetCounts, ...]
    sources: tuple[SourceCounts, ...]
    itemsize: int
    pieces: Pieces
    held: frozenset[Site] = frozenset()
    passed: tuple[Passed, ...] = ()
    pairs: Mapping[tuple[int, int], PairWay] = field(default_factory=dict)
    """Those that could be swept alone, by the numbers of their sources and targets."""
    opened: Opened = NOTHING_OPENED
    """What opening the bundles takes, and what they hold."""
    beside: int = 0
    """Targets that this sweep leaves to others."""
    left_out: frozenset[int] = frozenset()
    """Numbers of the sources that it leaves to others."""

    def __add__(self, other: "Joint") -> "Joint":
        """Put the work of more prompts to this one's."""

        def joined(mine: Sequence[Any], theirs: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(a._replace(counts=a.counts + b.counts) for a, b in zip(mine, theirs, strict=True))

        passed = tuple(a._replace(terms=a.terms + b.terms) for a, b in zip(self.passed, other.passed, strict=True))
        targets, sources = joined(self.targets, other.targets), joined(self.sources, other.sources)
        return replace(self, targets=targets, sources=sources, passed=passed, opened=self.opened + other.opened)

    @cached_property
    def whole(self) -> Task:
        """The same as one path from the lowest source to the highest target, with all rows."""
        is_within = any(end.stop.kind == "mlp_out" for end in self.targets)
        return Task(
            self.config, self.policy, self.start, self.stop, added([end.counts for end in self.targets]),
            added([end.counts for end in self.sources]), self.itemsize, beside=self.beside, pieces=self.pieces, held=self.held,
            passed=self.passed, opened=self.opened, ends_within=is_within,
        )  # fmt: skip

    @property
    def cells(self) -> int:
        """(row, position) pairs of the cone."""
        return sum(map(sum, self.whole.down()))

    @property
    def n_targets(self) -> int:
        """Targets of all kinds and prompts."""
        return self.whole.n_targets

    def without(self, alone: Collection[int]) -> "Joint":
        """The sweep that leaves out some sources, which have none of their numbers taken by others."""
        sources = tuple(each._replace(counts=_none(each.counts)) if n in alone else each for n, each in enumerate(self.sources))
        beside = self.beside + sum(len(self.sources[n].writes) * sum(map(sum, self.sources[n].counts)) for n in alone)
        left = [site for n, each in enumerate(self.sources) if n not in alone for site in each.writes]
        return replace(self, sources=sources, start=min(left, key=lambda site: site.depth), left_out=frozenset(alone), beside=beside)

    def pair(self, source: int, target: int) -> Task:
        """The work of one kind of sources and one kind of targets alone."""
        way, stop = self.pairs[source, target], self.targets[target].stop
        writes = tuple(site for site in self.sources[source].writes if site.depth <= stop.depth)
        return Task(
            self.config, self.policy, writes[0], stop, self.targets[target].counts, self.sources[source].counts, self.itemsize,
            pieces=self.pieces, writes=writes, held=way.held, passed=tuple(self.passed[n] for n in way.passed), opened=self.opened,
        )  # fmt: skip

    def places(self, is_brought: bool) -> set[Site]:
        """Where sources of the sweep write, or where they are what the model brings."""
        there = (each for number, each in enumerate(self.sources) if number not in self.left_out)
        return {site for each in there if each.is_brought is is_brought for site in each.writes}

    @property
    def reads_in_heads(self) -> bool:
        """Whether the lowest attention is read out in head space, where rows have been spread before."""
        low = place_of(self.start)
        if self.passed or low.kind != "resid_pre" or not all(site.layer in self.whole.shut_mlps for site in self.held):
            return False
        lowest = [end.counts for n, end in enumerate(self.sources) if low in map(place_of, end.writes) and n not in self.left_out]
        return all(heads_pay(self.whole, counts) for counts in lowest)


def _none(counts: Seeded) -> Seeded:
    return tuple((0,) * len(prompt) for prompt in counts)


def added(counts: Sequence[Counts]) -> Seeded:
    """Rows of several sets together."""
    return tuple(tuple(map(sum, zip(*prompt, strict=True))) for prompt in zip(*counts, strict=True))


def sources_at(joint: Joint, end: TargetCounts, way: DownSizes | DescentCount, site: Site, is_brought: bool) -> list[SourceCounts]:
    """What a way of some targets reads out at a place."""
    barred = end.barred if site == way.stop else frozenset()
    return [
        each
        for number, each in enumerate(joint.sources)
        if each.is_brought == is_brought and number not in barred | joint.left_out and site in map(place_of, each.writes)
    ]


def lowest(joint: Joint, end: TargetCounts, way: DownSizes | DescentCount) -> list[SourceCounts]:
    """What it reads out at the last place."""
    return sources_at(joint, end, way, way.start, False) + sources_at(joint, end, way, way.start, True)


# ------------------------------------------------------------------------------------ what it costs


def joint_cost(joint: Joint) -> Cost:
    """Count a sweep over all rows."""
    cost = Cost(joint.itemsize)
    descend([_JoiningCount(joint, end, cost) for end in joint.targets if any(map(any, end.counts))])
    return cost


class _JoiningCount(DescentCount, Joining[Moving]):
    """One set of targets on its way down, or those that have come together, counted."""

    def __init__(self, joint: Joint, end: TargetCounts, cost: Cost) -> None:
        super().__init__(
            replace(joint.whole, targets=end.counts), joint.places(False), joint.places(True), stop=end.stop, stops_below=end.stops_below
        )  # fmt: skip
        self.in_heads = joint.reads_in_heads and is_spread_above(joint.config, self.start, self.stop)
        self.joint, self.end, self.cost = joint, end, cost

    def begin(self) -> Moving:
        """Counts that are there."""
        return Moving()

    def take_in(self, others: Sequence[Any]) -> None:
        """Count the rows of all."""
        ways: list[_JoiningCount] = [self, *others]
        self.stream = self.part = Moving() if any(way.stream is not None for way in ways) else None
        self.task = replace(self.task, targets=added([way.task.targets for way in ways]))
        self.alive = self.task.down()
        waits: dict[int, list[Counts]] = {}
        for way in ways:
            for number, counts in way.waits.items():
                waits.setdefault(number, []).append(counts)
        self.waits = {number: added(counts) for number, counts in waits.items()}
        self.waiting = set(waits)

    def read(self, site: Site, rows: Moving, is_brought: bool) -> None:
        for each in sources_at(self.joint, self.end, self, site, is_brought):
            task = replace(self.task, sources=each.counts)
            if self.is_spread:
                readout(task, self.cost, False, width(self.config, site))
            else:
                meet_seeded(task, self.cost, width(self.config, site))

    def read_heads(self, layer: int, stream: Moving, z: Moving | None) -> None:
        d, d_heads = self.config.d_model, self.task.d_heads
        attention(self.task, self.cost, up=False, is_from_z=z is not None, is_to_heads=True)
        for each in lowest(self.joint, self.end, self):
            task = replace(self.task, sources=each.counts)
            if self.config.parallel and task.passes_mlp(layer):  # which sources pass, and not the cone
                mlp_rows(task, self.cost, "readout", task.n_sources)
                mlp_point(task, self.cost)
            self.cost.mm("readout", task.n_sources, d, d_heads)
            readout(task, self.cost, False, d + d_heads)


# ------------------------------------------------------------------------------------ what it holds


class _JoiningSizes(DownSizes, Joining[Held]):
    """One set of targets on its way down, or those that have come together, by what they hold."""

    def __init__(self, joint: Joint, end: TargetCounts, room: Room) -> None:
        super().__init__(
            room, replace(joint.whole, targets=end.counts), joint.places(False), joint.places(True), stop=end.stop,
            stops_below=end.stops_below,
        )  # fmt: skip
        self.in_heads = joint.reads_in_heads and is_spread_above(joint.config, self.start, self.stop)
        self.joint, self.end = joint, end

    def begin(self) -> Held:
        """A copy of the cotangents."""
        return Held(self.task.n_targets * width(self.config, self.stop))

    def take_in(self, others: Sequence[Any]) -> None:
        """Anew, in one cone, beside those that come together until all of them are in it."""
        ways: list[_JoiningSizes] = [self, *others]
        alive = [way.sizes.down for way in ways]
        self.task = replace(self.task, targets=added([way.task.targets for way in ways]))
        self.sizes = sizes_of(self.task)
        if any(way.stream is not None for way in ways):
            self.stream = self.part = self.room.make(sum(alive) * self.config.d_model, made=2 * sum(alive))  # and the place of each cell
        waiting = set[int]().union(*(way.waiting for way in ways))
        for number in waiting:
            there = [way.waits[number] for way in ways if number in way.waits]
            terms = self.room.make(sum(waits.terms.size for waits in there))
            skips = [waits.skip.size for waits in there if waits.skip is not None]
            self.waits[number] = Waits(terms, self.room.make(sum(skips), terms) if skips else None)
        self.waiting = waiting
        self.room.ways = [way for way in self.room.ways if way not in others]

    def _found(self, sources: Iterable[SourceCounts]) -> int:
        """What is read out before it is put to the Jacobian of all."""
        pairs = (zip(self.task.targets, each.counts, strict=True) for each in sources)
        return sum(sum(rows) * sum(columns) for pair in pairs for rows, columns in pair)

    def read(self, site: Site, rows: Held, is_brought: bool) -> None:
        read = self.sizes.read(width(self.config, site)) if self.is_spread else 0
        self.room.take(rows, made=self._found(sources_at(self.joint, self.end, self, site, is_brought)) + read)

    def read_heads(self, layer: int, stream: Held, z: Held | None) -> None:
        chosen = lowest(self.joint, self.end, self)
        there = sizes_of(replace(self.task, sources=added([each.counts for each in chosen])))
        self._reads_heads(layer, stream, z, there, beside=self._found(chosen))


# --------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class JointPlan:
    """In which runs of rows a pack's sweep is done, and what is swept alone."""

    joint: Joint
    sweeps: tuple[tuple[int, int], ...]
    """Runs of rows `[first, end)` in order of position; one prompt's. A pack of many prompts has one sweep over all."""
    cost: Cost
    peak: int
    """Bytes of working memory at the fullest moment."""
    alone: Mapping[tuple[int, int], PackPlan] = field(default_factory=dict)
    """Pairs of the lowest sources, each by its own way, where that takes fewer products than it would to bring all rows down to them."""

    @property
    def way(self) -> str:
        """Its name, beside those of one source and one target."""
        return "joined"

    def __str__(self) -> str:
        ways = ", ".join(sorted({plan.way for plan in self.alone.values()}))
        beside = f" and {len(self.alone)} pair(s) {ways}" if self.alone else ""
        size = f"{self.joint.n_targets} × {self.joint.whole.n_sources}"
        return f"{len(self.joint.whole.targets)} prompt(s), {size}: {self.way}, {len(self.sweeps)} sweep(s){beside}"


def joint_memory(joint: Joint) -> int:
    """Bytes at the fullest moment: of opening the bundles, or of the sweep beside what they hold."""
    room = Room()
    descend([_JoiningSizes(joint, end, room) for end in joint.targets if any(map(any, end.counts))])
    several = sum((len(each.writes) - 1) * sum(map(sum, each.counts)) for each in joint.sources) * joint.config.d_model
    sweep = fullest(joint.whole, room, pieces=tile(joint.whole)) + joint.itemsize * several
    return max(joint.opened.peak, joint.opened.held + sweep)


def plan_joint(joint: Joint, budget: int, prompt: int = 0) -> JointPlan:
    """In as few sweeps as fit; and the lowest sources apart, as far as that takes fewer products.

    Args:
        budget: bytes of working memory, beside the parameters and the result.
        prompt: the number of the pack's first prompt, for the error.

    Raises:
        BudgetError: where not even one row at a time fits; names the smallest budget that would do.
    """
    best = _together(joint, budget, prompt)
    apart: list[int] = []
    # tokens are few, and lie below everything: where they go up to each target alone, no row has to come down to them
    for number in sorted(range(len(joint.sources)), key=lambda n: min(site.depth for site in joint.sources[n].writes))[:-1]:
        apart.append(number)
        alone = _alone(joint, number, budget, best.alone)
        if alone is None or sum(plan.cost.total for plan in alone.values()) >= best.cost.total:
            break
        found = _together(joint.without(apart), budget, prompt)
        cost = sum((plan.cost for plan in alone.values()), found.cost)
        if cost.total >= best.cost.total:
            break
        best = replace(found, cost=cost, peak=max(found.peak, *(plan.peak for plan in alone.values())), alone=alone)
    return best


def _alone(joint: Joint, source: int, budget: int, others: Mapping[tuple[int, int], PackPlan]) -> dict[tuple[int, int], PackPlan] | None:
    """With others, the plans of one kind of sources to every target behind it; None where some cannot be swept alone."""
    found = dict(others)
    for number, end in enumerate(joint.targets):
        if source in end.barred or not any(map(any, end.counts)) or not any(map(any, joint.sources[source].counts)):
            continue
        if (source, number) not in joint.pairs:
            return None
        try:
            found[source, number] = plan_pack(joint.pair(source, number), budget)
        except BudgetError:
            return None
    return found


def _together(joint: Joint, budget: int, prompt: int) -> JointPlan:
    """One way down for all sources that are not left out, in as few sweeps as fit."""
    least = joint_memory(joint)
    while True:
        if (whole := joint_memory(joint)) <= budget:
            return JointPlan(joint, ((0, joint.n_targets),), joint_cost(joint), whole)
        least = min(least, whole)
        if len(joint.whole.targets) == 1 and joint.n_targets > 1:
            smallest = joint_memory(part_of(joint, joint.n_targets - 1, joint.n_targets))
            if smallest <= budget:
                return _in_sweeps(joint, budget)
            least = min(least, smallest)
        if joint.pieces.smaller == joint.pieces:
            raise BudgetError.of(budget, prompt, least)
        joint = replace(joint, pieces=joint.pieces.smaller)


def least_joint_memory(joint: Joint) -> int:
    """The smallest budget with which there is a plan for one prompt."""
    while joint.pieces.smaller != joint.pieces:
        joint = replace(joint, pieces=joint.pieces.smaller)
    return joint_memory(part_of(joint, max(0, joint.n_targets - 1), joint.n_targets))


def in_smaller_pieces(joint: Joint, plan: JointPlan) -> JointPlan:
    """The plan of one prompt out of a pack that was too large, in smaller pieces and one sweep."""
    smaller = replace(joint, pieces=plan.joint.pieces.smaller)
    return JointPlan(smaller, ((0, joint.n_targets),), joint_cost(smaller), joint_memory(smaller))


def _in_sweeps(joint: Joint, budget: int) -> JointPlan:
    """Runs of rows that fit, each as long as it may be."""
    count, first, sweeps, peak, cost = joint.n_targets, 0, [], 0, Cost(joint.itemsize)
    while first < count:
        rows, used = most_that_fit(partial(_peak, joint, first), count - first, budget)
        sweeps.append((first, first + rows))
        cost += joint_cost(part_of(joint, first, first + rows))
        peak, first = max(peak, used), first + rows
    return JointPlan(joint, tuple(sweeps), cost, peak)


def _peak(joint: Joint, first: int, rows: int) -> int:
    return joint_memory(part_of(joint, first, first + rows))


def part_of(joint: Joint, first: int, end: int) -> Joint:
    """The work of some rows of one prompt: by position, and at one position set by set."""
    if first == 0 and end == joint.n_targets:
        return joint
    parts: list[list[int]] = [[] for _ in joint.targets]
    begin = 0
    for rows in zip(*(each.counts[0] for each in joint.targets), strict=True):
        for part, count in zip(parts, rows, strict=True):
            part.append(max(0, min(end, begin + count) - max(first, begin)))
            begin += count
    targets = tuple(each._replace(counts=(tuple(part),)) for each, part in zip(joint.targets, parts, strict=True))
    return replace(joint, targets=targets, beside=joint.n_targets - (end - first))
