"""`attrib evaluate`, as a user types it."""

import json
from pathlib import Path

import pytest
import torch

import attrib
from tests.support.builders import sae, tiny
from tests.support.typed import Command

IDS = [[3, 1, 4, 1, 5], [5, 9, 2]]
SITES = ("blocks.1.hook_resid_pre", "blocks.2.mlp.hook_in")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, two dictionaries for it, and prompts of ids."""
    folder = tmp_path_factory.mktemp("files")
    tiny("llama").save_pretrained(folder / "model")
    for kind, site in zip(("topk", "transcoder"), SITES, strict=True):
        sae(kind, site=site).save_model(folder / "both" / site)
    (folder / "ids.jsonl").write_text("".join(json.dumps({"tokens": ids}) + "\n" for ids in IDS))
    (folder / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    (folder / "empty.txt").write_text("\n \n")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\x00a")
    return folder


def test_the_table_and_the_records_are_the_function_s(files: Path, command: Command) -> None:
    saes = [files / "both" / site for site in SITES]
    want = attrib.latents.evaluate(attrib.load_model(files / "model"), saes, [torch.tensor(ids) for ids in IDS]).rows
    typed = ("-m", files / "model", "--prompts", files / "ids.jsonl")
    ran = command("evaluate", *saes, *typed, "--json")
    assert ran.status == 0, ran.err
    found = [json.loads(line) for line in ran.out.splitlines()]
    for row, record in zip(want, found, strict=True):
        assert {name: record[name] for name in row.figures()} == pytest.approx(row.figures())
        assert torch.allclose(torch.tensor(record["pattern_kl"]["zero"], dtype=torch.float64), row.pattern_kl["zero"])
    assert found[1]["writes"] == [["blocks.2.hook_mlp_out"]]
    ran = command("evaluate", files / "both", *typed, "--heads")  # a folder of both
    assert ran.status == 0, ran.err
    lines = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in ran.out.splitlines() if line.startswith("│")}
    assert [float(cell) for cell in lines["CE spliced"]] == pytest.approx([row.cross_entropy.spliced for row in want], abs=1e-3)
    assert [float(cell) for cell in lines["L0"]] == pytest.approx([row.l0 for row in want], abs=0.1)
    assert [float(cell) for cell in lines["3"]] == pytest.approx(want[1].pattern_kl["spliced"][-1].tolist(), abs=1e-3)  # the last table
    ran = command("evaluate", *saes, *typed, "--together", "--no-losses", "--json")
    [record] = map(json.loads, ran.out.splitlines())
    assert record["latents"] == 160
    assert "ce_spliced" not in record


def test_text_is_cut_into_contexts(smollm2_folder: Path, tmp_path: Path, command: Command) -> None:
    text = "One line of text, and then\n\nanother, after an empty one, that goes on and on and on.\n"
    (tmp_path / "text.txt").write_text(text)
    name = "smollm2-135m/blocks.27.hook_resid_pre"
    ran = command("evaluate", name, "-m", "smollm2-135m", "--prompts", tmp_path / "text.txt", "--context", 8, "--no-losses", "--json")
    assert ran.status == 0, ran.err
    model = attrib.load_model("smollm2-135m")
    ids = torch.tensor(model.tokenizer.encode(text + "\n"))
    rows = [row for row in ids.split(8) if len(row) == 8]
    want = attrib.latents.evaluate(model, name, rows, losses=False).rows[0]
    assert json.loads(ran.out)["tokens"] == 8 * len(rows)
    assert json.loads(ran.out)["explained_variance"] == pytest.approx(want.explained_variance)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate",), "DICTIONARY: missing"),
        (("evaluate", "BOTH"), "--model: missing"),
        (("evaluate", "BOTH", "-m", "MODEL"), "--prompts: missing"),
        (("evaluate", "BOTH", "-m", "MODEL", "--prompts", "IDS", "-p", "hi"), "--prompt: no effect beside --prompts"),
        (("evaluate", "BOTH", "-m", "MODEL", "--prompts", "IDS", "--heads", "--no-losses"), "--heads: no effect"),
        (("evaluate", "BOTH", "-m", "MODEL", "-p", "hi", "--context", "4"), "is text, and model has no tokenizer"),
        (("evaluate", "BOTH", "-m", "MODEL", "--prompts", "CHAT", "--context", "4"), "prompt 0 is a chat"),
        (("evaluate", "BOTH", "-m", "MODEL", "--prompts", "EMPTY", "--context", "4"), "is empty; expected text"),
        (("evaluate", "BOTH", "-m", "MODEL", "--prompts", "BYTES", "--context", "4"), "is no text in UTF-8"),
        (("evaluate", "BOTH", "-m", "MODEL", "--prompts", "IDS", "--first-position", "9"), "none counts for dictionaries[0]"),
        (("evaluate", "nothing", "-m", "MODEL", "--prompts", "IDS"), "dictionary: nothing is no folder"),
    ],
)
def test_what_cannot_be_is_one_message(files: Path, command: Command, words: tuple[str, ...], message: str) -> None:
    names = {"BOTH": "both", "MODEL": "model", "IDS": "ids.jsonl", "CHAT": "chat.jsonl", "EMPTY": "empty.txt", "BYTES": "bytes.txt"}
    ran = command(*(files / names[word] if word in names else word for word in words))
    assert (ran.status, ran.out) == (1, "")
    assert message in ran.err
    assert "Traceback" not in ran.err
