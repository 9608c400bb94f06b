"""How Sphinx makes the site from the pages that make.py lays out. Nothing in it comes from the network."""

import ast
import inspect
import re
import textwrap
from typing import Any

from sphinx.application import Sphinx

import attrib

project = "attrib"
copyright = "the authors of attrib"
release = version = attrib.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4  # as GitHub names them, where these pages are read too
highlight_language = "text"

autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "attrib"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False

CODE = re.compile(r"`([^`]+)`")
PAGE = re.compile(r"docs/([\w-]+)\.md")


def in_rest(line: str) -> str:
    """A line of a docstring, which is plain text with `code`, as reST: code stays code, signs stay signs, a page of docs/ is a link."""
    if line.lstrip().startswith((">>> ", "... ")):
        return line
    parts = CODE.split(line)  # text and code in turn
    text = [PAGE.sub(r":doc:`/docs/\1`", re.sub(r"([\\*|]|(?<=\w)_\b)", r"\\\1", part)) for part in parts[::2]]
    code = [f"``{part}``" for part in parts[1::2]]
    # reST ends code only before a space or a sign
    joined = [text[0], *(between for pair in zip(code, text[1:], strict=True) for between in pair)]
    return re.sub(r"(``[^`]+``)(?=\w)", r"\1\\ ", "".join(joined))


def docstring(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Docstrings as reST, before napoleon reads their sections."""
    lines[:] = map(in_rest, lines)


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
    """Before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", docstring, priority=400)
    app.connect("autodoc-process-signature", signature)
