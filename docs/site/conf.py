"""How Sphinx makes the site from the pages that make.py lays out. Nothing in it comes from the network."""

import ast
import inspect
import re
import sys
import textwrap
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import attrib

project = "attrib"
copyright = "the authors of attrib"
release = version = attrib.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4  # as GitHub names them, where these pages are read too
highlight_language = "text"
smartquotes = False  # quotes are often code

autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
suppress_warnings = ["ref.python"]  # the names of axes in shapes are taken for references, of which some could mean several things
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "attrib"
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False

MARKED = re.compile(r"^[ \t]*(?:>>>|\.\.\.) .*$|`([^`]+)`", re.MULTILINE)
PAGE = re.compile(r"docs/([\w-]+)\.md")


def in_rest(text: str) -> str:
    """A docstring, which is plain text with `code` and doctests, as reST: code stays code, signs stay signs, a page of docs/ is a link."""
    parts, end = [], 0
    for found in MARKED.finditer(text):
        parts.append(_plain(text[end : found.start()]))
        end = found.end()
        if found[1] is None:
            parts.append(found[0])
        else:
            code = " ".join(found[1].split())
            parts.append(f"``{code}``" + ("\\ " if text[end : end + 1].isalnum() else ""))  # reST ends code before a space or a sign alone
    return "".join((*parts, _plain(text[end:])))


def _plain(text: str) -> str:
    return PAGE.sub(r":doc:`/docs/\1`", re.sub(r"([\\*|]|(?<=\w)_\b)", r"\\\1", text))


def docstring(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Docstrings as reST, before napoleon reads their sections."""
    if lines and lines[0].startswith("Alias for field number"):  # what Python says of a field of which its author said nothing
        lines.clear()
    lines[:] = in_rest("\n".join(lines)).splitlines()


def attribute(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """What is said of a field, which napoleon would cut at its first colon, taking what stands before for a type."""
    if what in ("attribute", "data"):
        said[name] = [*lines]


def whole_attribute(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """That again, after napoleon."""
    if name in said:
        lines[:] = said.pop(name)


said: dict[str, list[str]] = {}


def signature(app: Sphinx, what: str, name: str, found: Any, options: Any, shown: str | None, returned: str | None) -> Any:
    """A signature as its author wrote it: with the names of types and the shapes, and not what they come to."""
    function = inspect.unwrap(found)
    if not inspect.isfunction(function):
        return None
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, SyntaxError):  # made by a library, without source of its own
        return None
    if not isinstance(node, ast.FunctionDef):
        return None
    every = node.args.posonlyargs or node.args.args
    if every and every[0].arg in ("self", "cls"):
        del every[0]
    return f"({ast.unparse(node.args)})", ast.unparse(node.returns) if node.returns else None


def setup(app: Sphinx) -> None:
    """Docstrings before napoleon, whose priority is 500. A function with overloads is shown once, as it is defined."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("attrib.") and "@overload" in inspect.getsource(module):
            analyzer = ModuleAnalyzer.for_module(name)
            analyzer.analyze()
            analyzer.overloads.clear()
    app.connect("autodoc-process-docstring", docstring, priority=400)
    app.connect("autodoc-process-docstring", attribute, priority=450)
    app.connect("autodoc-process-docstring", whole_attribute, priority=550)
    app.connect("autodoc-process-signature", signature)
