"""The folder in which a job is made, beside the job's own place: it takes the job's name when it is whole.

Whoever makes a job holds a lock in that folder, which the kernel lets go of when the process ends. So what a killed one
left is told from what another is making now.
"""

import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrib.core.files import PARTIAL, sync
from attrib.core.types import AttribWarning

MAKING, UNLOCKED = "making", "locking"
"""The lock's name, and the one that it has before it is held."""
YOUNG = 3600.0
"""Seconds for which a folder without a lock may be one whose lock is about to be made, or was just removed."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write says where the disk, or what one may have of it, is full; it does not know which file it writes."""


@contextmanager
def built(target: Path) -> Iterator[Path]:
    """A folder to make a job in, which takes the name `target` when the block ends well; else nothing is left.

    What was left at this place by processes that were killed is removed, with a warning.
    """
    for left in left_behind(target):
        with suppress(OSError):  # of somebody else: the new one has another name
            shutil.rmtree(left)
            warnings.warn(f"{left}, which a killed `attrib job init` left, was removed.", AttribWarning, stacklevel=4)
    building = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        building.mkdir()
        with (building / UNLOCKED).open("w") as lock:
            _held(lock.fileno())
            (building / UNLOCKED).rename(building / MAKING)  # under its name nobody meets it before it is locked
            yield building
            (building / MAKING).unlink()
            sync(building)
            building.rename(target)  # still locked: nobody takes it for left behind
        sync(target.parent)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def left_behind(target: Path) -> list[Path]:
    """Folders in which a job of this name was being made by a process that is no more."""
    own = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}{re.escape(PARTIAL)}")
    found = target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL}")
    return sorted(path for path in found if own.fullmatch(path.name) and path.is_dir() and not path.is_symlink() and _is_left(path))


def _is_left(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / MAKING, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime > YOUNG
    except OSError:
        return False  # a link, a pipe, somebody else's: none of ours
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode) and _held(descriptor)
    finally:
        os.close(descriptor)


def _held(descriptor: int) -> bool:
    """Take a lock, if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another has it, or the file system has none: then nothing is known, and nothing removed
        return False
    return True
