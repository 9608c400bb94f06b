"""The bench of known circuits: it has a figure for everyone, and names what is wrong."""

import json
from pathlib import Path

import pytest
import typer
from jaxtyping import install_import_hook
from typer.testing import CliRunner

with install_import_hook("bench", "tests.support.checked.first_calls"):
    from bench import truth
    from bench.truth import Part, Scored

pytest.importorskip("tracr", reason="pip install --no-deps tracr-pypi")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run(*options: str) -> object:
    app = typer.Typer()
    app.command()(truth.main)
    return CliRunner().invoke(app, [*options])


def test_everyone_ranks_the_same_edges_of_a_program(tmp_path: Path):
    result = run("--case", "own_first", "--json", str(tmp_path / "figures.json"))
    assert result.exit_code == 0, result.output
    (figures,) = json.loads((tmp_path / "figures.json").read_text()).values()
    assert figures["checked"]
    assert figures["nodes"] == figures["between"]["attrib"] == 1
    assert figures["between"].keys() == {"attrib", "EAP", "ablation"}
    assert "own_first" in result.output


def test_gradients_through_a_step_are_what_the_others_lack():
    """The length is rounded by its MLP: no gradient comes through, and its head is nothing to EAP."""
    found = truth.score("length_numerical_2")
    assert found.between["attrib"] == found.between["ablation"] == 1
    assert found.between["EAP"] < 0.99


def test_a_program_that_is_not_there_and_a_figure_that_is_wrong(monkeypatch: pytest.MonkeyPatch):
    result = run("--case", "nothing of this name")
    assert result.exit_code == 2
    assert "begins no program" in result.output
    monkeypatch.setattr(truth, "score", lambda name: Scored(0.9, 1.0, 0.0, {"attrib": 0.5, "EAP": 0.5, "ablation": None}, (1, 2)))
    result = run("--case", "own_first")
    assert result.exit_code == 1
    assert "Values differ: own_first" in result.output


def test_only_what_is_before_is_asked_about():
    assert truth._is_before(Part("head", 0), Part("mlp", 0))
    assert not truth._is_before(Part("mlp", 0), Part("head", 0))
    assert not truth._is_before(Part("head", 0, 0), Part("head", 0, 1))
