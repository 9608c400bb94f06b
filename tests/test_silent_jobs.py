"""What a job says of what it did not do, and what it computes with when something changes or ends beside it."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer.testing
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from attrib import cli
from attrib.jobs.engines import JobError, local
from attrib.jobs.engines import choose as choosing
from attrib.jobs.engines.local import STARTS
from attrib.jobs.folder import Job, Shard, open_job
from attrib.jobs.records import refused
from attrib.jobs.run import run
from attrib.jobs.shard import prepare
from attrib.jobs.status import status
from attrib.jobs.verify import verify
from attrib.jobs.worker import Event, Outcome, Waits, work
from attrib.types import AttribWarning, InputError
from tests.builders import sae
from tests.job_cases import SITES, bytes_of, corpus, here, make_job
from tests.test_layering import ROOT

BLOCKS = {"attribution": [{"kind": "latent_to_latent", "source": SITES[0], "target": SITES[1]}], "shards": {"prompts": 1}}


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    return corpus(tmp_path, (5, 6, 7, 8))


def command(*arguments: object) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(cli.app, ["job", *map(str, arguments)])


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "choose", lambda *_: (at_work, None))


def at_work(job: Job, shards: Sequence[Shard], attempts: int) -> Iterator[Outcome]:
    """This process, which loads nothing where there is nothing to do, as the engines."""
    if shards:
        yield from here(job, shards, attempts)


# ------------------------------------------------------------------------------ files that change


def overwrite(beside: Path, site: str) -> None:
    """Other weights into the very file that a dictionary lies in."""
    sae("topk", site=site, seed=5).save_model(beside / "other")
    held = (beside / site / "sae_weights.safetensors").stat().st_ino
    (beside / site / "sae_weights.safetensors").write_bytes((beside / "other" / "sae_weights.safetensors").read_bytes())
    assert (beside / site / "sae_weights.safetensors").stat().st_ino == held, "in place, as cp does"


@pytest.mark.parametrize("victim", [SITES[0], "model"])
@pytest.mark.usefixtures("in_this_process")
def test_a_file_overwritten_while_a_job_runs_changes_no_shard(tmp_path: Path, beside: Path, victim: str) -> None:
    undisturbed = make_job(tmp_path / "undisturbed", beside, **BLOCKS)
    run(undisturbed.folder, here)
    job = make_job(tmp_path / "job", beside, **BLOCKS)
    weights = beside / "model" / "model.safetensors"

    def engine(job: Job, shards: Sequence[Shard], attempts: int) -> Iterator[Outcome]:
        for outcome in here(job, shards, attempts):
            yield outcome
            if victim == "model":
                # into the same file, whose map would show them
                save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, beside / "doubled")
                weights.write_bytes((beside / "doubled").read_bytes())
            else:
                overwrite(beside, victim)

    run(job.folder, engine)
    assert bytes_of(job.folder) == bytes_of(undisturbed.folder), "what was hashed is what was computed with"
    with pytest.raises(InputError, match=f"job: {victim} is not what it was when .* was made. Put the old one back, or make a new job"):
        verify(job.folder)
    told = command("run", job.folder)
    assert told.exit_code == 0
    assert told.output.splitlines()[0] == f"{victim} is no longer what {job.folder} was made with; its shards are of what it was"
    job.record(job.shards[1]).unlink()
    with pytest.raises(InputError, match=f"job: {victim} is not what it was"):  # as a worker or node that comes later
        run(job.folder, here)


def test_a_finished_job_says_what_is_gone_and_nothing_of_what_was_only_touched(tmp_path: Path, beside: Path) -> None:
    job = make_job(tmp_path / "job", beside, **BLOCKS)
    run(job.folder, here)
    for path in (beside / SITES[0]).iterdir():
        path.write_bytes(path.read_bytes())
    assert run(job.folder, at_work).changed == []
    (beside / SITES[1]).rename(beside / "away")
    assert run(job.folder, at_work).changed == [SITES[1]]


# ---------------------------------------------------------------------------- prompts that are put down


def spoil(beside: Path, token: int) -> None:
    """An embedding so large that the pre-activations of a prompt that has it overflow; finite, so that it is loaded."""
    path = beside / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][token] = 3e38
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.usefixtures("in_this_process")
def test_a_prompt_of_numbers_that_are_none_is_put_down_with_the_reason(tmp_path: Path, beside: Path) -> None:
    lines = ["[1, 2, 3]", "[4, 5, 9, 6]", "[7, 8]", '"abc"']
    (beside / "prompts.jsonl").write_text("".join(f'{{"tokens": {line}}}\n' for line in lines))
    spoil(beside, 9)
    job = make_job(tmp_path / "job", beside, **BLOCKS | {"shards": {"prompts": 3}})
    assert open_job(job.folder).fixed.refused == 1, "the text where tokens should be"
    told = command("run", job.folder)
    assert told.exit_code == 0
    assert re.search(r"2 prompts, .*; 2 prompts left out, `attrib job status .* --refused` says why\n", told.output)
    [(_, _), (one, where)] = refused(job)
    assert (one.number, where.startswith("shard ")) == (1, True)
    assert re.match(rf"tokens: it gives -?(inf|nan) at .*{re.escape(SITES[0])}.*, first at position 2; expected finite numbers", one.reason)
    assert f"prompt 1 ({where}): {one.reason}" in command("status", job.folder, "--refused").output
    assert "2 of 3; 2 left out" in command("status", job.folder).output
    assert verify(job.folder, recompute=3) == []


@pytest.mark.usefixtures("in_this_process")
def test_a_job_of_which_no_prompt_could_be_attributed_is_no_success(tmp_path: Path, beside: Path) -> None:
    (beside / "prompts.jsonl").write_text('{"tokens": [9, 5]}\n{"tokens": [3, 9, 4]}\n')
    spoil(beside, 9)
    job = make_job(tmp_path / "job", beside, **BLOCKS)
    told = command("run", job.folder)
    assert told.exit_code == 1
    assert "0 prompts, 0 edges, 0.0 MB; 2 prompts left out" in told.output
    assert re.search(r"none of 2 prompts could be attributed. The first of them: tokens: it gives", str(told.exception))


# ------------------------------------------------------------------------------- workers that end


class Ended(BaseProcess):
    """A process, as far as an engine looks at one."""

    def __init__(self, code: int | None) -> None:
        self.code = code

    @property
    def exitcode(self) -> int | None:
        return self.code

    def join(self, timeout: float | None = None) -> None:
        pass

    def kill(self) -> None:
        pass


def scripted(monkeypatch: pytest.MonkeyPatch, exits: list[int | None]) -> list[int]:
    """Workers that end while they load, each with such an exit code; None does its work, in a thread. Returns their starts."""
    started: list[int] = []

    def start(folder: Path, device: str, starts: int = 1) -> Any:
        started.append(starts)
        code, (ours, theirs) = exits.pop(0), multiprocessing.Pipe()

        ready = prepare(folder, device)  # here: while it loads, it puts warnings away, in all threads

        def serve() -> None:
            def tell(event: Event) -> None:
                theirs.send(event)

            tell(Waits())
            with suppress(EOFError, ConnectionResetError):
                work(ready, iter(theirs.recv, None), tell)

        if code is None:
            threading.Thread(target=serve, daemon=True).start()
        else:
            theirs.close()
        return local._Worker(device, Ended(code), ours, starts=starts)

    monkeypatch.setattr(local, "_start", start)
    return started


def engine_of(workers: int) -> Any:
    return lambda job, shards, attempts: local.local(job, shards, attempts, devices=["cpu"] * workers)


@pytest.fixture
def job(tmp_path: Path, beside: Path) -> Job:
    return make_job(tmp_path / "job", beside, **BLOCKS)


def test_a_worker_killed_while_it_loads_is_replaced(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    started = scripted(monkeypatch, [-9, -9, None])
    assert run(job.folder, engine_of(1)).failed == []
    assert started == [1, 2, 3]
    assert status(job.folder).is_done


def test_a_worker_that_is_always_killed_while_it_loads_is_not_taken_for_a_script_without_main(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [-9] * STARTS)
    with pytest.raises(
        JobError, match=rf"killed {STARTS} times while it loaded the model \(SIGKILL, as the kernel does when memory"
    ) as told:
        run(job.folder, engine_of(1))
    assert "__main__" not in str(told.value)
    scripted(monkeypatch, [1])
    with pytest.raises(JobError, match=r"ended \(exit status 1\) before it could begin. A script .*__main__"):
        run(job.folder, engine_of(1))


def test_the_others_go_on_where_one_is_always_killed_while_it_loads(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [None, *[-9] * STARTS])
    with pytest.warns(AttribWarning, match="a worker on cpu was killed 3 times .*; the job goes on with 1 others"):
        assert run(job.folder, engine_of(2)).failed == []
    assert status(job.folder).is_done


def test_ctrl_c_while_workers_start_is_one_line(job: Job) -> None:
    """As a terminal sends it: to the run and to all that it started, which import what they need then."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    line = [sys.executable, "-m", "attrib.cli", "job", "run", str(job.folder), "--workers", "2"]
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        until = time.monotonic() + 60
        while len([one for one in psutil.Process(process.pid).children() if "spawn_main" in " ".join(one.cmdline())]) < 2:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)  # the second one's interpreter is up, and imports
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + signal.SIGINT, "")
    assert err == f"{job.folder}: stopped; `attrib job run {job.folder}` goes on\n"


def test_a_worker_leaves_no_semaphore_when_it_is_killed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar of tqdm takes one, which Python then calls leaked, beside the one line of a run that was stopped."""
    from multiprocessing import resource_tracker

    taken: list[str] = []
    monkeypatch.setattr(resource_tracker, "register", lambda name, _: taken.append(name))
    monkeypatch.delattr(tqdm, "_lock", raising=False)
    ours, theirs = multiprocessing.Pipe()
    ours.send(None)
    local._serve(job.folder, "cpu", theirs)
    assert isinstance(ours.recv(), Waits)
    list(tqdm(range(2), file=open(os.devnull, "w")))  # noqa: SIM115
    assert taken == []
