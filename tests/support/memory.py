"""The most memory that this process has had at once. It imports nothing else, so that children that measure themselves can use it."""

import re
from pathlib import Path

PROCESS = Path("/proc/self")


def peak() -> int:
    """In bytes. What `getrusage` has is at least the peak of the process that started this one, since it outlives `exec`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text())
    assert found is not None
    return int(found[1]) << 10


def forget() -> None:
    """Let the peak be what there is now: what was there before the test would hide what the test takes."""
    (PROCESS / "clear_refs").write_text("5")
