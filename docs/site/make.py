"""The documentation site: the README and docs/ as they are, the examples' own output, and the reference of every public name.

    python docs/site/make.py [--tiny]

writes `site/`, which a browser opens as files. Pages are laid out in `out/docs` as they lie in the repository, so that a link leads to the
same page here and there. Pictures of pages are taken anew (pictures.py). `--tiny` runs the examples on a random model, which takes
seconds, and leaves the pictures as they are. A warning of Sphinx is an error.
"""

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

SECTIONS: dict[str, str | list[str]] = {
    "Start": ["docs/guides/ten-minutes", "docs/guides/when-not", "docs/glossary"],
    "Coming from": [
        "docs/guides/from-transformer-lens", "docs/guides/from-circuit-tracer", "docs/guides/from-nnsight", "docs/from-the-notebooks",
        "docs/from-transcoder-circuits",
    ],
    "Notebooks, run": "notebooks",
    "Attributions": ["docs/prompts", "docs/models", "docs/dictionaries", "docs/methods", "docs/cuts", "docs/compose"],
    "Graphs": [
        "docs/graphs", "docs/graphs-scores", "docs/graph-paths", "docs/graph-heads", "docs/graph-files", "docs/weights", "docs/explorer",
    ],
    "What a change does": ["docs/interventions", "docs/generation", "docs/agreement", "docs/faithfulness", "docs/tasks"],
    "Latents": ["docs/latents", "docs/evaluation", "docs/training", "attrib/shipped/smollm2-135m/README"],
    "Many prompts": ["docs/jobs", "docs/clusters", "docs/reading", "docs/statistics", "docs/format", "docs/scale"],
    "How it works": ["docs/engine", "docs/architecture", "docs/reliability", "bench/README"],
    "Reference": "api",
    "The project": ["CONTRIBUTING", "CHANGELOG"],
}  # fmt: skip
"""The site's table of contents. A page of docs/ that no section names stands under "More"."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Lay the pages out and have Sphinx build them."""
    if set(arguments) - {"--tiny"}:
        raise SystemExit("usage: python docs/site/make.py [--tiny]")
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(HERE)]
    import notebooks
    import pictures
    import plotly.offline
    import reference
    from sphinx.cmd.build import main as sphinx

    made = ROOT / "out" / "docs"
    source = made / "source"
    shutil.rmtree(source, ignore_errors=True)
    pages = lay_out(source)
    if cannot := "pictures are of the real model" if arguments else pictures.can_be_taken():
        print(f"pictures of pages are those of docs/pictures: {cannot}")
    else:
        pictures.take(source / "docs" / "pictures")
    lists = {
        "notebooks": [f"notebooks/{name}" for name in notebooks.write(ROOT, source / "notebooks", made / "run", is_tiny=bool(arguments))],
        "api": [f"api/{name}" for name in reference.write(ROOT, source / "api")],
    }
    sections = {title: lists[found] if isinstance(found, str) else found for title, found in SECTIONS.items()}
    named = {name for found in sections.values() for name in found}
    more = [name for name in pages if name not in named and name != "index"]
    with (source / "index.md").open("a") as index:
        index.write(contents(sections | ({"More": more} if more else {})))
    (source / "_static").mkdir()
    shutil.copy(HERE / "site.css", source / "_static")
    (source / "_static" / "plotly.min.js").write_text(plotly.offline.get_plotlyjs())
    shutil.rmtree(ROOT / "site", ignore_errors=True)
    options = ["-b", "html", "-c", str(HERE), "-d", str(made / "read"), "--fail-on-warning", "--keep-going", "--quiet", "-j", "auto"]
    return sphinx([*options, "-D", f"html_static_path={source / '_static'}", str(source), str(ROOT / "site")])


def lay_out(source: Path) -> list[str]:
    """Copy the pages, and all that they link to, to where they lie in the repository; the names of the pages."""
    from figures import drawn

    named = [ROOT / f"{name}.md" for found in SECTIONS.values() if isinstance(found, list) for name in found]
    pages = dict.fromkeys([ROOT / "README.md", *named, *sorted((ROOT / "docs").rglob("*.md"))])
    for page in pages:
        there = source / _name(page)
        there.parent.mkdir(parents=True, exist_ok=True)
        parts = FENCE.split(page.read_text())
        parts[::2] = [LINK.sub(lambda link, page=page: _link(link, page, pages, source), part) for part in parts[::2]]
        there.write_text(drawn("".join(parts)))
    return [str(_name(page).with_suffix("")) for page in pages]


def _name(page: Path) -> Path:
    """Where a page lies in the site: where it lies in the repository, but for the first."""
    return Path("index.md") if page == ROOT / "README.md" else page.relative_to(ROOT)


def _link(link: re.Match[str], page: Path, pages: dict[Path, None], source: Path) -> str:
    """A link as the site has it: to a page, or to a copy of another file; a folder is named and not linked."""
    sign, text, to, anchor = link.groups()
    found = (page.parent / to).resolve()
    if found == ROOT / "README.md":
        return f"{sign}[{text}]({'../' * len(page.relative_to(ROOT).parts[:-1])}index.md{anchor or ''})"
    if found.is_dir():
        return text
    if found.is_file() and found not in pages and found.is_relative_to(ROOT):
        copied = source / found.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(found, copied)
    return link[0]


def contents(sections: Mapping[str, Sequence[str]]) -> str:
    """The table of contents at the site's left."""
    return "".join(f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(names) + "\n```\n" for title, names in sections.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
