"""Graphs that are built into a file: the same bytes as by way of memory, nothing left by what fails, and rows that are read one by one."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.files import unnamed
from attrib.core.scratch import Scratch
from attrib.core.types import BudgetError, Dense, FormatError, InputError, Mass, NotFiniteError, Threshold, TopK
from attrib.graph import LazyGraph, influence, prune, scores
from attrib.graph.selected import Selected
from attrib.store.graphs import save_graphs
from tests.store.test_graphs import same
from tests.support.builders import build, prompt
from tests.support.covering import each_pair
from tests.support.cut_cases import SETS, ours
from tests.support.graphs import random_graph

PROMPTS = [prompt(6, seed=2), prompt(3, seed=3)]


def parts(dtype: torch.dtype = torch.float32, which: str = "transcoders") -> tuple[Any, list[Any]]:
    model = build("gpt2", dtype)
    return model, ours(SETS[which](model))


@pytest.mark.few
@each_pair(
    keep=[Dense(), TopK(3), Mass(0.8), Threshold(0.1), Threshold(1e9)],
    compression=[None, "gzip"],
    budget=["1GiB", "2MiB"],
    dtype=[torch.float32, torch.float64],
    max_nodes=[None, 20],
)
def test_the_file_is_that_of_graphs_in_memory_byte_by_byte(
    keep: Any, compression: Any, budget: str, dtype: torch.dtype, max_nodes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attrib.graph.graph.AT_ONCE", 500)
    monkeypatch.setattr("attrib.store.columns.CHUNK", 1 << 12)  # so that blocks and chunks end at other places
    model, dictionaries = parts(dtype)
    options = {"keep": keep, "budget": budget, "max_nodes": max_nodes}
    graphs = attrib.graph.build(model, dictionaries, PROMPTS, **options)
    want = attrib.save(tmp_path / "want.h5", graphs, compression=compression)
    got = attrib.build_graphs(tmp_path / "got.h5", model, dictionaries, PROMPTS, compression=compression, **options)
    assert got.read_bytes() == want.read_bytes()
    with attrib.open_graphs(got) as read:
        assert all(same(a, b) for a, b in zip(read, graphs, strict=True))
    assert sorted(os.listdir(tmp_path)) == ["got.h5", "want.h5"]


def test_a_column_is_laid_out_as_h5py_lays_out_the_whole_of_it(tmp_path: Path) -> None:
    graph = random_graph(5)
    with h5py.File(attrib.save(tmp_path / "a.h5", graph, compression="gzip")) as file:
        edges = file["graphs/0/edges"]
        assert np.array_equal(edges["indices"], graph.indices.numpy())
        assert (edges["indices"].dtype, edges["data"].dtype) == (np.int32, np.float64)
        assert edges["data"].chunks == (len(graph),)
        assert np.array_equal(edges["data"], graph.weight.numpy())


class Unsound(Selected):
    """The first rows that come are infinite."""

    def add(self, rows: Tensor, weight: Tensor, node: Tensor, keep: Any) -> Tensor:
        return super().add(rows, weight if self.rows else weight * torch.inf, node, keep)


@pytest.mark.few
@pytest.mark.parametrize("which", ["scratch", "file", "interrupt", "nan"])
def test_what_fails_leaves_nothing(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, dictionaries = parts()
    (tmp_path / "out.h5").write_text("of before")
    full, done, plain = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), list[int](), Scratch.append
    errors: dict[str, BaseException] = {"scratch": full, "interrupt": KeyboardInterrupt()}

    def append(self: Scratch, piece: Tensor) -> int:
        done.append(len(piece))
        if len(done) == 4 and which in errors:
            raise errors[which]
        return plain(self, piece)

    def write(self: Any, data: Any) -> int:
        self._fault = full
        return memoryview(data).nbytes

    monkeypatch.setattr(Scratch, "append", append)
    if which == "file":
        monkeypatch.setattr("attrib.store.writing._Sink.write", write)
    if which == "nan":
        monkeypatch.setattr("attrib.graph.rows.Selected", Unsound)
    error, match = {
        "scratch": (OSError, "No space left"), "file": (OSError, "No space left"), "interrupt": (KeyboardInterrupt, None),
        "nan": (NotFiniteError, "the gradients of a graph"),
    }[which]  # fmt: skip
    with pytest.raises(error, match=match):
        attrib.build_graphs(tmp_path / "out.h5", model, dictionaries, PROMPTS, overwrite=True)
    assert len(done) >= 4
    assert os.listdir(tmp_path) == ["out.h5"]
    assert (tmp_path / "out.h5").read_text() == "of before"


def test_a_disk_without_room_is_refused_with_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, dictionaries = parts()
    usage, swept = type("Usage", (), {"free": 10_000}), list[int]()
    monkeypatch.setattr("attrib.graph.building.disk_usage", lambda folder: usage)
    monkeypatch.setattr("attrib.core.scratch.shutil.disk_usage", lambda folder: usage)
    monkeypatch.setattr("attrib.engine.bundle.found_rows", lambda *_: swept.append(1) or iter(()))
    with pytest.raises(BudgetError, match=r"keep: Dense\(\) gives edges that take up to [\d.]+ [kM]B of disk .* has 10\.0 kB left"):
        attrib.build_graphs(tmp_path / "a.h5", model, dictionaries, PROMPTS, keep=Dense())
    assert swept == [], "refused before anything is computed"
    monkeypatch.undo()
    monkeypatch.setattr("attrib.core.scratch.shutil.disk_usage", lambda folder: usage)
    monkeypatch.setattr("attrib.core.scratch.LOOK", 1)
    with pytest.raises(BudgetError, match=r"keep: the edges so far take [\d.]+ [kM]B, and need [\d.]+ [kM]B of disk"):
        attrib.build_graphs(tmp_path / "a.h5", model, dictionaries, PROMPTS, keep=Mass(0.9))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("max_nodes", [None, 10])
def test_memory_without_room_is_refused_where_memory_holds_edges(
    max_nodes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dictionaries = parts()
    monkeypatch.setattr("attrib.graph.building.free_memory", lambda: 10_000)
    asked: dict[str, Any] = {"keep": Dense(), "max_nodes": max_nodes}
    match = r"keep: Dense\(\) gives a result of up to [\d.]+ [kM]B for \d+ targets, and 10\.0 kB of memory are free"
    with pytest.raises(BudgetError, match=match):
        attrib.graph.build(model, dictionaries, PROMPTS, **asked)
    if max_nodes is None:
        attrib.build_graphs(tmp_path / "a.h5", model, dictionaries, PROMPTS, **asked)
    else:
        with pytest.raises(BudgetError, match=match):
            attrib.build_graphs(tmp_path / "a.h5", model, dictionaries, PROMPTS, **asked)


def test_arguments_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    model, dictionaries = parts()
    path = attrib.build_graphs(tmp_path / "a.h5", model, dictionaries, PROMPTS[:1])
    for wrong, match in (
        ({"path": path}, "exists already"),
        ({"path": tmp_path / "no" / "a.h5"}, "does not exist"),
        ({"compression": "rar"}, "compression: 'rar'"),
        ({"keep": TopK(0)}, "TopK"),
        ({"tokens": []}, "tokens"),
    ):
        asked: dict[str, Any] = {"path": tmp_path / "b.h5", "tokens": PROMPTS, **wrong}
        with pytest.raises(InputError, match=match):
            attrib.build_graphs(asked.pop("path"), model, dictionaries, asked.pop("tokens"), **asked)
    assert os.listdir(tmp_path) == ["a.h5"]


KILLED = """
import sys, time
import attrib
from attrib.graph.rows import GraphRows
from tests.store.test_built_graphs import PROMPTS, parts
plain = GraphRows.lazy
def lazy(*given):
    print("swept", flush=True)
    time.sleep(60)
GraphRows.lazy = lazy
attrib.build_graphs(sys.argv[1], *parts(), PROMPTS)
"""


@pytest.mark.long
def test_what_is_killed_leaves_nothing(tmp_path: Path) -> None:
    if (probe := unnamed(tmp_path / "probe")) is None:
        pytest.skip("this disk has no files without a name")
    os.close(probe)
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "a.h5"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "swept\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.listdir(tmp_path) == []


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("attrib.graph.graph.AT_ONCE", 40)
    return save_graphs(tmp_path / "graphs.h5", [random_graph(seed, layers=4) for seed in range(2)], numbers=torch.tensor([7, 3]))


@pytest.mark.parametrize("normalise", ["all", "kept"])
@pytest.mark.parametrize("without", [(), ("position", "bias")])
def test_rows_that_are_read_say_what_the_whole_says(stored: Path, normalise: str, without: Any) -> None:
    with attrib.open_graphs(stored) as graphs:
        whole, lazy = graphs[1], graphs.lazy(-1)
        assert isinstance(lazy, LazyGraph)
        assert repr(lazy) == f"Lazy{whole!r}"
        assert len([*lazy.blocks()]) > 5
        assert same(lazy.whole(), whole)
        assert same(lazy.rows(3, 9), whole.of_rows(torch.arange(3, 9)))
        asked: dict[str, Any] = {"normalise": normalise, "without": without}
        torch.testing.assert_close(influence(lazy, **asked), influence(whole, **asked), rtol=1e-14, atol=0)
        torch.testing.assert_close(torch.tensor(scores(lazy, **asked)), torch.tensor(scores(whole, **asked)), rtol=1e-14, atol=0)
        for shares in ((0.8, 0.98), (0.3, 0.5), (1.0, 1.0)):
            a, b = prune(lazy, *shares, **asked), prune(whole, *shares, **asked)
            assert torch.equal(a.nodes, b.nodes)
            assert same(a.graph, b.graph)


def test_a_graph_of_a_folder_is_read_by_its_number(stored: Path) -> None:
    with attrib.open_graphs(stored.parent) as graphs:
        lazy = graphs.lazy(3)
        assert same(lazy.rows(0, 4), graphs[3].of_rows(torch.arange(4)))
    with pytest.raises(InputError, match="closed"):
        lazy.rows(0, 1)


def test_no_edge_is_read_before_it_is_asked_for(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    plain = attrib.store.graphs.read_column

    def read(group: Any, name: str, types: Any, length: int, rows: slice) -> Tensor:
        if group.name.endswith("/edges"):
            asked.append(f"{name} {rows.stop - rows.start}")
        return plain(group, name, types, length, rows)

    monkeypatch.setattr("attrib.store.graphs.read_column", read)
    with attrib.open_graphs(stored) as graphs:
        lazy = graphs.lazy(7)
        assert lazy.worst < 1e-9
        assert asked == []
        count = int(lazy.indptr[3] - lazy.indptr[2])
        lazy.rows(2, 3)
        assert asked == [f"indices {count}", f"data {count}"]


def test_damage_is_found_in_the_rows_that_are_read(stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        file["graphs/0/edges/indices"][-1] = 1 << 20
        file["graphs/1/edges/data"][0] = np.inf
    with attrib.open_graphs(stored) as graphs:
        lazy = graphs.lazy(7)
        rows = len(lazy.targets)
        lazy.rows(0, rows - 1)
        with pytest.raises(FormatError, match="edges/indices: not all edges come from a node before their target"):
            lazy.rows(rows - 1, rows)
        with pytest.raises(FormatError, match="edges/data: not all are finite"):
            influence(graphs.lazy(3))


MEASURED = """
import sys, torch, attrib
from pathlib import Path
from attrib.core.scratch import Scratch
from attrib.core.types import Dense
from attrib.graph.graph import Graph
from attrib.graph.lazy import LazyGraph
from attrib.graph.selected import Selected
from attrib.store.graphs import save_graphs
from attrib.graph.nodes import Nodes, NodeSet
from tests.support.memory import forget, peak
rows, columns = int(sys.argv[2]), 4000
nodes = Nodes((NodeSet("error", "x", "", columns), NodeSet("latent", "x", "d", rows)), torch.zeros(columns + rows, dtype=torch.int64),
              torch.arange(columns + rows), torch.ones(columns + rows))
with Scratch(Path(sys.argv[1])) as scratch:
    forget()
    before = peak()
    selected = Selected(torch.float32, scratch.column, nodes.number_type)
    for first in range(0, rows, 100):
        weight = torch.rand(100, columns, generator=torch.Generator().manual_seed(first)) + 1
        weight[0, 0] = 0  # so that not all rows have the same
        selected.add(torch.arange(columns + first, columns + first + 100), weight, torch.arange(columns), Dense())
    o = selected.ordered()
    zero = torch.zeros(rows)
    graph = LazyGraph(nodes, o.targets, o.indptr, o.total, zero, o.total, o.l1, zero, torch.zeros(1, dtype=torch.int64), ("a",), {}, o)
    save_graphs(Path(sys.argv[1]) / f"{rows}.h5", graph)
    print(peak() - before, len(graph))
"""


@pytest.mark.long
def test_memory_does_not_grow_with_edges(tmp_path: Path) -> None:
    took = list[list[int]]()
    least = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # what was let go of is given back to the system, and not counted
    for rows in (500, 3_000):
        ran = subprocess.run([sys.executable, "-c", MEASURED, tmp_path, str(rows)], capture_output=True, text=True, check=True, env=least)
        took.append([*map(int, ran.stdout.split())])
    (few, _), (many, edges) = took
    assert edges > 11_000_000
    assert many - few < 0.25 * 12 * edges, f"{few:,} and {many:,} bytes; in memory the edges alone take {12 * edges:,}"
