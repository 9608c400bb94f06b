"""`--prompt` is a prompt's number in its data set, of a single file too whose numbers are not its places."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.store.graphs import save_graphs
from attrib.store.numbers import told
from attrib.view.explorer.server import Explorer
from tests.support.graphs import random_graph
from tests.support.typed import Command

NUMBERS = (7, 2, 1)
"""Each of which is no place, or the place of another."""


def marked(number: int) -> Any:
    """A graph that says its prompt's number in its first token."""
    found = random_graph(number)
    return replace(found, strings=(f"prompt{number}", *found.strings[1:]))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_graphs(tmp_path_factory.mktemp("numbered") / "g.h5", map(marked, NUMBERS), numbers=torch.tensor(NUMBERS))


@pytest.mark.parametrize(("given", "meant"), [((), 7), (("--prompt", 1), 1), (("--prompt", 2), 2), (("--prompt", -1), 1)])
def test_a_page_is_of_the_prompt_of_this_number(file: Path, tmp_path: Path, command: Command, given: tuple[Any, ...], meant: int) -> None:
    ran = command("view", file, *given, "--html", tmp_path / "page.html")
    assert ran.status == 0, ran.err
    [title] = re.findall("<title>(.*?)</title>", (tmp_path / "page.html").read_text())
    assert title.startswith(f"prompt{meant} ")


def test_two_prompts_of_a_file_are_named_by_their_numbers(file: Path, tmp_path: Path, command: Command) -> None:
    ran = command("view", file, "--beside-prompt", 1, "--html", tmp_path / "page.html")
    assert ran.status == 0, ran.err
    assert "<title>prompt 7 | prompt 1" in (tmp_path / "page.html").read_text()


def test_every_command_of_graphs_goes_by_the_number(file: Path, tmp_path: Path, command: Command) -> None:
    graph = marked(1)
    [node] = graph.nodes.of_kind("target").tolist()
    strongest = attrib.graph.strongest(graph, node, 1)[0].text(graph.nodes)
    for option in ("--prompt", "--graph"):
        assert repr(graph) in command("graph", "show", file, option, 1).out
    assert strongest in command("graph", "paths", file, "--prompt", 1, "--into", node, "--top", 1).out
    assert strongest.split()[0] in command("graph", "tree", file, "--prompt", 1, "--into", node, "--top", 1).out
    same = command("graph", "diff", file, file, "--prompt", 1, "--other", 1).out
    assert repr(attrib.graph.compare(graph, graph)) in same
    exported = command("graph", "export", file, tmp_path / "one.json", "--to", "neuronpedia", "--prompt", 1)
    assert exported.status == 0, exported.err
    assert attrib.graph.from_neuronpedia(tmp_path / "one.json").strings == graph.strings
    pruned = command("graph", "prune", file, tmp_path / "pruned.h5")
    assert [line.split(":")[0] for line in pruned.out.splitlines()] == [str(number) for number in NUMBERS]


@pytest.mark.parametrize("typed", [("view", "--html", "OUT"), ("graph", "show"), ("graph", "tree")])
@pytest.mark.parametrize("absent", [0, 3, -4, 1 << 70])
def test_a_number_that_is_not_there_is_told_with_those_that_are(
    file: Path, tmp_path: Path, command: Command, typed: tuple[str, ...], absent: int
) -> None:
    words = [tmp_path / "page.html" if word == "OUT" else word for word in typed]
    ran = command(*words, file, "--prompt", absent)
    assert ran.status == 1
    assert f"prompt: {absent} is not among the 3 prompts of {file} (numbers 1, 2, 7)" in ran.err
    assert not (tmp_path / "page.html").exists()


def test_a_server_lists_and_shows_by_number(file: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    found = dict[int, tuple[str, str]]()

    class Seen(Explorer):
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            found.update({number: (self.title_of(number), self.page_of(number)) for number in self.numbers})

    monkeypatch.setattr("attrib.view.explorer.server.Explorer", Seen)
    ran = command("serve", file)
    assert ran.status == 0, ran.err
    for number in NUMBERS:
        assert found[number][0].startswith(f"prompt{number} ")
        assert f"<title>prompt{number} " in found[number][1]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([], "none"),
        ([4], "number 4"),
        ([3, 2, 4], "numbers 2 to 4"),
        ([9, 0, 4], "numbers 0, 4, 9"),
        (list(range(0, 90, 2)), "numbers 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, and more up to 88"),
    ],
)
def test_numbers_are_told_shortly(numbers: list[int], said: str) -> None:
    assert told(numbers) == said
