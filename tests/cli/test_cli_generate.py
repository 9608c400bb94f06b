"""`attrib generate` and `attrib steer`, as a user types them; and text that flows."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import attrib
from attrib.causal import Add, Latents, generate
from attrib.view.flowing import Flow, ended, flowed
from tests.support.builders import sae, tiny
from tests.support.examples import examples
from tests.support.typed import Command

SITE = "blocks.1.hook_resid_pre"
IDS = [[3, 1, 4, 1], [5, 9, 2]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a dictionary for it, and prompts of ids."""
    folder = tmp_path_factory.mktemp("files")
    tiny("llama").save_pretrained(folder / "model")
    sae("topk", site=SITE).save_model(folder / "sae")
    (folder / "ids.jsonl").write_text("".join(json.dumps({"tokens": ids}) + "\n" for ids in IDS))
    return folder


def test_what_is_printed_is_what_the_function_gives(files: Path, command: Command) -> None:
    model, dictionary = attrib.load_model(files / "model"), attrib.load_dictionary(files / "sae")
    prompts = [torch.tensor(ids) for ids in IDS]
    typed = ("-m", files / "model", "--prompts", files / "ids.jsonl", "-n", 6, "--json")
    ran = command("generate", *typed, "-t", 0.8, "--top-k", 30, "--seed", 7)
    assert ran.status == 0, ran.err
    want = generate(model, prompts, max_tokens=6, temperature=0.8, top_k=30, seed=7)
    found = [json.loads(line) for line in ran.out.splitlines()]
    assert [one["tokens"] for one in found] == [one.tokens.tolist() for one in want]
    assert [one["ended"] for one in found] == ["length", "length"]
    assert found[1]["log_probs"] == pytest.approx(want[1].log_probs.tolist(), abs=1e-5)
    ran = command("steer", *typed, "-d", files / "sae", "-e", f"{SITE}[7]@-1:+9")
    assert ran.status == 0, ran.err
    found = [json.loads(line) for line in ran.out.splitlines()]
    steered = generate(model, prompts, max_tokens=6, dictionaries=dictionary, edits=Add(Latents(dictionary, 7), 9.0, "-1:"))
    plain = generate(model, prompts, max_tokens=6)
    assert [one["tokens"] for one in found] == [one.tokens.tolist() for pair in zip(plain, steered, strict=True) for one in pair]
    assert [one["edits"] for one in found] == [[], [f"{SITE}[7]@-1:+9"]] * 2


@pytest.mark.long
def test_text_is_continued_and_steered(smollm2_folder: Path, command: Command) -> None:
    ran = command("generate", "The opposite of hot is", "-m", "smollm2-135m", "-n", 3)
    assert (ran.status, ran.out) == (0, "The opposite of hot is cold.\n\n"), ran.err
    name = "smollm2-135m/blocks.9.hook_resid_pre"
    typed = ("steer", "The opposite of hot is", "-m", "smollm2-135m", "-n", 2, "-d", name, "-e", "blocks.9.hook_resid_pre[:]*0")
    ran = command(*typed)
    assert ran.out.startswith(
        "-- without edits\nThe opposite of hot is cold.\n-- with blocks.9.hook_resid_pre[:]*0\nThe opposite of hot is"
    )
    assert ran.out.splitlines()[-1].startswith("-- apart from new token ")
    ran = command(*typed, "--beside")
    assert "without edits" in ran.out
    assert "with blocks.9.hook_resid_pre[:]*0" in ran.out
    ran = command("steer", "The opposite of hot is", "-m", "smollm2-135m", "-n", 2, "-e", "blocks.9.hook_resid_pre+0")
    assert ran.out.splitlines()[-1] == "-- the same tokens"


@pytest.mark.few
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("generate", "hi"), "--model: missing"),
        (("generate", "-m", "MODEL"), "PROMPT: missing"),
        (("generate", "hi", "-m", "MODEL", "--prompts", "IDS"), "PROMPT: beside --prompts"),
        (("generate", " ", "-m", "MODEL"), "PROMPT: number 0 is empty"),
        (("generate", "hi", "-m", "MODEL"), "has no tokenizer"),
        (("generate", "-m", "MODEL", "--prompts", "IDS", "--seed", "3"), "--seed: no effect at temperature 0"),
        (("generate", "-m", "MODEL", "--prompts", "IDS", "--chat"), "--chat: prompt 0 is no text"),
        (("generate", "-m", "MODEL", "--prompts", "IDS", "--no-error"), "--no-error: no effect without --dictionary"),
        (("generate", "-m", "MODEL", "--prompts", "IDS", "--of", "IDS"), "--of: no effect without an edit"),
        (("generate", "-m", "MODEL", "--prompts", "IDS", "-e", "blocks.1.hook_mlp_out=mean"), "--of: missing beside --edit"),
        (("generate", "-m", "MODEL", "--prompts", "IDS", "-n", "100"), "expected 60 at most, or a shorter prompt"),
        (("steer", "-m", "MODEL", "--prompts", "IDS"), "--edit: missing"),
        (("steer", "-m", "MODEL", "--prompts", "IDS", "-e", "L9H0=0"), "expected whole numbers from 0 to 3"),
        (("steer", "-m", "MODEL", "--prompts", "IDS", "-e", "L1H0=0", "--beside", "--json"), "--beside: no effect with --json"),
    ],
)
def test_what_cannot_be_is_one_message(files: Path, command: Command, words: tuple[str, ...], message: str) -> None:
    places = {"MODEL": files / "model", "IDS": files / "ids.jsonl"}
    ran = command(*(places.get(word, word) for word in words))
    assert (ran.status, ran.out) == (1, "")
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_a_terminal_has_lines_of_its_width(smollm2_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attrib.cli.generating.console", lambda: Console(force_terminal=True, width=40))
    ran = command("generate", "Once upon a time, there was a", "-m", "smollm2-135m", "-n", 10)
    assert ran.out == "Once upon a time, there was a small town\nnestled in the heart of a bustling city\n"


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.text(alphabet="ab日 \n\x1b\t", max_size=9), max_size=9), st.sampled_from([None, 5, 9, 20]))
def test_flowing_changes_nothing_but_where_lines_break(pieces: list[str], width: int | None) -> None:
    flow, printed = Flow(width), ""
    for piece in pieces:
        flow, now = flowed(flow, piece)
        printed += now
    printed += ended(flow)
    whole = "".join(pieces).replace("\x1b", "\\x1b").replace("\t", "    ")
    assert printed.split() == whole.split()
    if width is None:
        assert printed == whole
    assert "\x1b" not in printed
    for line in printed.split("\n") if width else []:
        assert len(line) <= width or " " not in line.strip()
