"""Several sets of targets on one way down, and all sources that it passes read out: what a whole graph is made of.

One set of targets and one of sources are two ends of a path; meet.py has the ways between them. Here targets of several
places join one sweep as it passes them, and every source place on the way is read out for all of them, so that a block is
passed once for all targets above it, and a row is complete when the sweep is over.

The rows of all sets are numbered together, prompt by prompt: by position, and at one position set by set. A sweep's rows are
thus sorted by position however they have come together, which is what a cone asks for (cells.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import Between, place_of
from attrib.engine.sweep.cells import Cells, Cone, cells_of, cone
from attrib.engine.sweep.compute import Down
from attrib.engine.sweep.meet import Jacobians, contract, contract_seeded, heads_pay, read_in_head_space
from attrib.engine.sweep.primal import Primal, Seeds, is_spread_above
from attrib.engine.sweep.route import Joining, descend
from attrib.engine.sweep.steps import Flat
from attrib.engine.sweep.waiting import Waiting


class SourceSet(NamedTuple):
    """Sources of one kind, and what they write at each place."""

    writes: Mapping[Site, Seeds]
    is_brought: bool = False
    """Whether they are what the model brings to their place, as embeddings are, and not what is written there."""


class TargetSet(NamedTuple):
    """Targets that are read at one place."""

    stop: Site
    seeds: Seeds
    rows: tuple[Int[Tensor, " targets"], ...]
    """The number of each among the rows of its prompt, ascending; for every prompt."""
    stops_below: bool = False
    """Whether they read what the model brings to their place, and not what is written there."""
    barred: frozenset[int] = frozenset()
    """Numbers of source sets that do not count as before them though they write at the place where these targets are read."""


def join(primal: Primal, targets: Sequence[TargetSet], sources: Sequence[SourceSet], between: Between) -> list[Jacobians]:
    """For every set of sources its Jacobian: of each prompt [rows of all sets, sources].

    Targets that do not lie behind a source have zeros there. Sources that write nowhere have no Jacobian.
    """
    positions = _positions(primal, targets)
    found = [_zeros(primal, positions, source) if source.writes else [] for source in sources]
    sweep = _Sweep(primal, positions, sources, found, between)
    descend([_JoiningDown(sweep, each) for each in targets if len(each.seeds.token)])
    return found


def _positions(primal: Primal, targets: Sequence[TargetSet]) -> list[Int[Tensor, " rows"]]:
    """The position of every row of each prompt."""
    found = []
    for prompt in range(len(primal.lengths)):
        rows = torch.cat([each.rows[prompt] for each in targets])
        token = [each.seeds.token[(first := each.seeds.first(prompt)) : first + each.seeds.counts[prompt]] for each in targets]
        found.append(torch.empty_like(rows).index_copy_(0, rows, torch.cat(token) - primal.first(prompt)))
    return found


def _zeros(primal: Primal, positions: Sequence[Tensor], source: SourceSet) -> Jacobians:
    seeds = next(iter(source.writes.values()))
    pairs = zip(positions, seeds.counts, strict=True)
    return [seeds.value.new_zeros(len(rows), columns, dtype=primal.model.dtype) for rows, columns in pairs]


class _Sweep:
    """What all sets of a sweep share."""

    def __init__(
        self, primal: Primal, positions: Sequence[Tensor], sources: Sequence[SourceSet], found: Sequence[Jacobians], between: Between
    ) -> None:
        self.primal, self.positions, self.sources, self.found, self.between = primal, positions, sources, found, between
        self.wanted = {site for source in sources if not source.is_brought for site in source.writes}
        self.brought = {site for source in sources if source.is_brought for site in source.writes}
        self.low = min((place_of(site) for site in self.wanted | self.brought), key=lambda site: site.depth)
        # in head space the whole of the lowest layer is passed at once, so nothing may be written there that sources would pass
        is_open = not between.passing and all(site.layer in primal.shut_mlps for site in between.held)
        whole = self.cone([torch.arange(len(rows)) for rows in positions])
        lowest = (seeds for source in sources for site, seeds in source.writes.items() if place_of(site) == self.low)
        self.in_heads = is_open and self.low.kind == "resid_pre" and all(heads_pay(primal, whole, seeds) for seeds in lowest)

    def cone(self, rows: Sequence[Tensor]) -> Cone:
        """The cone of some rows of each prompt."""
        chosen = [at[own.to(at.device)].tolist() for at, own in zip(self.positions, rows, strict=True)]
        return cone(chosen, self.primal.lengths, "down", self.primal.pieces.band)

    def reads_heads(self, stop: Site) -> bool:
        """Whether rows that begin at a place are read out in head space: they have been spread before they come to the lowest layer."""
        return self.in_heads and is_spread_above(self.primal.model.config, self.low, stop)


class _JoiningDown(Down, Joining[Tensor]):
    """One set of targets on its way down, or those that have come together."""

    def __init__(self, sweep: _Sweep, targets: TargetSet) -> None:
        self.sweep, self.rows, self.own = sweep, targets.rows, targets
        super().__init__(
            sweep.primal, targets.stop, sweep.cone(targets.rows), sweep.wanted, brought=sweep.brought, stops_below=targets.stops_below,
            between=sweep.between,
        )  # fmt: skip
        self.in_heads = sweep.reads_heads(targets.stop)

    def begin(self) -> Tensor:
        """The cotangents, each at its own position."""
        return self.seed(self.own.seeds)

    # --------------------------------------------------------------------------------------- reading out

    def _sources(self, site: Site, is_brought: bool) -> list[tuple[int, Seeds]]:
        """What is read out at a place, with the number of its set."""
        barred = self.own.barred if site == self.stop else frozenset()
        return [
            (number, seeds)
            for number, source in enumerate(self.sweep.sources)
            for place, seeds in source.writes.items()
            if place_of(place) == site and source.is_brought == is_brought and number not in barred
        ]

    def read(self, site: Site, rows: Flat, is_brought: bool) -> None:
        """Every set of sources that is at the place."""
        for number, seeds in self._sources(site, is_brought):
            out = self._empty(seeds)
            if self.is_spread:
                contract(self.primal, self.down, rows, seeds, out)
            else:
                contract_seeded(self.primal, self.targets._replace(value=rows), seeds, out)
            self._add(number, out)

    def read_heads(self, layer: int, stream: Flat, z: Flat | None) -> None:
        """Every set of sources at the lowest place, in the heads of the lowest attention."""
        chosen = self._sources(self.start, False) + self._sources(self.start, True)
        out = [self._empty(seeds) for _, seeds in chosen]
        read_in_head_space(self.primal, layer, self.down, stream, [(seeds, into) for (_, seeds), into in zip(chosen, out, strict=True)], z)
        for (number, _), into in zip(chosen, out, strict=True):
            self._add(number, into)

    def _empty(self, seeds: Seeds) -> Jacobians:
        pairs = zip(self.rows, seeds.counts, strict=True)
        return [seeds.value.new_zeros(len(rows), columns, dtype=self.primal.model.dtype) for rows, columns in pairs]

    def _add(self, number: int, out: Jacobians) -> None:
        """Put what these rows have read to the Jacobian of all."""
        for into, rows, part in zip(self.sweep.found[number], self.rows, out, strict=True):
            into.index_add_(0, rows, part)

    # ----------------------------------------------------------------------------------- coming together

    def take_in(self, others: Sequence[Any]) -> None:
        """Go on with others' rows too, in one cone: all lie on what they see, in order of position."""
        ways: list[_JoiningDown] = [self, *others]
        rows = tuple(torch.cat(parts).sort().values for parts in zip(*(way.rows for way in ways), strict=True))
        whole = self.sweep.cone(rows)
        lengths = self.primal.lengths
        cells = [cells_of(whole, prompt, length, rows[prompt].device) for prompt, length in enumerate(lengths)]
        moves = [_Move(way, rows, cells) for way in ways]
        self.stream = self.part = self._together([(move, way.stream) for move, way in zip(moves, ways, strict=True)], whole.cells)
        for number, waiting in enumerate(self.waits):
            theirs = [(move, way.waits[number]) for move, way in zip(moves, ways, strict=True)]
            waiting.skip = self._together([(move, each.skip) for move, each in theirs], whole.cells)
            waiting.terms = dict(self._terms_together(theirs, cells))
        self.waiting = set[int]().union(*(way.waiting for way in ways))
        self.rows, self.down = rows, whole
        self.lie(whole)
        for way in others:  # whoever still knows them shall not keep their rows
            way.stream, way.part, way.waits = None, None, []

    @staticmethod
    def _together(parts: "list[tuple[_Move, Flat | None]]", cells: int) -> Flat | None:
        """Rows of all ways in one cone; None are zeros."""
        there = [(move, flat) for move, flat in parts if flat is not None]
        if not there:
            return None
        out = there[0][1].new_zeros(cells, there[0][1].shape[1])
        for move, flat in there:
            out.index_copy_(0, move.cells, flat)
        return out

    def _terms_together(self, parts: "Sequence[tuple[_Move, Waiting]]", cells: Sequence[Cells]) -> Iterator[tuple[int, Tensor]]:
        """What waits at each token in one dictionary: some of the first rows that live there have come to it."""
        for prompt, length in enumerate(self.primal.lengths):
            for t in range(length):
                token, (first, end) = self.primal.first(prompt) + t, cells[prompt].alive[t]
                there = [(move, terms) for move, each in parts if (terms := each.terms.get(token)) is not None]
                if not there:
                    continue
                out = there[0][1].new_zeros(end - first, there[0][1].shape[1])
                for move, terms in there:
                    begin, _ = move.alive[prompt][t]
                    out.index_copy_(0, move.place[prompt][begin : begin + len(terms)] - first, terms)
                yield token, out


class _Move:
    """Where the rows of one way, and their cells, are among those that come together."""

    def __init__(self, way: _JoiningDown, rows: Sequence[Tensor], cells: Sequence[Cells]) -> None:
        self.place = [torch.searchsorted(merged, own) for merged, own in zip(rows, way.rows, strict=True)]
        self.alive = [cells_of(way.down, prompt, length, rows[prompt].device).alive for prompt, length in enumerate(way.primal.lengths)]
        found = []
        for prompt, begin, end, row, count, _ in way.down.bands:
            place = self.place[prompt][row : row + count]
            at = torch.arange(begin, end, device=place.device)[:, None]
            found.append((cells[prompt].start[place] + cells[prompt].step[place] * at).flatten())
        self.cells = torch.cat(found)
        """The new place of each of its cells."""
