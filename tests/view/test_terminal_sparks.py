"""Bars in the tables of `attrib latents top`, `attrib stats top-parents` and `attrib verify`: by value, without colour, 80 columns."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from attrib import stats
from attrib.causal.agreement import Agreement
from attrib.cli.agreement import _print as print_agreement
from attrib.cli.stats import top_parents
from attrib.latents.bins import BINS, bins_of
from attrib.view.octaves import MOST, octaves_of
from attrib.view.sparks import in_cells
from attrib.view.terminal import so_many
from tests.stats.test_stats import random_edges


def counted(*scores: float) -> np.ndarray:
    return np.bincount(bins_of(np.array(scores)), minlength=BINS)


def test_octaves_are_of_one_scale_and_bars_of_each_latent_alone() -> None:
    found = octaves_of([counted(1.0, 1.5, 3.9, -2.1, 2.5, 3.0), counted(0.3, 0.3, 0.3, 5.0)])
    assert (found.low, found.high) == (0.25, 8.0)
    assert found.places.tolist() == [[0, 0, 2, 4, 0], [3, 0, 0, 0, 1]]
    assert found.lines() == ["..▄█.", "█...▃"]


def test_far_octaves_are_joined_and_none_is_nothing() -> None:
    found = octaves_of([counted(1e-3, 2e-3, 1.0, 30_000.0)])
    assert found.places.tolist() == [[3, *[0] * (MOST - 2), 1]]
    assert (found.low, found.high) == (2.0**-10, 2.0**15)
    assert octaves_of([]).lines() == []
    assert octaves_of([counted()]).lines() == [""]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("narrow")
def test_errors_of_edges_by_decade(capsys: pytest.CaptureFixture[str]) -> None:
    errors = [0.0, 1e-9, 3e-8, 0.05, 0.05, 0.05, 0.05, 1.5, np.nan]
    table = pd.DataFrame({
        "pair": "a -> b", "step": 1.0, "prompt": 0, "edge": range(9), "source": "s", "target": "t", "predicted": 1.0,
        "measured": [1.0] * 8 + [np.nan], "silent": False, "error": errors, "relative": errors,
    })  # fmt: skip
    passes = pd.DataFrame({"pair": ["a -> b"], "step": [1.0], "sources": [9], "activated": [0]})
    print_agreement(Agreement(table, passes, {"steps": [1.0]}), 0)
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "▄" in line)
    assert line.replace("│", " ").split() == ["a", "->", "b", "1", "▄▂.....█.▂"]
    assert "\x1b" not in out


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("by", "column"), [("l1", "l1"), ("max", "maximum"), ("count", "count")])
def test_what_pairs_are_ordered_by_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str, column: str) -> None:
    made = stats.of(random_edges(0))
    stats.save(tmp_path / "s.h5", made)
    top_parents(tmp_path / "s.h5", 1, None, 7, by)
    drawn = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.startswith(f"{by} ")]
    assert drawn == [f"{by} {in_cells(made.top_parents(1, 7, by)[column])}"]
    assert len(set(drawn[0][len(by) + 1 :])) > 1


def test_one_is_one_and_others_are_several() -> None:
    assert so_many(1, "block") == "1 block"
    assert so_many(0, "block") == "0 blocks"
    assert so_many(2_000, "dictionary", "dictionaries") == "2,000 dictionaries"
