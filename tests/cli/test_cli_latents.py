"""`attrib latents` as it is typed: a survey made, what is shown of it within 80 columns, one clear message for every mistake."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from attrib import latents
from attrib.cli.latents import app
from attrib.core.types import InputError
from tests.support.job_cases import SITES, corpus, tiny_smollm2

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def printed(*words: object) -> str:
    ran = run(*words)
    assert ran.exit_code == 0, ran.exception
    return ran.output


def fault(*words: object) -> str:
    ran = run(*words)
    assert isinstance(ran.exception, InputError), ran.exception
    return str(ran.exception)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a corpus, and a survey of it."""
    made = tmp_path_factory.mktemp("corpus")
    corpus(made, has_model=False)
    with tiny_smollm2(made / "cache") as model:
        words = ["survey", made / "s.h5", "--model", model, "--prompts", made / "prompts.jsonl", "--block", 3, "--top", 4, "--together"]
        ran = run(*words, *(word for site in SITES for word in ("--dictionary", made / site)))
        assert ran.exit_code == 0, ran.exception
        (made / "printed.txt").write_text(ran.output)
        yield made


def test_a_survey_says_what_it_did(folder: Path):
    out = (folder / "printed.txt").read_text()
    assert "1 prompts were passed over; the first: " in out
    assert "prompts.jsonl, line 4" in out
    survey = latents.open(folder / "s.h5")
    assert f"{folder}/s.h5: 2 dictionaries" in out
    for part in survey:
        assert f"{part.asked.dictionary}: {(part.active > 0).sum()} of 80 latents active over {part.places} places" in out


def test_it_goes_on_merges_and_shares(folder: Path, tmp_path: Path):
    common = ["--model", "smollm2-135m", "--dictionary", folder / SITES[0], "--prompts", folder / "prompts.jsonl", "--block", 3, "--top", 4]
    out = tmp_path / "a.h5"
    assert "2 of 3 blocks are done" in printed("survey", out, *common, "--share", "0/2")
    assert not out.exists()
    printed("survey", out, *common, "--share", "1/2")
    blocks = sorted((tmp_path / "a.h5.blocks" / "shards").glob("*.h5"))
    printed("merge", tmp_path / "b.h5", *blocks[::-1])
    assert out.read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert "exists already" in fault("merge", out, *blocks)
    assert "exists already" in fault("survey", out, *common)
    assert "is one of the files to read too" in fault("merge", blocks[0], *blocks, "--overwrite")


def test_a_survey_of_nothing_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "none.txt").write_text("")
    common = ["survey", tmp_path / "a.h5", "--model", "smollm2-135m", "--dictionary", folder / SITES[0]]
    assert "there are none; expected at least one" in fault(*common, "--prompts", tmp_path / "none.txt", "--blocks", tmp_path / "b")
    assert "counts; expected some" in fault(*common, "--prompts", folder / "prompts.jsonl", "--skip", 50)
    assert not (tmp_path / "a.h5").exists()


def test_numbers_and_examples_are_those_of_python(folder: Path):
    part = latents.open(folder / "s.h5").of(SITES[0])
    shown = " ".join(printed("show", folder / "s.h5").replace("│", " ").split())
    assert f"dictionary {SITES[0]}" in shown
    assert f"tokens {part.tokens}, of which {part.places} count" in shown
    assert f"80 of 80, {(part.active == 0).sum()} never active" in shown
    densest = int(part.latents[np.argmax(part.density)])
    top = printed("top", folder / "s.h5", "--dictionary", SITES[0], "--top", 3)
    first = next(after for line, after in pairwise(top.splitlines()) if line.startswith("┡"))
    assert f" {densest} " in first.replace("│", " ")
    least = printed("top", folder / "s.h5", "--dictionary", SITES[0], "--top", 1, "--by", "maximum", "--least")
    assert f"{np.nanmin(part.maximum):.3g}" in least
    out = printed("examples", folder / "s.h5", densest, "--dictionary", SITES[0], "--top", 2, "--width", 2)
    for one in part.top(densest, 2):
        assert f"{one.prompt}:{one.position}" in out
        assert f"<<{one.token}>>" in out
        assert f"{one.value:.4g}" in out
    found = printed("search", folder / "s.h5", part.top(densest)[0].token, "--dictionary", SITES[0], "--top", 80)
    assert f" {densest} " in found


def test_what_a_text_makes_active(folder: Path):
    words = ["active", "3 5 7", "--model", "smollm2-135m", "--dictionary", folder / SITES[0], "--top", 3]
    (first, *_) = latents.strongest("smollm2-135m", folder / SITES[0], "3 5 7", k=3)  # type: ignore[arg-type]
    part = latents.open(folder / "s.h5").of(SITES[0])
    plain, told = printed(*words), printed(*words, "--survey", folder / "s.h5")
    for out in (plain, told):
        assert f" {first.latent} " in out
        assert f"{first.value:.4g}" in out
    assert f"{part.maximum[first.latent]:.4g}" in told
    assert "is of other dictionaries" in fault(*words[:5], folder / SITES[1], "--survey", latents_of_one(folder))


def test_components_are_printed_and_written(folder: Path, tmp_path: Path):
    words = ["pca", "0:40", "--model", "smollm2-135m", "--dictionary", folder / SITES[0], "--components", 2, "--context", 2, "--skip", 1]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(line + "\n" for line in (folder / "prompts.jsonl").read_text().splitlines() if line[1] != "n"))
    ids = [torch.tensor(json.loads(line)["tokens"])[:6] for line in prompts.read_text().splitlines()]
    want = latents.pca("smollm2-135m", folder / SITES[0], slice(0, 40), ids, components=2, context=2, skip=1)  # type: ignore[arg-type]
    common = [*words, "--prompts", prompts, "--length", 6, "--out"]
    out = printed(*common, tmp_path / "c.csv", "--top", 1)
    assert f"c.csv: {len(want.coordinates)} places" in out
    for number, share in enumerate(want.share.tolist(), 1):
        assert re.search(rf"pc{number}.*{share:.1%}", out)
        for extreme in (want.coordinates[:, number - 1].max(), want.coordinates[:, number - 1].min()):
            assert f"{float(extreme):.3g}" in out
    printed(*common, tmp_path / "c.parquet")
    for read in (pd.read_csv(tmp_path / "c.csv", dtype={"token": str, "context": str}), pd.read_parquet(tmp_path / "c.parquet")):
        pd.testing.assert_frame_equal(read, want.to_pandas(), check_dtype=False)
    assert "expected .csv or .parquet" in fault(*common, tmp_path / "c.txt")
    assert "exists already" in fault(*common, tmp_path / "c.csv")
    assert "line 4" in fault(*words, "--prompts", folder / "prompts.jsonl")


def latents_of_one(folder: Path) -> Path:
    """A survey of the first dictionary alone."""
    return latents.save(folder / "one.h5", latents.Survey((latents.open(folder / "s.h5").of(SITES[0]),)), overwrite=True)


def test_labels_are_written_beside_and_shown(folder: Path, tmp_path: Path):
    mine = tmp_path / "mine.csv"
    mine.write_text(f"dictionary,latent,label\n{SITES[0]},3,days \x1b[31m of [bold]the week\n")
    words = ["label", folder / "s.h5", "--import", mine, "--model", "smollm2-135m", "--dictionary", SITES[0], "--source", folder / SITES[0]]
    out = folder / "s.labels.jsonl"
    try:
        assert f"{out}: " in printed(*words)
        sources = [json.loads(line)["source"] for line in out.read_text().splitlines()]
        assert sources[0] == "mine.csv"
        assert {*sources} == {"mine.csv", "tokens", "logits"}
        found = printed("search", folder / "s.h5", "days", "--where", "label")
        assert r"days \x1b[31m of [bold]the week" in found
        assert "\x1b" not in found
        assert r"days \x1b[31m of [bold]the week" in printed("examples", folder / "s.h5", 3, "--dictionary", SITES[0])
        assert "exists already" in fault(*words)
        wrong = [*words[:-3], SITES[1], "--source", folder / SITES[0], "--overwrite"]
        assert "is not the dictionary that was surveyed" in fault(*wrong)
    finally:
        out.unlink(missing_ok=True)


def test_no_text_of_a_file_reaches_the_terminal(folder: Path, tmp_path: Path):
    survey = latents.open(folder / "s.h5")
    from dataclasses import replace

    hostile = {number: f"\x1b]0;x\x07\u202e[bold]{number}\n" for number in survey.parts[0].strings}
    part = replace(
        survey.parts[0], strings=hostile, asked=replace(survey.parts[0].asked, details={"neuronpedia_id": "a/b", "x": "\x1b[2J"})
    )
    path = latents.save(tmp_path / "s.h5", latents.Survey((part,)))
    for words in (
        ("show", path),
        ("top", path),
        ("examples", path, 3),
        ("search", path, "bold"),
        ("search", path, "bold", "--where", "context"),
    ):
        out = printed(*words)
        assert not {"\x1b", "\u202e", "\x07"} & {*out}
    assert "https://www.neuronpedia.org/a/b/3" in printed("examples", path, 3)


def test_tables_fit_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in (("show",), ("top", "--dictionary", SITES[0]), ("examples", 3, "--dictionary", SITES[0]), ("search", "1")):
        out = printed(words[0], folder / "s.h5", *words[1:])
        body = [line for line in out.splitlines() if str(folder) not in line]
        assert max(map(len, body)) <= 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("top", "s.h5"), "dictionary: none was named; expected one of"),
        (("top", "s.h5", "--dictionary", SITES[0], "--by", "size"), "by: 'size'"),
        (("examples", "s.h5", "900", "--dictionary", SITES[0]), "latent: 900; expected one of the 80"),
        (("search", "s.h5", " "), "text: ' '"),
        (("search", "s.h5", "a", "--where", "soul"), "where: 'soul'"),
        (("show", "none.h5"), "there is no file"),
        (("top", "s.h5", "--dictionary", SITES[0], "--labels", "none.csv"), "there is no file"),
        (("survey", "t.h5", "--model", "smollm2-135m", "--dictionary", "x/y", "--prompts", "p", "--share", "1"), "share: '1'"),
        (("survey", "t.h5", "--model", "smollm2-135m", "--dictionary", "x/y", "--prompts", "p", "--latents", "a"), "latents: 'a'"),
    ],
)
def test_mistakes_are_named(folder: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    assert message in fault(*words)


def test_a_file_is_verified_as_a_survey(folder: Path, tmp_path: Path):
    from attrib.cli.main import app as whole

    path = tmp_path / "s.h5"
    path.write_bytes((folder / "s.h5").read_bytes())
    assert "no fault in it" in CliRunner().invoke(whole, ["verify-file", str(path)]).output
    with h5py.File(path, "r+") as file:
        file["parts/0/latents/count"][0] += 1
    ran = CliRunner().invoke(whole, ["verify-file", str(path)])
    assert "/parts/0" in ran.output
    assert ran.exit_code == 1


def test_a_page_is_written_whole_or_not_at_all(folder: Path, tmp_path: Path):
    out, survey = tmp_path / "page.html", folder / "s.h5"
    said = printed("page", "0,3", "--survey", survey, "-d", folder / SITES[0], "--html", out)
    assert str(out) in said
    assert re.findall(r'<a href="#(.*?)">', out.read_text()) == ["l0-0", "l0-3"]
    before = out.read_bytes()
    wrong = [
        (["0", "--survey", survey, "-d", folder / SITES[0], "--html", out], "exists already"),
        (["0", "--survey", survey, "--html", tmp_path / "new.html"], "dictionary: none was named"),
        (["0", "--html", tmp_path / "new.html"], "--dictionary: missing"),
        (["80", "-d", folder / SITES[0], "--html", tmp_path / "new.html"], "latents: 80 is no latent"),
        (["0", "-d", folder / SITES[0], "--other", folder / SITES[1], "--html", tmp_path / "new.html"], "--other: has no effect"),
        (["a", "-d", folder / SITES[0], "--html", tmp_path / "new.html"], "latents: 'a'"),
        (["0", "-d", folder / SITES[0], "--neuronpedia", "x", "--html", tmp_path / "new.html"], "--neuronpedia: 'x'"),
    ]
    for words, message in wrong:
        assert message in fault("page", *words)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
