"""Who may import whom: a module imports only from those above it, and heavy packages stay where they are used."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.rooms import DOCUMENT, PACKAGE, imports_of, package_of, written
from tests.support.root import ROOT

KERNELS = ROOT / "kernels" / "attrib_kernels"

ROOMS = [
    "core", "models", "dictionaries", "adapters", "passes", "engine", "paths", "attribution", "graph", "store", "stats", "export", "runs",
    "latents", "causal", "training", "jobs", "view", "cli",
]  # fmt: skip
"""The rooms of attrib, from the bottom up: each may import those before it."""

FLOORS = ["blocks", "sweep", "plan", ""]
"""Within the engine, from the bottom up: "" is what lies beside its folders."""

BESIDE = [("stats", "export"), ("jobs", "export"), ("runs", "stats"), ("runs", "export"), ("jobs", "stats"), ("view", "store")]
"""Rooms that have nothing to do with each other."""

FOREIGN = {
    "h5py": {"store"},
    "hdf5plugin": {"store"},
    "transformer_lens": {"adapters"},
    "sae_lens": {"adapters", "training"},
    "transformers": {"adapters"},
    "attrib_kernels": {"engine"},
    "zarr": {"export"},
    "anndata": {"export"},
    "ray": {"jobs"},
}
"""Packages that only these rooms import, at the top of a file or inside a function."""


def room_of(file: Path) -> str:
    """The room of attrib that a file lies in; "" for the package's own face."""
    first = file.relative_to(PACKAGE).parts[0]
    return "" if first.startswith("__init__") else first


FILES = [file for file in sorted(PACKAGE.rglob("*.py*")) if file.suffix in (".py", ".pyi") and "shipped" not in file.parts]
"""Without the package that holds the shipped dictionaries, which is a distribution of its own and has no code."""
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES if file.suffix == ".py"}


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imported(file: Path, root: Path = PACKAGE) -> tuple[str, ...]:
    """Dotted names of everything that a file imports anywhere."""
    return tuple(imports_of(parsed(file), package_of(file, root)))


def ours(file: Path, tree: ast.AST | None = None) -> Iterator[list[str]]:
    """What a file imports of attrib: rooms, and what is in them."""
    for name in imports_of(tree, package_of(file, PACKAGE)) if tree else imported(file):
        if (parts := name.split("."))[0] == "attrib" and len(parts) > 1:
            yield parts[1:]


def test_the_picture_of_the_house_is_of_this_house():
    assert DOCUMENT.read_text() == written(DOCUMENT.read_text()), "docs/architecture.md is out of date: python -m tests.support.rooms"


def test_every_file_lies_in_a_room():
    assert {room_of(file) for file in FILES} - {""} == {*ROOMS}
    assert [file.name for file in PACKAGE.iterdir() if file.suffix == ".py"] == ["__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_import_climbs(file: Path):
    room = room_of(file)
    if not room:
        return
    rooms = {parts[0] for parts in ours(file)} - {room}
    allowed = {*ROOMS[: ROOMS.index(room)]} - {b for a, b in BESIDE if a == room}
    assert rooms <= allowed, f"{file.relative_to(ROOT)} imports {sorted(rooms - allowed)}; {room} may import {sorted(allowed)}"


@pytest.mark.parametrize("file", sorted((PACKAGE / "engine").rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_import_climbs_within_the_engine(file: Path):
    inner = file.relative_to(PACKAGE / "engine").parts[:-1]
    floor = inner[0] if inner else ""
    floors = {parts[1] if parts[1] in FLOORS else "" for parts in ours(file) if parts[0] == "engine" and len(parts) > 1}
    assert floors <= {*FLOORS[: FLOORS.index(floor) + 1]}, f"{file.relative_to(ROOT)} imports what lies above {floor}"


def test_no_two_modules_import_each_other():
    """At the top of their files, directly or by way of others."""
    imports = {}
    for name, file in MODULES.items():
        top = ast.Module([node for node in parsed(file).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        imports[name] = {found for parts in ours(file, top) if (found := ".".join(["attrib", *parts])) in MODULES} - {name}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("package", FOREIGN)
def test_heavy_packages_have_one_door(package: str):
    importers = {room_of(file) for file in FILES for name in imported(file) if name.split(".")[0] == package}
    assert importers <= FOREIGN[package], f"{package} is imported by {sorted(importers)}; only {sorted(FOREIGN[package])} may"


def test_adapters_are_imported_on_use():
    """No adapter's package, and no adapter, is imported at the top of a file outside itself."""
    heavy = {package for package, units in FOREIGN.items() if "adapters" in units}
    for file in FILES:
        body = [node for node in parsed(file).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {name for node in body for name in imports_of(node, package_of(file, PACKAGE))}
        assert not {name.split(".")[0] for name in names} & heavy, f"{file.relative_to(ROOT)} imports {names} when it is itself imported"


def test_kernels_stand_alone():
    for file in sorted(KERNELS.rglob("*.py")):
        names = {name.split(".")[0] for name in imported(file, KERNELS)}
        assert "attrib" not in names, f"{file.relative_to(ROOT)} imports attrib; kernels know tensors only"


def test_the_kernels_folder_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()  # a package on PyPI is called `kernels`
    assert (KERNELS / "__init__.py").exists()


def test_import_attrib_loads_no_adapter():
    """In a fresh interpreter: how long it takes is for the bench, what it loads is for this test."""
    program = "import attrib, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "attrib" in loaded
    assert not loaded & {"torch", "numpy", "transformer_lens", "sae_lens", "transformers"}


def test_no_public_function_has_a_module_s_name():
    """Names are looked up when they are used. `import attrib.x` anywhere sets attrib.x to the module, and a function x would be gone."""
    for face in PACKAGE.rglob("__init__.pyi"):
        names = {
            alias.asname or alias.name
            for node in ast.parse(face.read_text()).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if node.module
        }
        beside = {file.stem for file in face.parent.iterdir()}
        assert names or face.parent.name in {"core", "models", "dictionaries", "paths"}, "these lend modules alone"
        assert not names & beside, f"{face.relative_to(ROOT)} and its modules share the names {names & beside}"


@pytest.mark.parametrize("module", ["attrib", "attrib.store", "attrib.stats"])
def test_all_public_names_are_there(module: str):
    face = importlib.import_module(module)
    assert {*face.__all__} >= {"open", "save"}
    for name in face.__all__:
        assert getattr(face, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        face.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import h5py", {"h5py"}),
        ("def f():\n    from sae_lens import SAE", {"sae_lens.SAE"}),
        ("from attrib import models", {"attrib.models"}),
        ("from . import terminal", {"attrib.view.terminal"}),
        ("from ..core import edges", {"attrib.core.edges"}),
        ("import importlib\nimportlib.import_module('transformers')", {"importlib", "transformers"}),
    ],
)
def test_every_form_of_import_is_seen(source: str, found: set[str]):
    assert set(imports_of(ast.parse(source), ("attrib", "view"))) == found
