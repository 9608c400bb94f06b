"""The way up a model, step by step, whatever goes up: tangents (up.py), their number (plan/meeting.py) or their size (plan/held.py).

The mirror of route.py. Going up, a place is first brought something by the model, and then what dictionaries write there takes
its place. Where a dictionary reads, what comes up is taken along, where dictionaries are passed: it waits until the places are
reached that they write, and is added to each. What sources write at several places comes in at each of them.

A block is two components, attention and MLP, that each read the stream and add to it. Where nothing is done within a component
it is passed in one step, with the stream beside it; else in parts, to what it computes first (z, mlp_in) and to what it adds.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from attrib.core.types import SITE_KINDS, Policy, Site
from attrib.engine.blocks.passing import Passed, Passing, place_of
from attrib.engine.sweep.route import Load, come_together
from attrib.models.transformer import ModelConfig

Reach = Literal["nowhere", "inside", "outside", "behind"]
"""How far one step goes through a component: to what it computes first, to what it adds to the stream, or to the stream with that."""


class Ascent(ABC, Generic[Load]):
    """A way up. Subclasses say what the steps do to rows; None is rows that are all zero."""

    def __init__(
        self,
        config: ModelConfig,
        policy: Policy,
        start: Site,
        to: Site,
        held: Collection[Site] = (),
        passing: Sequence[Passing | Passed] = (),
        written: Collection[Site] = (),
        *,
        meets: Collection[Site] = (),
        is_written: bool = False,
    ) -> None:
        """Make one.

        Args:
            start: where it begins, with what the model brings there, or with what sources write there.
            to: where it ends, with what the model brings there.
            held: written places on the way, beyond `to` as well.
            passing: the dictionaries that are passed.
            written: where sources write beside `start`.
            meets: where targets read what the model brings.
            is_written: whether what sources write at `start` comes in there as it does elsewhere, and it begins with nothing.
        """
        self.config, self.policy, self.start, self.to = config, policy, place_of(start), place_of(to)
        self.held, self.passing, self.meets = held, passing, meets
        self.written = {place_of(site) for site in written} - (set() if is_written else {self.start})
        self.waiting: set[int] = set()
        self.is_spread = False
        self.reach: Reach = "nowhere"
        self.stream: Load | None = None
        self.part: Load | None = None
        self.read: Load | None = None
        self.kept: Load | None = None

    def run(self, rows: Load) -> Load | None:
        """From `start`, where `rows` are, to `to`. `rows` stay as they are."""
        self.part = rows
        for site in climb(self.start, self.to):
            self.step(site)
        found, self.part = self.rest(), None
        return found

    def rest(self) -> Load | None:
        """Let go, at the end, of all but the rows that have come there."""
        self.stream = self.read = self.kept = None
        return self.part

    def step(self, site: Site) -> None:
        """From the place below to this one, which follows it.

        Under way are the stream at the last of its places (`stream`), what a component gives that is passed in parts (`part`),
        what the component at hand reads (`read`), and in a parallel block what the MLP will read (`kept`).
        """
        layer, is_parallel = site.layer, self.config.parallel
        match site.kind:
            case _ if site == self.start:
                pass
            case "z":
                self.stream = None if self._is_lost(site) else self.stream
                self.read = self.stream
                self._beside_attention(layer)
                self.reach = self._reach(site, Site(layer, "attn_out"))
                self.part = None
                if self.read is not None and self.reach == "inside":
                    self.part = self.through_heads(layer, self.read)
                    self._spread_all()
            case "attn_out" if self.part is not None:
                self.part = None if self._is_end(site) else self.through_output(layer, self.part)
            case "attn_out" if self.read is not None and self.reach == "outside":
                self.part = self.through_attention_alone(layer, self.read)
                self._spread_all()
            case "resid_mid" if self.read is not None and self.stream is not None and self.reach == "behind":
                stream, read, is_kept = self.stream, self.read, self.kept is self.stream
                self.stream = self.read = None
                self.part = self.through_attention(layer, stream, read, is_kept)
                self._spread_all()
            case "resid_mid":
                self.part, self.read = self.sum(self.stream, self.part), None
            case "mlp_in":
                self.stream = None if self._is_lost(site) else self.stream
                self.read, self.kept = self.kept if is_parallel else self.stream, None
                self.reach, self.part = self._reach(site, Site(layer, "mlp_out")), None
                if is_parallel and self.reach == "behind":
                    self.reach = "outside"  # what it reads is not the stream that it adds to
                if self.read is not None and self.reach == "inside":
                    self.part = self.through_norm(layer, self.read)
            case "mlp_out" if self.part is not None:
                is_passed = self.policy.mlp != "frozen" and not self._is_end(site)
                self.part = self.through_matrices(layer, self.part) if is_passed else None
            case "mlp_out" if self.read is not None and self.reach == "outside":
                self.part = self.through_mlp_alone(layer, self.read)
            case "resid_pre":
                self.read = None
                if self.stream is not None and self.reach == "behind":
                    self.part = self.through_mlp(layer - 1, self.stream, keeps=False)
                else:
                    self.part = self.sum(self.stream, self.part)
                self.reach = "nowhere"
        if site != self.to:
            self.part = self._cross(site, self.part)
        if site.is_residual:
            self.stream, self.part = self.part, None if site != self.to else self.part

    def _beside_attention(self, layer: int) -> None:
        """In a parallel block the MLP reads what attention does: it comes first if nothing is done within it, else that is kept for it."""
        if not self.config.parallel or self.stream is None or self.to.depth < Site(layer, "mlp_in").depth:
            return
        reach = self._reach(Site(layer, "mlp_in"), Site(layer, "mlp_out"))
        if reach == "behind" and self._is_plain(Site(layer, "resid_mid")):
            self.stream = self.through_mlp(layer, self.stream, keeps=True)
        elif reach != "nowhere":
            self.kept = self.stream

    def _reach(self, inner: Site, outer: Site) -> Reach:
        """How far one step goes through the component with these two places."""
        if self._is_end(inner):
            return "nowhere"
        if not self._is_plain(inner):
            return "inside"
        if self._is_end(outer) or (inner.kind == "mlp_in" and self.policy.mlp == "frozen"):
            return "nowhere"
        return "behind" if self._is_plain(outer) else "outside"

    def _spread_all(self) -> None:
        """Have all that is under way lie on what it moves, where an attention has just spread what it reads."""
        if self.is_spread:
            return
        self.is_spread = True
        self.stream, self.kept = (None if rows is None else self.widen(rows) for rows in (self.stream, self.kept))
        self.widen_waiting()

    def _is_end(self, site: Site) -> bool:
        """Whether what the model brings to a place goes nowhere: others write there, and none of them reads it."""
        if site == self.to or site not in self.held or site in self.meets:
            return False
        return not any(passing.reads == site and passing.reads_before for passing in self.passing)

    def _is_lost(self, site: Site) -> bool:
        """Whether nothing reads the stream from a place of a block on: others write it anew where the block ends, or within it."""
        for at in climb(site, Site(site.layer + 1, "resid_pre")):
            if at.is_residual and self._is_end(at):
                return True
            if at == self.to or at in self.meets or any(passing.reads == at for passing in self.passing):
                return False
        return False

    def _is_plain(self, site: Site) -> bool:
        """Whether rows pass a place without anything being done to them."""
        is_met = site == self.to or site in self.held or site in self.written or site in self.meets
        return not is_met and not any(passing.reads == site for passing in self.passing)

    def _cross(self, site: Site, rows: Load | None) -> Load | None:
        """From what the model brings to a place to what stands there."""
        self._entries(site, rows, before=True)
        if site in self.meets:
            self.meet(site, rows)
        if site in self.held:
            rows = None
            for number in sorted(self.waiting):
                writes = [at for at in self.passing[number].writes if at in self.held]
                if site in writes:
                    is_last = all(at.depth <= site.depth for at in writes)
                    rows = self.sum(rows, self.arrive(number, site, is_last))
                    self.waiting -= {number} if is_last else set()
        if site in self.written:
            rows = self.sum(rows, self.seeded(site))
        self._entries(site, rows, before=False)
        return rows

    def _entries(self, site: Site, rows: Load | None, before: bool) -> None:
        """Take rows along into the dictionaries that read here, before what is written here or after it."""
        if rows is None:
            return
        for number, passing in enumerate(self.passing):
            if passing.reads == site and passing.reads_before == before:
                self.enter(number, rows)
                self.waiting.add(number)

    def sum(self, a: Load | None, b: Load | None) -> Load | None:
        """Both; `b` is of no use afterwards."""
        return b if a is None else a if b is None else self.add(a, b)

    def meet(self, site: Site, rows: Load | None) -> None:
        """Have targets read what the model brings to a place of `meets`, and what waits as it is passed."""

    @abstractmethod
    def add(self, a: Load, b: Load) -> Load:
        """The sum of both, in the place of `b` if that helps; `a` stays as it is."""

    @abstractmethod
    def through_attention(self, layer: int, stream: Load, read: Load, keeps: bool) -> Load:
        """The stream with what attention makes of what it reads; in the place of `stream`, unless that is kept.

        Load at their own positions are then on all that they move.
        """

    @abstractmethod
    def through_attention_alone(self, layer: int, read: Load) -> Load:
        """From resid_pre to attn_out; rows at their own positions are then on all that they move."""

    @abstractmethod
    def through_heads(self, layer: int, read: Load) -> Load:
        """From resid_pre to z; rows at their own positions are then on all that they move."""

    @abstractmethod
    def through_output(self, layer: int, rows: Load) -> Load:
        """From z to attn_out."""

    @abstractmethod
    def through_mlp(self, layer: int, stream: Load, keeps: bool) -> Load:
        """The stream with what the MLP makes of it; in the place of `stream`, unless that is kept."""

    @abstractmethod
    def through_mlp_alone(self, layer: int, read: Load) -> Load:
        """From the stream that the MLP reads, which stays as it is, to mlp_out."""

    @abstractmethod
    def through_norm(self, layer: int, read: Load) -> Load:
        """From the stream that the MLP reads to mlp_in."""

    @abstractmethod
    def through_matrices(self, layer: int, rows: Load) -> Load:
        """From mlp_in to mlp_out."""

    @abstractmethod
    def widen(self, rows: Load) -> Load:
        """Load at their own positions, as cells of all that they move."""

    @abstractmethod
    def widen_waiting(self) -> None:
        """The same of what waits in dictionaries."""

    @abstractmethod
    def enter(self, number: int, rows: Load) -> None:
        """Into a dictionary that reads here, where they wait; `rows` go on as well."""

    @abstractmethod
    def arrive(self, number: int, site: Site, is_last: bool) -> Load:
        """What has waited, at a place that the dictionary writes; it waits on unless this is the last of them."""

    @abstractmethod
    def seeded(self, site: Site) -> Load:
        """What sources write at a place beside `start`."""


@lru_cache(maxsize=256)
def climb(start: Site, to: Site) -> tuple[Site, ...]:
    """Every place of the way up, both ends included, as `place_of` names them."""
    every = (Site(layer, kind) for layer in range(start.layer, to.layer + 1) for kind in SITE_KINDS[:-1])
    return tuple(site for site in every if start.depth <= site.depth <= to.depth)


class Rising(Ascent[Load]):
    """A way up of one of several sets of sources, or of those that have come together."""

    @abstractmethod
    def begin(self) -> Load | None:
        """The rows that the model brings to `start`; None where sources write there."""

    @abstractmethod
    def take_in(self, others: Sequence[Any]) -> None:
        """Go on with the rows of others of its class too, at a place of the stream. All have been spread."""

    def is_over(self, site: Site) -> bool:
        """Whether nothing is left of the rows at a place of the stream that has been passed, and nothing comes in above."""
        return self.stream is None and not self.waiting and not any(at.depth > site.depth for at in self.written)


RisingWay = TypeVar("RisingWay", bound=Rising[Any])


def _step(ways: Sequence[Rising[Any]], site: Site) -> None:
    """Take all of them a step: a loop of its own, which keeps none of those that go on within another."""
    for way in ways:
        way.step(site)


def ascend(ways: Iterable[RisingWay]) -> list[RisingWay]:
    """Several sets of sources on one way up, the mirror of `route.descend`: those that come to its end, with their rows as `part`."""
    going: list[RisingWay] = []
    for _, going in ascending(ways):  # noqa: B007 - the last is what has come to the end
        pass
    for way in going:
        way.rest()
    return going


def ascending(ways: Iterable[RisingWay]) -> Iterator[tuple[Site, list[RisingWay]]]:
    """The same, looked at where a layer begins and at its end: the place, and the ways that have come there.

    What each layer's attention reads is their `stream`: rows to be looked at, and not to be kept, since they are overwritten as they go on.
    """
    joining = sorted(ways, key=lambda way: way.start.depth, reverse=True)  # the next to join is the last
    going: list[RisingWay] = []
    last = joining[-1].to if joining else None
    for site in climb(joining[-1].start, last) if last else ():
        while joining and joining[-1].start == site:
            going.append(joining.pop())
            going[-1].part = going[-1].begin()
        _step(going, site)
        if site.kind == "resid_pre" and site != last:
            going = come_together([way for way in going if not way.is_over(site)])
        if site.kind == "resid_pre" or site == last:
            yield site, going


def reading_place(config: ModelConfig, stop: Site) -> Site:
    """The place where targets that are read at `stop` meet what comes up: they come to it at their own positions, past no attention."""
    at = place_of(stop)
    if at.kind not in ("mlp_in", "mlp_out"):
        return at
    return Site(at.layer, "resid_pre" if config.parallel else "resid_mid")


class Meeting(NamedTuple):
    """Where both sides come to. Where it is not one place, an MLP lies between, which the fewer rows of each position pass."""

    up: Site
    down: Site


def meeting(
    config: ModelConfig,
    stop: Site,
    last: int,
    layer: int | None,
    held: Collection[Site] = (),
    passing: Sequence[Passing | Passed] = (),
    written: Collection[Site] = (),
) -> Meeting:
    """Where tangents and cotangents meet.

    Args:
        last: the layer of the last attention before `stop`.
        layer: about whose MLP they meet; None is the last place at which targets, going down, are still at their own positions.
        held, passing, written: as of `Ascent`.
    """
    if layer is None:
        if stop.kind in ("z", "attn_out"):
            return Meeting(stop, stop)
        at = place_of(Site(last, "resid_post" if config.parallel else "resid_mid"))
        return Meeting(at, at)
    behind, within = place_of(Site(layer, "resid_post")), [Site(layer, kind) for kind in ("resid_mid", "mlp_in", "mlp_out")]
    touched = {*held, *map(place_of, written), *(each.reads for each in passing)}
    # in a parallel block there is no stream between attention and MLP that would be met
    return Meeting(behind if config.parallel or not touched.isdisjoint(within) else within[0], behind)
