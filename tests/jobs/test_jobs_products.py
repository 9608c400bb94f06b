"""Who multiplies in a job: written down when it is made, and followed wherever it goes on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attrib.core.types import InputError
from attrib.engine.blocks import multiplier as who
from attrib.jobs.folder import JOB, open_job
from attrib.jobs.make import make
from attrib.jobs.run import run
from attrib.store.shard import open_shard
from tests.support.job_cases import bytes_of, corpus, here, make_job, tiny_smollm2

needs_onednn = pytest.mark.skipif(who.operation() is None, reason="this torch is built without oneDNN")


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_smollm2(tmp_path_factory.mktemp("cache")):
        yield corpus(tmp_path_factory.mktemp("corpus"), (5, 7, 3), has_model=False)


def said(folder: Path) -> set[Any]:
    """What the shards of a job say of their products."""
    found = set()
    for path in (folder / "shards").iterdir():
        with open_shard(path) as store:
            found.add(store.call.get("products"))
    return found


def without_products(folder: Path) -> None:
    """Make a job's folder one of before products were written down."""
    fixed = json.loads((folder / JOB).read_text())
    del fixed["config"]["products"]
    (folder / JOB).write_text(json.dumps(fixed))


@needs_onednn
@pytest.mark.parametrize(("made_by", "run_by"), [("onednn", "torch"), ("torch", "onednn")])
def test_a_job_goes_on_as_it_was_made(made_by: str, run_by: str, beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(who.VARIABLE, made_by)
    assert make_job(tmp_path / "job", beside).config.products == made_by
    shutil.copytree(tmp_path / "job", tmp_path / "other")
    run(tmp_path / "job", here)
    monkeypatch.setenv(who.VARIABLE, run_by)
    run(tmp_path / "other", here)
    assert said(tmp_path / "other") == {made_by}
    assert bytes_of(tmp_path / "other") == bytes_of(tmp_path / "job")
    assert who.multiplier() == run_by, "it is pinned for more than the job"


def test_a_job_says_itself_who_multiplies(beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(who.VARIABLE, "auto")
    monkeypatch.setattr(who, "faster", lambda: "onednn")
    assert make_job(tmp_path / "job", beside, products="torch").config.products == "torch"
    with pytest.raises(InputError, match="products"):
        make_job(tmp_path / "other", beside, products="mkl")


def test_whoever_is_not_there_is_refused_by_name(beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(who.VARIABLE, "torch")
    monkeypatch.setattr(who, "operation", object)
    job = make_job(tmp_path / "job", beside, products="onednn")
    monkeypatch.setattr(who, "operation", lambda: None)
    for refused in (lambda: here(job, job.shards, 1).__next__(), lambda: make(tmp_path / "again", job.config, beside)):
        with pytest.raises(
            InputError, match=r"products: 'onednn', .* this build of torch is without it. Use one that has it, or make a new job"
        ):
            refused()


@needs_onednn
def test_a_job_of_before_is_multiplied_by_whoever_would(beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(who.VARIABLE, "torch")
    make_job(tmp_path / "job", beside)
    as_it_is = open_job(tmp_path / "job")
    without_products(tmp_path / "job")
    was = open_job(tmp_path / "job")
    assert was.config.products is None
    assert was.identity != as_it_is.identity, "shards of jobs of one name may differ in their last digits"
