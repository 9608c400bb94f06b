"""The lock of a job's folder: one run at a time, and none that a crash leaves behind.

The kernel holds it (flock) and lets go when the process ends, however it ends. The file says whose it is, and
its holder touches it every few seconds: where a network file system keeps flock to one machine, or has none,
another run still sees that it is held. An untouched lock that nobody holds is stale, and is taken.

Another machine's clock may be wrong: a lock that was touched in the future is somebody's only while it goes on being touched.

The ranks of one launch share the lock: it is theirs together, and each has one of its own.
"""

import errno
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import IO, Annotated

from pydantic import BaseModel, Field

from attrib.core import inside
from attrib.core.files import PARTIAL
from attrib.core.types import InputError

TOUCHED_EVERY = 5.0
"""Seconds."""
STALE_AFTER = 60.0
"""Seconds after which a lock of another machine that is not touched is nobody's."""
JOINED_WITHIN = 5.0
"""Seconds in which the first rank of a launch has written whose the lock is."""
SETTLED_AFTER = 0.5
"""Seconds after which, without flock, of several that take a lock at once all see who was the last."""

LENGTH = 512
"""Bytes of a lock's file, at least."""

_WAITS = (0.02, 0.1)
"""Seconds before a lock is tried again: someone may only be looking who holds it."""


class Holder(BaseModel):
    """Who runs a job."""

    host: str
    pid: int
    launch: str
    """A name that the ranks of one launch share; outside of a launch, a name of this process alone."""
    began: Annotated[float, Field(ge=0, lt=1e11)]
    """Seconds since 1970."""


class _Flock(Enum):
    """What became of an attempt to take a lock."""

    HAD = "it is ours"
    HELD = "another process has it"
    NONE = "the file system has no such locks, and touching must do"


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
    of_rank = path.with_name(f"{path.name}.{rank}")
    with ExitStack() as opened:
        paths = [path] if launch is None else [path, of_rank]
        files = [opened.enter_context(inside.opened(path.parent, each, "a+")) for each in paths]
        for file in files[1:]:
            if _flock(file, fcntl.LOCK_EX) is _Flock.HELD:
                raise _taken(of_rank, _read(file))
            _write(file, own)
            opened.callback(file.truncate, 0)
        last = _take(path, files[0], own) if launch is None else _join(path, files[0], own)
        ended = threading.Event()
        toucher = threading.Thread(target=_touch, args=(files, ended), daemon=True)
        try:
            toucher.start()  # in which an interrupt may come, when it touches already
            yield last
        finally:
            ended.set()
            if toucher.ident is not None:
                toucher.join()
            for file in files[1:]:
                file.truncate(0)  # before the others are looked at: of two that end at once, one sees that it is the last
            if launch is None or (_flock(files[0], fcntl.LOCK_EX) is not _Flock.HELD and not _others(path, own)):  # the last one out
                files[0].truncate(0)


def _take(path: Path, file: IO[bytes], own: Holder) -> Holder | None:
    """Take a lock for one process alone."""
    flock = _flock(file, fcntl.LOCK_EX)
    last = _read(file)
    if flock is _Flock.HELD or (last is not None and _is_touched(path, file, last, own, flock)):
        raise _taken(path, last)
    _write_first(path, file, own, flock)
    return last


def _join(path: Path, file: IO[bytes], own: Holder) -> Holder | None:
    """Take a lock with the other ranks of a launch: the first takes it for all, and writes whose it is."""
    until = time.monotonic() + JOINED_WITHIN
    while True:
        flock = _flock(file, fcntl.LOCK_EX)
        if flock is not _Flock.HELD:
            last = _read(file)
            is_ours = last is not None and last.launch == own.launch  # of ranks on other machines, or of one that was killed
            is_alive = last is not None and _is_touched(path, file, last, own, flock)
            if is_alive and not is_ours:
                raise _taken(path, last)
            if not is_alive:
                _write_first(path, file, own, flock)
            if _flock(file, fcntl.LOCK_SH) is not _Flock.HELD:
                return None if is_ours else last
        elif _flock(file, fcntl.LOCK_SH) is not _Flock.HELD:
            last = _read(file)
            if last is not None and last.launch == own.launch:
                return None
            if last is not None:
                raise _taken(path, last)
            fcntl.flock(file, fcntl.LOCK_UN)  # whose it is was not written yet
        if time.monotonic() > until:
            raise _taken(path, _read(file))


def holder(path: Path, *, may_write: bool = True) -> Holder | None:
    """Who holds a job's lock now; None where nobody does.

    Args:
        may_write: whether a file may be made for a moment, to ask the machine that holds the folder for its time.
    """
    is_writable = os.access(path, os.W_OK)  # some network file systems lock only what may be written
    try:
        with inside.opened(path.parent, path, "r+" if is_writable else "r") as file:
            last = _read(file)
            if last is None:
                return None
            flock = _flock(file, fcntl.LOCK_EX)
            is_held = flock is _Flock.HELD or _is_touched(path, file, last, None, flock, _now if may_write else _own_now)
            return last if is_held else None
    except FileNotFoundError:
        return None


def check_free(path: Path) -> None:
    """Raise what `held` would raise where another run holds a lock, and write nothing."""
    if (by := holder(path, may_write=False)) is not None:
        raise _taken(path, by)


def _flock(file: IO[bytes], kind: int) -> _Flock:
    for wait in (*_WAITS, None):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return _Flock.NONE
            if wait is not None:
                time.sleep(wait)
        else:
            return _Flock.HAD
    return _Flock.HELD


def _read(file: IO[bytes]) -> Holder | None:
    file.seek(0)
    try:
        return Holder.model_validate_json(file.read(4096))
    except ValueError:
        return None  # empty: the last run ended well. Or damaged: then flock alone must do


def _write(file: IO[bytes], own: Holder) -> None:
    """Write whose a lock is in one piece over what was there: whoever reads it meets the one or the other, and never nothing."""
    file.seek(0)
    file.write(own.model_dump_json().ljust(LENGTH).encode())
    file.truncate()
    os.fsync(file.fileno())


def _write_first(path: Path, file: IO[bytes], own: Holder, flock: _Flock) -> None:
    """Write whose a lock is that was found free. Raises InputError where another did so at the same time."""
    _write(file, own)
    if flock is _Flock.NONE:
        time.sleep(SETTLED_AFTER)
        now = _read(file)
        if now is None or now.launch != own.launch:
            raise _taken(path, now)


def _is_touched(
    path: Path, file: IO[bytes], last: Holder, own: Holder | None, flock: _Flock, now: Callable[[Path], float] | None = None
) -> bool:
    """Whether a holder is alive to whom flock does not reach: on another machine, or where there is no flock. Its touch does."""
    if flock is _Flock.HAD and last.host == (own.host if own else socket.gethostname()):
        return False
    return _is_fresh(file, (now or _now)(path))


def _is_fresh(file: IO[bytes], now: float) -> bool:
    """Whether a lock was touched lately. One touched in the future is watched for the time in which a holder would touch it again."""
    touched = _touched(file)
    if now - touched > -STALE_AFTER:
        return now - touched < STALE_AFTER
    until = time.monotonic() + 2 * TOUCHED_EVERY
    while time.monotonic() < until:
        time.sleep(TOUCHED_EVERY / 10)
        if _touched(file) != touched:
            return True
    return False


def _touched(file: IO[bytes]) -> float:
    """When a lock was touched, by the clock of the machine that holds the folder, or of its holder."""
    return os.fstat(file.fileno()).st_mtime


def _others(path: Path, own: Holder) -> bool:
    """Whether other ranks of a launch are alive, on machines to which flock does not reach too: each touches its own lock."""
    for name in inside.names(path.parent, "."):
        if not name.startswith(f"{path.name}."):
            continue
        with suppress(OSError, inside.Foreign), inside.opened(path.parent, path.with_name(name)) as file:
            last = _read(file)
            if last is not None and last.launch == own.launch and _is_fresh(file, _now(path)):
                return True
    return False


def _now(path: Path) -> float:
    """The time of the machine that holds the folder, whose clock may be another."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return _own_now(path)  # a folder that may only be read
    finally:
        with suppress(OSError):
            probe.unlink()


def _own_now(_: Path) -> float:
    """The time of this machine."""
    return time.time()


def _touch(files: Sequence[IO[bytes]], ended: threading.Event) -> None:
    while not ended.wait(TOUCHED_EVERY):
        for file in files:
            with suppress(OSError):  # of a server that is away: it may come back
                os.utime(file.fileno())


def _taken(path: Path, by: Holder | None) -> InputError:
    who = "another run" if by is None else f"a run on {by.host}, process {by.pid}, since {time.strftime('%F %T', time.localtime(by.began))}"
    return InputError(f"job: {path.parent} is being run by {who}. Wait for it, or stop it; a lock that is left by a crash is taken.")
