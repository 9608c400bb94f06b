"""The way down a model, step by step, whatever goes down: rows (compute.py), their number (cost.py) or their size (held.py).

This is the one place that knows in which order a block's places are met, and what lies beside what. Every way of taking a Jacobian
that brings cotangents down takes it: from targets to sources, to where tangents come up to, or to the start of a segment.

Where a dictionary writes, what comes down is taken: it goes no further, or, where dictionaries are passed, waits until
the place is reached that they read (see passing.py). So at some places nothing is left of the stream, or of what a
component gets, and steps that would move nothing are left out.

Several sets of targets, which are read at several places, go down as one (`descend`).
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from attrib.core.types import SITE_KINDS, Policy, Site
from attrib.engine.blocks.passing import Passed, Passing, place_of
from attrib.models.transformer import ModelConfig

Load = TypeVar("Load")
"""What goes through the steps: rows, their number, or their size."""


@lru_cache(maxsize=256)
def places(top: Site, lowest: Site) -> tuple[Site, ...]:
    """Every place of the way down, both ends included, as `place_of` names them."""
    layers = range(top.layer, lowest.layer - 1, -1)
    every = (Site(layer, kind) for layer in layers for kind in reversed(SITE_KINDS[:-1]))
    return tuple(site for site in every if lowest.depth <= site.depth <= top.depth)


class Descent(ABC, Generic[Load]):
    """A way down. Subclasses say what the steps do to rows; None is rows that are all zero."""

    def __init__(
        self,
        config: ModelConfig,
        policy: Policy,
        stop: Site,
        held: Collection[Site],
        passing: Sequence[Passing | Passed],
        wanted: Collection[Site],
        *,
        brought: Collection[Site] = (),
        stops_below: bool = False,
        in_heads: bool = False,
    ) -> None:
        """Make one.

        Args:
            stop: where it begins: derivatives are of what stands there.
            held: written places on the way.
            passing: the dictionaries that are passed.
            wanted: where rows are read out of what stands there, as it is what sources write.
            brought: where they are read out of what the model brings there, before anything is written. The lowest of both is the end.
            stops_below: whether derivatives are of what the model brings to `stop`, and not of what is written there.
            in_heads: whether the lowest attention is read out in head space, and the MLP beside it in a parallel block left to the sources.
        """
        self.config, self.policy, self.stop = config, policy, place_of(stop)
        self.held, self.passing, self.stops_below = held, passing, stops_below
        self.wanted, self.brought = ({place_of(site) for site in sites} for sites in (wanted, brought))
        self.read_out = self.wanted | self.brought
        self.start = min(self.read_out, key=lambda site: site.depth)
        self.waiting: set[int] = set()
        self.is_spread, self.in_heads = False, in_heads
        self.stream: Load | None = None
        self.part: Load | None = None
        self.beside: Load | None = None
        self.written: Load | None = None

    def run(self, rows: Load) -> None:
        """From `stop`, where `rows` are, to the lowest place that is read out. `rows` may be overwritten."""
        self.part = rows
        del rows  # so that they are let go of where they are not needed any more
        for site in places(self.stop, self.start):
            self.step(site)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left of the rows, at a place of the stream that has been passed."""
        return self.stream is None and not self.waiting

    def step(self, site: Site) -> None:
        """From the place above to this one, which follows it.

        Four are under way: the stream at the last of its places (`stream`), what a component gets that is on its way
        through it (`part`), what has come through a component and is to be added where it reads the stream (`beside`),
        and what attention has written, where that is taken in chunks (`written`).
        """
        layer, is_parallel = site.layer, self.config.parallel
        # nothing within a parallel block moves what the MLP beside it reads; in head space, sources pass that MLP themselves
        is_moved = not (is_parallel and layer == self.start.layer and (self.in_heads or self.start.kind != "resid_pre"))
        match site.kind:
            case _ if site == self.stop:
                pass
            case _ if self._is_end(site):
                self.part = None  # what it would take to come here is saved
            case "mlp_out":
                self.part = self.stream
            case "mlp_in" if self.part is not None and self.policy.mlp != "frozen":
                if not self._is_plain(site):
                    self.part = self.through_matrices(layer, self.part)
                elif not is_moved:
                    self.part = None
                elif self.part is self.stream:
                    self.beside, self.part = self.through_mlp(layer, self.part, is_parallel), None
                else:
                    self.beside, self.part = self.sum(self.stream, self.through_mlp_alone(layer, self.part)), None
            case "mlp_in":
                self.part = None
            case "resid_mid":
                if self.part is not None and is_moved:
                    self.beside = self.sum(self.stream, self.through_norm(layer, self.part))
                if is_parallel:
                    self.part = self.stream  # what came through the MLP is the stream's before attention
                else:
                    self.part, self.beside = self._beside_stream(), None
            case "attn_out":
                self.part = self.stream
            case "z" if self.part is not None and self.is_spread and self._is_plain(site):
                self.written, self.part = self.part, None  # which attention takes in chunks
            case "z" if self.part is not None:
                self.part = self.through_output(layer, self.part)
            case "resid_pre":
                self._through_attention(site)
        self.part = self._cross(site, self.part)
        if site.is_residual:
            self.stream = self.part

    def _beside_stream(self) -> Load | None:
        """The stream with what has come through a component."""
        return self.stream if self.beside is None else self.beside

    def _through_attention(self, site: Site) -> None:
        """To the stream that an attention reads, in whichever form rows have come to it."""
        layer, below, part, written = site.layer, self._beside_stream(), self.part, self.written
        self.stream = self.part = self.beside = self.written = None
        if below is not None and self.in_heads and site == self.start:
            self.read_heads(layer, below, part)
        elif written is not None:
            self.part = self.through_attention(layer, below, written)
        elif part is not None and self.is_spread:
            self.part = self.through_heads(layer, below, part)
        elif part is not None:
            self.part, self.is_spread = self.spread(layer, below, part), True
        else:
            self.part = below

    def _is_end(self, site: Site) -> bool:
        """Whether what comes down to a component goes nowhere: its place is written by others, and nothing there is entered or read."""
        if site.is_residual or site not in self.held or site in self.read_out:
            return False
        return not any(site in passing.writes for passing in self.passing)

    def _is_plain(self, site: Site) -> bool:
        """Whether rows pass a place without anything being done to them."""
        return site not in self.held and site not in self.read_out and not any(self.passing[n].reads == site for n in self.waiting)

    def _cross(self, site: Site, rows: Load | None) -> Load | None:
        """From what stands at a place to what the model brings there."""
        if not (self.stops_below and site == self.stop):
            rows = self._arrivals(site, rows, before=False)
            if site in self.wanted and rows is not None:
                self.read(site, rows, is_brought=False)
            if site in self.held:
                for number, passing in enumerate(self.passing):
                    if rows is not None and site in passing.writes:
                        self.enter(number, site, rows)
                        self.waiting.add(number)
                rows = None
            rows = self._arrivals(site, rows, before=True)
        if site in self.brought and rows is not None:
            self.read(site, rows, is_brought=True)
        return rows

    def _arrivals(self, site: Site, rows: Load | None, before: bool) -> Load | None:
        """With what comes through dictionaries that read here, before what is written here or after it."""
        for number in sorted(self.waiting) if self.waiting else ():
            passing = self.passing[number]
            if passing.reads == site and passing.reads_before == before:
                self.waiting.remove(number)
                rows = self.sum(rows, self.arrive(number))
        return rows

    def sum(self, a: Load | None, b: Load | None) -> Load | None:
        """Both; `b` is of no use afterwards."""
        return b if a is None else a if b is None else self.add(a, b)

    @abstractmethod
    def add(self, a: Load, b: Load) -> Load:
        """The sum of both, in the place of `b` if that helps; `a` stays as it is."""

    @abstractmethod
    def through_mlp(self, layer: int, stream: Load, keeps: bool) -> Load:
        """From the stream behind an MLP to the one that it reads; in the place of `stream`, unless that is kept beside it."""

    @abstractmethod
    def through_mlp_alone(self, layer: int, rows: Load) -> Load:
        """From mlp_out to the stream that the MLP reads, without what goes by beside it; `rows` may be overwritten."""

    @abstractmethod
    def through_matrices(self, layer: int, rows: Load) -> Load:
        """From mlp_out to mlp_in."""

    @abstractmethod
    def through_norm(self, layer: int, rows: Load) -> Load:
        """From mlp_in to the stream."""

    @abstractmethod
    def through_output(self, layer: int, rows: Load) -> Load:
        """From attn_out to z."""

    @abstractmethod
    def through_attention(self, layer: int, below: Load | None, written: Load) -> Load:
        """To resid_pre, from what attention adds to the stream and what goes by beside it."""

    @abstractmethod
    def through_heads(self, layer: int, below: Load | None, z: Load) -> Load:
        """To resid_pre, from z and what goes by beside attention."""

    @abstractmethod
    def spread(self, layer: int, below: Load | None, z: Load) -> Load:
        """To resid_pre, from z and what goes by beside attention, for rows at their own positions, which are then on all that they see."""

    @abstractmethod
    def enter(self, number: int, site: Site, rows: Load) -> None:
        """Into a dictionary that writes here, where they wait."""

    @abstractmethod
    def arrive(self, number: int) -> Load:
        """What has waited, at the place that the dictionary reads."""

    @abstractmethod
    def read_heads(self, layer: int, stream: Load, z: Load | None) -> None:
        """Read the lowest attention out in head space, from the stream behind it, and from z where rows have come there already."""

    @abstractmethod
    def read(self, site: Site, rows: Load, is_brought: bool) -> None:
        """Read out what stands at a place, or what the model brings there."""


class Joining(Descent[Load]):
    """A way down of one of several sets of targets, or of those that have come together."""

    @abstractmethod
    def begin(self) -> Load:
        """The rows at `stop`."""

    @abstractmethod
    def take_in(self, others: Sequence[Any]) -> None:
        """Go on with the rows of others of its class too, at a place of the stream.

        All have been spread; some may have no rows left but what waits.
        """


JoiningWay = TypeVar("JoiningWay", bound=Joining[Any])


def _step(ways: Sequence[Joining[Any]], site: Site) -> None:
    """Take all of them a step: a loop of its own, which keeps none of those that go on within another."""
    for way in ways:
        way.step(site)


def descend(ways: Iterable[JoiningWay]) -> list[JoiningWay]:
    """Several sets of targets on one way down: each joins where it stops, and from the attention on that spreads it goes with the others.

    All are read out at the same places. Where rows lie on all that they see, those of all sets go through the products of a step at
    once; so whatever joins pays for its own first attention alone. They come together where a layer begins: there, no row is
    within a component. Those that have come to the last place are returned, as they have come there.
    """
    joining = sorted(ways, key=lambda way: way.stop.depth)  # the next to join is the last
    going: list[JoiningWay] = []
    last = joining[-1].start if joining else None
    for site in places(joining[-1].stop, last) if last else ():
        while joining and joining[-1].stop == site:
            going.append(joining.pop())
            going[-1].part = going[-1].begin()
        _step(going, site)
        if site.kind == "resid_pre" and site != last:
            going = come_together([way for way in going if not way.is_over])
    return going


@runtime_checkable
class Gathering(Protocol):
    """A way that others of its class can be taken into."""

    is_spread: bool

    def take_in(self, others: Sequence[Any]) -> None:
        """Go on with the rows of others too."""


Way = TypeVar("Way", bound=Gathering)


def come_together(going: list[Way]) -> list[Way]:
    """The ways that go on, at a place of the stream: of all that have been spread, one."""
    spread = [way for way in going if way.is_spread]
    if len(spread) < 2:
        return going
    spread[0].take_in(spread[1:])
    return [spread[0], *(way for way in going if not way.is_spread)]
