"""Nothing in a job's folder is followed out of it, waited for, or taken for what it is not; and a dry run writes nothing."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.testing

from attrib.cli import main as cli
from attrib.core import inside
from attrib.core.inside import Foreign
from attrib.core.lock import check_free, held, holder
from attrib.core.types import InputError
from attrib.jobs.folder import FAILURES, JOB, LOCK, PROMPTS, RECORDS, SHARDS, Job, open_job
from attrib.jobs.records import failures, record_or_fault, records, refused
from attrib.jobs.run import run
from attrib.jobs.status import status
from attrib.jobs.tidy import tidy
from attrib.jobs.verify import verify
from tests.support.job_cases import bytes_of, corpus, here, make_job, tiny_smollm2, undisturbed

PRECIOUS = "precious"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_smollm2(tmp_path_factory.mktemp("cache")):
        yield corpus(tmp_path_factory.mktemp("corpus"), (3, 3, 3), has_model=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, beside: Path) -> Path:
    """A job of which nothing is done."""
    return make_job(tmp_path_factory.mktemp("made") / "job", beside).folder


@pytest.fixture
def job(tmp_path: Path, made: Path) -> Job:
    return open_job(Path(shutil.copytree(made, tmp_path / "job")))


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file of the user's, which nothing may change."""
    path = tmp_path / "victim"
    path.write_text(PRECIOUS)
    yield path
    assert path.read_text() == PRECIOUS


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """All that lies in a folder, and when it was changed."""
    found = [folder, *folder.rglob("*")]
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size, path.lstat().st_ino) for path in found}


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("not there"))


def pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def inner_folder(path: Path, victim: Path) -> None:
    path.mkdir()


KINDS = {"link": (link, "a link"), "dangling": (dangling, "a link"), "pipe": (pipe, "a pipe"), "folder": (inner_folder, "a folder")}
kinds = pytest.mark.parametrize(("put", "named"), KINDS.values(), ids=KINDS)
Put = Callable[[Path, Path], None]


@kinds
def test_a_lock_that_is_no_file(job: Job, victim: Path, put: Put, named: str) -> None:
    put(job.folder / LOCK, victim)
    for use in (
        lambda: tidy(job.folder, dry_run=True),
        lambda: tidy(job.folder),
        lambda: run(job.folder, here),
        lambda: status(job.folder),
    ):
        with pytest.raises(Foreign, match=rf"{LOCK}: {named}, where a job has a file of its own; nothing is followed"):
            use()
    assert not (victim.with_name("not there")).exists()


@pytest.mark.few
@pytest.mark.parametrize("inner", [SHARDS, RECORDS, FAILURES])
def test_a_folder_that_is_linked_elsewhere(job: Job, tmp_path: Path, inner: str) -> None:
    run(job.folder, here)
    outside = tmp_path / "outside"
    (job.folder / inner).rename(outside)
    (outside / "other.h5").write_text(PRECIOUS)
    (outside / ".x.partial").write_text(PRECIOUS)
    before = tree(outside)
    (job.folder / inner).symlink_to(outside)
    for use in (lambda: tidy(job.folder), lambda: run(job.folder, here)):
        with pytest.raises(Foreign, match=rf"{inner}: a link, where a job has a folder of its own"):
            use()
    assert tree(outside) == before


def read_all(folder: Path) -> None:
    opened = open_job(folder)
    opened.prompts(opened.shards[0])
    list(refused(opened))


@pytest.mark.parametrize("name", [JOB, PROMPTS, f"{PROMPTS}/shards.jsonl", f"{PROMPTS}/ids.npy", f"{PROMPTS}/refused.jsonl"])
@kinds
def test_what_was_fixed_is_not_read_from_elsewhere(job: Job, tmp_path: Path, name: str, put: Put, named: str) -> None:
    """Moved outside with the very same content: a link to it is refused all the same."""
    outside = tmp_path / "outside"
    (job.folder / name).rename(outside)
    put(job.folder / name, outside)
    if name == PROMPTS and put is inner_folder:
        (job.folder / PROMPTS).rmdir()
        pipe(job.folder / PROMPTS, outside)
    with pytest.raises(Foreign, match=r"where a job has a (file|folder) of its own"):
        read_all(job.folder)


@pytest.mark.few
@pytest.mark.parametrize("inner", [SHARDS, RECORDS, FAILURES])
@kinds
def test_a_file_of_a_shard_that_is_none(job: Job, beside: Path, victim: Path, inner: str, put: Put, named: str) -> None:
    run(job.folder, here)
    place = {SHARDS: job.file, RECORDS: job.record, FAILURES: job.failure}[inner](job.shards[0])
    place.unlink(missing_ok=True)
    put(place, victim)
    where = rf"{place}: {named}, where a job has a file of its own"
    if inner == FAILURES and put is not inner_folder:
        with pytest.raises(Foreign, match=where):
            list(failures(job))
    if inner != FAILURES:
        assert records(job).keys() == {1}
        assert str(record_or_fault(job, job.shards[0])).startswith(f"{place}: {named}")
        assert [fault.shard.number for fault in verify(job.folder, recompute=0)] == [0]
    with pytest.raises(Foreign, match=where):
        run(job.folder, here)
    assert (place in tidy(job.folder)) == (put is not inner_folder), "what gc may remove is removed, and not what it points to"
    if put is inner_folder:
        place.rmdir()
    run(job.folder, here)
    assert bytes_of(job.folder) == undisturbed(beside)


def test_a_folder_that_comes_in_a_shards_place_stops_at_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be tried three times over, and come to the same."""
    from attrib.jobs import run as running
    from attrib.jobs.engines import JobError

    tried = []
    job.file(job.shards[-1]).mkdir()
    monkeypatch.setattr(running, "_check_places", lambda _: tried.append(1))  # as if it came later
    with pytest.raises(JobError, match=r"\.h5: a folder, where a job has a file of its own"):
        run(job.folder, here)
    assert tried == [1]
    assert list(failures(job)) == []


def test_a_dry_run_writes_nothing(job: Job) -> None:
    run(job.folder, here)
    (job.folder / LOCK).unlink()
    useless = job.folder / SHARDS / "other.h5"
    useless.write_text("left over")
    before = tree(job.folder)
    done = typer.testing.CliRunner().invoke(cli.app, ["job", "gc", str(job.folder), "--dry-run"])
    assert (done.exit_code, done.output) == (0, f"{useless}\n1 files or folders would be removed\n")
    assert tree(job.folder) == before
    with held(job.folder / LOCK), pytest.raises(InputError, match="is being run by a run on"):
        tidy(job.folder, dry_run=True)


def test_a_dry_run_asks_nobody_for_the_time(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    (job.folder / LOCK).write_text('{"host": "far-away", "pid": 4, "launch": "theirs", "began": 1e9}')
    before = tree(job.folder)
    assert holder(job.folder / LOCK, may_write=False) is not None
    with pytest.raises(InputError, match="far-away"):
        check_free(job.folder / LOCK)
    assert tree(job.folder) == before


def test_the_jobs_folder_itself_may_be_a_link(job: Job, beside: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(job.folder)
    run(tmp_path / "link", here)
    assert bytes_of(job.folder) == undisturbed(beside)


def test_a_job_that_may_not_be_read_is_not_called_damaged(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    for name in (JOB, "shards.jsonl"):
        opening = os.open
        with monkeypatch.context() as broken:
            broken.setattr(os, "open", lambda path, *rest, name=name, **of: denied() if path == name else opening(path, *rest, **of))  # noqa: B023
            with pytest.raises(InputError, match=rf"job: .*{name} cannot be read: Permission denied"):
                open_job(job.folder)


def test_files_are_opened_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "in" / "file"
    inside.make_folder(tmp_path, "in")
    inside.make_folder(tmp_path, "in")
    with pytest.raises(FileNotFoundError, match=str(path)):
        inside.opened(tmp_path, path)
    with inside.opened(tmp_path, path, "a+") as file:
        file.write(b"12")
    with inside.opened(tmp_path, path, "a+") as file:
        assert file.read() == b"12", "what was there stays"
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    assert inside.size(tmp_path, path) == 2
    assert inside.names(tmp_path, "in") == {"file"}
    assert inside.names(tmp_path, "not there") == set()
    inside.remove(tmp_path, path)
    inside.remove(tmp_path, path)
    assert inside.names(tmp_path, "in") == set()
