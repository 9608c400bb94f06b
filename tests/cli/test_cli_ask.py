"""`attrib ask`, as a user types it."""

from pathlib import Path

import pandas as pd
import pytest

import attrib
from attrib.causal import answer_ranks
from tests.support.builders import sae
from tests.support.notebooks import transformers_model
from tests.support.typed import Command

TEXT, SITE = "The tower is in the city of", "blocks.1.hook_resid_pre"
EDIT = f"{SITE}[:]@-1=zero"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, and an SAE."""
    made = tmp_path_factory.mktemp("files")
    model, tokenizer = transformers_model((TEXT, " Paris , France"))
    model.save_pretrained(made / "model")
    tokenizer.save_pretrained(made / "model")
    sae("topk", site=SITE).save_model(made / "sae")
    return made


def test_an_answer_is_asked_of_the_model_of_dictionaries_and_of_edits(folder: Path, tmp_path: Path, command: Command):
    out, given = tmp_path / "said.csv", ("-m", folder / "model", "-d", folder / "sae", "-e", EDIT)
    ran = command("ask", TEXT, "--answer", " Paris , France", *given, "--top", 3, "--out", out)
    assert ran.status == 0, ran.err
    model, dictionary = attrib.load_model(folder / "model"), attrib.load_dictionary(folder / "sae")
    want = {
        "model": answer_ranks(model, TEXT, " Paris , France"),
        "dictionaries": answer_ranks(model, TEXT, " Paris , France", dictionary),
        "edits": answer_ranks(model, TEXT, " Paris , France", dictionary, EDIT),
    }
    rows = pd.read_csv(out, keep_default_na=False)
    for name, each in want.items():
        told = rows[(rows["pass"] == name) & (rows.of == "answer")]
        assert told["rank"].tolist() == each.rank.tolist()
        assert told.probability.tolist() == pytest.approx(each.probability.tolist(), rel=1e-4)
        first = rows[(rows["pass"] == name) & (rows.of == "top") & (rows["rank"] == 0)]
        assert first.id.tolist() == each.top[:, 0].tolist()
        assert f"{float(each.probability[0]):.4f}" in ran.out
    assert ran.out.count("the most probable in the place of") == 3
    assert len({float(each.probability[0]) for each in want.values()}) == 3
    held = command("ask", TEXT, "--answer", " Paris", *given, "--errors", "held", "--top", 1)
    assert f"{float(answer_ranks(model, TEXT, ' Paris', dictionary, EDIT, errors=True).probability[0]):.4f}" in held.out
    assert "dictionaries" not in held.out, "which with their errors are the model itself"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--answer: missing"),
        (["--answer", " Paris", "--errors", "live"], "--errors: no effect without --dictionary"),
        (["--answer", " Paris", "-d", "x", "--errors", "live"], "--errors: live without --edit gives the model's own answer"),
        (["--answer", " Paris", "-d", "x", "--errors", "some"], "--errors: 'some'; expected held, live, none"),
        (["--answer", " Paris", "-e", "nonsense"], "--edit: 'nonsense'"),
        (["--answer", " Paris", "--of", "x.txt"], "--of: no effect"),
        (["--answer", " Paris", "--out", "x.h5"], "--out: x.h5; expected a name that ends in .csv or .json"),
    ],
)
def test_what_cannot_be_asked_is_one_line(arguments: list[str], said: str, command: Command):
    ran = command("ask", TEXT, "-m", "nowhere", *arguments)
    assert ran.status == 1
    assert said in ran.err
    assert (ran.out, "Traceback" in ran.err) == ("", False)
