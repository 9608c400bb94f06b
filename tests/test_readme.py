"""The README's Python runs as it stands, from top to bottom, and does what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attrib

pytestmark = pytest.mark.xdist_group("readme")  # what its commands wrote is read by its Python

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, smollm2_folder: Path) -> tuple[Path, dict[str, str]]:
    """A folder in which the commands of the README's corpus were run one after another, and what each printed."""
    tmp_path = tmp_path_factory.mktemp("corpus")
    shutil.copytree(README.parent / "examples", tmp_path / "examples")
    [block] = [block for block in README.read_text().split("```")[1::2] if "attrib job init" in block]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (README.parent, README.parent / "kernels")))}
    printed = {}
    for line in block.strip().splitlines():
        command = line.partition("#")[0].split()
        done = subprocess.run(
            [sys.executable, "-m", "attrib.cli", *command[1:]], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stderr)
        printed[" ".join(command[1:3])] = done.stdout
    return tmp_path, printed


def test_the_commands_of_a_corpus_do_what_the_readme_says(corpus: tuple[Path, dict[str, str]]) -> None:
    folder, printed = corpus
    assert printed["job init"].startswith("JOB: 12 prompts, ")
    assert printed["job verify"] == "JOB: all shards are there, and no fault in them\n"
    assert "12 prompts" in printed["job run"]
    assert printed["rerun JOB"].count(": the same") == 2
    assert "1599" in printed["stats top-parents"]
    assert any((folder / "tables").iterdir())


def test_the_python_of_the_readme_runs(corpus: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path, _ = corpus
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code) >= 2
    names: dict[str, object] = {}
    for part in code:
        exec(compile(part, str(README), "exec"), names)
    with attrib.open(tmp_path / "edges.h5") as result:
        stored = result.edges()
    edges = names["edges"]
    assert isinstance(edges, attrib.Edges)
    assert torch.equal(stored.attribution, edges.attribution)


def test_the_numbers_of_dictionaries_are_those_that_are_there() -> None:
    said = re.search(r"before layers 6 and 9 \(k = (\d+)\), 18 and\n27 \(k = (\d+)\)", README.read_text())
    assert said is not None
    there = {layer: attrib.load_dictionary(f"smollm2-135m/blocks.{layer}.hook_resid_pre").config.k for layer in (6, 9, 18, 27)}
    assert there == {6: int(said[1]), 9: int(said[1]), 18: int(said[2]), 27: int(said[2])}
