"""How large a result is, whether it fits beside what runs already, and what is said where memory ends all the same."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import psutil
import torch

from attrib.task import Task
from attrib.types import AttribError, BudgetError, Dense, Keep, OutOfMemoryError, TopK, first_line

SHARE = 0.5
"""Of the free memory, what a result may take: whoever reads it works on copies of its columns."""


def edges_at_most(task: Task, keep: Keep) -> int:
    """How many edges a pack of prompts can have: of each target those to the sources that it can see, or TopK's k of them.

    Mass and Threshold choose by value, so they are bounded by all.
    """
    found = 0
    for rows, columns in zip(task.targets, task.sources, strict=True):
        for targets, seen in zip(rows, accumulate(columns), strict=True):
            found += targets * (min(seen, keep.k) if isinstance(keep, TopK) else seen)
    return found


def result_bytes(task: Task, keep: Keep) -> int:
    """Bytes of a pack's `Edges` at most: an index, a gradient and an attribution for each edge, and both tables."""
    tables = task.n_targets * (3 * 8 + 3 * task.itemsize) + task.n_sources * (2 * 8 + task.itemsize)
    return edges_at_most(task, keep) * (8 + 2 * task.itemsize) + tables


def fits(needed: int, keep: Keep, free: int) -> bool:
    """Whether a result may be made in so much free memory; one whose size is known only as a bound may."""
    return needed <= SHARE * free or not isinstance(keep, Dense | TopK)


def check_fits(needed: int, keep: Keep, targets: int, itemsize: int, free: int) -> None:
    """Raises BudgetError where a result of known size takes too much of the free memory; names rules that keep less."""
    if fits(needed, keep, free):
        return
    k = int(SHARE * free / max(1, targets) - 6 * 8) // (8 + 2 * itemsize)
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


def free_memory() -> int:
    """Bytes that this process can still take: of the machine, of its control group, of its own limit."""
    free: list[int] = [psutil.virtual_memory().available]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        free.append(most - psutil.Process(os.getpid()).memory_info().vms)
    group = Path("/sys/fs/cgroup")
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            free.append(int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(free))


_WORDS = (
    "DefaultCPUAllocator", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory",
    "can't start new thread",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or of the machine did not suffice: some say it in the words of a RuntimeError alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )


@contextmanager
def memory_named(doing: str, remedy: str) -> Iterator[None]:
    """Say in one line what was being done where memory ran out, whichever allocator says so.

    Raises:
        OutOfMemoryError: in place of MemoryError, torch.OutOfMemoryError and the RuntimeError of torch's allocators.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, AttribError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory while {doing} ({first_line(error) or type(error).__name__}). {remedy}") from error
