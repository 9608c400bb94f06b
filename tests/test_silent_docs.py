"""The README and the docs do what they say: their Python runs, their commands are commands, their names are there."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import attrib
from attrib.cli import main as cli
from attrib.jobs.engines import choose as choosing
from attrib.runs import again, spec
from tests.support.job_cases import here
from tests.support.root import ROOT

PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PYTHON = {name: code for name, text in PAGES.items() if (code := [body for kind, body in FENCED.findall(text) if kind == "python"])}


def commands_of(block: str) -> list[list[str]]:
    """The words of every `attrib ...` of a block, without remarks and ellipses."""
    lines = block.replace("\\\n", " ").splitlines()
    split = (shlex.split(line, comments=True) for line in lines if line.startswith("attrib "))
    return [[word for word in words if word != "..."] for words in split]


BLOCKS = [(name, body) for name, text in PAGES.items() for kind, body in FENCED.findall(text) if kind in ("", "bash", "sh")]
COMMANDS = [(name, words) for name, body in BLOCKS for words in commands_of(body)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, smollm2_folder: Path) -> Iterator[Callable[[str], str]]:
    """The folder in which the README's commands of a corpus were run one after another; what each printed, by its first words.

    The docs' Python finds there what it reads: `JOB`; `job`, shards of one block; and `shard.h5`, one of JOB's.
    """
    folder, before = tmp_path_factory.mktemp("corpus"), Path.cwd()
    shutil.copytree(ROOT / "examples", folder / "examples")
    short = [
        "city",
        "end",
        "top",
        "heart",
        "people",
        "king",
        "side",
        "name",
        "day",
        "start",
        "edge",
        "rest",
    ]  # sooner done than the example
    (folder / "examples" / "prompts.txt").write_text("".join(f"The {word} of\n" for word in short))
    os.chdir(folder)
    [block] = [body for name, body in BLOCKS if name == "README.md" and "attrib job init" in body]
    printed = {" ".join(words[1:3]): typed(words) for words in commands_of(block)}
    with attrib.open(folder / "JOB") as opened:
        (folder / "job").mkdir()
        attrib.save(folder / "job" / "0.h5", opened.edges("latent_to_latent"))
        largest = max((folder / "JOB" / "shards").glob("*.h5"), key=lambda path: len(attrib.store.open_shard(path).prompts))
    shutil.copy(largest, folder / "shard.h5")
    yield printed.__getitem__
    os.chdir(before)


LOADED: dict[str, Any] = {}


def loaded_once(patched: pytest.MonkeyPatch) -> None:
    """What the commands and several pages load by name is loaded, and its weights hashed, once for all of them."""
    for load in (attrib.load_model, attrib.load_dictionary):
        once = LOADED.setdefault(load.__name__, cache(load))
        for place in (attrib, spec, again):
            patched.setattr(place, load.__name__, once)


def typed(words: list[str]) -> str:
    """What a command prints, in this process, which also does a job's shards."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(out):
        loaded_once(patched)
        patched.setattr(sys, "argv", [*words])
        patched.setattr(choosing, "local", lambda job, shards, attempts, devices, timeout: here(job, shards, attempts))
        try:
            cli.main()
        except SystemExit as stop:
            if stop.code:
                raise AssertionError(f"{words} ended with {stop.code}") from stop
    return out.getvalue()


def test_the_commands_of_a_corpus_do_what_the_readme_says(corpus: Callable[[str], str]) -> None:
    assert corpus("job init").startswith("JOB: 12 prompts, ")
    assert corpus("job verify") == "JOB: all shards are there, and no fault in them\n"
    assert "12 prompts" in corpus("job run")
    assert corpus("rerun JOB").count(": the same") == 2
    assert re.search(r"\n[1-9]\d* sources of target 1599", corpus("stats top-parents"))
    assert any(Path("tables").iterdir())


LONG_PAGES = {
    f"{name}.md"
    for name in ("agreement", "evaluation", "explorer", "generation", "graph-heads", "graphs", "interventions", "methods", "tasks")
}
"""Pages whose code takes more than ten seconds, on the real model."""


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.long) if page in LONG_PAGES else page for page in PYTHON])
def test_the_python_of_a_page_runs(
    page: str, corpus: Callable[[str], str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From top to bottom, in one namespace; and it prints what stands beneath it as text."""
    loaded_once(monkeypatch)
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in PYTHON[page]:
        exec(compile(code, page, "exec"), names)
    printed = capsys.readouterr().out
    for kind, body in FENCED.findall(PAGES[page]):
        if kind == "text":
            assert body in printed
    if page == "reading.md":
        with attrib.open("job") as job:
            assert names["in_memory"].X.nnz == names["on_disk"].X[:].nnz == len(job.edges()) > 0
        names["on_disk"].file.close()
    if page == "README.md":
        with attrib.open("edges.h5") as result:
            edges = names["edges"]
            assert isinstance(edges, attrib.Edges)
            assert torch.equal(result.edges().attribution, edges.attribution)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(words)[:60] for _, words in COMMANDS])
def test_a_command_of_the_docs_is_one(page: str, words: list[str]) -> None:
    command, rest = found(words)
    command.make_context(words[0], rest)  # which parses, and runs nothing


def found(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command that words name, and the words behind."""
    command, rest = typer.main.get_command(cli.app), words[1:]
    while hasattr(command, "commands"):
        assert rest, f"{' '.join(words)} names no command"
        if command.name == "graph" and rest[0] not in command.commands:
            rest = ["build", *rest]  # a prompt in a command's place
        assert rest[0] in command.commands, f"{' '.join(words)}: no such command"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


INLINE = sorted({words for text in PAGES.values() for words in re.findall(r"`(attrib [a-z][^`\n]*)`", FENCED.sub("", text))})


@pytest.mark.parametrize("line", INLINE)
def test_a_command_within_a_sentence_has_its_options(line: str) -> None:
    if line.split()[1:] in (["job"], ["stats"]):
        return
    command, rest = found(shlex.split(line))
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in rest if word.startswith("--")} <= options


def test_every_command_is_in_the_docs() -> None:
    """The other way round: what can be typed is written about."""
    told = {words[1] for _, words in COMMANDS} | {line.split()[1] for line in INLINE}
    assert {*typer.main.get_command(cli.app).commands} <= told


NAMES = sorted({name for text in PAGES.values() for name in re.findall(r"(?<![\w./-])attrib(?:\.[A-Za-z_]\w*)+", text)})
RESOLVE = """
import importlib, sys, attrib
for name in sys.argv[1:]:
    _, first, *rest = name.split(".")
    found = attrib
    try:
        # the first part must be public, whatever an earlier name brought with it
        assert first in dir(attrib), first
        for part in (first, *rest):
            found = getattr(found, part)
    except (AssertionError, AttributeError):
        print(name)
"""


def test_every_name_of_the_docs_is_there_in_a_fresh_interpreter() -> None:
    modules = {name for text in PAGES.values() for name in re.findall(r"(?:from|import|-m) (attrib(?:\.\w+)+)", text)}
    asked = [name for name in NAMES if name not in modules]
    assert len(asked) > 20
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, *asked, "attrib.nonsense"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["attrib.nonsense"]
    for name in modules:
        __import__(name)


def test_the_numbers_of_dictionaries_are_those_that_are_there() -> None:
    pattern = r"before layers 6 and 9 \(k = (\d+)\), 18 and\n27 \(k = (\d+)\): (\d+) latents, and (\d+) at layers 18 and 27"
    said = re.search(pattern, PAGES["README.md"])
    assert said is not None
    early, late, wide, narrow = map(int, said.groups())
    saes = {layer: attrib.load_dictionary(f"smollm2-135m/blocks.{layer}.hook_resid_pre") for layer in (6, 9, 18, 27)}
    there = {layer: (sae.config.k, sae.d_sae) for layer, sae in saes.items()}
    assert there == {6: (early, wide), 9: (early, wide), 18: (late, narrow), 27: (late, narrow)}


def _anchors(text: str) -> set[str]:
    """Where links may lead on a page: its headings, as they are spelled in addresses."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = ROOT if page == "README.md" else ROOT / "docs"
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", FENCED.sub("", PAGES[page])):
        path, _, anchor = link.partition("#")
        found = here / path if path else here / page
        assert found.exists(), link
        assert not anchor or anchor in _anchors(found.read_text()), link
