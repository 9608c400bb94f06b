"""What a sweep holds at its fullest moment, counted before it runs: what is under way (held.py), and what is there throughout."""

from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

from attrib.engine.blocks.passing import place_of
from attrib.engine.blocks.product import beside_products
from attrib.engine.plan.cost import reads_in_heads
from attrib.engine.plan.held import DownSizes, Held, Room, UpSizes, size_of_meeting
from attrib.engine.plan.task import NOTHING_OPENED, Task
from attrib.models.transformer import width

Way = Literal["local", "reverse", "forward", "both", "through"]
"""`local`: `reverse` where no attention is between, so that targets meet sources at their own positions. `through`: `reverse` with more
than MLPs cut. `forward` and `both`: `meet`, above the last attention or about some MLP."""


def peak_memory(task: Task, way: Way, layer: int | None = None) -> int:
    """Bytes at the fullest moment of a sweep, with the primal, the seeded rows and the tile that it fills.

    Args:
        layer: where the sides meet, for `both`.
    """
    return fullest(task, _meet(task, layer) if way in ("forward", "both") else _reverse(task))


def fullest(task: Task, room: Room) -> int:
    """Bytes at the fullest moment of a sweep whose ways have been taken in a room, or of what follows."""
    # while rows are selected, the sweep's own cells are gone; lifted tangents stay for the next sweep
    swept = room.most + beside_products(task.itemsize)
    return task.itemsize * (held_rows(task) + tile(task) + max(swept, selected(task, tile(task)) + room.kept))


def selected(task: Task, entries: int) -> int:
    """Numbers that so many entries of a Jacobian are selected in."""
    return 8 * min(entries, max(task.pieces.select, task.n_sources))


def tile(task: Task) -> int:
    """Entries of the Jacobian."""
    return sum(sum(rows) * sum(columns) for rows, columns in zip(task.targets, task.sources, strict=True))


def held_rows(task: Task) -> int:
    """Numbers that are there throughout, beside the tile: each side's rows in the path and packed, and the streams of the primal."""
    d = task.config.d_model
    packed = 2 if len(task.targets) > 1 else 1
    rows = task.n_sources * packed * max(1, len(task.writes)) + 2 * task.n_targets + task.beside
    return rows * d + 3 * task.tokens * packed * d * len(task.layers)


def _reverse(task: Task) -> Room:
    room, low = Room(), place_of(task.start)
    above = [site for site in task.writes if place_of(site) != low]
    way = DownSizes(room, task, above, [low], in_heads=reads_in_heads(task))
    way.run(Held(task.n_targets * width(task.config, task.stop)))
    return room


class Lifted(NamedTuple):
    """Tangents at the end of their way up."""

    most: int
    """Numbers at the fullest moment of it."""
    kept: int
    """Numbers that stay for all sweeps."""
    is_there: bool
    """Whether anything moves at the end."""
    is_spread: bool
    waiting: frozenset[int]


@lru_cache(maxsize=64)
def _lifted(task: Task, layer: int | None) -> Lifted:
    room = Room()
    way = UpSizes(room, task, task.start, task.meeting(layer).up, task.writes)
    rows = way.run(Held(0))  # which are in `_held`
    kept = {id(held): held.size for held in (rows, *way.under_way()) if held is not None}
    return Lifted(room.most, sum(kept.values()), rows is not None, way.is_spread, frozenset(way.waiting))


def _meet(task: Task, layer: int | None) -> Room:
    lifted, at = _lifted(replace(task, targets=task.sources, beside=0, opened=NOTHING_OPENED), layer), task.meeting(layer)
    room = Room(kept=lifted.kept, most=lifted.most)
    down = DownSizes(room, task, [site for site in map(place_of, task.writes) if site.depth > at.down.depth], [at.down])
    down.run(Held(task.n_targets * width(task.config, task.stop)))
    made = [task.passed[number].d_in for number in down.waiting & lifted.waiting if task.passed[number].has_skip]
    sizes = [size_of_meeting(down.sizes, down.is_spread, lifted.is_spread, d_in) for d_in in made]
    if lifted.is_there and down.is_met:
        layer = None if at.up == at.down else at.up.layer
        sizes.append(size_of_meeting(down.sizes, down.is_spread, lifted.is_spread, width(task.config, at.down), layer))
    room.take(made=max(sizes, default=0))
    return room
