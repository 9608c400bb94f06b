"""`attrib intervene` and `attrib ablate`, as a user types them."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import attrib
from attrib.causal import Ablate, Head, Latents, ablate_each, intervene
from tests.support.builders import sae, tiny
from tests.support.typed import Command

MODEL, SAE = "smollm2-135m", "smollm2-135m/blocks.27.hook_resid_pre"
TEXT = "The Eiffel tower is in the city of"
SITES = ("blocks.1.hook_resid_pre", "blocks.2.mlp.hook_in")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, an SAE and a transcoder, and two prompts of ids."""
    folder = tmp_path_factory.mktemp("files")
    tiny("llama").save_pretrained(folder / "model")
    for kind, site in zip(("topk", "transcoder"), SITES, strict=True):
        sae(kind, site=site).save_model(folder / site)
    (folder / "prompts.jsonl").write_text('{"tokens": [3, 1, 4, 1]}\n{"tokens": [5, 9]}\n')
    (folder / "others.jsonl").write_text('{"tokens": [2, 7, 1]}\n')
    return folder


@pytest.mark.long
def test_edits_move_the_next_token(smollm2_folder: Path, tmp_path: Path, command: Command):
    out = tmp_path / "after.csv"
    edits = ["-e", "blocks.27.hook_resid_pre[592]@-1=zero", "-e", "L5H1=zero"]
    ran = command("intervene", TEXT, "-m", MODEL, "-d", SAE, *edits, "--top", 3, "--out", out)
    assert ran.status == 0, ran.err
    frame = pd.read_csv(out)
    dictionary = attrib.load_dictionary(SAE)
    want = intervene(MODEL, dictionary, TEXT, [Ablate(Latents(0, 592), positions=-1), Ablate(Head(5, 1))])[-1]
    assert frame["token"][0] == " Paris"
    assert frame["after"].tolist() == pytest.approx(want[frame["id"].tolist()].tolist(), rel=1e-5)
    assert frame["change"].tolist() == pytest.approx((frame["after"] - frame["before"]).tolist(), abs=1e-4)
    assert "' Paris'" in ran.out
    assert f"{frame['after'][0]:.2f}" in ran.out


def test_every_option_reaches_the_function(files: Path, tmp_path: Path, command: Command):
    model, dictionaries = attrib.load_model(files / "model"), [attrib.load_dictionary(files / site) for site in SITES]
    prompts, others = [torch.tensor([3, 1, 4, 1]), torch.tensor([5, 9])], [torch.tensor([2, 7, 1])]
    options = ["--prompts", files / "prompts.jsonl", "-m", files / "model", "-d", files / SITES[0], "-d", files / SITES[1]]
    edits = ["-e", f"{SITES[0]}[:]=mean", "-e", "L2H1@-1=resample", "--of", files / "others.jsonl", "--seed", 3]
    out = tmp_path / "all.json"
    ran = command("intervene", *options, *edits, "--effect", "direct", "--errors", "live", "--freeze", "linear", "--top", 60, "--out", out)
    assert ran.status == 0, ran.err
    rows = json.loads(out.read_text())
    typed = [Ablate(Latents(SITES[0]), "mean", of=others), Ablate(Head(2, 1), "resample", -1, others, 3)]
    want = intervene(model, dictionaries, prompts, typed, effect="direct", errors="live", policy=attrib.LINEAR)
    assert len(rows) == 120
    for row in rows:
        assert row["after"] == pytest.approx(float(want[row["prompt"]][-1, row["id"]]), abs=1e-5)


def test_each_prompt_is_resampled_from_its_own(files: Path, tmp_path: Path, command: Command):
    (tmp_path / "pairs.jsonl").write_text('{"tokens": [2, 7, 1, 8]}\n{"tokens": [6, 2]}\n')
    out = tmp_path / "resampled.json"
    options = ["--prompts", files / "prompts.jsonl", "-m", files / "model", "-e", "L2H1=resample", "--of", tmp_path / "pairs.jsonl"]
    ran = command("intervene", *options, "--top", 60, "--out", out)
    assert ran.status == 0, ran.err
    model, others = attrib.load_model(files / "model"), [torch.tensor([2, 7, 1, 8]), torch.tensor([6, 2])]
    prompts = [torch.tensor([3, 1, 4, 1]), torch.tensor([5, 9])]
    want = [intervene(model, [], ids, Ablate(Head(2, 1), "resample", of=of)) for ids, of in zip(prompts, others, strict=True)]
    for row in json.loads(out.read_text()):
        assert row["after"] == pytest.approx(float(want[row["prompt"]][-1, row["id"]]), abs=1e-5)


def test_ablations_are_ranked_and_written(files: Path, tmp_path: Path, command: Command):
    options = ["--prompts", files / "prompts.jsonl", "-m", files / "model", "-d", files / SITES[0], "--with", files / SITES[1]]
    out = tmp_path / "all.csv"
    ran = command("ablate", *options, "--top-logits", 2, "--at", "1:", "--to", 0.5, "--errors", "none", "--out", out, "--top", 2)
    assert ran.status == 0, ran.err
    model, (first, second) = attrib.load_model(files / "model"), [attrib.load_dictionary(files / site) for site in SITES]
    prompts = [torch.tensor([3, 1, 4, 1]), torch.tensor([5, 9])]
    logits = attrib.TopLogits(2)
    want = ablate_each(model, first, prompts, logits=logits, at="1:", to=0.5, errors=False, dictionaries=[second])
    frame = pd.read_csv(out)
    assert frame["change"].tolist() == pytest.approx(want.to_pandas()["change"].tolist(), abs=1e-6)
    strongest = next(n for n in want.order().tolist() if want.prompt[n] == 1)
    assert f"{int(want.latent[strongest])} at '9' (1)" in ran.out
    pairs = command("ablate", *options, "--logit-difference", "3", "5", "--at", -1, "--pairs", "--top", 1)
    assert pairs.status == 1  # the tiny model has no tokenizer, so text is no token
    assert "tokenizer" in pairs.err
    pairs = command("ablate", *options, "--at", -1, "--pairs", "--top", 1)
    assert pairs.out.count(" and ") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["intervene", "text", "-m", MODEL], "--edit: missing"),
        (["intervene", "-m", MODEL, "-e", "L5H1=0"], "PROMPTS: missing"),
        (["intervene", " ", "-m", MODEL, "-e", "L5H1=0"], "number 0 is empty"),
        (["intervene", "text", "-e", "L5H1=0"], "--model: missing"),
        (["intervene", "text", "-m", MODEL, "-e", "nonsense"], "--edit: 'nonsense'"),
        (["intervene", "text", "-m", MODEL, "-e", "L5H1=mean"], "--of: missing"),
        (["intervene", "text", "-m", MODEL, "-e", "L5H1=0", "--of", "x.txt"], "--of: no effect"),
        (["intervene", "text", "-m", MODEL, "-e", "L5H1=0", "--seed", "1"], "--seed: no effect"),
        (["intervene", "text", "-m", MODEL, "-e", "L5H1=0", "--freeze", "all"], "--freeze: 'all'"),
        (["intervene", "text", "-m", MODEL, "-e", "L5H1=0", "--errors", "some"], "--errors: 'some'"),
        (["intervene", "text", "-m", MODEL, "-e", "L5H1=0", "--out", "x.h5"], "--out: x.h5"),
        (["ablate", "text", "-m", MODEL], "--dictionary: missing"),
        (["ablate", "text", "-m", MODEL, "-d", SAE, "--top-logits", "2", "--logit-token", "a"], "no effect beside --logit-token"),
        (["ablate", "text", "-m", MODEL, "-d", SAE, "--out", "nowhere/x.csv"], "the folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], said: str, command: Command):
    ran = command(*arguments)
    assert ran.status == 1
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
