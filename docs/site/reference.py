"""The pages of the reference: every public name of every package, of which the docstrings are read when the site is built."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.pycode import ModuleAnalyzer

ORDER = (
    "attrib", "attrib.graph", "attrib.causal", "attrib.causal.tasks", "attrib.latents", "attrib.view", "attrib.store", "attrib.stats",
    "attrib.export", "attrib.training", "attrib.adapters", "attrib.paths", "attrib.dictionaries", "attrib.models", "attrib.core",
)  # fmt: skip
"""From what most people call to what few do; packages that are not named come last."""


def packages(root: Path) -> list[str]:
    """All whose names are public: those with a stub, and those that are named above."""
    found = {".".join(path.parent.relative_to(root).parts) for path in (root / "attrib").rglob("__init__.pyi")}
    return sorted(found | {*ORDER}, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def page(package: str) -> str:
    """The page of a package, in reST: its first lines, then each name."""
    module = importlib.import_module(package)
    names = sorted(module.__all__, key=lambda name: (inspect.ismodule(getattr(module, name)), name.lower()))
    parts = [f"{package}\n{'=' * len(package)}\n", f".. automodule:: {package}\n"]
    for name in names:
        found = getattr(module, name)
        if inspect.ismodule(found):
            if not hasattr(found, "__path__"):  # a package has a page of its own
                title = f"{found.__name__}\n{'-' * len(found.__name__)}\n"  # of its names the public ones are indexed on other pages
                parts.append(f"{title}\n.. automodule:: {found.__name__}\n   :members:\n   :no-index:\n")
        else:
            parts.append("\n".join(_entry(package, name, found)) + "\n")
    return "\n".join(parts)


def _entry(package: str, name: str, found: Any) -> Iterator[str]:
    """The directive of one name."""
    if inspect.isclass(found):
        yield f".. {'autoexception' if issubclass(found, BaseException) else 'autoclass'}:: {package}.{name}"
        yield "   :members:"
    elif callable(found) and hasattr(found, "__name__"):
        yield f".. autofunction:: {package}.{name}"
    else:
        yield f".. py:data:: {name}"
        yield f"   :module: {package}"
        value = repr(found)
        yield f"\n   {_told(package, name)}\n\n   ::\n\n      {value if len(value) < 200 else value[:200] + ' …'}\n"


def _told(package: str, name: str) -> str:
    """What stands under a constant in the module that it comes from."""
    module = Path(importlib.import_module(package).__file__ or "")
    stub = module.with_suffix(".pyi")
    for node in ast.walk(ast.parse((stub if stub.exists() else module).read_text())):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            analyzer = ModuleAnalyzer.for_module(f"{package}.{node.module}" if node.level else str(node.module))
            analyzer.analyze()
            return " ".join(" ".join(analyzer.attr_docs.get(("", name), [])).split()).replace("`", "``")
    return ""


def write(root: Path, folder: Path) -> list[str]:
    """Write all pages; their names, in order."""
    folder.mkdir(parents=True)
    for package in packages(root):
        (folder / f"{package}.rst").write_text(page(package))
    return packages(root)
