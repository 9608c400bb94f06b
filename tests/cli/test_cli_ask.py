"""`attrib ask`, as a user types it."""

from pathlib import Path

import pandas as pd
import pytest

import attrib
from attrib.causal import answer_ranks
from tests.support.typed import Command

MODEL, SAE = "smollm2-135m", "smollm2-135m/blocks.27.hook_resid_pre"
TEXT, EDIT = "The Eiffel tower is in the city of", "blocks.27.hook_resid_pre[493]@-1=zero"


def test_an_answer_is_asked_of_the_model_of_dictionaries_and_of_edits(
    smollm2_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
):
    model, sae = attrib.load_model(MODEL), attrib.load_dictionary(SAE)
    monkeypatch.setattr(attrib, "load_model", lambda name, device: model)
    out = tmp_path / "said.csv"
    ran = command("ask", TEXT, "--answer", " Paris,", "-m", MODEL, "-d", SAE, "-e", EDIT, "--top", 3, "--out", out)
    assert ran.status == 0, ran.err
    want = {
        "model": answer_ranks(model, TEXT, " Paris,"),
        "dictionaries": answer_ranks(model, TEXT, " Paris,", sae),
        "edits": answer_ranks(model, TEXT, " Paris,", sae, EDIT),
    }
    rows = pd.read_csv(out)
    for name, each in want.items():
        told = rows[(rows["pass"] == name) & (rows.of == "answer")]
        assert told["rank"].tolist() == each.rank.tolist()
        assert told.probability.tolist() == pytest.approx(each.probability.tolist(), rel=1e-4)
        first = rows[(rows["pass"] == name) & (rows.of == "top") & (rows["rank"] == 0)]
        assert first.token.tolist() == [texts[0] for texts in each.top_texts]
        assert f"{float(each.probability[0]):.4f}" in ran.out
    assert ran.out.count("the most probable in the place of") == 2
    held = command("ask", TEXT, "--answer", " Paris", "-m", MODEL, "-d", SAE, "-e", EDIT, "--errors", "held", "--top", 1)
    assert f"{float(answer_ranks(model, TEXT, ' Paris', sae, EDIT, errors=True).probability[0]):.4f}" in held.out
    assert "dictionaries" not in held.out, "which with their errors are the model itself"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--answer: missing"),
        (["--answer", " Paris", "--errors", "live"], "--errors: no effect without --dictionary"),
        (["--answer", " Paris", "-d", SAE, "--errors", "live"], "--errors: live without --edit gives the model's own answer"),
        (["--answer", " Paris", "-d", SAE, "--errors", "some"], "--errors: 'some'; expected held, live, none"),
        (["--answer", " Paris", "-e", "nonsense"], "--edit: 'nonsense'"),
        (["--answer", " Paris", "--of", "x.txt"], "--of: no effect"),
        (["--answer", " Paris", "--out", "x.h5"], "--out: x.h5; expected a name that ends in .csv or .json"),
    ],
)
def test_what_cannot_be_asked_is_one_line(arguments: list[str], said: str, command: Command):
    ran = command("ask", TEXT, "-m", MODEL, *arguments)
    assert ran.status == 1
    assert said in ran.err
    assert (ran.out, "Traceback" in ran.err) == ("", False)
