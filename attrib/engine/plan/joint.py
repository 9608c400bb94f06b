"""The work of a sweep that several sets of targets and of sources join, in numbers. What is planned, counted and sized by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from attrib.core.types import Policy, Site
from attrib.engine.blocks.passing import Passed, place_of
from attrib.engine.plan.cost import heads_pay
from attrib.engine.plan.task import NOTHING_OPENED, Counts, Opened, Seeded, Task
from attrib.engine.sweep.cells import Pieces
from attrib.models.transformer import ModelConfig


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

    @property
    def start(self) -> Site:
        """The lowest of these places."""
        return place_of(min(self.writes, key=lambda site: site.depth))


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
    opened: Opened = NOTHING_OPENED
    """What opening the bundles takes, and what they hold."""
    beside: int = 0
    """Targets that this sweep leaves to others."""
    meets: Site | None = None
    """Where sources that write below are lifted to, and the way down ends. None is nowhere: all rows go down to the lowest source."""

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

    # ------------------------------------------------------------------------------- where both sides meet

    @cached_property
    def lifted(self) -> tuple[int, ...]:
        """Numbers of the sources that are lifted: what the model brings to the place where both sides meet is among them."""
        at = self.meets
        if at is None:
            return ()
        return tuple(n for n, each in enumerate(self.sources) if each.start.depth < at.depth or (each.is_brought and each.start == at))

    @cached_property
    def below(self) -> tuple[int, ...]:
        """Numbers of the targets that are read on the way up."""
        at = self.meets
        return () if at is None else tuple(n for n, end in enumerate(self.targets) if end.stop.depth < at.depth)

    @cached_property
    def above(self) -> "Joint":
        """The same without the targets that are read on the way up."""
        rows = sum(sum(map(sum, self.targets[n].counts)) for n in self.below)
        targets = tuple(each._replace(counts=_none(each.counts)) if n in self.below else each for n, each in enumerate(self.targets))
        return replace(self, targets=targets, beside=self.beside + rows)

    def written(self, to: Site | None) -> set[Site]:
        """Where a way down to a place reads out what sources write."""
        places = {place_of(site) for each in self.sources if not each.is_brought for site in each.writes}
        return {site for site in places if to is None or site.depth >= to.depth}

    def brought(self, to: Site | None) -> set[Site]:
        """Where it reads out what the model brings, its end among them."""
        places = {place_of(site) for each in self.sources if each.is_brought for site in each.writes}
        return places if to is None else {to, *(site for site in places if site.depth > to.depth)}

    @property
    def reads_in_heads(self) -> bool:
        """Whether the lowest attention is read out in head space, where rows have been spread before."""
        low = place_of(self.start)
        if self.passed or low.kind != "resid_pre" or not all(site.layer in self.whole.shut_mlps for site in self.held):
            return False
        return all(heads_pay(self.whole, each.counts) for each in self.sources if low in map(place_of, each.writes))


def _none(counts: Seeded) -> Seeded:
    return tuple((0,) * len(prompt) for prompt in counts)


def added(counts: Sequence[Counts]) -> Seeded:
    """Rows of several sets together."""
    return tuple(tuple(map(sum, zip(*prompt, strict=True))) for prompt in zip(*counts, strict=True))


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
    return replace(joint, targets=targets, beside=joint.beside + joint.n_targets - (end - first))
