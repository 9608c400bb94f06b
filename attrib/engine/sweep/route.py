"""The way down a model, step by step, whatever goes down: rows (compute.py) or their number (cost.py).

This is the one place that knows in which order a block's places are met, and what lies beside what. Every way of taking a Jacobian
that brings cotangents down takes it: from targets to sources, to where tangents come up to, or to the start of a segment.

Where a dictionary writes, what comes down is taken: it goes no further, or, where dictionaries are passed, waits until
the place is reached that they read (see passing.py). So at some places nothing is left of the stream, or of what a
component gets, and steps that would move nothing are left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, TypeVar

from attrib.core.types import SITE_KINDS, Policy, Site
from attrib.engine.blocks.passing import Passed, Passing, station
from attrib.models.transformer import ModelConfig

Rows = TypeVar("Rows")


class Descent(ABC, Generic[Rows]):
    """A way down. Subclasses say what the steps do to rows; None is rows that are all zero."""

    def __init__(
        self,
        config: ModelConfig,
        policy: Policy,
        stop: Site,
        held: Collection[Site],
        passing: Sequence[Passing | Passed],
        wanted: Collection[Site],
        in_heads: bool = False,
    ) -> None:
        """Make one.

        Args:
            stop: where it begins: derivatives are of what stands there.
            held: written places on the way.
            passing: the dictionaries that are passed.
            wanted: where rows are read out; the lowest of them is the end.
            in_heads: whether the lowest attention is read out in head space, and the MLP beside it in a parallel block left to the sources.
        """
        self.config, self.policy, self.stop = config, policy, station(stop)
        self.held, self.passing, self.wanted = held, passing, {station(site) for site in wanted}
        self.start = min(self.wanted, key=lambda site: site.depth)
        self.waiting: set[int] = set()
        self.is_spread, self.in_heads = False, in_heads

    def run(self, rows: Rows) -> None:
        """From `stop`, where `rows` are, to the lowest place that is wanted. `rows` may be overwritten."""
        stream: Rows | None = None
        part: Rows | None = rows
        beside: Rows | None = None
        written: Rows | None = None
        del rows  # so that they are let go of where they are not needed any more
        for site in self._places():
            layer, is_parallel = site.layer, self.config.parallel
            # nothing within a parallel block moves what the MLP beside it reads; in head space, sources pass that MLP themselves
            is_moved = not (is_parallel and layer == self.start.layer and (self.in_heads or self.start.kind != "resid_pre"))
            match site.kind:
                case _ if site == self.stop:
                    pass
                case _ if self._is_end(site):
                    part = None  # what it would take to come here is saved
                case "mlp_out":
                    part = stream
                case "mlp_in" if part is not None and self.policy.mlp == "exact":
                    if not self._is_plain(site):
                        part = self.through_matrices(layer, part)
                    elif not is_moved:
                        part = None
                    elif part is stream:
                        beside, part = self.through_mlp(layer, part, is_parallel), None
                    else:
                        beside, part = self.sum(stream, self.through_mlp_alone(layer, part)), None
                case "mlp_in":
                    part = None
                case "resid_mid":
                    if part is not None and is_moved:
                        beside = self.sum(stream, self.through_norm(layer, part))
                    if is_parallel:
                        part = stream  # what came through the MLP is the stream's before attention
                    else:
                        part, beside = stream if beside is None else beside, None
                case "attn_out":
                    part = stream
                case "z" if part is not None and self.is_spread and self._is_plain(site):
                    written, part = part, None  # which attention takes in chunks
                case "z" if part is not None:
                    part = self.through_output(layer, part)
                case "resid_pre":
                    below, beside = stream if beside is None else beside, None
                    if below is not None and self.in_heads and site == self.start:
                        self.read_heads(layer, below, part)
                        part = None
                    elif written is not None:
                        part = self.through_attention(layer, below, written)
                    elif part is not None and self.is_spread:
                        part = self.through_heads(layer, below, part)
                    elif part is not None:
                        part, self.is_spread = self.spread(layer, below, part), True
                    else:
                        part = below
                    below = written = None
            part = self._cross(site, part)
            if site.is_residual:
                stream = part

    def _places(self) -> Iterator[Site]:
        """Every place from `stop` down to `start`."""
        for layer in range(self.stop.layer, self.start.layer - 1, -1):
            for kind in reversed(SITE_KINDS[:-1]):
                if self.start.depth <= (site := Site(layer, kind)).depth <= self.stop.depth:
                    yield site

    def _is_end(self, site: Site) -> bool:
        """Whether what comes down to a component goes nowhere: its place is written by others, and nothing there is entered or read."""
        if site.is_residual or site not in self.held or site in self.wanted:
            return False
        return not any(site in passing.writes for passing in self.passing)

    def _is_plain(self, site: Site) -> bool:
        """Whether rows pass a place without anything being done to them."""
        return site not in self.held and site not in self.wanted and not any(self.passing[n].reads == site for n in self.waiting)

    def _cross(self, site: Site, rows: Rows | None) -> Rows | None:
        """From what stands at a place to what the model brings there."""
        rows = self._arrivals(site, rows, before=False)
        if site in self.wanted and site != self.start and rows is not None:
            self.read(site, rows)
        if site in self.held:
            for number, passing in enumerate(self.passing):
                if rows is not None and site in passing.writes:
                    self.enter(number, site, rows)
                    self.waiting.add(number)
            rows = None
        rows = self._arrivals(site, rows, before=True)
        if site == self.start and rows is not None:
            self.read(site, rows)
        return rows

    def _arrivals(self, site: Site, rows: Rows | None, before: bool) -> Rows | None:
        """With what comes through dictionaries that read here, before what is written here or after it."""
        for number in sorted(self.waiting):
            passing = self.passing[number]
            if passing.reads == site and passing.reads_before == before:
                self.waiting.remove(number)
                rows = self.sum(rows, self.arrive(number))
        return rows

    def sum(self, a: Rows | None, b: Rows | None) -> Rows | None:
        """Both; `b` is of no use afterwards."""
        return b if a is None else a if b is None else self.add(a, b)

    @abstractmethod
    def add(self, a: Rows, b: Rows) -> Rows:
        """The sum of both, in the place of `b` if that helps; `a` stays as it is."""

    @abstractmethod
    def through_mlp(self, layer: int, stream: Rows, keeps: bool) -> Rows:
        """From the stream behind an MLP to the one that it reads; in the place of `stream`, unless that is kept beside it."""

    @abstractmethod
    def through_mlp_alone(self, layer: int, rows: Rows) -> Rows:
        """From mlp_out to the stream that the MLP reads, without what goes by beside it; `rows` may be overwritten."""

    @abstractmethod
    def through_matrices(self, layer: int, rows: Rows) -> Rows:
        """From mlp_out to mlp_in."""

    @abstractmethod
    def through_norm(self, layer: int, rows: Rows) -> Rows:
        """From mlp_in to the stream."""

    @abstractmethod
    def through_output(self, layer: int, rows: Rows) -> Rows:
        """From attn_out to z."""

    @abstractmethod
    def through_attention(self, layer: int, below: Rows | None, written: Rows) -> Rows:
        """To resid_pre, from what attention adds to the stream and what goes by beside it."""

    @abstractmethod
    def through_heads(self, layer: int, below: Rows | None, z: Rows) -> Rows:
        """To resid_pre, from z and what goes by beside attention."""

    @abstractmethod
    def spread(self, layer: int, below: Rows | None, z: Rows) -> Rows:
        """To resid_pre, from z and what goes by beside attention, for rows at their own positions, which are then on all that they see."""

    @abstractmethod
    def enter(self, number: int, site: Site, rows: Rows) -> None:
        """Into a dictionary that writes here, where they wait."""

    @abstractmethod
    def arrive(self, number: int) -> Rows:
        """What has waited, at the place that the dictionary reads."""

    @abstractmethod
    def read_heads(self, layer: int, stream: Rows, z: Rows | None) -> None:
        """Read the lowest attention out in head space, from the stream behind it, and from z where rows have come there already."""

    @abstractmethod
    def read(self, site: Site, rows: Rows) -> None:
        """Read out."""
