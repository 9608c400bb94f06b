"""`attrib heads`: what it prints is what the function gives, and what it refuses."""

import json
from pathlib import Path

import pytest

import attrib
from attrib.runs.run import read_prompts
from tests.support.builders import prompt, sae, tiny
from tests.support.typed import Command

SOURCE, TARGET = "blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny("llama").save_pretrained(folder / "model")
    for site in (SOURCE, TARGET):
        sae("topk", site=site).save_model(folder / site)
    lines = [json.dumps({"tokens": prompt(length, seed=length).tolist()}) for length in (5, 1)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_what_it_prints(files: Path, command: Command) -> None:
    ends = ["--model", files / "model", "--target", files / TARGET, "--prompts", files / "prompts.jsonl"]
    model, target = attrib.load_model(files / "model"), attrib.load_dictionary(files / TARGET)
    want = attrib.head_attribution(model, target, read_prompts(files / "prompts.jsonl"), layers=[2])
    records = [json.loads(line) for line in command("heads", *ends, "--layer", 2, "--json").out.splitlines()]
    assert len(records) == len(want.share)
    assert [record["share"] for record in records] == pytest.approx(want.share.tolist(), rel=1e-5)
    shown = command("heads", *ends, "--source", files / SOURCE, "--latent", want.latent[0].item(), "--top", 3)
    assert shown.status == 0, shown.err
    assert "the strongest shares" in shown.out
    assert f"{want.latent[0].item()} at " in shown.out


@pytest.mark.few
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([], "--prompts, --prompt: expected one of them"),
        (["--prompt", " "], "--prompt: number 0 is empty"),
        (["--prompts", "nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
def test_what_it_refuses(files: Path, command: Command, changed: list[str], message: str) -> None:
    ran = command("heads", "--model", files / "model", "--target", files / TARGET, *changed)
    assert ran.status == 1
    assert message in ran.err
    late = command("heads", "--model", files / "model", "--target", files / TARGET, "--prompts", files / "prompts.jsonl", "--layer", 3)
    assert late.status == 1
    assert "layers: 3 has no heads that write to" in late.err
