"""The lock of a job's folder: one run at a time, and none that a crash leaves behind.

The kernel holds it (flock) and lets go when the process ends, however it ends. The file says whose it is, and
its holder touches it every few seconds: where a network file system keeps flock to one machine, another machine
still sees that it is held. An untouched lock that nobody holds is stale, and is taken.

The ranks of one launch share the lock: it is theirs together, and each has one of its own.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ValidationError

from attrib.types import InputError

TOUCHED_EVERY = 5.0
"""Seconds."""
STALE_AFTER = 60.0
"""Seconds after which a lock of another machine that is not touched is nobody's."""


class Holder(BaseModel):
    """Who runs a job."""

    host: str
    pid: int
    launch: str
    """The same for the ranks of one launch; else of this process alone."""
    began: float
    """Seconds since 1970."""


@contextmanager
def held(path: Path, *, launch: str | None = None, rank: int = 0) -> Iterator[Holder | None]:
    """Hold a job's lock.

    Args:
        launch: names a launch of many ranks, which hold the lock together; None for one process alone.
        rank: of this process in it.

    Yields:
        Who held it last and ended without letting go: a run that was killed. None where the last run ended well.

    Raises:
        InputError: where another run holds it; names it.
    """
    own = Holder(host=socket.gethostname(), pid=os.getpid(), launch=launch or f"{socket.gethostname()}:{os.getpid()}", began=time.time())
    with ExitStack() as opened:
        if launch is not None:
            of_rank = opened.enter_context(path.with_name(f"{path.name}.{rank}").open("a+"))
            if not _flock(of_rank, fcntl.LOCK_EX):
                raise _taken(path.with_name(of_rank.name), _read(of_rank))
        file = opened.enter_context(path.open("a+"))
        alone = _flock(file, fcntl.LOCK_EX)
        if not alone and (launch is None or not _flock(file, fcntl.LOCK_SH)):
            raise _taken(path, _read(file))
        last = _read(file)
        shares = launch is not None and last is not None and last.launch == launch
        if last is not None and not shares and (not alone or _is_touched_elsewhere(path, last, own)):
            raise _taken(path, last)
        if alone:
            _write(file, own)
            if launch is not None:
                _flock(file, fcntl.LOCK_SH)
        ended = threading.Event()
        toucher = threading.Thread(target=_touch, args=(path, ended), daemon=True)
        toucher.start()
        try:
            yield None if shares else last
        finally:
            ended.set()
            toucher.join()
            if launch is None or _flock(file, fcntl.LOCK_EX):  # of a launch's ranks, the last one out
                file.truncate(0)


def holder(path: Path) -> Holder | None:
    """Who holds a job's lock now; None where nobody does."""
    try:
        with path.open() as file:
            last = _read(file)
            if last is None or (_flock(file, fcntl.LOCK_EX) and not _is_touched_elsewhere(path, last, None)):
                return None
            return last
    except FileNotFoundError:
        return None


def _flock(file: IO[str], kind: int) -> bool:
    """Take a lock. Returns whether it could be had; true where the file system has none, and touching must do."""
    for wait in (0.02, 0.1, 0.0):  # someone may only be looking who holds it
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return True
            time.sleep(wait)
        else:
            return True
    return False


def _read(file: IO[str]) -> Holder | None:
    file.seek(0)
    try:
        return Holder.model_validate_json(file.read(4096))
    except ValidationError:
        return None  # empty: the last run ended well


def _write(file: IO[str], own: Holder) -> None:
    file.truncate(0)
    file.write(json.dumps(own.model_dump()))
    file.flush()
    os.fsync(file.fileno())


def _is_touched_elsewhere(path: Path, last: Holder, own: Holder | None) -> bool:
    """Whether a holder on another machine is alive: flock may not reach there, but its touch does."""
    if last.host == (own.host if own else socket.gethostname()):
        return False
    return _now(path) - path.stat().st_mtime < STALE_AFTER


def _now(path: Path) -> float:
    """The time of the machine that holds the folder, whose clock may be another."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(TOUCHED_EVERY):
        os.utime(path)


def _taken(path: Path, by: Holder | None) -> InputError:
    who = "another run" if by is None else f"a run on {by.host}, process {by.pid}, since {time.strftime('%F %T', time.localtime(by.began))}"
    return InputError(f"job: {path.parent} is being run by {who}. Wait for it, or stop it; a lock that is left by a crash is taken.")
