"""Making a job of hostile prompts: what is refused is bounded, what is tokenised is bounded, and what a killed one left is found."""

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from attrib.adapters import from_hugging_face
from attrib.core.types import AttribWarning, InputError
from attrib.jobs import building, refusals
from attrib.jobs import ids as of_ids
from attrib.jobs import make as making
from attrib.jobs.building import MAKING, built, left_behind
from attrib.jobs.config import PromptsOf
from attrib.jobs.folder import PROMPTS, open_job
from attrib.jobs.ids import parts_of
from attrib.jobs.records import refused
from attrib.jobs.tidy import tidy
from attrib.models.transformer import Model, Tokenizer
from attrib.runs.prompts import Given
from tests.support.builders import D_VOCAB, tiny
from tests.support.job_cases import corpus, make_job
from tests.support.typed import Command

PLAIN = 'model = "model"\nprompts = "prompts.jsonl"\n[[attribution]]\nkind = "token_to_latent"\ntarget = "blocks.1.hook_resid_pre"\n'
"""A job file beside the corpus."""


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"))


# ----------------------------------------------------------------------------------------------- refused


def test_refusals_beyond_some_are_summed_up(tmp_path: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "EACH", 3)
    lines = ["[1]", *[""] * 5000, "[1, -1]", "{", '{"tokens": "a"}', *["[2, -2]"] * 4]
    (beside / "many.jsonl").write_text("\n".join(lines))
    job = make_job(tmp_path / "job", beside, prompts="many.jsonl")
    assert (job.fixed.given, job.fixed.refused, job.fixed.prompts) == (5008, 5007, 1)
    listed = [(one.number, one.reason) for one, _ in refused(job)]
    assert [number for number, reason in listed if reason == "is an empty prompt"] == [1, 2, 3]
    assert (4, f"is an empty prompt; so are 4,996 more left out for reasons like this, up to {beside}/many.jsonl, line 5001") in listed
    assert len([reason for _, reason in listed if "token ids from" in reason]) == 4, "three, and the two others as one"
    assert len(listed) == 10
    assert (job.folder / PROMPTS / "refused.jsonl").stat().st_size < 3000


def test_a_long_reason_is_cut_and_kinds_are_few(tmp_path: Path) -> None:
    with (tmp_path / "refused.jsonl").open("w") as file:
        listing = refusals.Refusals(file)
        for number in range(20_000):
            listing.add(number, "here", f"{'abcdefghij'[number % 10] * (number % 200 + 1)} {'x' * 1000}")
        listing.close()
    lines = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert max(len(line["reason"]) for line in lines) < refusals.LONGEST_REASON + 100
    assert len(lines) <= (refusals.KINDS + 1) * (refusals.EACH + 1)
    assert listing.count == 20_000


# ------------------------------------------------------------------------------------------------ text


def tokenised(encode: Any) -> Model:
    return replace(from_hugging_face(tiny("llama"), name="m"), tokenizer=Tokenizer(encode=encode, decode=str))


def words(seen: list[int]) -> Any:
    """A word a token, which notes how much text it was given at once."""

    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return [int(word) % D_VOCAB for word in re.findall(r"\d+", text)]

    return encode


TEXT = " ".join(map(str, range(100_000)))


def test_no_more_of_a_text_is_tokenised_than_is_asked_for() -> None:
    seen: list[int] = []
    model = tokenised(words(seen))
    parts, fault = parts_of(model, 0, Given("", TEXT), PromptsOf(source=["-"], max_tokens=6, long="truncate"))
    assert ([part.tolist() for part in parts], fault) == ([[0, 1, 2, 3, 4, 5]], "")
    assert max(seen) < 2000
    assert parts_of(model, 0, Given("", TEXT), PromptsOf(source=["-"], max_tokens=6)) == ([], "has more than 6 tokens")
    assert max(seen) < 2000
    assert parts_of(model, 0, Given("", TEXT[:30]), PromptsOf(source=["-"], max_tokens=6)) == ([], "has 14 tokens, more than 6")


def test_a_text_whose_first_tokens_stand_far_behind() -> None:
    """Fewer tokens than characters: more is taken, until there are enough or all of it is read."""
    seen: list[int] = []
    model, far = tokenised(words(seen)), "x" * 100_000 + " 1 2 3"
    parts, _ = parts_of(model, 0, Given("", far), PromptsOf(source=["-"], max_tokens=6, long="truncate"))
    assert [part.tolist() for part in parts] == [[1, 2, 3]]
    assert max(seen) == len(far)


def test_a_tokenizer_whose_first_token_hangs_on_the_end() -> None:
    """What is taken of a beginning must be what all of it gives."""
    model = tokenised(lambda text: [len(text) % D_VOCAB] * (len(text) // 4))
    parts, _ = parts_of(model, 0, Given("", "y" * 9999), PromptsOf(source=["-"], max_tokens=2, long="truncate"))
    assert parts[0].tolist() == [9999 % D_VOCAB] * 2


@pytest.mark.parametrize("long", ["split", "truncate", "refuse"])
def test_a_text_that_is_too_long_to_tokenise(long: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_ids, "LONGEST_TEXT", 10_000)
    seen: list[int] = []
    found = parts_of(tokenised(words(seen)), 0, Given("", "x" * 50_000), PromptsOf(source=["-"], max_tokens=6, long=long))
    assert found[0] == []
    assert "characters" in found[1]
    assert "at most 10,000 are tokenised at once. Cut it up" in found[1]
    assert max(seen, default=0) <= 10_000


def test_what_a_tokenizer_cannot_do_is_one_prompts_fault(tmp_path: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(text: str) -> list[int]:
        if "bad" in text:
            raise InputError("tokens: the tokenizer of m failed: index out of range")
        return [1, 2]

    really_load = making.load

    def load(*arguments: Any) -> Any:
        loaded = really_load(*arguments)
        return replace(loaded, model=replace(loaded.model, tokenizer=Tokenizer(encode=encode, decode=str)))

    monkeypatch.setattr(making, "load", load)
    (beside / "texts.jsonl").write_text('"good"\n"bad"\n"good too"\n')
    job = make_job(tmp_path / "job", beside, prompts="texts.jsonl")
    assert [(one.number, one.reason) for one, _ in refused(job)] == [(1, "tokens: the tokenizer of m failed: index out of range")]
    assert job.fixed.prompts == 2


# ------------------------------------------------------------------------------------------------ pipes


def test_a_config_names_no_pipe(tmp_path: Path, beside: Path) -> None:
    here = Path(shutil.copytree(beside, tmp_path / "config"))
    os.mkfifo(here / "pipe.jsonl")
    with pytest.raises(
        InputError, match=r"prompts\.source: pipe\.jsonl is a pipe or a device; expected a file or a folder\. Give it as --prompts"
    ):
        make_job(tmp_path / "job", here, prompts="pipe.jsonl")


# ----------------------------------------------------------------------------------------------- killed


def killed(target: Path) -> Path:
    """What a maker leaves that is killed: its folder, with a lock that nobody holds."""
    left = target.with_name(f".{target.name}.0123abcd.partial")
    (left / PROMPTS).mkdir(parents=True)
    (left / MAKING).touch()
    return left


def test_what_a_killed_one_left_is_removed(tmp_path: Path, beside: Path) -> None:
    left, other = killed(tmp_path / "job"), killed(tmp_path / "other")
    with pytest.warns(AttribWarning, match=r"\.job\.0123abcd\.partial, which a killed `attrib job init` left, was removed"):
        make_job(tmp_path / "job", beside)
    assert not left.exists()
    assert other.exists(), "of a job of another name"
    assert not (open_job(tmp_path / "job").folder / MAKING).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.0123abcd.partial", "job"]


def test_what_is_being_made_is_left_alone(tmp_path: Path) -> None:
    with built(tmp_path / "job") as building:
        assert left_behind(tmp_path / "job") == []
        (building / MAKING).rename(tmp_path / "held")  # its lock is still held, under whatever name
        assert left_behind(tmp_path / "job") == [], "without a lock, it may have been made this moment"
        os.utime(building, (1, 1))
        assert left_behind(tmp_path / "job") == [building]
        (tmp_path / "held").rename(building / MAKING)
    assert [path.name for path in tmp_path.iterdir()] == ["job"]


@pytest.mark.parametrize("what", ["link", "file", "name", "link to a lock", "pipe"])
def test_what_only_looks_like_it_is_left_alone(what: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / MAKING).touch()
    left = tmp_path / (".job.0123abcd.partial" if what != "name" else ".job.of-mine.partial")
    if what == "link":
        left.symlink_to(victim)
    elif what == "file":
        left.touch()
    else:
        left.mkdir()
        if what == "link to a lock":
            (left / MAKING).symlink_to(victim / MAKING)
        if what == "pipe":
            os.mkfifo(left / MAKING)
    assert left_behind(tmp_path / "job") == []


@pytest.mark.parametrize("name", ["pipe.jsonl", "descriptor"])
def test_a_pipe_that_the_user_names_is_read(name: str, tmp_path: Path, beside: Path, command: Command) -> None:
    (beside / "pipes.toml").write_text(PLAIN)
    if name == "descriptor":  # as a shell gives it for <(...)
        reader, writer = os.pipe()
        source = Path(f"/dev/fd/{reader}")
        os.write(writer, b"[1, 2]\n[3]\n")
        os.close(writer)
        thread = None
    else:
        source = tmp_path / name
        os.mkfifo(source)
        thread = threading.Thread(target=source.write_text, args=("[1, 2]\n[3]\n",))
        thread.start()
    ran = command("job", "init", tmp_path / "job", "--config", beside / "pipes.toml", "--prompts", source, "--form", "jsonl")
    assert ran.status == 0, ran.err
    if thread is not None:
        thread.join()
    else:
        os.close(reader)
    assert open_job(tmp_path / "job").fixed.prompts == 2


def test_a_full_disk_names_the_job(tmp_path: Path, beside: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (config := beside / "full.toml").write_text(PLAIN)
    monkeypatch.setattr(building, "sync", full)
    ran = command("job", "init", tmp_path / "job", "--config", config)
    assert (ran.status, ran.out, ran.err) == (1, "", f"error: {tmp_path / 'job'}: No space left on device\n")
    assert not [*tmp_path.glob(".job*")]


@pytest.mark.parametrize("is_made", [True, False])
def test_gc_finds_what_a_killed_one_left(is_made: bool, tmp_path: Path, beside: Path) -> None:
    if is_made:
        make_job(tmp_path / "job", beside)
    others = [tmp_path / ".other.01234567.partial", tmp_path / ".job.x.89abcdef.partial"]
    left = tmp_path / ".job.01234567.partial"
    for folder in (left, *others):
        (folder / "prompts").mkdir(parents=True)
        (folder / MAKING).touch()
    (tmp_path / "precious").write_text("precious")
    (left / "prompts" / "link").symlink_to(tmp_path)
    assert tidy(tmp_path / "job", dry_run=True) == [left]
    assert left.is_dir()
    assert tidy(tmp_path / "job") == [left]
    assert not left.exists()
    assert all(folder.is_dir() for folder in others)
    assert (tmp_path / "precious").read_text() == "precious"
    if not is_made:
        with pytest.raises(InputError, match=r"holds no job\.json"):
            tidy(tmp_path / "job")


def test_gc_leaves_what_is_being_made_alone(tmp_path: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first moment on: before the lock is held it has another name."""
    seen = list[Path]()

    def looking(held: Callable[[int], bool], descriptor: int) -> bool:
        seen.extend(left_behind(tmp_path / "job"))
        (folder,) = tmp_path.glob(".job.*.partial")
        assert not (folder / MAKING).exists()
        return held(descriptor)

    held_before = building._held
    monkeypatch.setattr(building, "_held", partial(looking, held_before))
    with built(tmp_path / "job") as folder:
        monkeypatch.setattr(building, "_held", held_before)
        assert (folder / MAKING).exists()
        assert not left_behind(tmp_path / "job")
        with pytest.raises(InputError, match=r"holds no job\.json"):
            tidy(tmp_path / "job")
    assert not seen
