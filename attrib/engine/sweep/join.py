"""Several sets of targets and of sources in one sweep: what a whole graph is made of.

One set of targets and one of sources are two ends of a path; meet.py has the ways between them. Here targets of several
places join one way down as it passes them, and every source place on the way is read out for all of them, so that a block is
passed once for all targets above it. And sources of low places may join one way up (`lift`), to a place where the way down ends and
both sides meet: then no row has to come down to them, and targets below that place are read as tangents pass them.

The rows of all sets are numbered together, and so are the columns that go up (merge.py).
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.devices import to_host
from attrib.core.types import Site
from attrib.engine.blocks.passing import Between, place_of
from attrib.engine.sweep.ascent import Rising, ascend, reading_place
from attrib.engine.sweep.cells import Cone, cone
from attrib.engine.sweep.compute import Down
from attrib.engine.sweep.meet import Jacobians, contract, contract_seeded, heads_pay, meet_ways, read_in_head_space
from attrib.engine.sweep.merge import Group, Merge, Numbers, joined, numbers_of
from attrib.engine.sweep.primal import Primal, Seeds, is_spread_above
from attrib.engine.sweep.route import Joining, descend
from attrib.engine.sweep.steps import Flat
from attrib.engine.sweep.up import Up
from attrib.models.transformer import width


class SourceSet(NamedTuple):
    """Sources of one kind, and what they write at each place."""

    writes: Mapping[Site, Seeds]
    is_brought: bool = False
    """Whether they are what the model brings to their place, as embeddings are, and not what is written there."""

    @property
    def seeds(self) -> Seeds:
        """What they write at the lowest place."""
        return self.writes[self.start]

    @property
    def start(self) -> Site:
        """The lowest place."""
        return min(self.writes, key=lambda site: site.depth)


class TargetSet(NamedTuple):
    """Targets that are read at one place."""

    stop: Site
    seeds: Seeds
    rows: Numbers
    """The number of each among the rows of its prompt."""
    stops_below: bool = False
    """Whether they read what the model brings to their place, and not what is written there."""
    barred: frozenset[int] = frozenset()
    """Numbers of source sets that do not count as before them though they write at the place where these targets are read."""


class Block(NamedTuple):
    """Rows by the columns of one set of sources, or of several that have come together. What is in several blocks is their sum."""

    value: Jacobians
    """For every prompt."""
    columns: Mapping[int, Numbers | None]
    """By the number of a set, which of them are its own, in their order; None is all."""
    rows: Numbers
    """The numbers of its rows among all of their prompt: those of whole sets of targets. What others have of it is zero. Of what a sweep
    has found they lie on the host, where rows are looked for."""

    def of(self, source: int, prompt: int, rows: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen sources"] | None:
        """Some rows of one set of targets, by one set; None where the block has none of it."""
        if source not in self.columns or (place := self._there(prompt, rows)) is None:
            return None
        value, own = self.value[prompt], self.columns[source]
        there = place.to(value.device, non_blocking=True)
        return value.index_select(0, there) if own is None else value[there[:, None], own[prompt]]

    def first(self, source: int, prompt: int, rows: tuple[int, int], count: int) -> Float[Tensor, "rows count"] | None:
        """A run of rows `[first, end)` of one set of targets, by the first of one set; None where the block has none of it."""
        if source not in self.columns:
            return None
        begin, end = torch.searchsorted(self.rows[prompt], torch.tensor(rows)).tolist()
        if begin == end:
            return None
        assert end - begin == rows[1] - rows[0]
        value, own = self.value[prompt][begin:end], self.columns[source]
        return value[:, :count] if own is None else value.index_select(1, own[prompt][:count])

    def _there(self, prompt: int, rows: Int[Tensor, " chosen"]) -> Int[Tensor, " chosen"] | None:
        """Where some rows of one set of targets are among its own; None where they are not."""
        own = self.rows[prompt]
        found = torch.searchsorted(own, rows)
        is_there = found < len(own)
        is_there &= own[found.clamp_max(len(own) - 1)] == rows if len(own) else is_there
        if not bool(is_there.any()):
            return None
        assert bool(is_there.all())
        return found


class Lifted(NamedTuple):
    """Sources that have gone up, and the targets that they have met on the way."""

    to: Site
    ways: "list[RisingUp]"
    """Those that have come to `to`; what stands there is their `part`."""
    below: list[list[Block]]
    """For every set of targets below; their rows are in order of position."""


def join(
    primal: Primal, targets: Sequence[TargetSet], sources: Sequence[SourceSet], between: Between, lifted: Lifted | None
) -> list[Block]:
    """The Jacobian of all rows by all sources. What is in no block is zero.

    Args:
        targets: where some sources have been lifted, none that stop below the place to which they have come.
    """
    sweep = _Sweep(primal, targets, sources, between, None if lifted is None else lifted.to)
    for way in sweep.descend(targets):
        for up in () if lifted is None else lifted.ways:
            sweep.meet(way, up, up.part)
    return sweep.found


def lift(
    primal: Primal, to: Site, below: Sequence[TargetSet], sources: Sequence[SourceSet], chosen: Collection[int], between: Between
) -> Lifted:
    """Take sources up to a place, and have the targets below it read on the way.

    Args:
        below: those; the rows of each are numbered by themselves.
        chosen: numbers of the sources that go up: those that write below `to`, and what the model brings to it.
    """
    lifting = Lift(primal, to, below, sources, chosen, between)
    ways = ascend([RisingUp(lifting, number) for number in chosen if len(sources[number].seeds.token)])
    found = [sweep.found for sweep in lifting.sweeps]
    lifting.let_go()
    return Lifted(to, ways, found)


class _Sweep:
    """What all sets of a way down share."""

    def __init__(
        self, primal: Primal, targets: Sequence[TargetSet], sources: Sequence[SourceSet], between: Between, end: Site | None
    ) -> None:
        """Make one.

        Args:
            end: where rows meet what has been lifted; None is at no place, and they go down to the lowest source.
        """
        self.primal, self.sources, self.between, self.end = primal, sources, between, end
        self.positions = _positions(primal, targets)
        self.blocks: dict[int | RisingUp, Block] = {}

        def reached(is_brought: bool) -> set[Site]:
            # what the model brings to the end is among what is lifted
            places = {place_of(site) for source in sources if source.is_brought == is_brought for site in source.writes}
            return {site for site in places if end is None or site.depth > end.depth or (site == end and not is_brought)}

        self.wanted, self.brought = reached(False), reached(True) | ({end} if end else set())
        self.low = min(self.wanted | self.brought, key=lambda site: site.depth)
        # in head space the whole of the lowest layer is passed at once, so nothing may be written there that sources would pass
        is_open = end is None and not between.passing and all(site.layer in primal.shut_mlps for site in between.held)
        self.in_heads = is_open and self.low.kind == "resid_pre" and self._heads_pay()

    def _heads_pay(self) -> bool:
        whole = self.cone([torch.arange(len(rows)) for rows in self.positions])
        lowest = (seeds for source in self.sources for site, seeds in source.writes.items() if place_of(site) == self.low)
        return all(heads_pay(self.primal, whole, seeds) for seeds in lowest)

    @property
    def found(self) -> list[Block]:
        """What has been read out and met. A device is waited for once, for the numbers of all rows."""
        blocks = list(self.blocks.values())
        here = iter(to_host([numbers for block in blocks for numbers in block.rows]))
        return [block._replace(rows=tuple(islice(here, len(block.rows)))) for block in blocks]

    def descend(self, targets: Sequence[TargetSet]) -> "list[_JoiningDown]":
        """All rows on one way down; those that come to the end."""
        return descend([_JoiningDown(self, each) for each in targets if len(each.seeds.token)])

    def cone(self, rows: Sequence[Tensor]) -> Cone:
        """The cone of some rows of each prompt."""
        chosen = [at[own.to(at.device)].tolist() for at, own in zip(self.positions, rows, strict=True)]
        return cone(chosen, self.primal.lengths, "down", self.primal.pieces.band, causal=self.primal.model.config.causal)

    def reads_heads(self, stop: Site) -> bool:
        """Whether rows that begin at a place are read out in head space: they have been spread before they come to the lowest layer."""
        return self.in_heads and is_spread_above(self.primal.model.config, self.low, stop)

    def meet(self, way: "_JoiningDown", up: "RisingUp", x: Flat | None) -> None:
        """Contract rows that have come to the end with tangents `x` there."""
        is_met = way.part is not None and x is not None
        if not is_met and way.waiting.isdisjoint(up.waiting):
            return
        out = self.table(up, way.rows, [len(columns) for columns in up.columns])
        meet_ways(way, way.part, up, x, out)
        self.add(up, way.rows, out)

    def zeros(self, rows: Sequence[Tensor], columns: Sequence[int]) -> Jacobians:
        """Of some rows and so many columns of each prompt."""
        model = self.primal.model
        return [torch.zeros(len(own), count, dtype=model.dtype, device=model.device) for own, count in zip(rows, columns, strict=True)]

    def table(self, of: "int | RisingUp", rows: Numbers, columns: Sequence[int]) -> Jacobians:
        """What is added to where some rows read one set or meet some: what they have of it, or zeros."""
        block = self.blocks.get(of)
        return block.value if block is not None and block.rows is rows else self.zeros(rows, columns)

    def add(self, of: "int | RisingUp", rows: Numbers, out: Jacobians) -> None:
        """Put to the Jacobian what some rows have read of one set, or met of some."""
        block = self.blocks.get(of)
        if block is None:
            self.blocks[of] = Block(out, {of: None} if isinstance(of, int) else of.own_columns(), rows)
        elif block.value is not out:  # other rows have come to it since
            self._add(block := self._of_all(of, block), rows, out)

    def _of_all(self, of: "int | RisingUp", block: Block) -> Block:
        """The same with all rows."""
        if all(len(own) == len(at) for own, at in zip(block.rows, self.positions, strict=True)):
            return block
        every = tuple(torch.arange(len(at), device=at.device) for at in self.positions)
        whole = block._replace(value=self.zeros(every, [part.shape[1] for part in block.value]), rows=every)
        self._add(whole, block.rows, block.value)
        self.blocks[of] = whole
        return whole

    @staticmethod
    def _add(block: Block, rows: Numbers, out: Jacobians) -> None:
        for into, own, part in zip(block.value, rows, out, strict=True):
            into.index_add_(0, own, part)


def _positions(primal: Primal, targets: Sequence[TargetSet]) -> list[Int[Tensor, " _"]]:
    """The position of every row of each prompt."""
    found = []
    for prompt in range(len(primal.lengths)):
        rows = torch.cat([each.rows[prompt] for each in targets])
        token = [each.seeds.token[(first := each.seeds.first(prompt)) : first + each.seeds.counts[prompt]] for each in targets]
        found.append(torch.empty_like(rows).index_copy_(0, rows, torch.cat(token) - primal.first(prompt)))
    return found


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
        if is_brought and site == self.sweep.end:
            return  # where rows meet what is lifted, once all have come there
        chosen = self._sources(site, is_brought)
        out = [self.sweep.table(number, self.rows, seeds.counts) for number, seeds in chosen]
        there = [(seeds, into) for (_, seeds), into in zip(chosen, out, strict=True)]
        if self.is_spread:
            contract(self.primal, self.down, rows, there)
        for seeds, into in () if self.is_spread else there:
            contract_seeded(self.primal, self.targets._replace(value=rows), seeds, into)
        for (number, _), into in zip(chosen, out, strict=True):
            self.sweep.add(number, self.rows, into)

    def read_heads(self, layer: int, stream: Flat, z: Flat | None) -> None:
        """Every set of sources at the lowest place, in the heads of the lowest attention."""
        chosen = self._sources(self.start, False) + self._sources(self.start, True)
        out = [self.sweep.table(number, self.rows, seeds.counts) for number, seeds in chosen]
        read_in_head_space(self.primal, layer, self.down, stream, [(seeds, into) for (_, seeds), into in zip(chosen, out, strict=True)], z)
        for (number, _), into in zip(chosen, out, strict=True):
            self.sweep.add(number, self.rows, into)

    def take_in(self, others: Sequence[Any]) -> None:
        """Go on with others' rows too, in one cone: all lie on what they see, in order of position."""
        ways: list[_JoiningDown] = [self, *others]
        groups = [Group(way.rows, way.down, way.waits) for way in ways]
        whole = self.sweep.cone(rows := joined(groups))
        merge = Merge(self.primal, groups, rows, whole, is_up=False)
        self.stream = self.part = merge.rows([way.stream for way in ways])
        merge.waiting(self.waits)
        self.waiting = set[int]().union(*(way.waiting for way in ways))
        self.rows, self.down = rows, whole
        self.lie(whole)
        for way in others:  # whoever still knows them shall not keep their rows
            way.stream, way.part, way.waits = None, None, []


class Lift:
    """What all sets of a way up share."""

    def __init__(
        self,
        primal: Primal,
        to: Site,
        below: Sequence[TargetSet],
        sources: Sequence[SourceSet],
        chosen: Collection[int],
        between: Between,
    ) -> None:
        self.primal, self.to, self.sources, self.between = primal, to, sources, between
        seeds = [sources[number].seeds for number in chosen]
        self.columns = dict(zip(chosen, numbers_of(primal, seeds), strict=True))
        positions = []
        for prompt in range(len(primal.lengths)):
            token = torch.cat([each.token[(first := each.first(prompt)) : first + each.counts[prompt]] for each in seeds])
            positions.append((token - primal.first(prompt)).sort().values)
        self.positions = positions
        self.sweeps, self.met = list[_Sweep](), dict[Site, list[_JoiningDown]]()
        for targets in below:
            at = reading_place(primal.model.config, targets.stop)
            self.sweeps.append(sweep := _Sweep(primal, [targets], sources, between, at))
            for way in sweep.descend([targets]):
                if way.part is not None or way.waiting:
                    self.met.setdefault(at, []).append(way)

    def let_go(self) -> None:
        """Keep nothing of the targets, which have been read."""
        self.sweeps.clear()
        self.met.clear()  # which all ways know

    def cone(self, columns: Numbers) -> Cone:
        """What some columns of each prompt move."""
        chosen = [at[own.to(at.device)].tolist() for at, own in zip(self.positions, columns, strict=True)]
        return cone(chosen, self.primal.lengths, "up", self.primal.pieces.band, causal=self.primal.model.config.causal)


class RisingUp(Up, Rising[Tensor]):
    """One set of sources on its way up, or those that have come together."""

    def __init__(self, lift: Lift, number: int) -> None:
        source = lift.sources[number]
        self.numbers: tuple[int, ...] = (number,)
        self.lift, self.columns = lift, lift.columns[number]
        super().__init__(
            lift.primal, source.start, source.writes, lift.cone(self.columns), lift.to, lift.between, meets=lift.met,
            is_written=not source.is_brought,
        )  # fmt: skip

    def begin(self) -> Tensor | None:
        """The embeddings, each at its own position; or nothing yet."""
        return None if self.start in self.written else self.first.value

    def meet(self, site: Site, rows: Tensor | None) -> None:
        """Have those targets read that have come to the place."""
        for way in self.lift.met[site]:
            way.sweep.meet(way, self, rows)

    def seeded(self, site: Site) -> Tensor:
        """Where the others are, and at their own positions."""
        if not self.is_spread:
            return super().seeded(site)
        out = self.first.value.new_zeros(self.cone.cells, width(self.config, site))
        for number in self.numbers:
            source = self.lift.sources[number]
            if not source.is_brought and site in source.writes:
                out.index_copy_(0, self._own_cells(number), source.writes[site].value)
        return out

    def _own_cells(self, number: int) -> Int[Tensor, " rows"]:
        """Where the rows of one set lie at the positions where they are seeded."""
        found = []
        for prompt, (cells, own) in enumerate(zip(self.places(), self._among(number), strict=True)):
            at = self.lift.positions[prompt][self.lift.columns[number][prompt]]
            found.append(cells.start[own] + cells.step[own] * at)
        return torch.cat(found)

    @property
    def rows(self) -> Float[Tensor, "cells d_model"]:
        """What stands at a place of the stream."""
        assert self.stream is not None
        return self.stream

    def where(self, prompt: int, position: int) -> tuple[Int[Tensor, " there"], Int[Tensor, " there"]]:
        """The columns of a prompt that live at a position, and the cells in which they do."""
        cells = self.places()[prompt]
        first, end = cells.alive[position]
        return self.columns[prompt][first:end], cells.at(position)

    def own_columns(self) -> dict[int, Numbers]:
        """Which columns are those of each set."""
        return {number: self._among(number) for number in self.numbers}

    def _among(self, number: int) -> Numbers:
        pairs = zip(self.columns, self.lift.columns[number], strict=True)
        return tuple(torch.searchsorted(columns, own) for columns, own in pairs)

    def take_in(self, others: Sequence[Any]) -> None:
        """Go on with others' rows too, in one cone: all lie on what they move, in order of position."""
        ways: list[RisingUp] = [self, *others]
        groups = [Group(way.columns, way.up, way.waits) for way in ways]
        whole = self.lift.cone(columns := joined(groups))
        merge = Merge(self.primal, groups, columns, whole, is_up=True)
        self.stream = merge.rows([way.stream for way in ways])
        merge.waiting(self.waits)
        self.waiting = set[int]().union(*(way.waiting for way in ways))
        self.written = set[Site]().union(*(way.written for way in ways))
        self.numbers, self.columns, self.up = tuple(number for way in ways for number in way.numbers), columns, whole
        self.lie(whole)
        for way in others:
            way.stream, way.part, way.waits = None, None, []
