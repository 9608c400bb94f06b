"""What is published agrees with itself: one version, extras that the docs tell of, and nothing needed that is not asked for."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import attrib
from attrib.core.types import InputError
from attrib.training import train
from attrib.view import heatmap
from tests.support.builders import build, dictionary, prompt
from tests.support.rooms import PACKAGE, imports_of, package_of
from tests.support.root import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
OF_USERS = ("lens", "gpu", "view", "jobs", "ray", "graph", "export")
"""The extras whose packages attrib's code imports."""
CODE = [file for folder in (PACKAGE, ROOT / "kernels" / "attrib_kernels") for file in folder.rglob("*.py") if "shipped" not in file.parts]
BROUGHT = {"huggingface_hub"}
"""What a package that is depended on depends on itself, for good: transformers loads nothing without its hub's client."""


def imported_as(requirement: str) -> str:
    """The name under which a requirement is imported."""
    name = re.split(r"[\[<>=; ]", requirement)[0].lower()
    return {"pyyaml": "yaml"}.get(name, name.replace("-", "_"))


BASE = {imported_as(one) for one in PROJECT["project"]["dependencies"]}
OPTIONAL = {imported_as(one) for extra in OF_USERS for one in EXTRAS[extra]} - BASE


def test_there_is_one_version():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert (ROOT / PROJECT["tool"]["hatch"]["version"]["path"]).read_text().endswith(f'__version__ = "{attrib.__version__}"\n')
    cited = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == [attrib.__version__]
    newest = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert re.fullmatch(rf"## {re.escape(attrib.__version__)}, (not released yet|\d{{4}}-\d\d-\d\d)", newest)


def test_the_docs_say_what_each_extra_brings():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    want = {extra: [re.split(r"[<>=; ]", one)[0] for one in packages] for extra, packages in EXTRAS.items()}
    assert {extra: re.findall(r"[\w.-]+(?:\[.*?\])?", packages) for extra, packages in rows} == want


@pytest.mark.long
def test_everything_that_is_imported_is_asked_for():
    for file in CODE:
        names = {name.partition(".")[0] for name in imports_of(ast.parse(file.read_text()), package_of(file, PACKAGE))}
        strange = names - sys.stdlib_module_names - BASE - OPTIONAL - BROUGHT - {"attrib", "attrib_kernels"}
        assert not strange, f"{file.relative_to(ROOT)} imports {strange}, which pyproject.toml does not ask for"
    assert {"transformer_lens", "sae_lens", "triton", "plotly", "hdf5plugin", "pyarrow", "datasets", "ray", "networkx", "zarr"} <= OPTIONAL
    assert not OPTIONAL & BASE


PROGRAM = """
import importlib, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])

sys.meta_path.insert(0, Missing())
import attrib, attrib_kernels
for package in (attrib, attrib_kernels):
    for module in pkgutil.walk_packages(package.__path__, f"{{package.__name__}}."):
        if not module.name.endswith(".triton") and module.name not in ("attrib_kernels.lowering", "attrib_kernels.descriptors"):
            importlib.import_module(module.name)
from attrib.cli.main import main
sys.argv = ["attrib", "info"]
main()
"""


def test_every_module_imports_with_what_is_always_there(tmp_path: Path):
    """In a fresh interpreter, where no extra's package is. (Triton's kernels are modules of that package's own language.)"""
    program = PROGRAM.format(missing=OPTIONAL)
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "ATTRIB_CACHE": str(tmp_path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{attrib.__version__}" in done.stdout


TRAINING = {"reads": "blocks.1.hook_mlp_out", "architecture": "topk", "width": 8, "k": 2}


def sparse() -> attrib.Edges:
    return attrib.token_to_latent(build("gpt2"), dictionary("topk"), prompt())


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("transformer_lens", "lens", lambda path: attrib.load_model("gpt2")),
        ("sae_lens", "lens", lambda path: attrib.load_dictionary("gpt2-small-res-jb/blocks.7.hook_resid_pre")),
        ("sae_lens", "lens", lambda path: train(build("gpt2"), ["a"], TRAINING, path / "out")),
        ("plotly", "view", lambda path: heatmap(sparse())),
        ("hdf5plugin", "jobs", lambda path: attrib.save(path / "e.h5", sparse(), compression="zstd")),
        ("triton", "gpu", lambda path: attrib.token_to_latent(build("gpt2"), dictionary("topk"), prompt(), method="adjoint-triton")),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named(
    package: str, extra: str, call: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those of parquet, data sets, ray and exports are in the tests of those."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    want = rf"needs the package {package}, which is not installed; pip install 'attrib\[{extra}\]'"
    with pytest.raises(InputError, match=want):
        call(tmp_path)
    assert not [*tmp_path.iterdir()], "something was left half-written"
