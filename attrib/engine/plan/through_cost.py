"""What the way through written places costs: the steps of route.py, counted."""

from collections.abc import Sequence
from itertools import chain

from attrib.core.types import Site
from attrib.engine.plan.cost import (
    Cost,
    attention,
    attention_point,
    meet_seeded,
    mlp,
    mlp_point,
    mlp_rows,
    readout,
    spread_down,
    walk,
)
from attrib.engine.plan.task import Task
from attrib.engine.sweep.route import Descent
from attrib.models.transformer import width

Alive = Sequence[Sequence[int]]
"""Rows at each position of each prompt."""


def through_cost(task: Task) -> Cost:
    """Of `through.through`."""
    way = _Count(task)
    way.run(_Moving())
    walk(task, way.cost)
    return way.cost


class _Moving:
    """Rows that are not zero. All that is known of them is that they are there, and which they are."""


class _Count(Descent[_Moving]):
    def __init__(self, task: Task) -> None:
        super().__init__(task.config, task.policy, task.start, task.stop, task.held, task.passed, task.writes or (task.start,))
        self.task, self.cost = task, Cost(task.itemsize)
        self.waits: dict[int, Alive] = {}

    @property
    def alive(self) -> Alive:
        return self.task.down() if self.is_spread else self.task.targets

    @property
    def cells(self) -> int:
        return sum(map(sum, self.alive))

    def add(self, a: _Moving, b: _Moving) -> _Moving:
        return _Moving()

    def through_mlp(self, layer: int, rows: _Moving) -> _Moving:
        mlp(self.task, self.cost, layer, self.alive)
        return rows

    def through_mlp_alone(self, layer: int, rows: _Moving) -> _Moving:
        mlp(self.task, self.cost, layer, self.alive)
        return _Moving()

    def through_matrices(self, layer: int, rows: _Moving) -> _Moving:
        mlp_rows(self.task, self.cost, "mlp", self.cells)
        mlp_point(self.task, self.cost)
        return _Moving()

    def through_norm(self, layer: int, rows: _Moving) -> _Moving:
        return _Moving()

    def through_output(self, layer: int, rows: _Moving) -> _Moving:
        self.cost.mm("seeds", self.cells, self.config.d_model, self.task.d_q)
        if self.config.post_norm:
            attention_point(self.task, self.cost)
        return _Moving()

    def through_attention(self, layer: int, below: _Moving | None, written: _Moving) -> _Moving:
        attention(self.task, self.cost, up=False)
        return _Moving()

    def through_heads(self, layer: int, below: _Moving | None, z: _Moving) -> _Moving:
        attention(self.task, self.cost, up=False, is_from_z=True)
        return _Moving()

    def spread(self, layer: int, below: _Moving | None, z: _Moving) -> _Moving:
        spread_down(self.task, self.cost)
        return _Moving()

    def enter(self, number: int, site: Site, rows: _Moving) -> None:
        passed, size = self.task.passed[number], width(self.config, site)
        self._terms(self.alive, passed.terms, size)
        if passed.has_skip:
            self.cost.mm("cuts", self.cells, size, passed.d_in)
        self.waits[number] = self.alive

    def arrive(self, number: int) -> _Moving:
        passed = self.task.passed[number]
        self._terms(self.waits.pop(number), passed.terms, passed.d_in)
        return _Moving()

    def _terms(self, alive: Alive, terms: Alive, size: int) -> None:
        for rows, count in zip(chain(*alive), chain(*terms), strict=True):
            self.cost.mm("cuts", rows, size, count)

    def read(self, site: Site, rows: _Moving) -> None:
        if self.is_spread:
            readout(self.task, self.cost, False, width(self.config, site))
        else:
            meet_seeded(self.task, self.cost, width(self.config, site))
