"""The lock of a job: one run at a time, in processes that are killed, on file systems without locks, from other machines."""

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from attrib.core import lock as locks
from attrib.core.lock import STALE_AFTER, Holder, held, holder
from attrib.core.types import InputError

HOST = socket.gethostname()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "job" / "lock"


@pytest.fixture(autouse=True)
def made(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.parent.mkdir()
    monkeypatch.setattr(locks, "JOINED_WITHIN", 0.3)
    monkeypatch.setattr(locks, "SETTLED_AFTER", 0.05)
    monkeypatch.setattr(locks, "_WAITS", (0.005, 0.01))


Told = str | Holder | None


class Other:
    """Another process that tries to hold a lock: what it was told, and its end."""

    def __init__(self, lock: Path, **options: Any) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipe, theirs = fork.Pipe()
        self.process = fork.Process(target=_hold, args=(lock, options, theirs), daemon=True)
        self.process.start()
        assert self.pipe.poll(20)
        self.told: Told = self.pipe.recv()
        """Who held it last, or the message of a refusal."""
        if not self.holds:
            self._ended()  # as a fork it shares whatever this process holds

    @property
    def holds(self) -> bool:
        return not isinstance(self.told, str)

    def end(self) -> None:
        self.pipe.send(None)
        self._ended()

    def _ended(self) -> None:
        until = time.monotonic() + 60
        while self.process.exitcode is None:  # its join waits for processes that were begun in the same moment, too
            assert time.monotonic() < until
            time.sleep(0.005)
        assert self.process.exitcode == 0

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(20)


def _hold(lock: Path, options: dict[str, Any], pipe: Connection) -> None:
    try:
        with held(lock, **options) as last:
            pipe.send(last)
            pipe.recv()
    except InputError as error:
        pipe.send(str(error))


@pytest.fixture
def other(lock: Path) -> Iterator[Callable[..., Other]]:
    started: list[Other] = []

    def start(**options: Any) -> Other:
        started.append(Other(lock, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.join()


def elsewhere(lock: Path, age: float, launch: str = "their launch") -> Holder:
    """A lock that a run on another machine touched so many seconds ago, and whose flock does not reach here."""
    them = Holder(host="far-away", pid=4, launch=launch, began=1e9)
    lock.write_text(them.model_dump_json())
    os.utime(lock, (time.time() - age, time.time() - age))
    return them


# --------------------------------------------------------------------------------------- one process


def test_a_second_run_is_refused_and_told_of_the_first(lock: Path, other: Callable[..., Other]) -> None:
    assert holder(lock) is None
    first = other()
    assert first.told is None
    now = holder(lock)
    assert now is not None
    assert (now.host, now.pid) == (HOST, first.process.pid)
    assert abs(now.began - time.time()) < 60
    second = other()
    assert second.told == (
        f"job: {lock.parent} is being run by a run on {HOST}, process {first.process.pid}, since "
        f"{time.strftime('%F %T', time.localtime(now.began))}. Wait for it, or stop it; a lock that is left by a crash is taken."
    )
    with pytest.raises(InputError, match=f"process {first.process.pid}"), held(lock):
        pass
    assert holder(lock) == now, "those that were refused left it as it was"
    first.end()
    assert holder(lock) is None
    assert other().told is None, "the last run ended well"


def test_a_lock_of_a_killed_run_is_taken(lock: Path, other: Callable[..., Other]) -> None:
    killed = other()
    killed.kill()
    assert holder(lock) is None, "nobody holds it"
    with held(lock) as last:
        assert last is not None
        assert (last.host, last.pid) == (HOST, killed.process.pid)
        now = holder(lock)
        assert now is not None
        assert now.pid == os.getpid()
    with held(lock) as last:
        assert last is None


def test_an_error_in_the_run_lets_go(lock: Path) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), held(lock):
        raise KeyboardInterrupt
    assert threading.active_count() == before
    with held(lock) as last:
        assert last is None


def test_looking_disturbs_nobody(lock: Path, other: Callable[..., Other]) -> None:
    """A run that begins while others look who holds the lock gets it."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.001):
            holder(lock)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for one in lookers:
        one.start()
    try:
        for _ in range(10):
            with held(lock) as last:
                assert last is None
    finally:
        stop.set()
        for one in lookers:
            one.join()


def test_whose_the_lock_is_can_be_read_at_every_moment(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written over in one piece: a reader on another machine never meets an empty file while somebody holds it."""
    elsewhere(lock, STALE_AFTER + 1)
    seen = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(lock.read_text())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    with held(lock):
        assert len(lock.read_bytes()) == locks.LENGTH
    assert [Holder.model_validate_json(text).pid for text in seen] == [os.getpid()]
    assert lock.read_bytes() == b""


@pytest.mark.few
@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe\x00", b"[1]", b'{"host": 3}', b"x" * 10_000, b"[" * 4000]
    + [b'{"host": "a", "pid": 1, "launch": "b", "began": %s}' % began for began in (b"1e300", b"-1", b"NaN", b"Infinity", b"null")],
)
def test_a_damaged_lock_is_no_obstacle(data: bytes, lock: Path, other: Callable[..., Other]) -> None:
    lock.write_bytes(data)
    assert holder(lock) is None
    with held(lock) as last:
        assert last is None
        lock.write_bytes(data)
        refused = other()
        assert isinstance(refused.told, str)
        assert "is being run by another run. Wait" in refused.told
        assert isinstance(other(launch="a").told, str)
    for rank in (0, 1):
        lock.with_name(f"lock.{rank}").write_bytes(data)
    with held(lock, launch="a", rank=0) as last:
        assert last is None


def test_a_folder_that_may_only_be_read(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    them = elsewhere(lock, 0)

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "touch", denied)
    assert holder(lock) == them
    os.utime(lock, (1, 1))
    assert holder(lock) is None


# ------------------------------------------------------------------------------------------- touching


def test_the_holder_touches_its_lock(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "TOUCHED_EVERY", 0.01)
    with held(lock, launch="a", rank=3):
        for path in (lock, lock.with_name("lock.3")):
            os.utime(path, (1, 1))
            until = time.monotonic() + 60
            while path.stat().st_mtime < 1e9:
                assert time.monotonic() < until
                time.sleep(0.005)
    os.utime(lock, (1, 1))
    time.sleep(0.05)
    assert lock.stat().st_mtime == 1, "and no longer than it holds it"


def test_a_server_that_is_away_for_a_while_ends_no_touching(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "TOUCHED_EVERY", 0.01)
    utime, failed = os.utime, threading.Event()

    def away(path: Path, *times: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.ESTALE, "Stale file handle")
        utime(path, *times)

    with held(lock):
        utime(lock, (1, 1))
        monkeypatch.setattr(os, "utime", away)
        assert failed.wait(60)
        until = time.monotonic() + 60
        while lock.stat().st_mtime == 1:
            assert time.monotonic() < until
            time.sleep(0.005)


@pytest.mark.parametrize("launch", [None, "ours"])
def test_another_machine_is_seen_by_its_touch(launch: str | None, lock: Path) -> None:
    them = elsewhere(lock, STALE_AFTER - 5)
    assert holder(lock) == them
    with pytest.raises(InputError, match=r"a run on far-away, process 4, since 2001-09-09"), held(lock, launch=launch):
        pass
    assert holder(lock) == them
    assert [path.name for path in lock.parent.iterdir() if path.stat().st_size] == ["lock"], "nothing is left beside it"
    them = elsewhere(lock, STALE_AFTER + 5)
    assert holder(lock) is None
    with held(lock, launch=launch) as last:
        assert last == them


def test_a_lock_from_the_future_is_held_only_while_it_is_touched(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is an hour ahead, and what it left when it died: an hour long nobody could run the job."""
    monkeypatch.setattr(locks, "TOUCHED_EVERY", 0.05)
    them = elsewhere(lock, -3600)
    assert holder(lock) is None
    with held(lock) as last:
        assert last == them
    elsewhere(lock, -3600)
    stop = threading.Event()

    def touch() -> None:
        ahead = time.time() + 3600
        while not stop.wait(0.01):
            ahead += 1
            os.utime(lock, (ahead, ahead))

    touching = threading.Thread(target=touch)
    touching.start()
    try:
        with pytest.raises(InputError, match="far-away"), held(lock):
            pass
        assert holder(lock) == them
    finally:
        stop.set()
        touching.join()
    elsewhere(lock, 10 - STALE_AFTER)
    assert holder(lock) == them, "a little ahead, as clocks are"


# ---------------------------------------------------------------------------------------------- launches


def test_ranks_of_a_launch_hold_together(lock: Path, other: Callable[..., Other]) -> None:
    ranks = [other(launch="a", rank=rank) for rank in range(3)]
    assert [rank.told for rank in ranks] == [None] * 3
    now = holder(lock)
    assert now is not None
    assert (now.launch, now.pid) == ("a", ranks[0].process.pid)
    for end in (0, 2, 1):
        assert "is being run by a run on" in str(other().told)
        assert "is being run by a run on" in str(other(launch="b", rank=7).told)
        now = holder(lock)
        assert now is not None, "as long as one is left"
        assert now.launch == "a"
        ranks[end].end()
    assert holder(lock) is None
    assert all(path.stat().st_size == 0 for path in lock.parent.iterdir())
    assert other(launch="b").told is None


def test_two_processes_of_one_rank_refuse_each_other(lock: Path, other: Callable[..., Other]) -> None:
    first = other(launch="a", rank=1)
    assert f"is being run by a run on {HOST}, process {first.process.pid}, since" in str(other(launch="a", rank=1).told)
    assert other(launch="a", rank=2).holds
    first.end()
    assert other(launch="a", rank=1).holds


def test_a_launch_of_which_a_rank_was_killed(lock: Path, other: Callable[..., Other]) -> None:
    first, second = other(launch="a", rank=0), other(launch="a", rank=1)
    first.kill()
    assert other(launch="a", rank=0).told is None, "it may come again"
    assert not other(launch="b", rank=0).holds
    second.kill()
    third = other(launch="a", rank=2)
    assert third.holds
    third.end()


def test_a_killed_launch_is_told_to_the_next(lock: Path, other: Callable[..., Other]) -> None:
    ranks = [other(launch="a", rank=rank) for rank in range(2)]
    for rank in ranks:
        rank.kill()
    assert holder(lock) is None
    first, second = other(launch="b", rank=0), other(launch="b", rank=1)
    assert isinstance(first.told, Holder)
    assert first.told.launch == "a"
    assert second.told is None


def test_a_launch_begins_at_once(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank has the lock, and its disk is slow: another waits until it has written whose it is."""
    monkeypatch.setattr(locks, "JOINED_WITHIN", 10.0)
    first = Holder(host=HOST, pid=4, launch="a", began=1e9)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def write() -> None:
            time.sleep(0.3)
            file.write(first.model_dump_json())
            file.flush()
            fcntl.flock(file, fcntl.LOCK_SH)

        writing = threading.Thread(target=write)
        writing.start()
        with held(lock, launch="a", rank=1) as last:
            assert last is None
            assert not writing.is_alive()
            assert holder(lock) == first
        writing.join()
        assert holder(lock) == first


def test_many_ranks_begin_at_once(lock: Path, other: Callable[..., Other], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "JOINED_WITHIN", 10.0)
    told: list[Any] = [None] * 4

    def begin(rank: int) -> None:
        told[rank] = other(launch="a", rank=rank)

    threads = [threading.Thread(target=begin, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.told for one in told] == [None] * 4
    for one in told:
        one.end()
    assert holder(lock) is None


def test_a_run_alone_is_no_launch(lock: Path, other: Callable[..., Other]) -> None:
    alone = other()
    assert f"process {alone.process.pid}" in str(other(launch="a", rank=0).told)


@pytest.mark.parametrize("age", [1.0, STALE_AFTER + 5])
def test_ranks_on_other_machines_keep_the_lock(age: float, lock: Path) -> None:
    """Where flock does not reach, the last one here cannot tell by it that it is the last: the others touch locks of their own."""
    them = elsewhere(lock, 0, launch="a")
    theirs = lock.with_name("lock.5")
    elsewhere(theirs, age, launch="a")
    with held(lock, launch="a", rank=1) as last:
        assert last is None
        assert holder(lock) == them, "the first rank's name stands"
    assert holder(lock) == (them if age == 1.0 else None)
    assert lock.with_name("lock.1").read_bytes() == b""


# ------------------------------------------------------------------------------------------ without flock


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_touching_must_do(lock: Path, other: Callable[..., Other]) -> None:
    first = other()
    assert first.told is None
    now = holder(lock)
    assert now is not None
    assert now.pid == first.process.pid
    assert f"process {first.process.pid}, since" in str(other().told)
    assert not other(launch="a", rank=0).holds
    first.end()
    assert holder(lock) is None
    killed = other()
    killed.kill()
    assert not other().holds, "it may be alive"
    os.utime(lock, (1, 1))
    assert holder(lock) is None
    again = other()
    assert isinstance(again.told, Holder)
    assert again.told.pid == killed.process.pid


@pytest.mark.usefixtures("no_flock")
def test_without_flock_ranks_hold_together(lock: Path, other: Callable[..., Other]) -> None:
    ranks = [other(launch="a", rank=rank) for rank in range(3)]
    assert [rank.told for rank in ranks] == [None] * 3
    for rank in ranks:
        assert not other().holds
        assert holder(lock) is not None
        rank.end()
    assert holder(lock) is None
    assert other().told is None


@pytest.mark.usefixtures("no_flock")
def test_without_flock_no_two_take_it_at_once(lock: Path, other: Callable[..., Other], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLED_AFTER", 0.5)
    told: list[Any] = []
    threads = [threading.Thread(target=lambda: told.append(other())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.holds for one in told) <= 1


def test_what_is_held_is_let_go_in_any_order(lock: Path) -> None:
    """Locks of several jobs in one process are apart."""
    with ExitStack() as both:
        for name in ("one", "two"):
            (lock.parent / name).mkdir()
            assert both.enter_context(held(lock.parent / name / "lock")) is None
    assert holder(lock.parent / "one" / "lock") is None


def test_an_interrupt_while_the_lock_begins_to_be_touched_lets_go_of_it(lock: Path, monkeypatch: pytest.MonkeyPatch):
    """The thread touches before the call that begins it has returned; on a file system without locks it would be held by that for ever."""
    begun, touchers = threading.Thread.start, list[threading.Thread]()

    def start(self: threading.Thread) -> None:
        touchers.append(self)
        begun(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt), held(lock):
        pytest.fail("it was interrupted")
    monkeypatch.undo()
    assert len(touchers) == 1
    assert not touchers[0].is_alive()
    with held(lock) as last:
        assert last is None
