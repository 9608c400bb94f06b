"""examples/train_dictionaries.py on a little text: several sites in one pass, and both stages go on after an interruption."""

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import attrib

SCRIPT = Path(__file__).parent.parent / "examples/train_dictionaries.py"


class StoppedError(Exception):
    """The machine goes down."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_dictionaries", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two text files."""
    folder, rng = tmp_path_factory.mktemp("text"), random.Random(0)
    words = ["the", "a", "cat", "dog", "house", "river", "runs", "sleeps", "under", "with", "old", "new", "green", "and", "but", "in", "of"]
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text(" ".join(rng.choices(words, k=6000)))
    return folder


def options(text: Path, folder: Path, **changed: Any) -> dict[str, Any]:
    usual = {
        "text": [text], "out": folder / "out", "work": folder / "work", "layer": [1, 2], "tokens": 8000, "context": 16, "width": 64,
        "k": [4], "samples": 4096, "batch": 256, "lr": 1e-3, "max_norm": 10.0, "measured": 128, "seed": 0,
    }  # fmt: skip
    return usual | changed


@pytest.mark.usefixtures("smollm2_folder")
def test_training_goes_on_after_interruptions(script: ModuleType, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens.training.sae_trainer import SAETrainer

    # stopped in the middle of the activations
    mark, marks = script.Store.mark, []

    def mark_twice(self: Any, contexts: int) -> None:
        if len(marks) == 3:
            raise StoppedError
        marks.append(contexts)
        mark(self, contexts)

    monkeypatch.setattr(script.Store, "mark", mark_twice)
    with pytest.raises(StoppedError):
        script.main(**options(text, tmp_path))
    assert marks == [0, 64, 128]
    monkeypatch.setattr(script.Store, "mark", mark)

    # stopped in the middle of the first training
    step, steps = SAETrainer.step, []

    def step_nine_times(self: Any, batch: torch.Tensor) -> Any:
        if len(steps) == 9:
            raise StoppedError
        steps.append(batch)
        return step(self, batch)

    monkeypatch.setattr(SAETrainer, "step", step_nine_times)
    with pytest.raises(StoppedError):
        script.main(**options(text, tmp_path))
    first = {site: np.load(tmp_path / f"work/blocks.{site}.hook_resid_pre.npy") for site in (1, 2)}
    assert all((np.abs(values).sum(1) > 0).all() for values in first.values()), "every row was filled, by one run or the other"
    assert not (tmp_path / "out/blocks.1.hook_resid_pre").exists()

    # and now to the end
    resumed = []

    def count(self: Any, batch: torch.Tensor) -> Any:
        resumed.append(self.n_training_samples)
        return step(self, batch)

    monkeypatch.setattr(SAETrainer, "step", count)
    script.main(**options(text, tmp_path))
    assert 0 < resumed[0] <= 9 * 256, "from the newest checkpoint, not from the start"
    assert len(resumed) == (4096 - resumed[0]) // 256 + 16

    card = json.loads((tmp_path / "out/card.json").read_text())
    for site in ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"):
        dictionary = attrib.load_dictionary(tmp_path / "out" / site)
        assert str(dictionary.site) == site
        assert (dictionary.config.rule, dictionary.config.k, dictionary.d_sae) == ("topk", 4, 64)
        found = card["results"][site]
        assert 0 < found["l0"] <= 4
        assert found["explained_variance"] < 1, "so little training explains next to nothing"
        assert found["cross_entropy_original"] < found["cross_entropy_zero"]
        assert site in (tmp_path / "out/README.md").read_text()

    # a fresh run over the same text captures the same activations
    script.main(**options(text, tmp_path / "again", samples=256))
    again = np.load(tmp_path / "again/work/blocks.2.hook_resid_pre.npy")
    np.testing.assert_array_equal(again, first[2])


def test_no_text_is_said(script: ModuleType, tmp_path: Path, smollm2_folder: Path) -> None:
    import typer

    with pytest.raises(typer.BadParameter, match=r"no \.txt file"):
        script.main(**options(tmp_path, tmp_path))
