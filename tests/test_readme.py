"""The README's Python runs as it stands, from top to bottom, and does what it says."""

import re
from pathlib import Path

import pytest
import torch

import attrib

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.usefixtures("smollm2_folder")
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
