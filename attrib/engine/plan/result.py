"""How large a result is, and whether it fits beside what runs already: told from the rows at both ends, before any of it is computed."""

from itertools import accumulate
from pathlib import Path

from attrib.core.keep import is_counted, most_kept
from attrib.core.types import BudgetError, Keep
from attrib.engine.plan.task import Task

SHARE = 0.5
"""The share of the free memory that a result may take: whoever reads it works on copies of its columns."""


def edges_at_most(task: Task, keep: Keep) -> int:
    """How many edges a pack of prompts can have: of each target those to the sources that it can see, or what the rule keeps of so many."""
    found = 0
    for rows, columns in zip(task.targets, task.sources, strict=True):
        every = accumulate(columns) if task.config.causal else [sum(columns)] * len(columns)
        for targets, seen in zip(rows, every, strict=True):
            found += targets * most_kept(keep, seen)
    return found


def result_bytes(task: Task, keep: Keep) -> int:
    """Bytes of a pack's `Edges` at most: an index, a gradient and an attribution for each edge, and both tables."""
    number = number_size(task.itemsize)
    tables = task.n_targets * (3 * 8 + 3 * number) + task.n_sources * (2 * 8 + number)
    return edges_at_most(task, keep) * (8 + 2 * number) + tables


def disk_bytes(task: Task, keep: Keep) -> int:
    """Bytes of a pack's edges in a file at most: a narrow index and an attribution for each."""
    return edges_at_most(task, keep) * (4 + number_size(task.itemsize))


def check_disk(needed: int, keep: Keep, folder: Path, free: int) -> None:
    """Raises BudgetError where the disk has no room for the bytes of edges whose number is known; see `fits`."""
    if needed > free and is_counted(keep):
        raise BudgetError(no_room(f"{keep} gives edges that take up to {size_of(needed)}", folder, free))


def no_room(what: str, folder: Path, free: int) -> str:
    """What is said where a disk does not suffice."""
    return (
        f"keep: {what} of disk while they are put in order and written, and the disk of {folder} has {size_of(free)} left. Keep fewer "
        "edges (keep=TopK(k), Mass(0.9)), give fewer or shorter prompts, or write to another disk."
    )


def number_size(itemsize: int) -> int:
    """Bytes of a value in a result, which has no halves."""
    return max(4, itemsize)


def fits(needed: int, keep: Keep, free: int) -> bool:
    """Whether a result may be made in so much free memory; one whose size is known only as a bound may."""
    return needed <= SHARE * free or not is_counted(keep)


def check_fits(needed: int, keep: Keep, targets: int, itemsize: int, free: int) -> None:
    """Raises BudgetError where a result of known size takes too much of the free memory; names rules that keep less."""
    if fits(needed, keep, free):
        return
    k = int(SHARE * free / max(1, targets) - 6 * 8) // (8 + 2 * number_size(itemsize))
    fitting = f"keep=TopK({k:,}) or fewer fits; Mass(0.9) and Threshold(t) keep what weighs most" if k > 0 else "no TopK(k) fits"
    raise BudgetError(
        f"keep: {keep} gives a result of up to {size_of(needed)} for {targets:,} targets, and {size_of(free)} of memory are free, of which "
        f"a result may take half. {fitting}. Or give fewer prompts or positions at a time."
    )


def size_of(count: int) -> str:
    """Bytes in a unit that people read."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
