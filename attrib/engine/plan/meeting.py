"""What the ways cost on which both sides meet: the products of up.py and of `meet.meet`, step by step.

The way up is ascent.py's, taken by the number of rows in place of the rows, as cost.py takes the way down.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from attrib.core.types import Site
from attrib.engine.blocks.passing import place_of
from attrib.engine.plan.cost import (
    Cost,
    DescentCount,
    Moving,
    Part,
    attention,
    attention_maps,
    attention_point,
    meet_seeded,
    mlp,
    mlp_point,
    mlp_rows,
    output_point,
    readout,
    spread_heads,
    spread_up,
    walk,
)
from attrib.engine.plan.task import NOTHING_OPENED, Counts, Task
from attrib.engine.sweep.ascent import Ascent
from attrib.models.transformer import width


class AscentCount(Ascent[Moving]):
    """The products of up.py's `Up`, step by step."""

    def __init__(
        self, task: Task, start: Site, to: Site, writes: Collection[Site], *, meets: Collection[Site] = (), is_written: bool = False
    ) -> None:
        below = [site for site in map(place_of, writes) if site.depth < to.depth]
        super().__init__(task.config, task.policy, start, to, task.held, task.passed, below, meets=meets, is_written=is_written)
        self.task, self.cost = task, Cost(task.itemsize)
        self.alive: Counts = task.sources
        self.waits: dict[int, Counts] = {}

    @property
    def products(self) -> Part:
        """What products of an MLP are a part of."""
        return "mlp" if self.is_spread else "seeds"

    @property
    def cells(self) -> int:
        """Cells on which the rows lie."""
        return sum(map(sum, self.alive))

    def add(self, a: Moving, b: Moving) -> Moving:
        """No product."""
        return Moving()

    def through_attention(self, layer: int, stream: Moving, read: Moving, keeps: bool) -> Moving:
        """The whole of an attention, or its rank of heads."""
        if self.is_spread:
            attention(self.task, self.cost, up=True)
        else:
            self.cost.take(spread_up(self.task))
        return Moving()

    def through_attention_alone(self, layer: int, read: Moving) -> Moving:
        """The same products."""
        return self.through_attention(layer, read, read, keeps=True)

    def through_heads(self, layer: int, read: Moving) -> Moving:
        """Without W_O."""
        if not self.is_spread:
            spread_heads(self.task, self.cost)
            return Moving()
        self.cost.mm("attention", self.cells, self.config.d_model, self.task.d_heads)
        self.cost.take(attention_maps(self.task, True))  # which several ways may count with
        attention_point(self.task, self.cost, leaves=False)
        return Moving()

    def through_output(self, layer: int, rows: Moving) -> Moving:
        """W_O, and what the norm behind it wants to know."""
        self.cost.mm("attention" if self.is_spread else "seeds", self.cells, self.task.d_q, self.config.d_model)
        output_point(self.task, self.cost, layer)
        return Moving()

    def through_mlp(self, layer: int, stream: Moving, keeps: bool) -> Moving:
        """Its matrices for each row, or once for all rows at a position where they are many."""
        if self.is_spread:
            mlp(self.task, self.cost, layer, self.alive)
        elif self.task.passes_mlp(layer):
            mlp_rows(self.task, self.cost, "seeds", self.cells)
            mlp_point(self.task, self.cost)
        return Moving()

    def through_mlp_alone(self, layer: int, read: Moving) -> Moving:
        """The residual that is left out is no product."""
        mlp(self.task, self.cost, layer, self.alive, self.products)
        return Moving()

    def through_norm(self, layer: int, read: Moving) -> Moving:
        """No product."""
        return Moving()

    def through_matrices(self, layer: int, rows: Moving) -> Moving:
        """Row by row: a fold would have the norm in it."""
        mlp_rows(self.task, self.cost, self.products, self.cells)
        mlp_point(self.task, self.cost)
        return Moving()

    def widen(self, rows: Moving) -> Moving:
        """No product."""
        return rows

    def widen_waiting(self) -> None:
        """From now on rows are on all that they move."""
        self.alive = self.task.up()
        if not self.config.causal:
            self.waits = dict.fromkeys(self.waits, self.alive)

    def enter(self, number: int, rows: Moving) -> None:
        """Each row against what is active at its position."""
        passed = self.task.passed[number]
        self.waits[number] = self.alive
        self._terms(number, passed.d_in)

    def arrive(self, number: int, site: Site, is_last: bool) -> Moving:
        """From each of these to what is written, and the skip connection."""
        passed, size = self.task.passed[number], width(self.config, site)
        self._terms(number, size)
        if passed.has_skip:
            self.cost.mm("cuts", self.cells, passed.d_in, size)
        return Moving()

    def _terms(self, number: int, size: int) -> None:
        self.cost.met("cuts", chain(*self.waits[number]), size, chain(*self.task.passed[number].terms), asked=0.0)

    def seeded(self, site: Site) -> Moving:
        """No product."""
        return Moving()


class _Falling(DescentCount):
    """The way down to where both sides meet: what is read out there is counted apart."""

    def __init__(self, task: Task, to: Site, above: Collection[Site]) -> None:
        super().__init__(task, above, [to])
        self.is_met = False

    def read(self, site: Site, rows: Moving, is_brought: bool) -> None:
        if is_brought:
            self.is_met = True
        else:
            super().read(site, rows, is_brought)


class Raised(NamedTuple):
    """The way up to where both sides meet."""

    way: AscentCount
    comes: bool
    """Whether anything moves there."""


def raised(task: Task, layer: int | None) -> Raised:
    """Count the way up. It is the same whichever of the targets a sweep is for."""
    return _raised(replace(task, targets=task.sources, beside=0, opened=NOTHING_OPENED), layer)


@lru_cache(maxsize=64)
def _raised(task: Task, layer: int | None) -> Raised:
    way = AscentCount(task, task.start, task.meeting(layer).up, task.writes)
    return Raised(way, way.run(Moving()) is not None)


def lift_cost(task: Task, layer: int | None) -> Cost:
    """Count `meet.lift` to where both sides meet; see `Task.meeting`."""
    walked = Cost(task.itemsize)
    walk(task, walked)
    return raised(task, layer).way.cost + walked


def forward_cost(task: Task) -> Cost:
    """Count both sides where targets are still at their own positions as they meet."""
    return lift_cost(task, None) + met_cost(task, None)


def met_cost(task: Task, layer: int | None) -> Cost:
    """Count `meet.meet`, after `lift`."""
    at = task.meeting(layer)
    down = _Falling(task, at.down, [site for site in map(place_of, task.writes) if site.depth > at.down.depth])
    up, is_lifted = raised(task, layer)
    down.run(Moving())
    count_meeting(task, down.cost, down, up, is_lifted and down.is_met, at.down, None if at.up == at.down else at.up.layer)
    return down.cost


def count_meeting(task: Task, cost: Cost, down: DescentCount, up: AscentCount, is_met: bool, place: Site, layer: int | None = None) -> None:
    """Count `meet.meet_ways`.

    Args:
        task: with the targets of the one and the sources of the other.
        is_met: whether both have rows at the place.
    """
    if is_met:
        _rows(task, cost, down, up, width(task.config, place), layer)
    for number in down.waiting & up.waiting:
        both_sides = (down.waits[number], up.waits[number], task.passed[number].terms)
        for n, m, count in zip(*(chain(*counts) for counts in both_sides), strict=True):
            cost.mm("cuts", n, count, m)
        if task.passed[number].has_skip:
            _rows(task, cost, down, up, task.passed[number].d_in, None)


def _rows(task: Task, cost: Cost, down: DescentCount, up: AscentCount, size: int, layer: int | None) -> None:
    """Rows of both sides at one place, or about an MLP."""
    if down.is_spread and up.is_spread:
        if layer is not None:
            mlp(task, cost, layer, [list(map(min, rows, others)) for rows, others in zip(task.down(), task.up(), strict=True)])
        cost.met("readout", chain(*task.down()), size, chain(*task.up()))
        return
    if layer is not None and up.is_spread:
        mlp(task, cost, layer, task.targets, "seeds")
    elif layer is not None and task.passes_mlp(layer):
        mlp_rows(task, cost, "seeds", task.n_sources)
        mlp_point(task, cost)
    if up.is_spread or down.is_spread:
        readout(task, cost, up.is_spread, size)
    else:
        meet_seeded(task, cost, size)
