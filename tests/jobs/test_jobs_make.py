"""Making a job: every prompt once, in shards of one length; the same bytes for the same config; all of it or nothing."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attrib.core.types import FormatError, InputError
from attrib.jobs import folder as folders
from attrib.jobs import make as making
from attrib.jobs.config import JobFile, ShardsOf, confined, job_file
from attrib.jobs.folder import JOB, PROMPTS, Job, Shard, open_job
from attrib.jobs.ids import split
from attrib.jobs.make import STEPS, bucket_of, make
from attrib.jobs.records import refused
from attrib.runs.spec import STORED, Loaded
from attrib.runs.spec import load as really_load
from tests.support.builders import D_VOCAB, N_CTX, prompt, sae, tiny
from tests.support.examples import examples
from tests.support.job_cases import LENGTHS, SITES, corpus, make_job, table, tiny_smollm2
from tests.support.typed import Command


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"))


@lru_cache(maxsize=4)
def _load(text: str, places: tuple[tuple[str, str], ...]) -> Loaded:
    return really_load(JobFile.model_validate(json.loads(text), context=STORED), torch.device("cpu"), dict(places))


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was loaded for one job is not loaded again for the next."""

    def load(config: JobFile, device: torch.device, places: dict[str, str]) -> Loaded:
        loaded = _load(
            config.model_copy(update={"prompts": None}).model_dump_json(include={"model", "attribution"})[:-1] + REST, tuple(places.items())
        )
        return Loaded(config, loaded.model, loaded.dictionaries)

    monkeypatch.setattr(making, "load", load)


REST = ', "prompts": "none"}'


def job_of(folder: Path, beside: Path, lines: list[Any] | str, **changed: Any) -> Job:
    """A job over prompts given here."""
    text = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
    (beside / f"{folder.name}.jsonl").write_text(text)
    prompts = {"source": f"{folder.name}.jsonl"} | changed.pop("prompts", {})
    return make(folder, job_file(table(prompts=prompts, **changed)), beside)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / PROMPTS).iterdir())}


def ids_of(job: Job) -> list[str]:
    return [shard.id for shard in job.shards]


def read_back(job: Job) -> dict[int, list[int]]:
    """Every prompt of every shard, by its number; each may be there once."""
    found: dict[int, list[int]] = {}
    for shard in job.shards:
        for number, ids in zip(job.prompts(shard)[1].tolist(), job.prompts(shard)[0], strict=True):
            assert number not in found
            found[number] = ids.tolist()
    return found


# -------------------------------------------------------------------------------------------- shards


@pytest.mark.few
@pytest.mark.parametrize(
    "limits", [{}, {"prompts": 1}, {"prompts": 3, "tokens": 40}, {"tokens": 1}, {"tokens": 25}, {"prompts": 1 << 62, "tokens": 1 << 62}]
)
def test_each_prompt_is_in_one_shard_once(limits: dict[str, int], tmp_path: Path, beside: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, N_CTX + 1, 90).tolist()
    given = [prompt(length, seed=number).tolist() for number, length in enumerate(lengths)]
    job = job_of(tmp_path / "job", beside, given, shards=limits)
    assert read_back(job) == dict(enumerate(given))
    prompts, tokens = limits.get("prompts", 64), limits.get("tokens", 2048)
    held = [[len(ids) for ids in job.prompts(shard)[0]] for shard in job.shards]
    for shard, of_shard in zip(job.shards, held, strict=True):
        assert (len(of_shard), sum(of_shard)) == (shard.stop - shard.first, shard.tokens)
        assert len({bucket_of(length) for length in of_shard}) == 1
        assert len(of_shard) <= prompts
        assert sum(of_shard) <= tokens or len(of_shard) == 1
        numbers = job.prompts(shard)[1].tolist()
        assert numbers == sorted(numbers), "in a bucket, the data set's order"
    for one, after in pairwise(held):
        assert bucket_of(one[0]) <= bucket_of(after[0])
        if bucket_of(one[0]) == bucket_of(after[0]):  # no shard ends before it must
            assert len(one) == prompts or sum(one) + after[0] > tokens
    assert (job.fixed.prompts, job.fixed.tokens, job.fixed.given, job.fixed.refused) == (90, sum(lengths), 90, 0)
    assert sorted(files_of(job.folder)) == ["ids.npy", "number.npy", "ptr.npy", "refused.jsonl", "shards.jsonl", "split.jsonl"]


def test_buckets_are_narrow() -> None:
    """One for each length up to STEPS, then STEPS in each doubling: ceil(STEPS log2(n / STEPS)) + STEPS, by whole numbers."""
    by_bucket: dict[int, list[int]] = {}
    for length in range(1, 5000):
        by_bucket.setdefault(bucket_of(length), []).append(length)
        if length > STEPS:
            step = bucket_of(length) - STEPS
            assert length**STEPS <= STEPS**STEPS * 2**step
            assert length**STEPS > STEPS**STEPS * 2 ** (step - 1)
    assert [*by_bucket] == sorted(by_bucket)
    assert all(min(lengths) / max(lengths) > 0.84 for lengths in by_bucket.values())


@given(rows=st.lists(st.integers(1, 30), max_size=60), prompts=st.integers(1, 70), tokens=st.integers(1, 200))
@settings(max_examples=examples(100), deadline=None)
def test_cutting_reads_no_further_than_a_shard(rows: list[int], prompts: int, tokens: int) -> None:
    """What waits in memory is never more than one shard may hold."""
    raw = np.array([(n, length) for n, length in enumerate(rows)], "<i8").reshape(-1, 2).tobytes()
    found, given = [], 0
    with tempfile.TemporaryFile() as index:
        index.write(raw)
        index.seek(0)
        for cut in making._cut(index, len(rows), ShardsOf(prompts=prompts, tokens=tokens)):
            assert index.tell() // 16 - given <= prompts
            given += len(cut)
            found.append(cut)
    assert [tuple(row) for cut in found for row in cut.tolist()] == list(enumerate(rows))


MEASURED = """
import json, sys, tracemalloc
from pathlib import Path
from attrib.jobs import make as making
from attrib.jobs.config import job_file
beside, folder, table = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
loaded = making.load(job_file(table), making.torch.device("cpu"), {name: beside / name for name in json.loads(sys.argv[4])})
making.load, making.open_job = lambda *_: loaded, lambda folder: None
for name, count, prompts in (("warm", 50, 4), ("few", 100, 1), ("many", 3_000, 4)):
    (beside / f"{name}.jsonl").write_text("".join(json.dumps([1] * (1 + i % 40)) + "\\n" for i in range(count)))
    tracemalloc.start()
    making.make(folder / name, job_file(table | {"prompts": f"{name}.jsonl", "shards": {"prompts": prompts}}), beside)
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_prompts(tmp_path: Path, beside: Path) -> None:
    """What Python and numpy allocate is counted, from the model on: in the resident set, 5% of torch's half gigabyte would hide a leak.

    It is in a process of its own since checks of shapes and types take most of the time here. The listing of the shards,
    300 bytes for each, is left out: it is read when all is there. The few are a shard each, which fills all buffers of files.
    """
    with tiny_smollm2(tmp_path / "cache") as model:
        command = [sys.executable, "-c", MEASURED, str(beside), str(tmp_path), json.dumps(table(model=model)), json.dumps(SITES)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    _, few, many = map(int, ran.stdout.split())
    assert open_job(tmp_path / "many").fixed.prompts == 3_000
    assert many < 1.05 * few, (few, many)


# ---------------------------------------------------------------------------------------- determinism


def test_the_same_config_gives_the_same_bytes(tmp_path: Path, beside: Path) -> None:
    one, other = (make_job(tmp_path / name, beside) for name in ("one", "other"))
    assert files_of(one.folder) == files_of(other.folder)
    assert (one.folder / JOB).read_bytes() == (other.folder / JOB).read_bytes()
    assert (one.shards, one.fixed) == (other.shards, other.fixed)
    assert one.config == job_file(table() | {"products": one.config.products})


CHANGED: dict[str, Any] = {
    "keep": "mass:0.8", "budget": "2GiB", "policy": "linear", "threads": 2, "dtype": "float64", "positions": [0], "error": False,
    "precision_rows": 1, "method": "torch.func", "compression": "gzip", "attribution": table()["attribution"][:1],
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGED)
def test_every_key_of_the_config_is_in_the_ids(key: str, tmp_path: Path, beside: Path) -> None:
    one, other = make_job(tmp_path / "one", beside), make_job(tmp_path / "other", beside, **{key: CHANGED[key]})
    before = files_of(one.folder)
    assert len(one.shards) == len(other.shards)
    assert not set(ids_of(one)) & set(ids_of(other))
    assert {name for name, data in files_of(other.folder).items() if data != before[name]} == {"shards.jsonl"}


def test_how_shards_are_cut_is_not_in_their_ids(tmp_path: Path, beside: Path) -> None:
    """The same prompts are the same shard, however they came together: here each shard is the end of a longer one."""
    one, other = (
        make_job(tmp_path / "one", beside, shards={"prompts": 1}),
        make_job(tmp_path / "other", beside, shards={"prompts": 1, "tokens": 7}),
    )
    assert ids_of(one) == ids_of(other)
    assert len(set(ids_of(one))) == len(LENGTHS)


@pytest.mark.parametrize("what", ["model", SITES[0]])
def test_weights_are_in_the_ids(what: str, tmp_path: Path, beside: Path) -> None:
    _load.cache_clear()
    one = make_job(tmp_path / "one", beside)
    moved = Path(shutil.copytree(beside, tmp_path / "moved"))
    _load.cache_clear()
    same = make_job(tmp_path / "same", moved)
    assert ids_of(same) == ids_of(one), "where they lie is not"
    if what == "model":
        tiny("llama", seed=1).save_pretrained(moved / what)  # type: ignore[operator]
    else:
        sae("topk", site=what, seed=9).save_model(moved / what)
    _load.cache_clear()
    other = make_job(tmp_path / "other", moved)
    assert not set(ids_of(one)) & set(ids_of(other))
    _load.cache_clear()


def test_numbers_that_json_has_not_come_back(tmp_path: Path, beside: Path) -> None:
    """job.json is what the ids are made of: whatever its floats are, they are read as they were."""
    job = make_job(tmp_path / "job", beside, keep="threshold:inf")
    assert read_back(job).keys() == set(range(len(LENGTHS) + 1)) - {3}
    job = make_job(tmp_path / "other", beside, keep="threshold:1e-310")
    assert len(read_back(job)) == len(LENGTHS)


# --------------------------------------------------------------------------------------- poisoned prompts

POISON = b"""{"tokens": [1, 2]}
{"tokens": []}
"\xff"
{"tokens": [3, 60]}
"text without a tokenizer"
{"tokens": [4]}
%s
"""
LONG = [7] * (N_CTX + 1)


def test_poisoned_prompts_are_left_out_with_the_reason(tmp_path: Path, beside: Path) -> None:
    (beside / "poison.jsonl").write_bytes(POISON % json.dumps(LONG).encode())
    job = make_job(tmp_path / "job", beside, prompts="poison.jsonl")
    assert read_back(job) == {0: [1, 2], 5: [4]}
    found = {one.number: (where.removeprefix(f"{beside}/"), one.reason) for one, where in refused(job)}
    assert {number: where for number, (where, _) in found.items()} == {n: f"poison.jsonl, line {n + 1}" for n in (1, 2, 3, 4, 6)}
    reasons = {number: reason for number, (_, reason) in found.items()}
    assert reasons[1] == "is an empty prompt"
    assert reasons[2].startswith("is not UTF-8")
    assert reasons[3].startswith(f"has ids from 3 to 60; the vocabulary of model is 0 to {D_VOCAB - 1}")
    assert "tokenizer" in reasons[4]
    assert reasons[6] == f"has {N_CTX + 1} tokens, more than {N_CTX}"
    assert (job.fixed.given, job.fixed.refused, job.fixed.prompts) == (7, 5, 2)


def test_long_prompts_may_be_truncated(tmp_path: Path, beside: Path) -> None:
    job = job_of(tmp_path / "job", beside, [LONG, [1, 2, 3]], prompts={"long": "truncate"})
    assert read_back(job) == {0: LONG[:N_CTX], 1: [1, 2, 3]}
    job = job_of(tmp_path / "other", beside, [LONG, [1, 2, 3]], prompts={"long": "truncate", "max_tokens": 2})
    assert read_back(job) == {0: LONG[:2], 1: [1, 2]}


def test_long_documents_may_be_split(tmp_path: Path, beside: Path) -> None:
    document = prompt(2 * N_CTX + 3, seed=1).tolist()
    job = job_of(tmp_path / "job", beside, [[1, 2], document, [99], document[:N_CTX]], prompts={"long": "split", "limit": 4})
    assert read_back(job) == {
        0: [1, 2], 1: document[:N_CTX], 2: document[N_CTX : 2 * N_CTX], 3: document[2 * N_CTX :], 5: document[:N_CTX],
    }  # fmt: skip
    assert [one.number for one, _ in refused(job)] == [4]
    split = [json.loads(line) for line in (job.folder / PROMPTS / "split.jsonl").read_text().splitlines()]
    assert [(line["number"], line["prompts"]) for line in split] == [(1, 3)]
    assert split[0]["where"].endswith(".jsonl, line 2")
    assert (job.fixed.given, job.fixed.refused, job.fixed.prompts) == (6, 1, 5)
    job = job_of(tmp_path / "other", beside, [[1, 2, 3, 4, 5]], prompts={"long": "split", "max_tokens": 2})
    assert read_back(job) == {0: [1, 2], 1: [3, 4], 2: [5]}


def test_a_document_with_one_token_that_is_none_is_left_out_whole(tmp_path: Path, beside: Path) -> None:
    job = job_of(tmp_path / "job", beside, [[1] * N_CTX + [2, 99], [3]], prompts={"long": "split"})
    assert read_back(job) == {1: [3]}
    assert [one.reason for one, _ in refused(job)] == [f"has ids from 2 to 99; the vocabulary of model is 0 to {D_VOCAB - 1}."]


@pytest.mark.parametrize(
    ("ids", "bos", "parts"),
    [
        ([9, 1, 2, 3, 4, 5], 9, [[9, 1, 2], [9, 3, 4], [9, 5]]),
        ([9, 1, 2, 3, 4], 9, [[9, 1, 2], [9, 3, 4]]),
        ([9, 1, 2], 9, [[9, 1, 2]]),
        ([1, 9, 2, 3], 9, [[1, 9, 2], [3]]),
        ([9, 1, 2, 3], None, [[9, 1, 2], [3]]),
    ],
)
def test_each_part_of_a_document_begins_as_it_does(ids: list[int], bos: int | None, parts: list[list[int]]) -> None:
    assert [part.tolist() for part in split(torch.tensor(ids), 3, ([] if bos is None else [bos], []))] == parts


def test_a_split_of_one_token_is_refused() -> None:
    with pytest.raises(InputError, match=r"prompts: max_tokens must be 2 or more where long is 'split'"):
        job_file(table(prompts={"source": "prompts.jsonl", "long": "split", "max_tokens": 1}))


def test_fewer_tokens_and_fewer_prompts(tmp_path: Path, beside: Path) -> None:
    job = job_of(tmp_path / "job", beside, [[1, 2, 3], [1], [2], [3]], prompts={"max_tokens": 2, "limit": 3})
    assert (read_back(job), job.fixed.given) == ({1: [1], 2: [2]}, 3)
    assert [one.reason for one, _ in refused(job)] == ["has 3 tokens, more than 2"]


def test_several_sources_are_one_after_another(tmp_path: Path, beside: Path) -> None:
    for name in "ab":
        (beside / f"{name}.jsonl").write_text(f"[{ord(name) - 90}]\n[1]\n")
    job = make_job(tmp_path / "job", beside, prompts=["a.jsonl", "b.jsonl"])
    assert read_back(job) == {0: [7], 1: [1], 2: [8], 3: [1]}


@pytest.mark.parametrize(
    ("text", "message"), [("", "prompts: there are none"), ("[]\n[99]\n", r"prompts: none of 2 can be one\. The last: .*line 2 has ids")]
)
def test_no_prompt_at_all(text: str, message: str, tmp_path: Path, beside: Path) -> None:
    with pytest.raises(InputError, match=message):
        job_of(tmp_path / "job", beside, text)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ all of it or nothing


@pytest.mark.parametrize(
    "where",
    ["np.lib.format.write_array_header_1_0", "Path.write_text", "os.fsync", "Path.rename", "json.dumps", "Path.unlink", "Path.mkdir"],
)
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stopped"])
def test_an_error_leaves_nothing(
    where: str, at: int, error: BaseException, tmp_path: Path, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = {"np": np.lib.format, "Path": Path, "os": os, "json": json}[where.split(".")[0]]
    name, calls = where.rpartition(".")[2], [0]
    real = getattr(owner, name)

    def fail(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == min(at, {"rename": 1, "write_text": 1}.get(name, 3)):
            raise error
        return real(*arguments, **options)

    (tmp_path / "jobs").mkdir()
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(type(error)):
        make_job(tmp_path / "jobs" / "job", beside)
    monkeypatch.undo()
    assert calls[0]
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_source_that_breaks_leaves_nothing(tmp_path: Path, beside: Path) -> None:
    (beside / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(FormatError, match="is not gzip, or damaged"):
        make_job(tmp_path / "job", beside, prompts="cut.jsonl.gz")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_is_refused(tmp_path: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "job"
    taken.mkdir()
    (taken / "precious").touch()
    (tmp_path / "file").touch()
    for path in (taken, tmp_path / "file"):
        with pytest.raises(InputError, match=rf"job: {path} is there already\. Run it with `attrib job run"):
            make_job(path, beside)
    with pytest.raises(InputError, match=r"job: the folder .*nowhere does not exist; make it first"):
        make_job(tmp_path / "nowhere" / "job", beside)
    assert [path.name for path in taken.iterdir()] == ["precious"]
    (tmp_path / "empty").mkdir()
    assert make_job(tmp_path / "empty", beside).shards
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=r"job: \. is there already"):
        make_job(Path("."), beside)
    assert make_job(Path("../there"), beside).shards
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "here", "job", "there"]


@pytest.mark.parametrize("positions", [[1 << 40], [-(1 << 40)], [N_CTX]])
def test_positions_that_no_prompt_has(positions: list[int], tmp_path: Path, beside: Path) -> None:
    """They say how long a prompt must be, and nothing of that length is made."""
    with pytest.raises(InputError, match=rf"positions: \[{positions[0]}\] for prompt 0, which has {N_CTX} tokens"):
        make_job(tmp_path / "job", beside, positions=positions)


# ------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, beside: Path) -> Path:
    return make_job(tmp_path_factory.mktemp("whole") / "job", beside).folder


def prompts_of(folder: Path) -> dict[Shard, tuple[list[list[int]], list[int]]]:
    job = open_job(folder)
    return {shard: ([ids.tolist() for ids in job.prompts(shard)[0]], job.prompts(shard)[1].tolist()) for shard in job.shards}


as_made = lru_cache(maxsize=1)(prompts_of)


@given(
    name=st.sampled_from(["ids.npy", "ptr.npy", "number.npy", "shards.jsonl", "../job.json"]),
    at=st.integers(0, 1 << 14),
    byte=st.integers(0, 255),
    cut=st.booleans(),
)
@settings(max_examples=examples(120), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_found(name: str, at: int, byte: int, cut: bool, whole: Path) -> None:
    """A job's prompts are those that it was made with, or an error, and nothing large is made of what its files claim."""
    wanted, path = as_made(whole), whole / PROMPTS / name
    before = path.read_bytes()
    at %= len(before)
    path.write_bytes(before[:at] if cut else before[:at] + bytes([byte]) + before[at + 1 :])
    tracemalloc.start()
    try:
        assert prompts_of(whole) == wanted
    except (FormatError, InputError):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        path.write_bytes(before)
    assert peak < 4 << 20


def rewritten(folder: Path, tmp_path: Path, **columns: np.ndarray) -> Job:
    """A job whose columns are others, and whose ids and listing are right for them: what one may write who wants harm."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True))
    job = open_job(copy)
    for name, column in columns.items():
        np.save(copy / PROMPTS / f"{name}.npy", column)
    return job


def test_columns_that_agree_and_make_no_sense(whole: Path, tmp_path: Path) -> None:
    """ptr goes down, and the shard's id says so: no list of prompts is made of it."""
    job = open_job(whole)
    shard = next(one for one in job.shards if one.stop - one.first == 2)
    number, ids, ptr = (np.load(whole / PROMPTS / f"{name}.npy", allow_pickle=False) for name in ("number", "ids", "ptr"))
    at = slice(shard.first, shard.stop)
    end = len(ids)
    for bad in ([0, 5, 3], [0, -1, 2], [-2, 0, 1], [3, 3, 5], [end - 3, end - 1, end + 5]):
        made = ptr.copy()
        made[shard.first : shard.stop + 1] = bad
        taken = ids[bad[0] : bad[2]]
        forged = shard._replace(id=folders.shard_id(job.identity, number[at], np.array(bad), taken), tokens=len(taken))
        with pytest.raises(FormatError, match=rf"prompts: the prompts of shard {forged.name}, or job\.json, are not what they were"):
            rewritten(whole, tmp_path, ptr=made).prompts(forged)


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", b"\x80\x04K\x01.", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<i8',", b"\x93NUMPY\x01\x00v\x00" + b"(" * 118],
    ids=["empty", "zip", "pickle", "cut", "nested"],
)
def test_what_is_no_column(data: bytes, whole: Path, tmp_path: Path) -> None:
    job = rewritten(whole, tmp_path)
    (job.folder / PROMPTS / "ptr.npy").write_bytes(data)
    with pytest.raises(FormatError, match=r"ptr\.npy: missing or damaged: .*Make the job again"):
        job.prompts(job.shards[0])


@pytest.mark.parametrize("shape", [(10**12,), (10**30,), (-1,), (4, 4), ()])
def test_a_header_that_claims_more_than_there_is(shape: tuple[int, ...], whole: Path, tmp_path: Path) -> None:
    job = rewritten(whole, tmp_path)
    with (job.folder / PROMPTS / "ids.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": shape})
        file.write(bytes(128))
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"ids\.npy: (missing or damaged|not one column of integers)"):
        job.prompts(job.shards[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# -------------------------------------------------------------------------------------------- paths


def test_names_in_a_config_stay_beneath_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, outside, folder, cwd = (tmp_path / name for name in ("home", "outside", "config", "cwd"))
    for path in (home, outside / "model", folder / "model", cwd / "only-here"):
        path.mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to(folder / "loop")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(cwd)
    assert confined("model", "model", folder, []) == folder / "model"
    assert confined("model", "./model", folder, []) == folder / "model"
    assert confined("model", "../config/model", folder, []) == folder / "model"
    assert confined("model", "gpt2", folder, []) is None
    assert confined("model", "release/id", folder, []) is None
    for name in (str(outside), "../outside", "~/x", "link/model", "link", "/nowhere", "only-here", "model/../../outside"):
        with pytest.raises(InputError, match=r"^model: .* lies outside .*/config, the folder of the config.*--allow /"):
            confined("model", name, folder, [])
    assert confined("model", "../outside/model", folder, [outside]) == outside / "model"
    assert confined("model", "link", folder, [outside]) == outside
    assert confined("model", "only-here", folder, [cwd]) == cwd / "only-here"
    for name in ("a" * 5000, "./loop", "~nobody-of-this-name/x", "./a\x00b"):
        with pytest.raises(InputError, match=r"^model: .* is no path: \w"):
            confined("model", name, folder, [])


@pytest.fixture
def init(command: Command, tmp_path: Path) -> Command:
    """`attrib job init tmp_path/job ARGUMENTS` in this process."""
    return partial(command, "job", "init", tmp_path / "job")


TOML = """
model = "model"
prompts = "prompts.jsonl"
[[attribution]]
kind = "token_to_latent"
target = "blocks.1.hook_resid_pre"
"""


@pytest.fixture
def config(beside: Path) -> Iterator[Path]:
    path = beside / "job.toml"
    path.write_text(TOML)
    yield path
    path.unlink()


def test_a_job_from_a_config(init: Command, config: Path, tmp_path: Path) -> None:
    ran = init("--config", config)
    assert ran.status == 0, ran.err
    assert (
        ran.out.splitlines()[0]
        == f"{tmp_path / 'job'}: {len(LENGTHS)} prompts, {sum(LENGTHS)} tokens, {len(open_job(tmp_path / 'job').shards)} shards"
    )
    assert f"1 of {len(LENGTHS) + 1} prompts are left out; `attrib job status {tmp_path / 'job'} --refused` says why" in ran.out
    assert ran.err == ""


OUTSIDE = {
    "prompts": ('prompts = "prompts.jsonl"', 'prompts = "{}/p.jsonl"', "prompts.source"),
    "model": ('model = "model"', 'model = "{}/model"', "model"),
    "dictionary": ('target = "blocks', 'target = "{}/blocks', "dictionary"),
}


@pytest.mark.few
@pytest.mark.parametrize("way", ["absolute", "relative", "link"])
@pytest.mark.parametrize("what", OUTSIDE)
def test_a_config_reads_nothing_outside_its_folder(what: str, way: str, init: Command, beside: Path, tmp_path: Path) -> None:
    outside, here = tmp_path / "outside", tmp_path / "config"
    shutil.copytree(beside, outside)
    shutil.copytree(beside, here)
    (outside / "p.jsonl").write_text("[1]\n")
    (here / "link").symlink_to(outside)
    old, new, argument = OUTSIDE[what]
    (here / "job.toml").write_text(TOML.replace(old, new.format({"absolute": outside, "relative": "../outside", "link": "link"}[way])))
    ran = init("--config", here / "job.toml")
    assert ran.status == 1
    assert ran.err.startswith(f"error: {argument}")
    assert f"lies outside {here}" in ran.err
    assert f"--allow {outside}" in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "job").exists()
    ran = init("--config", here / "job.toml", "--allow", outside)
    assert ran.status == 0, ran.err


def test_what_is_given_by_hand_may_lie_anywhere(init: Command, config: Path, beside: Path, tmp_path: Path) -> None:
    shutil.copytree(beside / "model", tmp_path / "model")
    (tmp_path / "p.txt").write_text("[1, 2]\n")
    ran = init("--config", config, "--model", tmp_path / "model", "--prompts", tmp_path / "p.txt", "--form", "jsonl")
    assert ran.status == 0, ran.err
    assert read_back(open_job(tmp_path / "job")) == {0: [1, 2]}


WRONG: dict[str, tuple[Any, list[str]]] = {
    "an unknown key": (TOML.replace("prompts =", "speed = 3\nprompts ="), ["speed", "no such key"]),
    "a misspelt table": (TOML + "[shard]\nprompts = 3\n", ["shard", "no such key"]),
    "no model": (TOML.replace('model = "model"\n', ""), ["model", "required"]),
    "no prompts": (TOML.replace('prompts = "prompts.jsonl"\n', ""), ["prompts.source", "required"]),
    "no attribution": (TOML[: TOML.index("[[")], ["attribution", "required"]),
    "no target": (TOML.replace("target", "source"), ["token_to_latent needs a target dictionary"]),
    "a wrong limit": (TOML + "[shards]\nprompts = 0\n", ["shards.prompts", "0; expected 1 or more"]),
    "a limit that is none": (TOML + "[shards]\nprompts = true\n", ["shards.prompts", "expected a whole number"]),
    "a limit in quotes": (TOML + '[shards]\nprompts = "2"\n', ["shards.prompts", "expected a whole number"]),
    "prompts longer than the model reads": (
        TOML.replace('"prompts.jsonl"', '{source = "prompts.jsonl", max_tokens = 999}'), ["prompts.max_tokens: 999, more than"]
    ),
    "prompts without a name": (TOML.replace("prompts.jsonl", ""), ["prompts.source[0]: ''; expected at least 1 character"]),
    "standard input twice": (TOML.replace('"prompts.jsonl"', '["-", "-"]'), ["prompts.source: '-' is there more than once"]),
    "a huge limit": (TOML + f"[shards]\nprompts = 0x{'f' * 5000}\n", ["shards.prompts", "less than"]),
    "a huge position": (f"positions = [0x{'f' * 5000}]" + TOML, ["positions", "64 bits"]),
    "an endless budget": ("budget = inf" + TOML, ["budget"]),
    "a huge budget": (f"budget = {'9' * 400}" + TOML, ["budget", "less than"]),
    "a budget of too many digits": ('budget = "' + 5000 * "9" + 'GiB"' + TOML, ["budget"]),
    "a keep of too many digits": (f"keep = 0x{'f' * 5000}" + TOML, ["keep"]),
    "prompts that are not there": (TOML.replace("prompts.jsonl", "no.jsonl"), ["prompts.source", "no.jsonl does not exist"]),
    "no TOML": ("model = ", ["is not TOML"]),
    "not UTF-8": (b"model = '\xff'", ["is not TOML"]),
    "deep TOML": ("a = " + "[" * 100_000, ["is not TOML"]),
    "a deep key": ("a." * 200_000 + "a = 1", ["a key of more than 64 parts"]),
    "a deep key in quotes": ('x = {"a b" . ' + '"c\\"d".' * 100 + "e = 1}", ["a key of more than 64 parts"]),
    "a number of too many digits": ("a = " + "9" * 5000, ["is not TOML", "digits"]),
    "a long file": ("#" * (2 << 20), ["more than 1,048,576 bytes"]),
    "a folder": (None, ["cannot be read"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_config_that_is_wrong_is_one_line(name: str, init: Command, config: Path, beside: Path, tmp_path: Path) -> None:
    text, words = WRONG[name]
    if text is None:
        config = beside
    else:
        config.write_bytes(text if isinstance(text, bytes) else text.encode())
    ran = init("--config", config)
    assert ran.status == 1
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1, "one line"
    assert len(ran.err) < 1000
    for word in words:
        assert word in ran.err, ran.err
    assert list(tmp_path.iterdir()) == [], "nothing left behind"


def test_a_config_with_a_byte_order_mark(init: Command, config: Path, tmp_path: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    assert init("--config", config).status == 0


@pytest.mark.parametrize("option", ["prompts", "allow"])
def test_what_is_given_by_hand_must_be_there(option: str, init: Command, config: Path, tmp_path: Path) -> None:
    for name in ("no/where.txt", "x" * 5000):
        ran = init("--config", config, f"--{option}", name)
        assert (ran.status, ran.err) == (1, f"error: {option}: {name} does not exist.\n")
    assert list(tmp_path.iterdir()) == []


def test_standard_input(init: Command, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"[1, 2]\n[3]")))
    ran = init("--config", config, "--prompts", "-", "--form", "jsonl")
    assert ran.status == 0, ran.err
    job = open_job(tmp_path / "job")
    assert read_back(job) == {0: [1, 2], 1: [3]}
    assert job.config.prompts.source == ["-"]
