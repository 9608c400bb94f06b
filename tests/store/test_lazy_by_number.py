"""`lazy` and `strings` go by the prompt's number, of a file as of a folder; `graphs[...]` of a file goes by place."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attrib
from attrib.core.types import InputError
from attrib.store import GraphCollection
from attrib.store.graphs import Graphs, save_graphs
from tests.support.graphs import random_graph

NUMBERS = (7, 2, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of three graphs that go by numbers, each of which a token tells apart."""
    made = tmp_path_factory.mktemp("numbered")
    graphs = [replace(random_graph(n), strings=(f"prompt {n}", *random_graph(n).strings[1:])) for n in NUMBERS]
    save_graphs(made / "graphs.h5", graphs, numbers=torch.tensor(NUMBERS))
    return made


@pytest.mark.parametrize("is_folder", [False, True])
def test_one_number_means_one_prompt_of_a_file_and_of_a_folder(folder: Path, is_folder: bool) -> None:
    with attrib.open_graphs(folder if is_folder else folder / "graphs.h5") as graphs:
        assert isinstance(graphs, GraphCollection if is_folder else Graphs)
        for number in NUMBERS:
            assert graphs.lazy(number).strings == graphs.strings(number) == graphs.lazy(number).whole().strings
            assert graphs.strings(number)[0] == f"prompt {number}"
        for absent in (0, 3, -4, 1 << 70):
            with pytest.raises(InputError, match=f"prompt: {absent} is not among the 3 prompts .* \\(numbers 2, 7, 40\\)"):
                graphs.lazy(absent)
        assert [each.strings[0] for each in graphs] == [f"prompt {n}" for n in (sorted(NUMBERS) if is_folder else NUMBERS)]
        with pytest.raises(InputError, match="graphs: 3 is"):
            graphs[3]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_pruned_file_keeps_numbers_with_their_graphs(folder: Path, tmp_path: Path, is_folder: bool) -> None:
    given, out = folder if is_folder else folder / "graphs.h5", tmp_path / "pruned.h5"
    from attrib.cli.graph import prune, show

    prune(given, out, 0.8, 0.98, False)
    with attrib.open_graphs(out) as pruned, attrib.open_graphs(given) as whole:
        assert sorted(pruned.numbers.tolist()) == sorted(NUMBERS)
        for number in NUMBERS:
            assert pruned.strings(number) == whole.strings(number)
    show(out, -1, 2)
