"""A run that is stopped says one line, whatever its workers were doing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from attrib.core.types import InputError
from attrib.jobs.engines import JobError
from attrib.jobs.engines import local as engine
from attrib.jobs.engines.choose import choose
from attrib.jobs.folder import Job, Shard, open_job
from attrib.jobs.run import run
from attrib.jobs.shard import Computed, Ready, compute, prepare
from tests.jobs.test_jobs_processes import command, finish, start, wait_for
from tests.support.job_cases import corpus, forked, make_job, tiny_smollm2
from tests.support.root import ROOT

IMPORTING = 60 << 20
"""Bytes of a worker that is past Python's own start, which a signal ends without a word, and has begun to import torch."""


def test_ctrl_c_while_workers_start_is_one_line(tmp_path: Path) -> None:
    """A terminal sends it to all of them, and they are still importing: it is the parent's alone."""
    folder = make_job(tmp_path / "job", corpus(tmp_path / "corpus", (3, 3, 3))).folder
    process = start("run", folder, "--workers", 2)
    parent = psutil.Process(process.pid)

    def workers() -> list[psutil.Process]:
        return [child for child in parent.children() if "spawn_main" in command(child)]

    wait_for(lambda: len(workers()) == 2, process)
    told = workers()
    wait_for(lambda: min(one.memory_info().rss for one in told) > IMPORTING, process)
    for one in told:
        one.send_signal(signal.SIGINT)
    time.sleep(0.5)  # in which they would say something
    parent.send_signal(signal.SIGINT)
    assert finish(process) == (128 + signal.SIGINT, "", f"{folder}: stopped; `attrib job run {folder}` goes on\n")
    _, alive = psutil.wait_procs(told, timeout=60)
    assert not alive


LOADS = """
import multiprocessing, sys
from multiprocessing import resource_tracker
from pathlib import Path
multiprocessing.set_start_method("spawn")  # as in a worker
from attrib.jobs.shard import compute, prepare
ready = prepare(Path(sys.argv[1]), "cpu")
compute(ready, ready.job.shards[0])
print(resource_tracker._resource_tracker._fd)
"""


@pytest.mark.long
def test_a_worker_makes_no_semaphore(tmp_path: Path) -> None:
    """One that is killed leaves it behind, and Python says so beside the one line. The bars of other libraries make them."""
    folder = make_job(tmp_path / "job", corpus(tmp_path / "corpus", (3,))).folder
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    told = subprocess.run([sys.executable, "-c", LOADS, folder], env=env, capture_output=True, text=True, check=True)
    assert told.stdout == "None\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A job of which nothing is done."""
    with tiny_smollm2(tmp_path_factory.mktemp("cache")):
        beside = corpus(tmp_path_factory.mktemp("corpus"), (3, 3, 3), has_model=False)
        yield make_job(tmp_path_factory.mktemp("made") / "job", beside).folder


@pytest.fixture
def job(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """A job whose workers find in them what a test puts there."""
    with forked(monkeypatch):
        yield open_job(Path(shutil.copytree(made, tmp_path / "job")))


def killed_while_loading(times: int, log: Path, folder: Path, device: str) -> Ready:
    with log.open("a") as file:
        file.write("started\n")
    if log.read_text().count("started") <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare(folder, device)


def test_a_worker_that_is_killed_while_it_loads_is_replaced(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "prepare", partial(killed_while_loading, engine.STARTS - 1, tmp_path / "log"))
    assert run(job.folder, partial(engine.local, devices=["cpu"])).done.keys() == {0, 1}


def test_workers_that_never_come_to_begin_end_the_run(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, and no word of scripts, which are another fault."""
    monkeypatch.setattr(engine, "prepare", partial(killed_while_loading, 99, tmp_path / "log"))
    told = "3 workers on cpu ended while they loaded the model; the last: SIGKILL, as the kernel does when memory runs out. What is done"
    with pytest.raises(JobError, match=re.escape(told)):
        run(job.folder, partial(engine.local, devices=["cpu", "cpu"]))
    assert (tmp_path / "log").read_text().count("started") == 2 * engine.STARTS


def test_one_place_where_none_comes_to_begin_leaves_the_others(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_place_only(folder: Path, device: str) -> Ready:
        if device == "cpu:0":
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(folder, "cpu")

    monkeypatch.setattr(engine, "prepare", first_place_only)
    assert run(job.folder, partial(engine.local, devices=["cpu:0", "cpu"])).done.keys() == {0, 1}


def hangs(times: int, log: Path, ready: Ready, shard: Shard) -> Computed:
    """The first shard that is computed, so many times."""
    if shard.number == 1:
        with log.open("a") as file:
            file.write("began\n")
        if log.read_text().count("began") <= times:
            time.sleep(1000)
    return compute(ready, shard)


@pytest.mark.long
@pytest.mark.parametrize("times", [1, 99])
def test_a_shard_that_hangs_is_tried_again(times: int, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attrib.jobs.worker.compute", partial(hangs, times, tmp_path / "log"))
    ran = run(job.folder, partial(engine.local, devices=["cpu"], timeout=3.0), attempts=2)
    assert ran.done.keys() == ({0, 1} if times == 1 else {0})
    reasons = [failure.reason for failure in ran.failed]
    assert reasons == ([] if times == 1 else ["its process ended: nothing was heard of it for 3 seconds"])
    assert (tmp_path / "log").read_text().count("began") == 2


def test_a_shard_that_is_written_without_an_end(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed by then, and it is the shard's failure all the same."""
    monkeypatch.setattr("attrib.jobs.worker.commit", lambda ready, computed: time.sleep(1000))
    ran = run(job.folder, partial(engine.local, devices=["cpu"], timeout=3.0), attempts=1)
    assert sorted(failure.shard for failure in ran.failed) == [0, 1]


def test_ray_takes_no_timeout(job: Job) -> None:
    with pytest.raises(InputError, match="shard_timeout: 5; ray's actors are not watched for that"):
        choose(job.folder, "ray", None, None, None, 5.0)
