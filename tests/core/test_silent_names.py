"""Names: an old one goes on working and says so once, at the caller's line; files that hold old words are read in new ones."""

import ast
import json
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

import attrib
from attrib.runs.rerun import rerun
from tests.support.builders import build as model_of
from tests.support.builders import prompt, sae, tiny
from tests.support.root import ROOT

OLD = {
    "attrib.Tokens": "attrib.TokenLogits",
    "attrib.logits": "attrib.forward",
    "attrib.core.types.Tokens": "attrib.core.types.TokenLogits",
    "attrib.passes.capture.logits": "attrib.passes.capture.forward",
    "attrib.models.transformer.logits": "attrib.models.transformer.forward",
}


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("form", ["import {package}\n\nfound = {package}.{name}\n", "\n\nfrom {package} import {name} as found\n"])
def test_an_old_name_is_the_new_one_and_warns_once_at_the_callers_line(tmp_path: Path, old: str, form: str):
    package, _, name = old.rpartition(".")
    program = tmp_path / "program.py"
    program.write_text(form.format(package=package, name=name))
    names: dict[str, object] = {"__name__": "program"}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        exec(compile(program.read_text(), str(program), "exec"), names)
    new = OLD[old].rpartition(".")
    assert names["found"] is getattr(sys.modules[new[0]], new[2])
    assert [(one.category, one.filename, one.lineno) for one in warned] == [(DeprecationWarning, str(program), 3)]
    assert str(warned[0].message) == f"{old} is now called {OLD[old]}; the old name will go in a later version."


@pytest.mark.long
def test_an_old_name_warns_at_the_callers_line_under_the_type_checks_too(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text("import attrib\nattrib.Tokens\nfrom attrib import logits\nfrom attrib.core.types import Tokens\n")
    environment = {"ATTRIB_TYPECHECK": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, "-W", "always::DeprecationWarning:__main__", str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [line.split(":")[1] for line in done.stderr.splitlines() if "is now called" in line]
    assert lines == ["2", "3", "4"], done.stderr


def test_only_the_new_names_are_listed_and_the_old_are_marked_for_type_checkers():
    old, new = ({name.rpartition(".")[2] for name in names if name.count(".") == 1} for names in (OLD.keys(), OLD.values()))
    assert new <= {*dir(attrib)} & {*attrib.__all__}
    assert not old & {*dir(attrib), *attrib.__all__}
    stub = ast.parse((ROOT / "attrib" / "__init__.pyi").read_text())
    marked = {node.name: ast.unparse(node.decorator_list[0]) for node in stub.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert marked == {name: f"typing_extensions.deprecated('attrib.{name} is now called {OLD[f'attrib.{name}']}')" for name in sorted(old)}


@pytest.mark.parametrize("module", ["attrib", "attrib.core.types", "attrib.passes.capture", "attrib.models.transformer"])
def test_a_name_that_never_was_is_still_an_error(module: str):
    with pytest.raises(AttributeError, match="nonsense"):
        sys.modules[module].nonsense  # noqa: B018
    with pytest.raises(ImportError, match="nonsense"):
        exec(f"from {module} import nonsense")


@pytest.mark.long
def test_nothing_here_uses_an_old_name():
    used = []
    for file in [file for folder in ("attrib", "kernels", "bench", "examples", "tests") for file in (ROOT / folder).rglob("*.py")]:
        if file == Path(__file__):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                used += [(file, name) for name in OLD if ast.unparse(node) == name]
            elif isinstance(node, ast.ImportFrom):
                used += [(file, name) for alias in node.names if (name := f"{node.module}.{alias.name}") in OLD]
    assert used == []


def old_words(path: Path) -> None:
    """Let a file say what attrib wrote before the name changed."""
    with h5py.File(path, "r+") as file:
        for holder in [holder for holder in (file, *file["blocks"].values()) if "call" in holder.attrs]:
            call = json.loads(holder.attrs["call"])
            assert call["target"] == "TokenLogits(tokens=(3, 5))"
            holder.attrs["call"] = np.bytes_(json.dumps(call | {"target": "Tokens(tokens=(3, 5))"}))


def test_files_of_old_words_are_read_rerun_and_counted_with_new_ones(tmp_path: Path):
    tiny("gpt2").save_pretrained(tmp_path / "model")
    sae("topk", site="blocks.1.hook_resid_pre").save_model(tmp_path / "sae")
    model, source = attrib.load_model(tmp_path / "model"), attrib.load_dictionary(tmp_path / "sae")
    places = {model.name: tmp_path / "model", source.name: tmp_path / "sae"}
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, name in enumerate(("old.h5", "new.h5")):
        edges = attrib.latent_to_logit(model, source, [prompt(5, seed=number)], logits=attrib.TokenLogits((3, 5)))
        assert edges.call["target"] == "TokenLogits(tokens=(3, 5))"  # what files hold from now on
        attrib.save(folder / name, edges)
    old_words(folder / "old.h5")
    for name in ("old.h5", "new.h5"):
        with attrib.open(folder / name) as stored:
            assert stored.edges().call["target"] == stored.call["target"] == "TokenLogits(tokens=(3, 5))"
        [again] = rerun(folder / name, 0, places=places)
        assert again.is_same
    with attrib.open(folder) as both:  # shards of one data set, made before and after
        assert both.call["target"] == "TokenLogits(tokens=(3, 5))"
        assert len(both.edges()) == sum(len(attrib.open(folder / name).edges()) for name in ("old.h5", "new.h5"))
    for number, name in enumerate(("old.h5", "new.h5")):
        attrib.stats.save(tmp_path / f"{number}.h5", attrib.stats.of_files([folder / name]))
    old_words(tmp_path / "0.h5")
    merged = attrib.stats.merge(*(tmp_path / f"{number}.h5" for number in range(2)))
    assert merged.part().call["target"] == "TokenLogits(tokens=(3, 5))"


def test_a_choice_of_logits_of_old_words_is_the_new_one():
    model, ids = model_of("gpt2"), prompt(4)
    with pytest.warns(DeprecationWarning, match=r"attrib\.Tokens is now called attrib\.TokenLogits"):
        old = attrib.Tokens([3])
    assert isinstance(old, attrib.TokenLogits)
    with pytest.warns(DeprecationWarning, match=r"attrib\.logits is now called attrib\.forward"):
        assert attrib.logits(model, ids).equal(attrib.forward(model, ids))
