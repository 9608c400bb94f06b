"""`attrib task`, as a user meets it: what it writes and prints, and what it refuses."""

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import attrib
from attrib.causal import tasks
from tests.support.builders import prompt, sae, tiny
from tests.support.typed import Command


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, two dictionaries and a task of ids."""
    folder = tmp_path_factory.mktemp("files")
    tiny("llama").save_pretrained(folder / "model")
    for layer in (1, 2):
        site = f"blocks.{layer}.hook_resid_pre"
        sae("topk", site=site, seed=layer).save_model(folder / f"layer-{layer}")
    rows = [{"prompt": prompt(3 + n, seed=n).tolist(), "answers": [3, [11, 12]], "label": n % 2} for n in range(5)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(files: Path, out: Path, *more: object) -> list[object]:
    both = [part for layer in (1, 2) for part in ("--dictionary", files / f"layer-{layer}")]
    return ["task", "run", files / "task.jsonl", "--model", files / "model", *both, "--out", out, "--batch", 2, *more]


def test_run_writes_what_the_function_gives_and_shows_every_table(files: Path, tmp_path: Path, command: Command) -> None:
    ran = command(*options(files, tmp_path / "out", "--limit", 3, "--memory"))
    assert ran.status == 0, ran.err
    for title in (
        "parameters", "task with model: 3 examples", "samples, the model's largest difference first", "latents by how often they fire",
        "effects of latents by gradient", "effects of latents by ablation", "gradient against ablation, r:", "the most memory by phase",
    ):  # fmt: skip
        assert title in ran.out, title
    assert command(*options(files, tmp_path / "out")).status == 0, "it goes on behind what is there"
    model = attrib.load_model(files / "model")
    dictionaries = [attrib.load_dictionary(files / f"layer-{layer}") for layer in (1, 2)]
    expected = tasks.run_task(
        model, tasks.read_task(files / "task.jsonl"), dictionaries, operations=["base", "spliced", "gradient", "ablation"], batch=2
    )
    opened = tasks.open_results(tmp_path / "out")
    pd.testing.assert_frame_equal(opened.samples, expected.samples)
    pd.testing.assert_frame_equal(opened.latents, expected.latents)
    shown = command("task", "show", tmp_path / "out", "--operation", "ablation", "--correct", "--by", "mean_fired", "--top", 1)
    assert "5 examples" in shown.out
    assert "by ablation, by mean_fired, over samples that are right" in shown.out
    assert "by gradient" not in shown.out
    drawn = command("task", "show", tmp_path / "out", "--parity", tmp_path / "p.html", "--effects", tmp_path / "e.html", "--per-batch")
    assert drawn.status == 0, drawn.err
    assert "examples 2 to 3" in (tmp_path / "e.html").read_text()
    assert "r = " in (tmp_path / "p.html").read_text()
    assert "--per-batch: has no effect" in command("task", "show", tmp_path / "out", "--per-batch").err
    assert "does not exist" in command("task", "show", tmp_path / "out", "--parity", tmp_path / "no" / "p.html").err
    assert not [page for page in ("p.html", "e.html") if "<script src" in (tmp_path / page).read_text()], "they load nothing"
    both = [part for layer in (1, 2) for part in ("-d", files / f"layer-{layer}")]
    paged = command("task", "page", tmp_path / "out", "--html", tmp_path / "l.html", "-m", files / "model", *both, "--top", 1)
    assert paged.status == 0, paged.err
    for words in ("Effect by ablation", "Logits", "Parents, ", "Children, "):
        assert words in (tmp_path / "l.html").read_text(), words
    assert "--model: has no effect" in command("task", "page", tmp_path / "out", "--html", tmp_path / "m.html", "-m", files / "model").err
    csv = command("task", "show", tmp_path / "out", "--csv", "samples").out
    read = pd.read_csv(io.StringIO(csv), dtype={"right": str, "wrong": str, "said": str})
    pd.testing.assert_frame_equal(read, expected.samples, check_dtype=False)


def test_tables_of_one_dictionary_fit_a_terminal(files: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, which is long, stands above each table and not in each line."""
    folder = tmp_path / "a-dictionary-of-a-very-long-name-indeed"
    shutil.copytree(files / "layer-1", folder)
    monkeypatch.setenv("COLUMNS", "80")
    ran = command("task", "run", files / "task.jsonl", "--model", files / "model", "-d", folder, "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    [told] = tasks.open_results(tmp_path / "out").record["dictionaries"]
    shown = command("task", "show", tmp_path / "out").out
    assert f"effects of latents by ablation, by total\nof {told['name']}\n" in shown
    assert max(map(len, shown.split("\n"))) <= 80


def test_without_dictionaries_it_is_the_model_alone(files: Path, tmp_path: Path, command: Command) -> None:
    ran = command("task", "run", files / "task.jsonl", "--model", files / "model", "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    assert "base" in ran.out
    assert "effects" not in ran.out


@pytest.mark.few
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--n", 4], "--n: has no effect"),
        (["--seed", 0], "--seed: has no effect"),
        (["--operation", "patching"], "operations: 'patching'"),
        (["--position", "middle"], "positions: 'middle'"),
        (["--budget", "much"], "budget: 'much'"),
        (["--dtype", "float7"], "dtype"),
    ],
)  # fmt: skip
def test_what_has_no_effect_or_no_meaning_is_refused(more: list[object], said: str, files: Path, tmp_path: Path, command: Command) -> None:
    ran = command(*options(files, tmp_path / "out", *more))
    assert ran.status == 1
    assert ran.err.startswith("error: ")
    assert said in ran.err
    assert not (tmp_path / "out").exists()


def test_tasks_files_and_folders_that_are_none_are_refused(files: Path, tmp_path: Path, command: Command) -> None:
    for task, more, said in [
        ("mnli", (), "task: 'mnli' is no file; expected agreement, indirect-objects, rte, boolq"),
        ("rte", ("--source", files / "task.jsonl"), "its field 'premise' is not there; it has 'prompt', 'answers', 'label'"),
        ("agreement", (), "tokenizer"), ("agreement", ("--chat",), "--chat: has no effect on agreement"),
    ]:  # fmt: skip
        ran = command("task", "run", task, "--model", files / "model", "--out", tmp_path / "out", *more)
        assert (ran.status, said in ran.err) == (1, True), ran.err
    for folder in (tmp_path, tmp_path / "no"):
        assert "has no task.json" in command("task", "show", folder).err
    (tmp_path / "bad.jsonl").write_text('{"prompt": [1, 2], "right": 3, "wrong": 4}\n{"prompt": [1, 2], "right": 3, "wrong": 99}\n')
    ran = command("task", "run", tmp_path / "bad.jsonl", "--model", files / "model", "--out", tmp_path / "some")
    assert ran.status == 1
    assert "bad.jsonl, line 2" in ran.err
    assert "token id 99 is outside the vocabulary" in ran.err
    assert "has no results yet" in command("task", "show", tmp_path / "some").err


@pytest.mark.long
def test_the_made_tasks_run_on_the_real_model(tmp_path: Path, command: Command, smollm2_folder: Path) -> None:
    for name in ("agreement", "indirect-objects"):
        ran = command("task", "run", name, "--model", "smollm2-135m", "--out", tmp_path / name, "--n", 6)
        assert ran.status == 0, ran.err
        samples = tasks.open_results(tmp_path / name).samples
        assert samples.correct.mean() > 0.6
        assert len(set(samples.right)) > 1
        assert (samples.right != samples.wrong).all()
        assert (samples.label.nunique() == 2) == (name == "agreement")
