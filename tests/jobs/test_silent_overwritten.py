"""Weights that somebody writes into while a job runs, or after: no shard is of other weights than its job's, and it is said."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import typer.testing

from attrib.cli import main as cli
from attrib.core.types import FormatError, InputError
from attrib.jobs.engines import JobError
from attrib.jobs.engines import choose as choosing
from attrib.jobs.folder import PROMPTS, Job, Shard, open_job
from attrib.jobs.records import failures, records
from attrib.jobs.run import run
from attrib.jobs.shard import Ready, prepare
from attrib.jobs.witness import Overwritten, Witness, stamps
from attrib.jobs.worker import Outcome
from tests.support import job_cases
from tests.support.builders import sae
from tests.support.job_cases import SITES, bytes_of, corpus, here, make_job

LENGTHS = (5, 7, 9, 11)


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    return corpus(tmp_path / "beside", LENGTHS)


@pytest.fixture
def job(tmp_path: Path, beside: Path) -> Job:
    return make_job(tmp_path / "job", beside, shards={"prompts": 1})


@pytest.fixture
def wanted(tmp_path: Path, beside: Path) -> dict[str, bytes]:
    """What the job comes to when nobody writes into anything."""
    made = make_job(tmp_path / "wanted", beside, shards={"prompts": 1})
    run(made.folder, here)
    return bytes_of(made.folder)


def overwrite(beside: Path) -> None:
    """`cp other.safetensors DICT/sae_weights.safetensors`: the file stays the same, and its bytes do not."""
    sae("topk", site=SITES[0], seed=5).save_model(beside / "other")
    target = beside / SITES[0] / "sae_weights.safetensors"
    inode = target.stat().st_ino
    shutil.copyfile(beside / "other" / "sae_weights.safetensors", target)
    assert target.stat().st_ino == inode


def after(shards: int, act: Callable[[], None]) -> Callable[[Job, Sequence[Shard], int], Iterator[Outcome]]:
    """The engine of this process, in which something happens after so many shards."""

    def engine(job: Job, pending: Sequence[Shard], attempts: int) -> Iterator[Outcome]:
        for count, outcome in enumerate(here(job, pending, attempts), 1):
            yield outcome
            if count == shards:
                act()

    return engine


def test_a_dictionary_overwritten_while_a_job_runs_changes_no_shard(job: Job, beside: Path, wanted: dict[str, bytes]) -> None:
    ran = run(job.folder, after(2, lambda: overwrite(beside)))
    assert bytes_of(job.folder) == wanted, "all of them, computed with what was hashed"
    assert ran.changed is None
    again = run(job.folder, here)
    assert again.done.keys() == ran.done.keys()
    assert again.changed == f"job: {SITES[0]} is not what it was when {job.folder} was made. Put the old one back, or make a new job."


def test_weights_that_change_in_memory_stop_the_job(
    job: Job, beside: Path, wanted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As maps of the file do: what was computed with them is thrown away, and a run with the file put back goes on."""
    kept: list[Ready] = []

    def prepared(folder: Path, device: str) -> Ready:
        kept.append(prepare(folder, device))
        return kept[-1]

    def change() -> None:
        overwrite(beside)
        with torch.no_grad():
            kept[0].loaded.dictionaries[SITES[0]].params.W_enc.mul_(1.01)

    monkeypatch.setattr(job_cases, "prepare", prepared)
    shutil.copytree(beside / SITES[0], beside / "old")
    with pytest.raises(JobError, match=rf"job: {SITES[0]} was overwritten while the job ran.*those before it are right"):
        run(job.folder, after(2, change))
    assert records(job).keys() == {3, 2}, "the longest are first, and a third was computed and thrown away"
    assert bytes_of(job.folder).items() <= wanted.items()
    assert list(failures(job)) == []
    with pytest.raises(InputError, match=rf"job: {SITES[0]} is not what it was when"):
        run(job.folder, here)
    shutil.copytree(beside / "old", beside / SITES[0], dirs_exist_ok=True)
    run(job.folder, here)
    assert bytes_of(job.folder) == wanted


@pytest.mark.few
@pytest.mark.parametrize("change", [lambda path: path.touch(), lambda path: path.unlink(), lambda path: os.replace(path, path)])
def test_files_that_change_while_the_weights_do_not(job: Job, beside: Path, change: Callable[[Path], None]) -> None:
    ready = prepare(job.folder, "cpu")
    ready.witness.check()
    change(beside / SITES[0] / "cfg.json")
    ready.witness.check()
    with torch.no_grad():
        ready.loaded.model.params.W_E.mul_(1.01)
    ready.witness.check()
    (beside / "model" / "config.json").touch()
    with pytest.raises(Overwritten, match="job: model was overwritten"):
        ready.witness.check()


def test_times_that_are_set_back_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("old")
    before, witness = path.stat(), Witness({"name": path})
    path.write_text("new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert stamps({"name": path}) != witness._seen


@pytest.mark.parametrize("name", ["layer_3", "layer_3.safetensors", "."])
def test_the_files_of_a_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "layer_3.safetensors").write_text("weights")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert stamps({"a": tmp_path / name}).keys() == {str(tmp_path / "layer_3.safetensors")}


def test_the_command_says_that_files_changed_behind_a_finished_job(job: Job, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "choose", lambda *_: (here, None))
    app = typer.testing.CliRunner()
    first = app.invoke(cli.app, ["job", "run", str(job.folder)])
    assert (first.exit_code, first.stderr) == (0, "")
    overwrite(beside)
    again = app.invoke(cli.app, ["job", "run", str(job.folder)])
    assert again.exit_code == 0, "all that the job is to be is there"
    assert again.stderr == (
        f"{job.folder}: the shards are right, but what they were made of is there no more. job: {SITES[0]} is not what it was when "
        f"{job.folder} was made. Put the old one back, or make a new job.\n"
    )
    unchecked = app.invoke(cli.app, ["job", "run", str(job.folder), "--no-check"])
    assert (unchecked.exit_code, unchecked.stderr) == (0, "")


@pytest.mark.few
@pytest.mark.parametrize("name", ["ids", "ptr", "number"])
def test_a_finished_job_whose_prompts_changed(job: Job, name: str) -> None:
    run(job.folder, here)
    path = job.folder / PROMPTS / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"the prompts of shard .* are not what they were"):
        run(job.folder, here)
    assert open_job(job.folder).shards == job.shards
