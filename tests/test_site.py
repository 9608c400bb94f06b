"""What the documentation site is laid out from: links, charts, docstrings and the list of public names. `make docs` builds all of it."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.root import ROOT


@pytest.fixture(scope="module", autouse=True)
def beside() -> Iterator[None]:
    """The site's modules lie beside the pages and import each other by name."""
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    yield
    sys.path.remove(str(ROOT / "docs" / "site"))


def module(name: str) -> Any:
    return importlib.import_module(name)


def test_pages_lie_as_in_the_repository_and_their_links_lead_somewhere(tmp_path: Path) -> None:
    make = module("make")
    pages = make.lay_out(tmp_path)
    assert {"index", "docs/graphs", "docs/guides/ten-minutes", "CONTRIBUTING"} <= {*pages}
    links = 0
    for page in pages:
        for _, _, to, _ in make.LINK.findall("".join(make.FENCE.split((tmp_path / f"{page}.md").read_text())[::2])):
            assert (tmp_path / page).parent.joinpath(to).exists(), (page, to)
            links += 1
    assert links > 150
    assert (tmp_path / "examples" / "workshop.py").read_bytes() == (ROOT / "examples" / "workshop.py").read_bytes()


def test_every_page_of_a_section_is_there() -> None:
    named = [name for found in module("make").SECTIONS.values() if isinstance(found, list) for name in found]
    assert [name for name in named if not (ROOT / f"{name}.md").exists()] == []
    assert len(named) == len({*named})


def test_a_chart_is_drawn_with_each_box_once_and_no_box_on_another() -> None:
    figures = module("figures")
    drawn = figures.drawn("before\n```mermaid\nflowchart TD\n    a --> b\n    a --> c\n    b --> d\n    c --> d\n    a --> d\n```\nafter\n")
    assert drawn.startswith("before\n<svg")
    assert drawn.endswith("</svg>\nafter\n")
    assert [drawn.count(f">{name}</text>") for name in "abcd"] == [1] * 4
    assert figures._floors([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("a", "d")]) == [["d"], ["b", "c"], ["a"]]
    with pytest.raises(ValueError, match="more than plain arrows"):
        figures.drawn('```mermaid\nflowchart TD\n    a["x"] --> b\n```\n')


def test_the_kept_picture_is_what_the_command_draws() -> None:
    assert (ROOT / "docs" / "pictures" / "ways.svg").read_text() == module("figures").ways()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("What `x`s are, |a| * b, and W_ of docs/cuts.md.", r"What ``x``\ s are, \|a\| \* b, and W\_ of :doc:`/docs/cuts`."),
        ("    >>> a | b", "    >>> a | b"),
        ("`a|b` stays", "``a|b`` stays"),
        ("of `a +\n    b`, c", "of ``a + b``, c"),
    ],
)
def test_a_docstring_is_plain_text_in_rest(line: str, wanted: str) -> None:
    assert module("conf").in_rest(line) == wanted


def test_every_public_name_has_its_place_in_the_reference() -> None:
    reference = module("reference")
    packages = reference.packages(ROOT)
    stubs = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("attrib/**/__init__.pyi")}
    assert stubs <= {*packages}
    assert packages[0] == "attrib"
    for package in stubs - {"attrib.core", "attrib.models", "attrib.dictionaries", "attrib.paths"}:  # of modules, which have sections
        page, found = reference.page(package), importlib.import_module(package)
        names = [name for name in found.__all__ if type(getattr(found, name)).__name__ != "module"]
        assert [name for name in names if f":: {package}.{name}\n" not in page and f":: {name}\n   :module: {package}\n" not in page] == []
