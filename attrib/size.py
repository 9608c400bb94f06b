"""What a result takes in memory, told from the rows at both ends before any of it is computed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

from attrib.room import free_memory
from attrib.task import Task
from attrib.types import Dense, Keep, NoRoomError, TopK

SHARE = 0.5
"""Of the memory that is free, what a result may take: who computes one wants to do something with it."""

_INDEX = 8
"""Bytes of a column's number, a row's pointer, a position, a latent."""

Item = TypeVar("Item")


def edges_at_most(task: Task, keep: Keep) -> int:
    """Edges that a rule keeps at most: each target sees the sources at its position and before. Fewer where gradients are zero."""
    most = keep.k if isinstance(keep, TopK) else task.n_sources
    pairs = zip(task.targets, task.sources, strict=True)
    return sum(n * min(most, seen) for rows, sources in pairs for n, seen in zip(rows, accumulate(sources), strict=True))


def result_bytes(task: Task, keep: Keep) -> int:
    """Bytes of the edges and of both tables of nodes, at most."""
    return edges_at_most(task, keep) * _edge(task) + _nodes(task)


def _edge(task: Task) -> int:
    return _INDEX + 2 * _number(task)


def _nodes(task: Task) -> int:
    return _INDEX * len(task.targets) + task.n_targets * (3 * _INDEX + 3 * _number(task)) + task.n_sources * (2 * _INDEX + _number(task))


def _number(task: Task) -> int:
    """Bytes of a value in the result, which has no halves."""
    return max(4, task.itemsize)


def while_there_is_room(items: Iterable[Item], task_of: Callable[[Item], Task], keep: Keep, count: int) -> Iterator[Item]:
    """The items of a call, as long as their results find room together.

    Args:
        count: how many items there are.

    Raises:
        NoRoomError: at the first whose result, with those before, would take more than a share of what was free at the beginning.
            What `Threshold` and `Mass` keep is in the numbers, so they are never refused.
    """
    room = int(SHARE * free_memory()) if isinstance(keep, Dense | TopK) else None
    tasks: list[Task] = []
    taken = 0
    for item in items:
        tasks.append(task_of(item))
        taken += result_bytes(tasks[-1], keep)
        if room is not None and taken > room:
            raise NoRoomError(_refusal(tasks, keep, taken, room, count))
        yield item


def _refusal(tasks: Sequence[Task], keep: Keep, taken: int, room: int, count: int) -> str:
    edges = sum(edges_at_most(task, keep) for task in tasks)
    of = "" if len(tasks) == count else f" of the first {len(tasks)} of {count} prompts"
    # the prompts that are still to come are taken to be like those
    left = room * len(tasks) // count - sum(map(_nodes, tasks))
    most = left // max(1, sum(task.n_targets * _edge(task) for task in tasks))
    fits = f"TopK(k) fits up to k = {most}; " if most > 0 else ""
    return (
        f"keep: {keep} would keep up to {edges:,} edges{of}, {taken / 1e6:,.0f} MB, which is more than half of the "
        f"{room / SHARE / 1e6:,.0f} MB of memory that are free. {fits}Mass(0.99) keeps the fewest edges that make up 99% of each target; "
        "or take fewer positions or prompts."
    )
