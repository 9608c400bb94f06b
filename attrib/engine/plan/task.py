"""One pack's work in numbers: its ends, its rows, and what stands between. What is planned, counted and cached by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple

from attrib.core.types import Policy, Site
from attrib.engine.blocks.attention import QUERY_BLOCK
from attrib.engine.blocks.passing import Passed, place_of
from attrib.engine.sweep.ascent import Meeting, meeting
from attrib.engine.sweep.cells import ON_CPU, Band, Cone, Pieces, cone_of
from attrib.engine.sweep.primal import BESIDE, attentions_between
from attrib.models.transformer import ModelConfig

Counts = Sequence[Sequence[int]]
"""How many rows there are at each position of each prompt."""

Seeded = tuple[tuple[int, ...], ...]
"""How many rows are seeded at each position of each prompt."""


class Opened(NamedTuple):
    """Bytes of a path, or of the paths of a pack, beside what sweeps are counted with; see opening.py."""

    peak: int
    """At the fullest moment of opening it."""
    held: int
    """Held until the path is let go of, beside its rows and the streams of its primal."""
    whole: int
    """Held until the path is let go of, in all."""

    def __add__(self, other: "Opened") -> "Opened":  # type: ignore[override]
        """One path that is held while the next is opened."""
        return Opened(max(self.peak, self.whole + other.peak), self.held + other.held, self.whole + other.whole)


NOTHING_OPENED = Opened(0, 0, 0)


@lru_cache(maxsize=256)
def bands_of(counts: Seeded, up: bool, most: int, causal: bool = True, span: int = 1) -> tuple[Band, ...]:
    """The bands of a cone, for which every step of every way of a plan asks again."""
    return cone_of(counts, "up" if up else "down", most, causal=causal, span=span).bands


@lru_cache(maxsize=256)
def alive_of(counts: Seeded, up: bool, most: int, span: int) -> Seeded:
    """How many rows of wide bands there are at each position of each prompt, with those that are zeros there."""
    cone = Cone(bands_of(counts, up, most, True, span))
    return tuple(tuple(cone.rows_at(prompt, len(rows))) for prompt, rows in enumerate(counts))


@dataclass(frozen=True)
class Task:
    """One pack's work: where it starts and stops, and how many rows are seeded at each position of each prompt."""

    config: ModelConfig
    policy: Policy
    start: Site
    stop: Site
    targets: Seeded
    sources: Seeded
    itemsize: int
    walks: bool = False
    """Whether the primal is walked again, from x, and not taken from the prompt's own pass."""
    beside: int = 0
    """Targets of the path that this sweep leaves to others: their rows are in memory all the same."""
    pieces: Pieces = ON_CPU
    writes: tuple[Site, ...] = ()
    """Where sources write, where that is at several sites."""
    held: frozenset[Site] = frozenset()
    """The places that dictionaries write between the ends; see passing.py."""
    passed: tuple[Passed, ...] = ()
    """The dictionaries that derivatives pass there."""
    opened: Opened = NOTHING_OPENED
    """What opening the paths takes, and what they hold."""
    ends_within: bool = False
    """Whether some targets are read behind an MLP though what it writes is taken from elsewhere: they still pass it."""
    queries: int = QUERY_BLOCK
    """Query positions that an attention map takes at once; 1 counts no masked work at all, which is the floor."""

    def __add__(self, other: "Task") -> "Task":
        """Put the work of more prompts to this one's."""
        passed = tuple(a._replace(terms=a.terms + b.terms) for a, b in zip(self.passed, other.passed, strict=True))
        return replace(
            self,
            targets=self.targets + other.targets,
            sources=self.sources + other.sources,
            passed=passed,
            opened=self.opened + other.opened,
        )

    @property
    def is_beside(self) -> bool:
        """Whether the path ends within an MLP beside attention, where cotangents pass an attention that tangents do not meet."""
        begins_within = self.start.kind in BESIDE and not self.layers
        return self.config.parallel and self.stop.kind in BESIDE and not begins_within

    @property
    def is_through(self) -> bool:
        """Whether more stands between than MLPs that nothing moves through, or the path ends within an MLP beside attention."""
        is_by_mlps = all(site.kind in BESIDE and site.depth < self.stop.depth for site in self.held)
        is_other = self.is_beside or any(site.kind != "mlp_out" for site in self.writes[1:])
        return self.ends_within or bool(self.passed) or not is_by_mlps or is_other

    @property
    def shut_mlps(self) -> frozenset[int]:
        """Layers through whose MLP nothing moves."""
        return frozenset() if self.is_through else frozenset(site.layer for site in self.held)

    def passes_mlp(self, layer: int) -> bool:
        """Whether anything moves through a layer's MLP."""
        return self.policy.mlp != "frozen" and self.config.has_mlps and layer not in self.shut_mlps

    @cached_property
    def n_targets(self) -> int:
        """Targets of all prompts."""
        return sum(map(sum, self.targets))

    @cached_property
    def n_sources(self) -> int:
        """Sources of all prompts."""
        return sum(map(sum, self.sources))

    @cached_property
    def tokens(self) -> int:
        """Positions of all prompts."""
        return sum(map(len, self.targets))

    @property
    def cells(self) -> int:
        """(row, position) pairs of the smaller of the two cones."""
        return min(sum(map(sum, self.down())), sum(map(sum, self.up())))

    @property
    def layers(self) -> range:
        """The layers whose attention is passed."""
        return attentions_between(self.start, self.stop)

    def can_meet(self, layer: int | None) -> bool:
        """Whether both sides can meet there: not where sources write, which each side would take for the other's."""
        at = self.meeting(layer)
        return {at.up, at.down}.isdisjoint(map(place_of, self.writes[1:]))

    def meeting(self, layer: int | None) -> Meeting:
        """Where both sides meet: about the MLP of a layer, or, with None, above the last attention that is passed."""
        return meeting(self.config, self.stop, self.layers[-1], layer, self.held, self.passed, self.writes)

    @property
    def d_q(self) -> int:
        """Width of z."""
        return self.config.n_heads * self.config.d_head

    @property
    def d_heads(self) -> int:
        """Width of head space."""
        d_kv = self.config.n_kv_heads * self.config.d_head
        return d_kv if self.policy.attention == "frozen" else self.d_q + 2 * d_kv

    @property
    def d_hidden(self) -> int:
        """Columns of the MLP's input matrices together."""
        return self.config.d_mlp * (2 if self.config.gated else 1)

    @property
    def is_floor(self) -> bool:
        """Whether what the answer needs is counted, and not what a sweep does."""
        return self.queries == 1

    @property
    def block(self) -> int:
        """Cells of a block of several bands at most; the floor has none, since there are zeros in it."""
        return 0 if self.is_floor else self.pieces.band

    def bands(self, up: bool) -> tuple[Band, ...]:
        """Bands of the tangents' cone, or of the cotangents'; the floor has no reason to cut them."""
        return bands_of(self.sources if up else self.targets, up, self.most, self.config.causal, self.span)

    @property
    def span(self) -> int:
        """How many positions share a band; the floor multiplies no zeros."""
        return 1 if self.is_floor or self.passed else self.pieces.span

    @property
    def most(self) -> int:
        """Cells of a band at most, where it has more than one row."""
        return 1 << 62 if self.is_floor else self.pieces.band

    def down(self) -> Counts:
        """Cotangents alive at each position: those seeded there or later; all, where attention is not causal."""
        return self._down

    @cached_property
    def _down(self) -> Counts:
        if not self.config.causal:
            return _everywhere(self.targets)
        if self.span > 1:
            return alive_of(self.targets, False, self.most, self.span)
        return [list(accumulate(reversed(rows)))[::-1] for rows in self.targets]

    def up(self) -> Counts:
        """Tangents alive at each position: those seeded there or before; all, where attention is not causal."""
        return self._up

    @cached_property
    def _up(self) -> Counts:
        if not self.config.causal:
            return _everywhere(self.sources)
        if self.span > 1:
            return alive_of(self.sources, True, self.most, self.span)
        return [list(accumulate(rows)) for rows in self.sources]


def _everywhere(counts: Counts) -> list[list[int]]:
    return [[sum(rows)] * len(rows) for rows in counts]
