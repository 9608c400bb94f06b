"""Surveys as jobs: what comes out is the survey of the whole, byte for byte, whatever happened; and in one process, of parts in memory."""

import json
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attrib import latents, load_dictionary, load_model
from attrib.core.types import FormatError, InputError
from attrib.jobs import surveys
from attrib.jobs.config import job_file
from attrib.jobs.folder import Job, open_job
from attrib.jobs.make import make
from attrib.jobs.run import digest, run
from attrib.jobs.status import status
from attrib.jobs.surveys import survey_blocks
from attrib.jobs.verify import verify
from attrib.latents.surveyed import Survey
from tests.latents.test_survey import CORPUS, model, of_kind, same
from tests.support.attribution_cases import characters
from tests.support.job_cases import SITES, bytes_of, corpus, forked, here, killed, tiny_smollm2
from tests.support.typed import Command

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LIMITS: dict[str, Any] = {"top": 3, "per_band": 1, "context": [2, 1]}


# ------------------------------------------------------------------------------------------- as a job


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_smollm2(tmp_path_factory.mktemp("cache")):
        yield corpus(tmp_path_factory.mktemp("corpus"), has_model=False)


def table(**changed: Any) -> dict[str, Any]:
    usual = {"kind": "latents", "model": "smollm2-135m", "dictionaries": list(SITES), "prompts": "prompts.jsonl", "shards": {"prompts": 2}}
    return usual | LIMITS | changed


def job_of(folder: Path, beside: Path, **changed: Any) -> Job:
    return make(folder, job_file(table(**changed)), beside)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, beside: Path) -> Path:
    """A job that nothing disturbed. Nothing is changed in it."""
    job = job_of(tmp_path_factory.mktemp("finished") / "job", beside)
    run(job.folder, here)
    return job.folder


def test_a_job_is_the_survey_of_its_corpus(finished: Path, beside: Path, tmp_path: Path, command: Command) -> None:
    options = ["--model", "smollm2-135m", "--top", 3, "--per-band", 1, "--before", 2, "--after", 1, "--block", 3]
    named = [word for site in SITES for word in ("--dictionary", beside / site)]
    asked = command("latents", "survey", tmp_path / "s.h5", "--prompts", beside / "prompts.jsonl", *options, *named)
    assert asked.status == 0, asked.err
    merged = command("job", "merge", finished, "--out", tmp_path / "merged.h5")
    assert merged.status == 0, merged.err
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "s.h5").read_bytes()
    by_hand = [json.loads(line) for line in (beside / "prompts.jsonl").read_text().splitlines() if line[1] != "n"]
    d = [load_dictionary(beside / site) for site in SITES]
    ids = [torch.tensor(one["tokens"]) for one in by_hand]
    plain = latents.survey(load_model("smollm2-135m"), d, ids, numbers=[0, 1, 2, 4, 5, 6, 7, 8], **LIMITS | {"context": (2, 1)})
    assert same(latents.open(finished), plain)
    assert latents.save(tmp_path / "plain.h5", plain).read_bytes() == (tmp_path / "merged.h5").read_bytes()


def test_the_commands_take_it_as_any_job(finished: Path, command: Command) -> None:
    scores = sum(int(part.count.sum()) for part in latents.open(finished))
    now = status(finished)
    assert (now.prompts_done, now.refused, now.edges, now.makes, now.shards) == (8, 1, scores, "scores", 4)
    assert f"{scores:,}" in command("job", "status", finished).out
    assert command("job", "verify", finished, "--recompute", 2).status == 0
    assert "8 prompts" in command("latents", "show", finished).out.replace("│", " ").replace("prompts  ", "8 prompts")
    assert command("verify-file", finished).out == f"{finished}: no fault in it\n"
    assert "surveys of latents" in command("show", finished).err or "a survey of latents" in command("show", finished).err


def test_it_is_killed_at_random_moments_and_comes_to_the_same_bytes(tmp_path: Path, beside: Path, finished: Path) -> None:
    folder, chance = job_of(tmp_path / "job", beside).folder, random.Random(5)
    for wanted in (1, 2):
        killed(folder, wanted, chance.random() * 0.02)
    run(folder, here)
    assert bytes_of(folder) == bytes_of(finished)


def test_two_workers_come_to_the_same_bytes(
    tmp_path: Path, beside: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    folder = job_of(tmp_path / "job", beside).folder
    with forked(monkeypatch):
        ran = command("job", "run", folder, "--workers", 2)
    assert ran.status == 0, ran.err
    assert bytes_of(folder) == bytes_of(finished)


def test_a_text_that_changes_between_runs_changes_nothing(tmp_path: Path, beside: Path, finished: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for each in beside.iterdir():
        (own / each.name).symlink_to(each)
    (own / "prompts.jsonl").unlink()
    (own / "prompts.jsonl").write_bytes((beside / "prompts.jsonl").read_bytes())
    job = make(tmp_path / "job", job_file(table()), own, allowed=[beside])
    (own / "prompts.jsonl").write_text('{"tokens": [1]}\n')
    run(job.folder, here)
    assert bytes_of(job.folder) == bytes_of(finished)


def rewritten(job: Job, change: Any) -> None:
    """The first shard with something else in it, and its checksum on record, as a broken machine would write it."""
    shard = job.shards[0]
    path, entry = job.file(shard), job.record(shard)
    latents.save(path, Survey(tuple(map(change, latents.open(path)))), overwrite=True)
    now = {"sha256": digest(job.folder, path), "bytes": path.stat().st_size}
    entry.write_text(json.dumps(json.loads(entry.read_text()) | now))


@pytest.mark.few
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda part: replace(part, asked=replace(part.asked, model_sha256="0" * 64)), "is of another model than the job's"),
        (lambda part: replace(part, asked=replace(part.asked, dictionary_sha256="0" * 64)), "of other dictionaries than the job's"),
        (lambda part: replace(part, tokens=part.tokens + 1), "tokens, and the job's prompts have"),
        (lambda part: replace(part, prompts=((0, 3),)), "is of prompts of other numbers than the job's"),
    ],
)
def test_verify_sees_what_a_right_checksum_hides(tmp_path: Path, beside: Path, change: Any, words: str) -> None:
    job = job_of(tmp_path / "job", beside, prompts={"source": "prompts.jsonl", "limit": 2})
    run(job.folder, here)
    assert verify(job.folder) == []
    rewritten(job, change)
    [fault, *_] = verify(job.folder, recompute=0)
    assert words in fault.what


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"topp": 3}, "topp: there is no such key"),
        ({"kind": "latent"}, r"kind: 'latent'; expected 'latents' or 'task'"),
        ({"top": -1}, "top: -1; expected 0 or more"),
        ({"latents": "a:b"}, "latents: 'a:b'; expected numbers, or a slice"),
        ({"context": [1]}, "context"),
        ({"score": "loud"}, "score: 'loud'; expected"),
        ({"dictionaries": []}, "dictionaries"),
        ({"latents": [80]}, "latents: "),
        ({"budget": 10}, "budget: 10 bytes"),
        ({"dictionaries": [SITES[0], SITES[0]]}, "is there twice"),
        ({"dictionaries": ["../x"]}, "lies outside"),
        ({"attribution": []}, "attribution: there is no such key"),
    ],
)
def test_what_makes_no_sense_is_refused_when_a_job_is_made(tmp_path: Path, beside: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        job_of(tmp_path / "job", beside, **changed)
    assert not (tmp_path / "job").exists()


# ----------------------------------------------------------------------------- in one process, by parts


OPTIONS: dict[str, Any] = {"top": 2, "per_band": 1, "context": (2, 1), "block": 2}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The corpus as JSON lines, the fourth of which is none, and the last longer than the context."""
    lines = [json.dumps({"tokens": ids.tolist()}) for ids in CORPUS]
    lines.insert(3, "{not json")
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"tokens": [1] * 100})]) + "\n")
    return path


def whole() -> latents.Survey:
    numbers = [0, 1, 2, 4, 5, 6, 7, 8]
    return latents.survey(model(), of_kind("topk"), CORPUS, numbers=numbers, **{k: v for k, v in OPTIONS.items() if k != "block"})


def test_blocks_are_a_survey_of_the_whole(tmp_path: Path, source: Path) -> None:
    seen = []
    found = survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, progress=lambda *told: seen.append(told), **OPTIONS)
    assert (found.blocks, found.done, found.refused) == (4, 4, 2)
    assert seen == [(n, -1) for n in range(1, 11)] + [(n, 8) for n in (2, 4, 6, 8)]
    assert "prompts.jsonl, line 4" in found.reason
    assert found.survey is not None
    assert same(found.survey, whole())
    again = survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, **OPTIONS)
    assert again.survey is not None
    assert same(again.survey, whole())
    assert verify(tmp_path / "b", recompute=0) == []


def test_what_was_ended_goes_on_and_what_was_damaged_is_made_again(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def ended(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*given)

    from attrib.jobs import worker

    plain = worker.compute
    monkeypatch.setattr(worker, "compute", ended)
    with pytest.raises(KeyboardInterrupt):
        survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, **OPTIONS)
    job = open_job(tmp_path / "b")
    assert len(bytes_of(job.folder)) == 2
    block = job.file(job.shards[1])
    block.write_bytes(block.read_bytes()[:3000])
    found = survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, **OPTIONS)
    assert len(calls) == 6, "the one that is there is not made again"
    assert found.survey is not None
    one = latents.save(tmp_path / "one.h5", found.survey)
    assert one.read_bytes() == latents.save(tmp_path / "two.h5", whole()).read_bytes()


def test_shares_make_a_whole(tmp_path: Path, source: Path) -> None:
    done = []
    for mine in (1, 0, 2):
        found = survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, share=(mine, 3), **OPTIONS)
        done.append((found.done, found.survey is None))
    assert done == [(1, True), (3, True), (4, False)]
    assert found.survey is not None
    assert same(found.survey, whole())


def test_a_share_goes_on_with_what_another_made_meanwhile(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = surveys.make_of

    def late(folder: Path, *rest: Any, **options: Any) -> Any:
        made(folder, *rest, **options)
        return made(folder, *rest, **options)  # whose folder is there by now

    monkeypatch.setattr(surveys, "make_of", late)
    found = survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, share=(0, 2), **OPTIONS)
    assert found.done == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "prompts.jsonl"]


def test_prompts_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("abcdefgh\n\n\nabc\n")
    spelled = characters(model())
    found = survey_blocks(tmp_path / "b", spelled, of_kind("topk"), path, length=2, **OPTIONS | {"block": 1})
    assert found.survey is not None
    part = found.survey.of()
    assert (part.tokens, part.prompts, found.refused) == (4, ((0, 1), (3, 4)), 2)


def test_a_folder_is_of_one_survey(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "b"
    survey_blocks(folder, model(), of_kind("topk"), source, **OPTIONS)
    for changed, name in (
        ({"top": 3}, "top"), ({"block": 3}, "block"), ({"skip": 1}, "skip"), ({"latents": [1, 2]}, "latents"), ({"length": 4}, "length"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"is of a survey with another {name}; expected the same"):
            survey_blocks(folder, model(), of_kind("topk"), source, **OPTIONS | changed)
    with pytest.raises(InputError, match="another dictionaries"):
        survey_blocks(folder, model(), of_kind("standard"), source, **OPTIONS)
    survey_blocks(folder, model(), of_kind("topk"), source, budget=1 << 40, **OPTIONS)
    with source.open("a") as file:
        file.write('{"tokens": [1]}\n')
    with pytest.raises(InputError, match="another text in its prompts"):
        survey_blocks(folder, model(), of_kind("topk"), source, **OPTIONS)


def test_latents_are_chosen_in_every_form(tmp_path: Path, source: Path) -> None:
    mask = torch.zeros(80, dtype=torch.bool)
    mask[[3, 4]] = True
    for number, chosen in enumerate((mask, slice(3, 5))):
        found = survey_blocks(tmp_path / f"{number}", model(), of_kind("topk"), source, latents=chosen, **OPTIONS)
        assert found.survey is not None
        assert found.survey.of().latents.tolist() == [3, 4]


def test_what_makes_no_sense_is_refused(tmp_path: Path, source: Path) -> None:
    def call(folder: Path = tmp_path / "b", source: Path = source, **options: Any) -> Any:
        return survey_blocks(folder, model(), of_kind("topk"), source, **OPTIONS | options)

    for options, message in (
        ({"share": (3, 3)}, "share: 3/3"),
        ({"block": 0}, "block: 0"),
        ({"length": 0}, "length: 0"),
        ({"length": 1000}, "length: 1000; expected a whole number from 1 on, up to the context"),
        ({"tops": 1}, "tops: no option of a survey"),
        ({"source": tmp_path / "none.txt"}, "there is no file"),
        ({"source": tmp_path}, "is a folder"),
        ({"top": -1}, "top: -1"),
        ({"latents": [80]}, "latents: "),
        ({"budget": 10}, "budget: 10 bytes"),
    ):
        with pytest.raises(InputError, match=message):
            call(**options)
        assert not (tmp_path / "b").exists(), "nothing is written before all is checked"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="holds other things"):
        call(tmp_path / "other")


@pytest.mark.parametrize("damage", ["{", '{"version": 2}'])
def test_a_folder_that_is_damaged_is_refused(tmp_path: Path, source: Path, damage: str) -> None:
    survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, **OPTIONS)
    (tmp_path / "b" / "job.json").write_text(damage)
    with warnings.catch_warnings(), pytest.raises(FormatError, match="not a job of this version, or damaged"):
        survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, **OPTIONS)
