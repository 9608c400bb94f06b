"""Prompts that cannot be computed are put down one by one with the reason, and a run says how many they are."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing

from attrib.cli import main as cli
from attrib.core.types import FormatError, InputError, NotFiniteError, UnsupportedError
from attrib.jobs.engines import choose as choosing
from attrib.jobs.records import refused
from attrib.jobs.run import run
from attrib.jobs.status import status
from attrib.runs.spec import Loaded
from tests.support.job_cases import corpus, here, make_job

LENGTHS = (3, 3, 5)
TOO_LONG = "a prompt of more than 4 tokens"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"), LENGTHS)


@pytest.fixture
def folder(tmp_path: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(choosing, "choose", lambda *_: (here, None))
    return make_job(tmp_path / "job", beside).folder


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, longest: int = 4) -> None:
    """Attributions of prompts of more tokens raise that."""
    attribute = Loaded.attribute

    def raising(self: Loaded, prompts: list[torch.Tensor], *rest: Any) -> Any:
        if max(map(len, prompts)) > longest:
            raise error
        return attribute(self, prompts, *rest)

    monkeypatch.setattr(Loaded, "attribute", raising)


@pytest.mark.few
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError(f"tokens: prompt 0 is {TOO_LONG}."), f"tokens: it is {TOO_LONG}."),
        (UnsupportedError(f"prompt 0 is {TOO_LONG}."), f"it is {TOO_LONG}."),
        (NotFiniteError("the stream at blocks.1.hook_resid_pre", 2, float("nan"), 0), r"tokens: it gives nan at the stream .* position 2"),
    ],
)
def test_a_prompt_is_put_down_and_the_run_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str) -> None:
    failing(monkeypatch, error)
    done = typer.testing.CliRunner().invoke(cli.app, ["job", "run", str(folder)])
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{folder}: 2 of 2 shards, 2 of 3 prompts, ")
    assert first.endswith("; 2 prompts left out"), "with the one that is none"
    assert second.startswith("1 prompts could not be computed; prompt 2: ")
    assert second.endswith(f" `attrib job status {folder} --refused` lists them.")
    [down] = run(folder, here).put_down
    assert (down.number, second.count(down.reason)) == (2, 1)
    assert re.match(reason, down.reason)
    listed = typer.testing.CliRunner().invoke(cli.app, ["job", "status", str(folder), "--refused"]).stdout
    assert f"prompt 2 (shard 1): {down.reason}\n" in listed


def test_a_job_of_which_every_prompt_is_put_down_is_no_success(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, InputError("tokens: prompt 0 is wrong."), 0)
    done = typer.testing.CliRunner().invoke(cli.app, ["job", "run", str(folder)])
    assert str(done.exception) == (
        f"{folder} is done, and holds nothing: all of 3 prompts could not be computed; prompt 0: tokens: it is wrong. "
        f"`attrib job status {folder} --refused` lists them."
    )
    assert done.exit_code == 1
    assert status(folder).is_done
    assert len(list(refused(run(folder, here).job))) == 4


@pytest.mark.parametrize("error", [FormatError("weights: written into since they were opened"), RuntimeError("of no prompt")])
def test_what_is_of_no_prompt_fails_the_shard(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failing(monkeypatch, error)
    ran = run(folder, here, attempts=1)
    assert [failure.shard for failure in ran.failed] == [1]
    assert str(error) in ran.failed[0].reason
    assert ran.put_down == []
