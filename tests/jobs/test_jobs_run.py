"""A job as a user meets it, in one process: what it writes, and that whatever goes wrong, running it again gives the same bytes."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import typer.testing

import attrib
from attrib.cli import main as cli
from attrib.cli.bars import bar
from attrib.cli.job import status as command_status
from attrib.cli.run_bar import RunBar
from attrib.core.edges import Edges
from attrib.core.types import InputError
from attrib.jobs import run as running
from attrib.jobs.engines import JobError, queue
from attrib.jobs.engines import choose as choosing
from attrib.jobs.folder import FAILURES, RECORDS, SHARDS, Job, Shard, open_job
from attrib.jobs.records import NOT_DONE, Failure, failures, records, refused, write
from attrib.jobs.run import Watch, run
from attrib.jobs.status import status
from attrib.jobs.tidy import tidy
from attrib.jobs.verify import verify
from attrib.jobs.worker import Outcome
from attrib.runs.prompts import read
from attrib.runs.spec import Loaded
from attrib.store.shard import open_shard
from tests.support.builders import sae, tiny
from tests.support.job_cases import LENGTHS, SITES, bytes_of, corpus, here, make_job, tiny_smollm2, undisturbed


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_smollm2(tmp_path_factory.mktemp("cache")):
        folder = corpus(tmp_path_factory.mktemp("corpus"), has_model=False)
        undisturbed(folder)  # now, before a test breaks anything
        yield folder


COMPUTED: dict[tuple[Any, ...], list[Edges]] = {}


@pytest.fixture(autouse=True)
def computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shard's edges are is the same at every run, as the bytes of `undisturbed` hold, for which nothing is remembered. Most tests
    here are of what becomes of them."""
    compute = Loaded.attribute

    def attribute(self: Loaded, prompts: Sequence[torch.Tensor], *rest: Any) -> list[Edges]:
        weights = (self.model.fingerprint, *(one.fingerprint for one in self.dictionaries.values()))
        key = (self.work.model_dump_json(), *weights, *(tuple(ids.tolist()) for ids in prompts))
        if key not in COMPUTED:
            COMPUTED[key] = compute(self, prompts, *rest)
        return deepcopy(COMPUTED[key])

    monkeypatch.setattr(Loaded, "attribute", attribute)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, beside: Path) -> Path:
    """A job of which nothing is done."""
    return make_job(tmp_path_factory.mktemp("made") / "job", beside).folder


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "job"))


@pytest.fixture
def finished(folder: Path, beside: Path) -> None:
    """All of the folder's job is done."""
    undisturbed(beside)
    shutil.copytree(beside / "undisturbed", folder, dirs_exist_ok=True)


def assert_undisturbed(folder: Path, beside: Path) -> None:
    """All is done, with the bytes of a run that nothing disturbed, and nothing else is there."""
    now = status(folder)
    assert now.is_done
    assert not now.failures
    assert bytes_of(folder) == undisturbed(beside)
    assert len(list((folder / RECORDS).iterdir())) == now.shards
    assert list((folder / FAILURES).iterdir()) == []


# ------------------------------------------------------------------------------------- what it writes


def test_shards_hold_what_the_functions_give(folder: Path, beside: Path) -> None:
    COMPUTED.clear()
    ran = run(folder, here)
    model = attrib.load_model(open_job(folder).config.model)
    source, target = (attrib.load_dictionary(beside / site) for site in SITES)
    given = [found.prompt for found in read(beside / "prompts.jsonl")]
    seen = []
    for shard in ran.job.shards:
        with open_shard(ran.job.file(shard)) as store:
            numbers = store.prompts.numbers.tolist()
            tokens = [given[number] for number in numbers]
            for want in (
                attrib.latent_to_latent(model, source, target, tokens, keep=attrib.Mass(0.9)),
                attrib.token_to_latent(model, source, tokens, keep=attrib.Mass(0.9)),
            ):
                got = store.edges(want.kind)
                assert torch.equal(got.indices, want.indices)
                torch.testing.assert_close(got.attribution, want.attribution)
            seen += numbers
    assert sorted(seen) == [number for number in range(len(LENGTHS) + 1) if number != 3], "each prompt once, but for the one that is none"
    assert ran.done.keys() == set(range(len(ran.job.shards)))
    COMPUTED.clear()
    assert verify(folder, recompute=3) == []


@pytest.mark.usefixtures("finished")
def test_a_second_run_has_nothing_to_do(folder: Path, beside: Path) -> None:
    run(folder, here)
    made = {path.name: path.stat().st_mtime_ns for path in (folder / SHARDS).iterdir()}

    def idle(job: Job, shards: Sequence[Shard], attempts: int) -> Iterator[Outcome]:
        assert shards == []
        yield from ()

    ran = run(folder, idle)
    assert ran.done.keys() == set(range(len(ran.job.shards)))
    assert {path.name: path.stat().st_mtime_ns for path in (folder / SHARDS).iterdir()} == made
    assert_undisturbed(folder, beside)


def test_the_status_counts(folder: Path) -> None:
    before = status(folder)
    assert (before.prompts_done, before.shards_done, before.edges, before.run_by) == (0, 0, 0, None)
    ran = run(folder, here)
    now = status(folder)
    assert (now.prompts_done, now.refused, now.tokens_done) == (len(LENGTHS), 1, sum(LENGTHS))
    assert now.bytes == sum(len(content) for content in bytes_of(folder).values())
    assert now.edges == sum(record.edges for record in ran.done.values())
    [(one, where)] = refused(open_job(folder))
    assert (one.number, where.endswith("line 4")) == (3, True)
    assert one.reason.startswith("is not JSON")


# ---------------------------------------------------------------------------------- what goes wrong


class Breaks:
    """A function that does its work, but raises at its nth call."""

    def __init__(self, function: Callable[..., Any], at: int, error: BaseException) -> None:
        self.function, self.left, self.error = function, at, error

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.function(*arguments, **options)

    def __get__(self, instance: object, owner: type) -> "Callable[..., Any]":
        """In the place of a method, it is bound as one."""
        return partial(self, instance)


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.few
@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize(("where", "name"), [(os, "fsync"), (os, "replace"), (h5py.Group, "create_dataset"), (Path, "write_text")])
def test_a_full_disk_stops_the_job_and_the_next_run_finishes(
    folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, at: int
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(where, name, Breaks(getattr(where, name), at + 1, NO_SPACE))  # the first is the lock's
        with pytest.raises((JobError, OSError), match=r"No space left on device"):
            run(folder, here)
    for shard, record in records(open_job(folder)).items():
        assert record.sha256 is not None, shard
    assert {fault.what for fault in verify(folder, recompute=0)} <= {NOT_DONE}, "what is on record is there"
    run(folder, here)
    assert_undisturbed(folder, beside)


def test_the_words_of_a_full_disk_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Can't write data (file write failed: errno = 28, error message = 'No space left on device', buf = 0x1)"
    monkeypatch.setattr(h5py.Group, "create_dataset", Breaks(h5py.Group.create_dataset, 1, RuntimeError(text)))
    with pytest.raises(JobError) as caught:
        run(folder, here)
    assert str(caught.value) == (
        f"{folder}: No space left on device. What is done stays; mend that, and `attrib job run {folder}` goes on."
    )


@pytest.mark.few
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "memory"),
        (RuntimeError("can't start new thread"), "memory"),
        (ZeroDivisionError("division by zero"), "error"),
    ],
)
def test_a_shard_that_fails_once_is_tried_again(
    folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    monkeypatch.setattr(Loaded, "attribute", Breaks(Loaded.attribute, 3, error))
    ran = run(folder, here)
    assert ran.failed == []
    assert_undisturbed(folder, beside)


def test_a_shard_that_always_fails_is_recorded_and_the_others_are_done(folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute = Loaded.attribute

    def short_of_memory(self: Loaded, prompts: list[torch.Tensor], *rest: Any) -> Any:
        if max(map(len, prompts)) == 12:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTry less")
        return attribute(self, prompts, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(Loaded, "attribute", short_of_memory)
        ran = run(folder, here, attempts=2)
    [failure] = ran.failed
    assert (failure.kind, failure.attempts, failure.reason) == ("memory", 2, "OutOfMemoryError: CUDA out of memory.")
    assert "short_of_memory" in failure.details
    assert list(failures(ran.job)) == [failure] == status(folder).failures
    assert status(folder).shards_done == len(ran.job.shards) - 1
    again = run(folder, here, only_failed=True)
    assert again.failed == []
    assert_undisturbed(folder, beside)


@pytest.mark.long
def test_a_job_of_which_nothing_can_be_done_gives_up(tmp_path: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path / "job", beside, shards={"prompts": 1})
    monkeypatch.setattr(queue, "TOO_MANY", 2)
    with monkeypatch.context() as broken:
        broken.setattr(Loaded, "attribute", lambda *_: (_ for _ in ()).throw(MemoryError("no more")))
        with pytest.raises(JobError, match=r"4 shards.* it is not the shards. The last: MemoryError: no more"):
            run(job.folder, here, attempts=1)
    assert len(list(failures(job))) == 4
    assert run(job.folder, here).failed == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.few
@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    ("inner", "damage", "fault"),
    [
        (SHARDS, truncate, r"its file has [\d,]+ bytes, and its record says [\d,]+"),
        (SHARDS, flip, "its sha256 is .*, and not"),
        (SHARDS, empty, "its file has 0 bytes"),
        (SHARDS, Path.unlink, "its file is gone"),
        (RECORDS, truncate, "its record is damaged: .*JSON"),
        (RECORDS, flip, "its record is damaged: "),
        (RECORDS, empty, "its record is damaged: .*JSON"),
        (RECORDS, Path.unlink, NOT_DONE),
    ],
)
def test_what_was_damaged_is_made_again(folder: Path, beside: Path, inner: str, damage: Callable[[Path], None], fault: str) -> None:
    run(folder, here)
    victim = sorted((folder / inner).iterdir())[2]
    damage(victim)
    [told] = verify(folder, recompute=0)
    assert told.shard.number == 2
    assert re.match(fault, told.what)
    ran = run(folder, here)
    assert [shard.number for shard in ran.damaged] == ([2] if (inner, damage) == (SHARDS, flip) else []), "the rest is plainly not done"
    assert verify(folder, recompute=0) == []
    assert_undisturbed(folder, beside)


def put(job: Job, shard: Shard, *columns: str) -> None:
    """A shard of which these columns are twice what they were, with its checksum on record, as a broken machine would write it."""
    path = job.file(shard)
    with open_shard(path) as store:
        wrong = [replace(edges, **{name: getattr(edges, name) * 2 for name in columns}) for edges in store.values()]
    attrib.save(path, wrong, overwrite=True)
    on_record(job, shard)


def on_record(job: Job, shard: Shard) -> None:
    """Put the checksum and length that a shard has on record."""
    path, entry = job.file(shard), job.record(shard)
    now = {"sha256": running.digest(job.folder, path), "bytes": path.stat().st_size}
    entry.write_text(json.dumps(json.loads(entry.read_text()) | now))


@pytest.mark.usefixtures("finished")
def test_verify_sees_values_that_are_not_what_is_computed(folder: Path) -> None:
    ran = run(folder, here)
    shard = ran.job.shards[1]
    put(ran.job, shard, "gradient", "attribution", "total", "l1")
    assert verify(folder, recompute=0) == []
    [fault] = verify(folder, recompute=len(ran.job.shards))
    assert (fault.shard, "differs by 5.0e-01 of the largest attribution" in fault.what) == (shard, True)


@pytest.mark.few
@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        (["attribution"], r"attribution/data: prompt \d+, row 0: it is .*, and gradient times activation .*; and .* more rows like it"),
        (["l1"], r"l1: prompt \d+, row 0: it is .*, of which the keep rule stores 0\.\d+ at least, and .* is stored"),
        (["total"], r"total: prompt \d+, row \d+: it is .*, and what is stored sums to .*: more apart than the rest of l1"),
    ],
)
def test_verify_sees_values_that_contradict_each_other(folder: Path, columns: list[str], fault: str) -> None:
    ran = run(folder, here)
    put(ran.job, ran.job.shards[1], *columns)
    found = verify(folder, recompute=0)
    assert {one.shard for one in found} == {ran.job.shards[1]}
    assert all(re.match(rf"/blocks/\S*/{fault}", one.what) for one in found), [one.what for one in found]


@pytest.mark.usefixtures("finished")
def test_verify_sees_a_shard_that_does_not_say_what_it_is_of(folder: Path) -> None:
    ran = run(folder, here)
    shard = ran.job.shards[1]
    with h5py.File(ran.job.file(shard), "r+") as file:
        for group in (file, *file["blocks"].values()):
            group.attrs["call"] = np.bytes_("{}")
    on_record(ran.job, shard)
    found = {fault.what for fault in verify(folder, recompute=0)}
    kinds = ("latent_to_latent", "token_to_latent")
    assert found == {f"the call of its {kind} does not say of what model and dictionaries it is" for kind in kinds}


@pytest.mark.usefixtures("finished")
def test_verify_sees_a_shard_of_other_prompts(folder: Path) -> None:
    ran = run(folder, here)
    mine, other = ran.job.shards[:2]
    ran.job.file(mine).write_bytes(content := ran.job.file(other).read_bytes())
    path = ran.job.record(mine)
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"sha256": running.digest(folder, ran.job.file(mine)), "bytes": len(content)})
    )
    assert "its prompts have other numbers than the job's" in [fault.what for fault in verify(folder, recompute=0)]


@pytest.mark.few
@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("count", ["edges", "prompts", "tokens"])
def test_verify_sees_a_record_that_counts_otherwise(folder: Path, count: str) -> None:
    ran = run(folder, here)
    path = ran.job.record(ran.job.shards[1])
    path.write_text(json.dumps(json.loads(path.read_text()) | {count: 77}))
    assert [fault.what for fault in verify(folder, recompute=0)] == [
        f"it has {getattr(ran.done[1], count):,} {count}, and its record says 77"
    ]


def test_verify_names_all_that_is_missing(folder: Path) -> None:
    shards = open_job(folder).shards
    assert verify(folder) == [(shard, NOT_DONE) for shard in shards]
    app = typer.testing.CliRunner()
    asked = app.invoke(cli.app, ["job", "verify", str(folder)])
    assert isinstance(asked.exception, InputError)
    assert str(asked.exception).startswith(f"{folder}: 0 faults, and {len(shards)} shards that are not done.")
    run(folder, here)
    asked = app.invoke(cli.app, ["job", "verify", str(folder)])
    assert (asked.exit_code, asked.output) == (0, f"{folder}: all shards are there, and no fault in them\n")


def test_folders_that_were_removed_are_made_again(folder: Path, beside: Path) -> None:
    for inner in (SHARDS, RECORDS, FAILURES):
        (folder / inner).rmdir()
    run(folder, here)
    assert_undisturbed(folder, beside)


def test_what_goes_while_a_job_runs_is_told(folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = []

    def loses(job: Job, shards: Sequence[Shard], attempts: int) -> Iterator[Outcome]:
        for outcome in here(job, shards, attempts):
            yield outcome
            if not lost:
                lost.append(job.file(job.shards[outcome.shard]))
                lost[0].unlink()

    monkeypatch.setattr(choosing, "choose", lambda *_: (loses, None))
    asked = typer.testing.CliRunner().invoke(cli.app, ["job", "run", str(folder)])
    assert str(asked.exception).startswith("1 shards were done and are gone")
    run(folder, here)
    assert_undisturbed(folder, beside)


def test_a_rank_says_that_it_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "choose", lambda *_: (here, ("slurm 5", 1, 4)))
    asked = typer.testing.CliRunner().invoke(cli.app, ["job", "run", str(folder)])
    assert asked.exit_code == 0
    first, last = asked.output.splitlines()
    assert first == f"{folder}: this was rank 1 of 4 (slurm 5), which does every 4th shard; of all ranks:"
    assert last.startswith(f"{folder}: 2 of {len(open_job(folder).shards)} shards")


# ---------------------------------------------------------------------------------- poisoned prompts


def test_a_prompt_too_large_for_the_budget_is_left_out_and_named(tmp_path: Path, beside: Path) -> None:
    sizes = {}
    for budget in (1 << 30, 40_000):
        job = make_job(tmp_path / str(budget), beside, budget=budget, shards={"prompts": 3})
        ran = run(job.folder, here)
        assert ran.failed == []
        sizes[budget] = {one.number: one.reason for one, _ in refused(job) if one.number != 3}
        kept = [number for record in ran.done.values() for number in numbers_of(job, record.shard)]
        assert sorted([*kept, *sizes[budget]]) == [number for number in range(len(LENGTHS) + 1) if number != 3]
        assert verify(job.folder, recompute=2) == []
    assert sizes[1 << 30] == {}
    assert sizes[40_000], "some prompt is too long for it"
    assert all("40,000 bytes are too few for it" in reason for reason in sizes[40_000].values())


def numbers_of(job: Job, shard: int) -> list[int]:
    path = job.file(job.shards[shard])
    if not path.exists():
        return []
    with open_shard(path) as store:
        return store.prompts.numbers.tolist()


def test_edges_that_are_not_finite_are_left_out(folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute = Loaded.attribute
    victim = open_job(folder).shards[3]
    prompts, numbers = open_job(folder).prompts(victim)

    def overflowing(self: Loaded, given: list[torch.Tensor], *rest: Any) -> Any:
        found = attribute(self, given, *rest)
        for at, ids in enumerate(given):
            if torch.equal(ids, prompts[0]):
                found[1].gradient[found[1].targets.prompt[found[1].row] == at] = torch.nan
        return found

    monkeypatch.setattr(Loaded, "attribute", overflowing)
    ran = run(folder, here)
    record = ran.done[victim.number]
    assert [(one.number, one.reason) for one in record.refused] == [(numbers[0], "its edges are not finite numbers")]
    assert numbers_of(ran.job, victim.number) == numbers[1:].tolist()
    assert record.prompts == len(prompts) - 1


def test_a_shard_of_refused_prompts_alone_has_no_file(tmp_path: Path, beside: Path) -> None:
    job = make_job(tmp_path / "job", beside, positions=[6], shards={"prompts": 1})
    ran = run(job.folder, here)
    short = {number for number, record in ran.done.items() if record.sha256 is None}
    assert {job.shards[number].tokens for number in short} == {length for length in LENGTHS if length < 7}
    assert all("positions: [6] for it, which has" in record.refused[0].reason for number, record in ran.done.items() if number in short)
    assert len(bytes_of(job.folder)) == len(job.shards) - len(short)
    assert verify(job.folder, recompute=2) == []
    assert run(job.folder, here).damaged == []
    assert status(job.folder).is_done


# --------------------------------------------------------------------------------- what has changed


def test_another_model_or_dictionary_is_refused(tmp_path: Path) -> None:
    beside = corpus(tmp_path, LENGTHS[:3])
    job = make_job(tmp_path / "job", beside)
    sae("topk", site=SITES[0], seed=5).save_model(beside / SITES[0])
    with pytest.raises(InputError, match=rf"job: {SITES[0]} is not what it was"):
        run(job.folder, here)
    sae("topk", site=SITES[0]).save_model(beside / SITES[0])
    run(job.folder, here)
    tiny("llama", hidden_act="gelu").save_pretrained(beside / "model")
    Path(job.record(job.shards[0])).unlink()
    with pytest.raises(InputError, match="job: model is not what it was"):
        run(job.folder, here)


def test_other_packages_are_refused_unless_told(folder: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "packages", lambda: {"torch": "9.9"})
    with pytest.raises(InputError, match=r"here are torch 9\.9, which may compute other last digits"):
        run(folder, here)
    run(folder, here, other_packages=True)
    assert_undisturbed(folder, beside)


@pytest.mark.usefixtures("finished")
def test_gc_removes_what_is_not_the_jobs(folder: Path, beside: Path) -> None:
    ran = run(folder, here)
    useless = [
        folder / SHARDS / ".000000-abc.h5.1234.partial",
        folder / SHARDS / "000099-0123456789abcdef.h5",
        folder / RECORDS / "old.json",
    ]
    for path in useless:
        path.write_text("left over")
    unvouched = ran.job.file(ran.job.shards[0])
    ran.job.record(ran.job.shards[0]).unlink()
    assert tidy(folder, dry_run=True) == sorted([*useless, unvouched])
    assert all(path.exists() for path in useless)
    assert tidy(folder) == sorted([*useless, unvouched])
    assert not any(path.exists() for path in (*useless, unvouched))
    run(folder, here)
    assert_undisturbed(folder, beside)


def test_a_run_tells_what_it_does(folder: Path) -> None:
    told: list[tuple[str, int]] = []

    class Told(Watch):
        def checked(self, done: int, total: int) -> None:
            told.append(("checked", total))

        def began(self, job: Job, done: Any, pending: Any, killed: bool) -> None:
            told.append(("began", len(pending)))

        def became(self, outcome: Any) -> None:
            told.append(("became", outcome.shard))

    count = len(open_job(folder).shards)
    run(folder, here, watch=Told())
    assert told == [("began", count), *(("became", number) for number in reversed(range(count)))], "longest prompts first"
    told.clear()
    run(folder, here, watch=Told())
    assert told == [("checked", count)] * count + [("began", 0)]


def test_a_folder_that_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no job\.json; make a job there with `attrib job init"):
        run(tmp_path, here)
    assert list(tmp_path.iterdir()) == []


def test_reasons_are_printed_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup, and a line stays a line."""
    job, reason = open_job(folder), "[enforce fail at alloc_cpu.cpp:127] :smile: " + "a long reason " * 20
    failure = Failure(shard=3, id=job.shards[3].id, kind="memory", reason=reason, attempts=2, finished=1.0)
    watch = RunBar(bar())
    watch.began(job, {}, list(job.shards), False)
    watch.became(failure)
    assert capsys.readouterr().err == f"shard 3 failed 2 times: {reason}\n"
    write(folder, job.failure(job.shards[3]), failure)
    command_status(folder)
    assert f"shard 3 failed 2 times: {reason}\n" in capsys.readouterr().out
