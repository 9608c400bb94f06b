"""Who may import whom: a module imports only from those above it, and heavy packages stay where they are used."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "attrib"
KERNELS = ROOT / "kernels" / "attrib_kernels"

ORDER = [
    "warned", "shown", "version", "types", "optional", "room", "devices", "names", "weights", "finite", "positions", "labels", "tokenizer",
    "sparse",
    "edges", "ops", "fingerprints", "model",
    "tokens", "precision", "adjoint", "attention", "cone", "primal", "seeded", "dictionary", "sources", "between", "sweep", "meet",
    "descent", "through", "segments", "capturing", "heads", "composing", "fit", "replacement", "cuts", "reading", "paths", "task", "cost",
    "opening_cost", "through_cost", "memory", "packing", "result", "jacobian", "needs", "attribute", "forecast", "store", "stats",
    "export", "graph", "causal", "asked", "work", "prompts", "run", "rerun", "jobs", "view", "commands", "cli",
]  # fmt: skip
"""The modules of attrib, as docs and design list them: each may import those before it."""

NARROWER = {
    "edges": {"types", "sparse", "room"},
    "sources": {"model", "dictionary", "types", "devices", "weights", "tokens", "labels", "tokenizer"},
    "warned": set(),
    "shown": set(),
    "room": {"types"},
    "fingerprints": set(),
}
"""Modules that may import less than all those before them."""

FOREIGN = {
    "h5py": {"store"},
    "hdf5plugin": {"store"},
    "transformer_lens": {"sources"},
    "sae_lens": {"sources"},
    "transformers": {"sources"},
    "attrib_kernels": {"ops"},
    "zarr": {"export"},
    "anndata": {"export"},
    "ray": {"jobs"},
}
"""Packages that only these modules import, at the top of a file or inside a function."""


def unit_of(file: Path) -> str:
    """The module or subpackage of attrib that a file belongs to; "attrib" for the package's own face."""
    first = file.relative_to(PACKAGE).parts[0].split(".")[0]
    return "attrib" if first == "__init__" else first


def imports_of(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names of everything imported anywhere in a file of `package`, inside functions and by import_module("...") as well."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = [*package[: len(package) - level + 1]] if level else []
                base = ".".join([*above, *([module] if module else [])])
                # `from attrib import model` imports attrib.model: each name may be a module of its own
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def package_of(file: Path, root: Path) -> tuple[str, ...]:
    return file.relative_to(root.parent).parts[:-1]


FILES = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_those_above_it(file: Path):
    unit = unit_of(file)
    imported = [name.split(".") for name in imports_of(ast.parse(file.read_text()), package_of(file, PACKAGE))]
    ours = {parts[1] for parts in imported if parts[0] == "attrib" and len(parts) > 1} - {unit}
    if unit == "attrib":
        assert ours <= {*ORDER}, f"{file.relative_to(ROOT)} imports {ours - {*ORDER}}, which ORDER does not know"
        return
    assert unit in ORDER, f"attrib/{unit} has no place yet: put it into ORDER, after all that it imports"
    allowed = NARROWER.get(unit, {*ORDER[: ORDER.index(unit)]})
    assert ours <= allowed, f"{file.relative_to(ROOT)} imports {sorted(ours - allowed)}; it may import {sorted(allowed)}"


@pytest.mark.parametrize("package", FOREIGN)
def test_heavy_packages_have_one_door(package: str):
    importers = {
        unit_of(file)
        for file in FILES
        for name in imports_of(ast.parse(file.read_text()), package_of(file, PACKAGE))
        if name.split(".")[0] == package
    }
    assert importers <= FOREIGN[package], f"{package} is imported by {sorted(importers)}; only {sorted(FOREIGN[package])} may"


def test_adapters_are_imported_on_use():
    """No adapter's package, and no adapter, is imported at the top of a file outside itself."""
    heavy = {package for package, units in FOREIGN.items() if units == {"sources"}}
    for file in FILES:
        body = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {name for node in body for name in imports_of(node, package_of(file, PACKAGE))}
        assert not {name.split(".")[0] for name in names} & heavy, f"{file.relative_to(ROOT)} imports {names} when it is itself imported"


def test_kernels_stand_alone():
    for file in sorted(KERNELS.rglob("*.py")):
        names = {name.split(".")[0] for name in imports_of(ast.parse(file.read_text()), package_of(file, KERNELS))}
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
        assert names
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
        ("from attrib import model", {"attrib.model"}),
        ("from . import model", {"attrib.view.model"}),
        ("from ..model import embed", {"attrib.model.embed"}),
        ("import importlib\nimportlib.import_module('transformers')", {"importlib", "transformers"}),
    ],
)
def test_every_form_of_import_is_seen(source: str, found: set[str]):
    assert set(imports_of(ast.parse(source), ("attrib", "view"))) == found
