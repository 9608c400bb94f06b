"""How much memory there still is, and what is said where there is none.

A process may be held below what the machine has: by its control group (containers, batch systems), which ends it without a
word, and by limits on its address space or its data (`ulimit -v`, `-d`). The least of them is what counts.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrib.core.types import OutOfMemoryError, first_line

_WORDS = (
    "DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory", "not enough memory", "can't allocate memory", "bad_alloc",
    "can't start new thread",
)  # fmt: skip
"""What allocators say in errors that have no class of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or of the machine did not suffice: some say it in the words of a RuntimeError alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; the command line need not load it for this
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


KEEP_LESS = "Give a smaller budget, keep fewer edges (keep=TopK(k), Mass(0.9)), or give fewer or shorter prompts."
"""What helps where edges are found."""


@contextmanager
def memory_named(doing: str, remedy: str = "Give fewer or shorter prompts at a time, or close what else runs.") -> Iterator[None]:
    """Say in one line what was being done where memory ran out, whichever allocator says so; around functions too.

    Of several around each other the outermost says it: that is what was asked for.

    Raises:
        OutOfMemoryError: in place of MemoryError, torch.OutOfMemoryError and the RuntimeError of torch's allocators.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = error.__cause__ if isinstance(error, OutOfMemoryError) and error.__cause__ else error
        said = first_line(first).strip().rstrip(".") or type(first).__name__
        raise OutOfMemoryError(f"out of memory while {doing} ({said}). {remedy}") from first


def free_memory() -> int:
    """Bytes that this process may still take of the machine's memory."""
    return max(0, min([_available(), *_below_limits(), *_below_groups()]))


def _available() -> int:
    """Bytes that the machine can give without swapping."""
    if sys.platform == "linux":
        (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    import psutil

    return int(psutil.virtual_memory().available)


def _mapped() -> tuple[int, ...]:
    """Bytes that the process has mapped; on Linux also those of them that are data, which may have a limit of their own."""
    if sys.platform == "linux":
        import os

        pages = Path("/proc/self/statm").read_text().split()
        return tuple(int(pages[number]) * os.sysconf("SC_PAGE_SIZE") for number in (0, 5))
    import psutil

    return (int(psutil.Process().memory_info().vms),)


def _below_limits() -> Iterator[int]:
    """What is left below the process's own limits on its address space and its data."""
    if sys.platform != "win32":
        import resource

        for which, used in zip((resource.RLIMIT_AS, resource.RLIMIT_DATA), _mapped(), strict=False):
            limit, _ = resource.getrlimit(which)
            if limit != resource.RLIM_INFINITY:
                yield limit - used


def _below_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What is left below the limits of the control groups that the process is in, and of those around them; version 1 and 2."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        inside = Path(path.lstrip("/"))
        for group in {top, *(top / part for part in (inside, *inside.parents))}:
            limit, used = (_number(group / name) for name in files)
            if limit is not None and used is not None:
                yield limit - used + _reclaimable(group / "memory.stat")


def _number(file: Path) -> int | None:
    """What a group's file says; None where there is none, or no limit."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _reclaimable(file: Path) -> int:
    """The pages of files that count as used, and that the kernel gives back when they are wanted."""
    try:
        counts = dict(line.split() for line in file.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
