"""Tasks as jobs: their tables are those of `run_task`, whatever happened on the way, and are held against what was asked."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import pytest
import torch

from attrib import load_dictionary, load_model
from attrib.causal import tasks
from attrib.causal.tasks.results import read_rows, record_of, write_rows
from attrib.core.types import FormatError, InputError
from attrib.jobs.config import job_file
from attrib.jobs.folder import PROMPTS, Job, open_job
from attrib.jobs.make import make
from attrib.jobs.records import refused
from attrib.jobs.run import digest, run
from attrib.jobs.status import status
from attrib.jobs.verify import verify
from tests.support.builders import prompt
from tests.support.job_cases import SITES, bytes_of, corpus, forked, here, killed, tiny_smollm2
from tests.support.typed import Command

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ALL = ["base", "spliced", "gradient", "ablation"]
KEPT = [0, 1, 2, 4, 5, 6]
"""The numbers of the examples that are some."""


def rows() -> list[Any]:
    """Prompts of many lengths, answers of one and of several tokens, labels of both kinds; the fourth has an answer twice."""
    found: list[Any] = [
        {"prompt": prompt(3 + 5 * n % 7, seed=n).tolist(), "answers": [3, [11, 5]], "label": n % 2} for n in range(len(KEPT))
    ]
    found.insert(3, {"prompt": [1, 2], "answers": [3, 3], "label": 0})
    return found


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_smollm2(tmp_path_factory.mktemp("cache")):
        folder = corpus(tmp_path_factory.mktemp("corpus"), has_model=False)
        (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
        yield folder


def table(**changed: Any) -> dict[str, Any]:
    usual = {"kind": "task", "model": "smollm2-135m", "dictionaries": list(SITES), "task": "t.jsonl", "shards": {"prompts": 2}}
    return usual | changed


def job_of(folder: Path, beside: Path, **changed: Any) -> Job:
    return make(folder, job_file(table(**changed)), beside)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, beside: Path) -> Path:
    """A job that nothing disturbed. Nothing is changed in it."""
    job = job_of(tmp_path_factory.mktemp("finished") / "job", beside)
    run(job.folder, here)
    return job.folder


def test_a_job_has_the_tables_of_a_run(finished: Path, beside: Path) -> None:
    good = [tasks.Example(row["prompt"], row["answers"], row["label"]) for number, row in enumerate(rows()) if number in KEPT]
    dictionaries = [load_dictionary(beside / site) for site in SITES]
    want = tasks.run_task(load_model("smollm2-135m"), tasks.Task("t", good), dictionaries, operations=ALL, batch=2)
    found = tasks.open_results(finished)
    for kind in ("samples", "latents"):
        numbered = getattr(want, kind).assign(example=lambda table: table["example"].map(KEPT.__getitem__))
        pd.testing.assert_frame_equal(getattr(found, kind), numbered)
    assert (found.record["task"], found.record["operations"], found.is_done) == ("t", ALL, None)
    [[one, where]] = list(refused(open_job(finished)))
    assert (one.number, "t.jsonl, line 4" in where) == (3, True)
    assert "has the token 3 in two answers" in one.reason
    now = status(finished)
    assert (now.prompts_done, now.refused, now.makes, now.edges) == (len(KEPT), 1, "rows", len(found.samples) + len(found.latents))


def test_the_commands_take_it_as_any_job(finished: Path, tmp_path: Path, command: Command) -> None:
    assert "rows" in command("job", "status", finished).out
    assert command("job", "verify", finished, "--recompute", 2).status == 0
    shown = command("task", "show", finished, "--top", 1)
    assert "t with smollm2-135m: 6 examples" in shown.out, shown.err
    assert "not done yet" not in shown.out
    merged = command("job", "merge", finished, "--out", tmp_path / "m.h5", "--compression", "gzip")
    assert merged.status == 0, merged.err
    for name in ("samples", "latents"):
        one, other = (command("task", "show", path, "--csv", name).out for path in (finished, tmp_path / "m.h5"))
        assert (one, len(one.splitlines())) == (other, 1 + len(getattr(tasks.open_results(finished), name)))
    for path in (tmp_path / "m.h5", finished):
        assert command("verify-file", path).out == f"{path}: no fault in it\n"
    assert "tables of a task" in command("show", finished).err


@pytest.mark.long
def test_it_is_killed_at_random_moments_and_comes_to_the_same_bytes(tmp_path: Path, beside: Path, finished: Path) -> None:
    folder, chance = job_of(tmp_path / "job", beside).folder, random.Random(5)
    for wanted in (1, 2):
        killed(folder, wanted, chance.random() * 0.05)
    run(folder, here)
    assert bytes_of(folder) == bytes_of(finished)


def test_two_workers_and_a_text_that_changes_come_to_the_same_bytes(
    tmp_path: Path, beside: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    text = (beside / "t.jsonl").read_text()
    folder = job_of(tmp_path / "job", beside).folder
    (beside / "t.jsonl").write_text("{}\n")
    try:
        with forked(monkeypatch):
            ran = command("job", "run", folder, "--workers", 2)
    finally:
        (beside / "t.jsonl").write_text(text)
    assert ran.status == 0, ran.err
    assert bytes_of(folder) == bytes_of(finished)


def test_examples_are_made_filled_and_limited(tmp_path: Path, beside: Path) -> None:
    (beside / "rows.jsonl").write_text('{"a": "1", "b": "2", "l": "no"}\n{"a": "1", "l": "no"}\n{"a": "2", "b": "1", "l": "yes"}\n')
    template = {"text": "{a} {b}", "answers": ["3", ["4", "5"]], "label": "l", "labels": {"no": 0, "yes": 1}}
    filled = job_of(tmp_path / "filled", beside, task={"source": "rows.jsonl", "template": template, "limit": 3}, dictionaries=[])
    assert filled.config.operations == ["base"]
    run(filled.folder, here)
    samples = tasks.open_results(filled.folder).samples
    assert (samples["example"].tolist(), samples["label"].tolist(), samples["right"].tolist()) == ([0, 2], [0, 1], [" 3", " 4 /  5"])
    [[one, _]] = list(refused(filled))
    assert (one.number, "its field 'b' is not there" in one.reason) == (1, True)
    few = job_of(tmp_path / "few", beside, task={"source": "t.jsonl", "limit": 2}, dtype="float64")
    run(few.folder, here)
    assert tasks.open_results(few.folder).record["dtype"] == "float64"
    assert few.fixed.given == 2


# ---------------------------------------------------------------------------------- what goes wrong


def rewritten(job: Job, change: Any, **asked: Any) -> None:
    """The first shard with other rows, and its checksum on record, as a broken machine would write it."""
    shard = job.shards[0]
    path, entry = job.file(shard), job.record(shard)
    found = read_rows(path)
    change(found)
    write_rows(path, record_of(path) | asked, found)
    now = {"sha256": digest(job.folder, path), "bytes": path.stat().st_size}
    entry.write_text(json.dumps(json.loads(entry.read_text()) | now))


def other_effect(found: dict[str, pd.DataFrame]) -> None:
    found["latents"].loc[found["latents"]["operation"] == "gradient", "effect"] += 1


@pytest.mark.few
@pytest.mark.parametrize(
    ("change", "asked", "words", "recompute"),
    [
        (other_effect, {}, r"the effect of its latents differs by up to 1\.0e\+00", 9),
        (lambda found: None, {"model": {"name": "m", "sha256": "0"}}, "another model", 0),
        (lambda found: None, {"errors": True}, "other options than the job's", 0),
        (lambda found: None, {"dictionaries": 3}, "does not say what it was asked for", 0),
        (lambda found: found["samples"].update({"example": [7, 8] * 2}), {}, "other numbers than the job's", 0),
        (lambda found: found["samples"].update({"tokens": [1] * 4}), {}, "other lengths or labels", 0),
        (lambda found: found.update(latents=found["latents"][:-1]), {}, "rows, and its record says|its record says", 0),
    ],
)
def test_verify_sees_what_a_right_checksum_hides(
    tmp_path: Path, beside: Path, change: Any, asked: dict[str, Any], words: str, recompute: int
) -> None:
    job = job_of(tmp_path / "job", beside, task={"source": "t.jsonl", "limit": 2}, operations=["base", "gradient"])
    run(job.folder, here)
    assert verify(job.folder) == []
    rewritten(job, change, **asked)
    faults = verify(job.folder, recompute=recompute)
    assert faults
    assert pd.Series([fault.what for fault in faults]).str.contains(words).any(), faults


def test_what_prompts_are_asked_with_is_part_of_their_shard(tmp_path: Path, beside: Path) -> None:
    job = job_of(tmp_path / "job", beside)
    path = job.folder / PROMPTS / "beside.npy"
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1  # the last token of the last answer
    path.write_bytes(bytes(raw))
    with pytest.raises(FormatError, match="are not what they were"):
        job.portion(job.shards[-1])
    job.portion(job.shards[0])


def test_an_example_that_cannot_be_computed_is_left_out(tmp_path: Path, beside: Path) -> None:
    job = job_of(tmp_path / "job", beside, positions=[4], operations=["spliced"])
    run(job.folder, here)
    lengths = [len(rows()[number]["prompt"]) for number in KEPT]
    want = [number for number, length in zip(KEPT, lengths, strict=True) if length > 4]
    assert 0 < len(want) < len(KEPT)
    assert tasks.open_results(job.folder).samples["example"].tolist() == want
    assert verify(job.folder, recompute=4) == []


def test_a_damaged_file_of_tables_is_named(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    path.write_bytes(next((finished / "shards").iterdir()).read_bytes())
    with h5py.File(path, "r+") as file:
        file["tables/samples/right/code"][0] = 99
    [fault] = tasks.faults(path)
    assert "a number that is none of the" in str(fault)
    with h5py.File(path, "r+") as file:
        file["tables/samples/right/code"][0] = 0
        file["tables/samples/correct"][0] = 2
    with pytest.raises(FormatError, match="neither 0 nor 1"):
        read_rows(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="truncated or damaged"):
        tasks.open_results(path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"operation": ["base"]}, "operation: there is no such key"),
        ({"prompts": "p.txt"}, "prompts: there is no such key"),
        ({"operations": ["patching"]}, "operations: 'patching'; expected base, spliced"),
        ({"dictionaries": [], "operations": ["gradient"]}, "'gradient' is about dictionaries"),
        ({"task": {"name": "sums"}}, "task.name: 'sums'; expected agreement"),
        ({"task": {"limit": 3}}, "neither a name nor a source"),
        ({"task": {"source": "t.jsonl", "n": 3}}, "task.n: no effect on a file"),
        ({"task": {"name": "agreement", "chat": True}}, "task.chat: no effect on agreement"),
        ({"task": {"source": "t.jsonl", "fields": {"promt": "x"}}}, "fields: 'promt'"),
        ({"task": {"source": "none.jsonl"}}, r"task.source: .*none.jsonl does not exist"),
        ({"task": {"source": "../t.jsonl"}}, "lies outside"),
        ({"task": {"source": "hf:a"}}, "expected a file of JSONL"),
        ({"task": {"source": "t.jsonl", "template": {"text": "{a b}", "answers": ["1", "2"]}}}, "template: "),
        ({"positions": "middle"}, "positions"),
        ({"budget": "much"}, "budget"),
    ],
)
def test_what_makes_no_sense_is_refused_when_a_job_is_made(tmp_path: Path, beside: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        job_of(tmp_path / "job", beside, **changed)
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    "numbers", [(), (0,), (0, 2), (2, 2, 1, 3, 1, 4), (0, 2, 1, 3, 1), (0, 2, -1, 3, 1, 4), (0, 1 << 60, 1, 3), (0, 2, 1, 3, 1, 60)]
)
def test_numbers_of_no_item_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match="are a label and the tokens of no answers"):
        tasks.examples.of_numbers(torch.tensor([1, 2]), numbers, 60)
    item = tasks.Item(torch.tensor([1, 2]), ((3,), (4, 5)), 1)
    assert tasks.examples.of_numbers(item.ids, tasks.examples.as_numbers(item), 60) == item
