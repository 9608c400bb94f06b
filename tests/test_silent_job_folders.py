"""Nothing in a job's folder is followed out of it, waited for, or written by who only looks; whatever stands there in place of a file."""

import errno
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from attrib.jobs import inside
from attrib.jobs.folder import FAILURES, LOCK, PROMPTS, RECORDS, SHARDS, open_job
from attrib.jobs.inside import ForeignError
from attrib.jobs.lock import STALE_AFTER, Holder, held, holder
from attrib.jobs.run import run
from attrib.jobs.status import status
from attrib.jobs.tidy import tidy
from attrib.jobs.verify import verify
from attrib.types import InputError
from tests.job_cases import SITES, bytes_of, corpus, here, make_job

VICTIM = b"the user's own"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of four shards that is done."""
    beside = corpus(tmp_path_factory.mktemp("corpus"), (5, 6, 7, 8))
    attribution = [{"kind": "latent_to_latent", "source": SITES[0], "target": SITES[1]}]
    job = make_job(beside / "job", beside, shards={"prompts": 1}, attribution=attribution)
    run(job.folder, here)
    return job.folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "job"))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the user's, of which nothing may be lost."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.h5").write_bytes(VICTIM)
    return tmp_path / "victim"


@pytest.fixture(autouse=True)
def _nothing_waits() -> Iterator[None]:
    """A pipe that is opened as a file waits for its other end for ever."""

    def late(*_: object) -> None:
        raise TimeoutError("it waited")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that is in a folder: links as such, the rest with its content and when it was written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (about.st_mode, about.st_mtime_ns, content)
    return found


ASKED: dict[str, Callable[[Path], Any]] = {
    "run": lambda folder: run(folder, here),
    "status": status,
    "verify": lambda folder: verify(folder, recompute=0),
    "gc": tidy,
    "dry run": lambda folder: tidy(folder, dry_run=True),
}
"""All that is done with a job's folder."""


@pytest.mark.parametrize("asked", ASKED)
def test_a_lock_that_is_a_link_is_not_followed(folder: Path, victim: Path, asked: str) -> None:
    (folder / LOCK).unlink()
    (folder / LOCK).symlink_to(victim / "thesis.h5")
    before = state(folder)
    if asked == "verify":  # which takes no lock
        assert ASKED[asked](folder) == []
    else:
        with pytest.raises(
            ForeignError, match=r"lock: a link, where a job has a file of its own; nothing is followed out of a job's folder"
        ):
            ASKED[asked](folder)
    assert (victim / "thesis.h5").read_bytes() == VICTIM
    assert state(folder) == before


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("inner", [PROMPTS, SHARDS, RECORDS, FAILURES])
def test_a_folder_that_is_a_link_is_not_followed(folder: Path, victim: Path, inner: str, asked: str) -> None:
    shutil.rmtree(folder / inner)
    (folder / inner).symlink_to(victim)
    before = state(folder)
    if asked == "verify" and inner == FAILURES:
        assert ASKED[asked](folder) == []
    elif asked == "verify" and inner in (SHARDS, RECORDS):
        assert {fault.what.split(": ")[1].split(",")[0] for fault in verify(folder, recompute=0)} == {"a link"}
    elif asked == "status" and inner == SHARDS:
        assert status(folder).shards_done == 0
    else:
        with pytest.raises(ForeignError, match=f"{inner}: a link, where a job has a folder of its own"):
            ASKED[asked](folder)
    after = state(folder)
    assert {name for name in before if after[name] != before[name]} <= {LOCK}, "which is touched by who takes it"
    assert [path.name for path in victim.iterdir()] == ["thesis.h5"]


def test_what_lies_where_a_link_points_is_not_removed(folder: Path, victim: Path) -> None:
    link = folder / SHARDS / "more.h5"
    link.symlink_to(victim / "thesis.h5")
    (folder / SHARDS / "more").symlink_to(victim)
    assert tidy(folder, dry_run=True) == tidy(folder) == [link]
    assert not link.is_symlink()
    assert (victim / "thesis.h5").read_bytes() == VICTIM


@pytest.mark.parametrize("inner", [SHARDS, RECORDS])
def test_a_link_in_the_place_of_a_file_is_not_written_through(folder: Path, victim: Path, inner: str) -> None:
    job = open_job(folder)
    place = {SHARDS: job.file, RECORDS: job.record}[inner](job.shards[1])
    place.unlink()
    place.symlink_to(victim / "thesis.h5")
    for asked in ("run", "gc", "dry run"):
        with pytest.raises(ForeignError, match=f"{place.name}: a link, where a job has a file of its own"):
            ASKED[asked](folder)
    assert status(folder).shards_done == len(job.shards) - 1
    assert "a link" in verify(folder, recompute=0)[0].what
    assert (victim / "thesis.h5").read_bytes() == VICTIM
    assert job.file(job.shards[1]).is_symlink() or job.file(job.shards[1]).exists(), "a shard that was computed is not lost by it"


def test_another_name_of_a_file_elsewhere_is_no_lock(folder: Path, victim: Path) -> None:
    (folder / LOCK).unlink()
    os.link(victim / "thesis.h5", folder / LOCK)
    with pytest.raises(ForeignError, match="lock: another name of a file elsewhere"):
        run(folder, here)
    assert (victim / "thesis.h5").read_bytes() == VICTIM


PIPES = {
    "job.json": {*ASKED},
    LOCK: {"run", "status", "gc", "dry run"},
    f"{PROMPTS}/shards.jsonl": {*ASKED},
    f"{PROMPTS}/ids.npy": {"verify"},
    "a shard": {"run", "gc", "dry run"},
    "a record": {"run", "gc", "dry run"},
}
"""Places of a pipe, and who refuses to go on for it; the others do not read it, or say it of one shard."""


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", PIPES)
def test_nobody_waits_for_a_pipe(folder: Path, name: str, asked: str) -> None:
    job = open_job(folder)
    path = {"a shard": job.file(job.shards[0]), "a record": job.record(job.shards[0])}.get(name, folder / name)
    path.unlink()
    os.mkfifo(path)
    says = f"{path}: a pipe, where a job has a file of its own"
    if asked in PIPES[name]:
        with pytest.raises(ForeignError, match=re.escape(says)):
            ASKED[asked](folder)
        return
    told = ASKED[asked](folder)
    if asked == "verify" and name != LOCK:
        assert [fault.what.startswith(says) for fault in told] == [True]
    if asked == "status":
        assert told.shards_done == len(job.shards) - name.startswith("a ")


def test_a_device_or_socket_is_no_file(folder: Path) -> None:
    (folder / LOCK).unlink()
    with closing(socket.socket(socket.AF_UNIX)) as made:
        here_now = os.open(folder, os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{here_now}/{LOCK}")  # a socket's name may not be long
        finally:
            os.close(here_now)
        with pytest.raises(ForeignError, match="lock: a socket"):
            run(folder, here)
    with pytest.raises(ForeignError, match="null: a device"):
        inside.opened(Path(os.devnull).parent, Path(os.devnull))


def test_a_folder_in_a_shards_place_is_named_at_once(folder: Path) -> None:
    job = open_job(folder)
    place = job.file(job.shards[2])
    place.unlink()
    place.mkdir()

    def never(*_: Any) -> Any:
        raise AssertionError("nothing is computed that cannot be written")

    with pytest.raises(ForeignError, match=f"{place.name}: a folder, where a job has a file of its own"):
        run(folder, never)


@pytest.mark.parametrize("state_of_lock", ["none", "of a killed run", "of another machine"])
def test_a_dry_run_writes_nothing(folder: Path, state_of_lock: str) -> None:
    lock, left = folder / LOCK, folder / SHARDS / ".000000-a.h5.12345678.partial"
    left.write_bytes(b"half")
    if state_of_lock == "none":
        lock.unlink()
    else:
        host = socket.gethostname() if state_of_lock == "of a killed run" else "far-away"
        lock.write_text(Holder(host=host, pid=4, launch="a", began=1e9).model_dump_json())
    before, changed = state(folder), folder.stat().st_mtime_ns
    if state_of_lock == "of another machine":
        with pytest.raises(InputError, match="is being run by a run on far-away"):
            tidy(folder, dry_run=True)
    else:
        assert tidy(folder, dry_run=True) == [left]
    assert (state(folder), folder.stat().st_mtime_ns) == (before, changed)


def test_a_dry_run_while_a_job_runs_is_refused(folder: Path) -> None:
    with held(folder / LOCK), pytest.raises(InputError, match="is being run by a run on"):
        tidy(folder, dry_run=True)


def test_a_job_may_be_reached_through_a_link(folder: Path, tmp_path: Path) -> None:
    """The link is the user's, and outside of the folder."""
    (tmp_path / "way").symlink_to(folder)
    (folder / RECORDS).rename(tmp_path / "old")
    ran = run(tmp_path / "way", here)
    assert (len(ran.done), len(bytes_of(folder))) == (4, 4)
    assert verify(tmp_path / "way", recompute=0) == []


def test_a_job_that_may_not_be_read_is_not_called_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.open

    def denied(path: Any, *rest: Any, **options: Any) -> int:
        if str(path) == "job.json":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return allowed(path, *rest, **options)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(InputError, match=r"job: .*job\.json cannot be read: Permission denied") as caught:
        status(folder)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(("ahead", "holds"), [(STALE_AFTER - 5, True), (STALE_AFTER + 5, False), (1e6, False)])
def test_a_lock_from_the_future_holds_no_longer_than_clocks_differ(tmp_path: Path, ahead: float, holds: bool) -> None:
    lock = tmp_path / LOCK
    them = Holder(host="far-away", pid=4, launch="a", began=1e9)
    lock.write_text(them.model_dump_json())
    os.utime(lock, (time.time() + ahead,) * 2)
    assert holder(lock) == (them if holds else None)
    if holds:
        with pytest.raises(InputError, match="far-away"), held(lock):
            pass
    else:
        with held(lock) as last:
            assert last == them
