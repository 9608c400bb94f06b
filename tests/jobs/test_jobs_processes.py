"""Jobs as processes: killed at any moment, run twice at once, as ranks of a launch; the bytes are always the same."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import typer.testing

from attrib.cli import main as cli
from attrib.core.types import InputError
from attrib.jobs import worker
from attrib.jobs.engines import choose as choosing
from attrib.jobs.engines.launch import Launch, launch_of
from attrib.jobs.folder import LOCK, RECORDS, SHARDS, Shard, open_job
from attrib.jobs.records import failures
from attrib.jobs.run import run
from attrib.jobs.shard import Computed, Ready
from attrib.jobs.status import status
from tests.support.job_cases import bytes_of, corpus, forked, here, make_job, tiny_smollm2, undisturbed
from tests.support.root import ROOT

LENGTHS = (5, 7, 9, 7, 12, 5, 7, 11, 5, 8, 30, 31, 32, 30, 29, 28)
"""Prompts enough for a run to be met in the middle."""


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_smollm2(tmp_path_factory.mktemp("cache")):
        yield corpus(tmp_path_factory.mktemp("corpus"), LENGTHS, has_model=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, beside: Path) -> Path:
    """A job of which nothing is done. Nothing is changed in it."""
    return make_job(tmp_path_factory.mktemp("made") / "job", beside).folder


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "job"))


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """`attrib job ARGUMENTS`, in a process of its own."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"} | environment
    command = [sys.executable, "-m", "attrib.cli.main", "job", *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Forked:
    """`attrib job ARGUMENTS` as a process that imports nothing, since it is a fork of this one; and so are its workers."""

    def __init__(self, folder: Path, *arguments: object, **environment: str) -> None:
        self._printed = [folder.parent / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        argv = ["attrib", "job", *map(str, arguments)]
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(argv, environment))
        self._process.start()

    def _run(self, argv: list[str], environment: dict[str, str]) -> None:
        sys.stdout, sys.stderr = (path.open("w") for path in self._printed)
        sys.argv = argv
        os.environ.update(environment)
        cli.main()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> list[str]:
        self._process.join(timeout)
        return [path.read_text() for path in self._printed]


def finish(process: subprocess.Popen[str] | Forked) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | Forked) -> None:
    begun = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begun < 300
        time.sleep(0.02)


def command(process: psutil.Process) -> str:
    """What it was started as; nothing for one that has ended in this very moment, which has no command left to tell."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@contextmanager
def asleep(process: subprocess.Popen[str] | Forked) -> Iterator[None]:
    """A run and its workers in the middle of what they do, for as long as is wanted."""
    every = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in every:
        with suppress(psutil.NoSuchProcess):  # one that it had started for a moment
            one.suspend()
    yield
    for one in every:
        with suppress(psutil.NoSuchProcess):
            one.resume()


def done(folder: Path) -> int:
    """How many shards are on record, without reading them: whoever waits must not keep the others from what they do."""
    return len(list((folder / RECORDS).glob("*.json")))


def assert_finishes(folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch, says: str = "") -> None:
    """The command goes on, here in this process, which has what it imports."""
    monkeypatch.setattr(choosing, "choose", lambda *_: (here, None))
    done = typer.testing.CliRunner().invoke(cli.app, ["job", "run", str(folder)])
    assert (done.exit_code, done.stderr) == (0, says)
    assert f"{len(open_job(folder).shards)} of {len(open_job(folder).shards)} shards" in done.stdout
    assert bytes_of(folder) == undisturbed(beside)
    assert status(folder).is_done


def test_a_run_that_is_killed_goes_on_where_it_was(folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("run", folder, "--workers", 1)
    wait_for(lambda: done(folder) >= 2, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "workers end with their parent"
    assert json.loads((folder / LOCK).read_text())["pid"] == process.pid, "it could not say that it ended"
    assert status(folder).run_by is None
    assert_finishes(folder, beside, monkeypatch, "the last run was killed; what it had not finished is done now\n")


@pytest.mark.long
def test_a_worker_that_is_killed_is_replaced(folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon after it began, and again in the middle: whatever it does just then."""
    app, this, killed = typer.testing.CliRunner(), psutil.Process(), set[int]()
    others = {child.pid for child in this.children()}

    def kill() -> None:
        begun = time.monotonic()
        for wanted in (1, 4):
            while done(folder) < wanted and time.monotonic() - begun < 300:
                time.sleep(0.005)
            for child in this.children():
                if child.pid not in others and (started := command(child)) and "resource_tracker" not in started:
                    child.kill()
                    killed.add(child.pid)

    killer = threading.Thread(target=kill)
    with forked(monkeypatch):
        killer.start()
        ran = app.invoke(cli.app, ["job", "run", str(folder), "--workers", "1"])
    killer.join()
    assert len(killed) == 2
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert bytes_of(folder) == undisturbed(beside)


@pytest.mark.long
def test_a_shard_that_kills_its_worker_fails_alone(folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does when memory runs out: a worker dies by SIGKILL each time that it computes one shard."""
    victim, compute = open_job(folder).shards[3], worker.compute

    def deadly(ready: Ready, shard: Shard) -> Computed:
        if shard.number == victim.number:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(ready, shard)

    app = typer.testing.CliRunner()
    with forked(monkeypatch), monkeypatch.context() as poisoned:
        poisoned.setattr(worker, "compute", deadly)
        ran = app.invoke(cli.app, ["job", "run", str(folder), "--workers", "1", "--attempts", "2"])
    assert str(ran.exception) == (
        f"1 shards failed after 2 attempts; shard 3: its process ended: SIGKILL, as the kernel does when memory runs out. "
        f"`attrib job status {folder}` lists them, `attrib job retry {folder}` tries them again."
    )
    [failure] = failures(open_job(folder))
    assert (failure.shard, failure.kind, failure.attempts) == (3, "died", 2)
    assert set(undisturbed(beside)) - set(bytes_of(folder)) == {f"{victim.name}.h5"}
    with forked(monkeypatch):
        assert app.invoke(cli.app, ["job", "retry", str(folder)]).exit_code == 0
    assert bytes_of(folder) == undisturbed(beside)


def test_a_run_is_stopped_by_a_signal(folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with forked(monkeypatch):
        process = Forked(folder, "run", folder, "--workers", 1)
    wait_for(lambda: done(folder) >= 2, process)
    with asleep(process):
        assert status(folder).run_by is not None
        with pytest.raises(InputError, match=rf"^job: {folder} is being run by a run on .*process {process.pid}"):
            run(folder, here)
        process.send_signal(signal.SIGTERM)  # it cannot end before
    returned, _, err = finish(process)
    assert returned == 128 + signal.SIGTERM
    assert err == f"{folder}: stopped; `attrib job run {folder}` goes on\n"
    assert (folder / LOCK).read_text() == "", "it said that it ended"
    assert_finishes(folder, beside, monkeypatch)


def test_ranks_share_a_job(folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks at once, as torchrun starts them; one is killed, and started again."""
    world = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "here", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    with forked(monkeypatch):
        ranks = [Forked(folder, "run", folder, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(2)]
        wait_for((folder / f"{LOCK}.1").exists, ranks[1])
        ranks[1].kill()
        ranks[1].communicate()
        wait_for(lambda: status(folder).run_by is not None, ranks[0])
        with asleep(ranks[0]), pytest.raises(InputError, match="is being run by"):
            run(folder, here)
        again = Forked(folder, "run", folder, RANK="1", LOCAL_RANK="1", **world)
        for process in (ranks[0], again):
            assert finish(process)[::2] == (0, "")
    assert bytes_of(folder) == undisturbed(beside)
    assert status(folder).is_done
    assert status(folder).run_by is None


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Launch(3, 8, "torchrun   ", 1)),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Launch(2, 4, "slurm 7", 0)),
        (
            {
                "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_MAX": "18", "SLURM_ARRAY_TASK_COUNT": "5", "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_PROCID": "1", "SLURM_NTASKS": "2",
            },
            Launch(5, 10, "slurm array 7", 0),
        ),
    ],
)  # fmt: skip
def test_the_environment_tells_of_a_launch(environment: dict[str, str], launch: Launch | None) -> None:
    assert launch_of(environment) == launch


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "8", "WORLD_SIZE": "8"}, "rank 8 of 8; expected 0 to 7"),
        ({"RANK": "one", "WORLD_SIZE": "8"}, "RANK='one'; expected a whole number"),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7",
             "SLURM_ARRAY_TASK_COUNT": "3"},
            "has 3 tasks from 1 to 7; expected one without gaps",
        ),
    ],
)  # fmt: skip
def test_an_environment_that_makes_no_sense_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        launch_of(environment)


def test_words_that_choose_no_engine(folder: Path) -> None:
    for arguments, words in (
        (("--engine", "magic"), "engine: 'magic'; expected one of auto, local, ray, rank"),
        (("--engine", "rank"), "neither torchrun nor SLURM started this process"),
        (("--address", "auto"), "is of a ray cluster, and the engine is auto"),
        (("--device", "cuda:99"), "'cuda:99' is not on this machine"),
    ):
        with pytest.raises(InputError, match=words):
            cli.app(["job", "run", str(folder), *arguments], standalone_mode=False)
    assert list((folder / SHARDS).iterdir()) == []
