"""Graphs ↔ HDF5: every bit comes back, one graph is read without the others, and what cannot be is an error that names its field."""

import math
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import attrib
from attrib.cli import main
from attrib.core.edges import Edges
from attrib.core.types import FormatError, InputError
from attrib.graph.graph import Graph
from attrib.graph.nodes import Nodes, NodeSet
from attrib.store import faults
from tests.store.test_store import archive_edges
from tests.support.graphs import random_graph
from tests.support.root import ROOT


def same(a: Any, b: Any) -> bool:
    """Equal in every field, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b


def odd_graph() -> Graph:
    """float32 beside float64, characters that no one expects, a node's number beyond 32 bits, and values that no file has told."""
    graph = random_graph(3)
    nodes = replace(graph.nodes, activation=graph.nodes.activation.float(), latent=graph.nodes.latent * 2**33)
    nodes.activation[nodes.of_kind("latent")[:1]] = math.nan
    nodes.latent[nodes.latent < 0] = -1
    labels = ("\0", "\ud800", "", " €\n", *nodes.labels[4:])
    value = graph.value.clone()
    value[::2] = math.nan
    call = {"policy": {"mlp": "exact"}, "seed": 1, "keep": [1.5, None, "\0 €"]}
    return replace(
        graph, nodes=replace(nodes, labels=labels), weight=graph.weight.float(), l1=graph.l1 + 1e-5, value=value, strings=labels[:4],
        call=call,
        own=-torch.zeros_like(graph.own),
    )  # fmt: skip


def empty_graph() -> Graph:
    """Nothing but a token."""
    none, nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    one = torch.zeros(1, dtype=torch.int64)
    nodes = Nodes((NodeSet("token", "embed", "", 1), NodeSet("latent", "x", "y", 0)), one, one, torch.ones(1), ("a",))
    return Graph(nodes, none, one, none, nothing, nothing, nothing, nothing, nothing, nothing, one, ("a",))


ARCHIVE = ROOT / "tests" / "data" / "graphs-v1.h5"
GRAPHS = [random_graph(0), odd_graph(), empty_graph(), random_graph(1, positions=2, latents=0)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return attrib.save(tmp_path / "graphs.h5", GRAPHS)


@pytest.mark.few
@pytest.mark.parametrize("compression", [None, "gzip", "lzf", "blosc-lz4", "zstd"])
def test_every_bit_comes_back(tmp_path: Path, compression: str | None):
    if compression in ("blosc-lz4", "zstd"):
        pytest.importorskip("hdf5plugin")
    path = attrib.save(tmp_path / "graphs.h5", GRAPHS, compression=compression)
    with attrib.open_graphs(path) as graphs:
        assert len(graphs) == len(GRAPHS)
        assert all(same(read, graph) for read, graph in zip(graphs, GRAPHS, strict=True))
        assert same(graphs[-1], GRAPHS[-1])
        assert repr(graphs) == f"Graphs({str(path)!r}, 4 graphs)"
        assert {"torch", "numpy", "h5py"} <= graphs.packages.keys()
    with pytest.raises(InputError, match="is closed"):
        graphs[0]
    assert list(faults(path)) == []


def test_one_graph_needs_no_list(tmp_path: Path):
    with attrib.open_graphs(attrib.save(tmp_path / "one.h5", GRAPHS[0])) as graphs:
        assert same(graphs[0], GRAPHS[0])
        with pytest.raises(InputError, match="1 is outside the 1 graphs"):
            graphs[1]
        with pytest.raises(InputError, match="a graph's number"):
            graphs[True]


def test_equal_graphs_are_equal_files(tmp_path: Path, file: Path):
    assert attrib.save(tmp_path / "again.h5", GRAPHS).read_bytes() == file.read_bytes()


def test_other_tools_read_the_edges(file: Path):
    anndata_io = pytest.importorskip("anndata.io")
    with h5py.File(file) as root:
        matrix = anndata_io.read_elem(root["graphs/0/edges"])
    dense = GRAPHS[0].to_scipy().toarray()
    assert np.array_equal(matrix.toarray(), dense[GRAPHS[0].targets.numpy()])


def test_damage_of_one_graph_is_not_met_while_reading_another(file: Path):
    with h5py.File(file, "r+") as root:
        root["graphs/0/rows/l1"][0] = math.nan
    with attrib.open_graphs(file) as graphs:
        assert same(graphs[1], GRAPHS[1])
        with pytest.raises(FormatError, match=r"/graphs/0: rows/l1: not all are finite"):
            graphs[0]
    (fault,) = faults(file)
    assert "/graphs/0: rows/l1" in str(fault)


def put(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[h5py.Group], None]:
    """Another column in place of one."""

    def changed(group: h5py.Group) -> None:
        column = group[name][:]
        del group[name]
        group[name] = np.asarray(change(column.copy()), column.dtype)

    return changed


def at(place: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(column: np.ndarray) -> np.ndarray:
        column[place] = value
        return column

    return change


def claim(name: str, rows: int) -> Callable[[h5py.Group], None]:
    """A column that says it is longer than anything, and of which nothing was written."""

    def changed(group: h5py.Group) -> None:
        dtype = group[name].dtype
        del group[name]
        group.create_dataset(name, (rows,), dtype, chunks=(1 << 10,), compression="gzip", shuffle=True)

    return changed


def drop(name: str) -> Callable[[h5py.Group], None]:
    def changed(group: h5py.Group) -> None:
        del group[name]

    return changed


def elsewhere(group: h5py.Group) -> None:
    del group["rows"]
    group["rows"] = h5py.ExternalLink("other.h5", "/")


WRONG: dict[str, tuple[Callable[[h5py.Group], Any], str]] = {
    "a set of no kind": (put("sets/kind/bytes", at(0, 90)), r"sets/kind: 'Zoken', and not token, position"),
    "a set below 0": (put("sets/size", at(0, -1)), r"sets/size: -1 is below 0"),
    "sets without end": (put("sets/size", at(0, 2**31 - 1)), r"sets/size: they sum to 2147\d+, and there are \d+ nodes"),
    "too few labels": (put("nodes/labels/ptr", lambda ptr: ptr[:-1]), r"labels/ptr: int64 \(8,\), and not <i8 \(9,\)"),
    "a position before the prompt": (put("nodes/position", at(2, -1)), r"nodes/position: not all lie in the prompt of 4 tokens"),
    "a position behind it": (put("nodes/position", at(2, 4)), r"nodes/position: not all"),
    "a latent below -1": (put("nodes/latent", at(2, -2)), r"nodes/latent: -2 is below -1"),
    "an infinite activation": (put("nodes/activation", at(2, math.inf)), r"nodes/activation: not all are finite"),
    "a token below -1": (put("tokens/ids", at(0, -2)), r"tokens/ids: -2, and token ids"),
    "rows that fall": (put("rows/target", lambda column: column[::-1]), r"rows/target: they do not ascend below the \d+ nodes"),
    "a row beyond the nodes": (put("rows/target", at(-1, 10**6)), r"rows/target: they do not ascend"),
    "a row below 0": (put("rows/target", at(0, -1)), r"rows/target: they do not ascend"),
    "a row of a token": (put("rows/target", at(0, 0)), r"rows/target: not all are of the kinds"),
    "too few rows": (put("rows/own", lambda column: column[:-1]), r"rows/own: float64 \(\d+,\), and not"),
    "a value that is infinite": (put("rows/value", at(0, -math.inf)), r"rows/value: not all are finite"),
    "a total that is none": (put("rows/total", at(0, math.nan)), r"rows/total: not all are finite"),
    "a total too far": (put("rows/total", at(0, 99.0)), r"rows/total: it is further"),
    "an l1 too small": (put("rows/l1", at(-1, 0.0)), r"rows/l1: it is less"),
    "an importance that is none": (put("rows/importance", at(0, math.nan)), r"rows/importance: not all"),
    "a weight that is none": (put("edges/data", at(0, math.nan)), r"edges/data: not all are finite"),
    "too few weights": (put("edges/data", lambda column: column[:-1]), r"edges/data: float64 \(\d+,\), and not"),
    "pointers that fall": (put("edges/indptr", at(1, 10**6)), r"edges/indptr: does not rise from 0"),
    "an edge from beyond": (put("edges/indices", at(-1, 10**6)), r"edges/indices: not all edges come from a node before"),
    "an edge from below 0": (put("edges/indices", at(0, -1)), r"edges/indices: not all edges come from a node before"),
    "edges that fall": (
        put("edges/indices", lambda column: np.where(np.arange(len(column)) == 1, column[0], column)),
        r"they do not ascend",
    ),
    "a column without end": (claim("edges/indices", 1 << 40), r"edges/indices: \d+ bytes in chunks of \d+ are more than the file"),
    "strings without end": (claim("sets/kind/ptr", 1 << 40), r"sets/kind/ptr: "),
    "a part that is missing": (drop("rows"), r"'rows' is missing"),
    "a column that is missing": (drop("rows/own"), r"'own' is missing"),
    "a part that lies elsewhere": (elsewhere, r"'rows' is missing or not a group"),
    "no call": (lambda group: group.attrs.__delitem__("call"), r"the attribute call is None"),
    "a call that is no object": (lambda group: group.attrs.__setitem__("call", np.bytes_(b"[1]")), r"attribute call is not a JSON object"),
}


@pytest.mark.few
@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_is_named(wrong: str, file: Path):
    change, said = WRONG[wrong]
    with h5py.File(file, "r+") as root:
        change(root["graphs/0"])
    with attrib.open_graphs(file) as graphs:
        with pytest.raises(FormatError, match=said) as raised:
            graphs[0]
        assert str(file) in str(raised.value)
        assert same(graphs[1], GRAPHS[1])


@pytest.mark.few
@pytest.mark.parametrize("what", ["version", "kind", "shard", "text", "pipe", "gap"])
def test_other_files_are_told_apart(what: str, file: Path, tmp_path: Path):
    said = "not of graphs: it holds"
    if what == "shard":
        attrib.save(file, archive_edges(), overwrite=True)
        said = "not of graphs: a shard of edges, which attrib.open"
    elif what == "text":
        file.write_text("no")
        said = "not an HDF5 file"
    elif what == "pipe":
        import os

        file = tmp_path / "pipe"
        os.mkfifo(file)
    with h5py.File(file, "r+") if what in ("version", "kind", "gap") else tmp_path.joinpath("x").open("w") as root:
        if what == "version":
            root.attrs["format_version"], said = 2, "graphs of format version 2"
        elif what == "kind":
            del root.attrs["format"]
        elif what == "gap":
            root.move("graphs/1", "graphs/seven")
    if what == "gap":
        with attrib.open_graphs(file) as graphs, pytest.raises(FormatError, match="'1' is missing"):
            graphs[1]
        return
    with pytest.raises(InputError if what == "pipe" else FormatError, match="is a pipe" if what == "pipe" else said):
        attrib.open_graphs(file)


def test_a_file_of_graphs_is_no_shard(file: Path):
    with pytest.raises(FormatError, match=r"attribution graphs, which attrib\.open_graphs reads"):
        attrib.open(file)


def test_cut_and_flipped_files_are_errors_or_right(tmp_path: Path):
    """At every twentieth of its length, and with bytes changed all over: a reader gets a FormatError, or what a graph can be."""
    raw, path, refused = attrib.save(tmp_path / "x.h5", GRAPHS[3], compression="gzip").read_bytes(), tmp_path / "damaged.h5", 0
    numbers = np.random.default_rng(0)
    cases = [raw[: len(raw) * part // 20] for part in range(20)]
    for place in numbers.integers(0, len(raw), 60):
        cases.append(raw[:place] + bytes([raw[place] ^ int(numbers.integers(1, 256))]) + raw[place + 1 :])
    for case in cases:
        path.write_bytes(case)
        try:
            with attrib.open_graphs(path) as graphs:
                for graph in graphs:
                    assert len(graph.to_scipy().toarray()) == len(graph.nodes)
        except FormatError:
            refused += 1
    assert refused >= 20


def malformed(**columns: Any) -> Graph:
    return replace(random_graph(0), **columns)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "edges: got an empty sequence"),
        ([random_graph(0), archive_edges()[0]], "edges: both Edges and Graphs; expected one of them"),
        (malformed(weight=random_graph(0).weight * math.nan), "graphs: number 0: edges/data: not all are finite"),
        (malformed(weight=random_graph(0).weight.bfloat16()), "edges/data: it is torch.bfloat16"),
        (malformed(indices=random_graph(0).indices.flip(0)), "edges/indices: "),
        (malformed(call={"a": object()}), "`call` cannot be written as JSON"),
    ],
)
def test_what_cannot_be_read_is_not_written(given: Graph | list[Graph | Edges], said: str, tmp_path: Path):
    with pytest.raises(InputError, match=re.escape(said)):
        attrib.save(tmp_path / "graphs.h5", given)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_replaced_unasked(file: Path, tmp_path: Path):
    shutil.copy(file, tmp_path / "copy.h5")
    with pytest.raises(InputError, match="exists already"):
        attrib.save(file, GRAPHS[0])
    assert file.read_bytes() == (tmp_path / "copy.h5").read_bytes()
    with attrib.open_graphs(attrib.save(file, GRAPHS[0], overwrite=True)) as graphs:
        assert len(graphs) == 1


def archive_graph() -> Graph:
    """What tests/data/graphs-v1.h5 holds; it was made by `attrib.save(ARCHIVE, archive_graph())` at format version 1, and never since."""
    sets = (
        NodeSet("token", "embed", "", 2), NodeSet("bias", "blocks.0.hook_attn_out", "", 1),
        NodeSet("latent", "blocks.0.mlp.hook_in", "a/b", 2), NodeSet("error", "blocks.0.hook_mlp_out", "", 0),
        NodeSet("logit", "blocks.0.hook_resid_post", "", 1),
    )  # fmt: skip
    latent, activation = torch.tensor([7, -1, -1, 3, 2**40, 9]), torch.tensor([1.0, 1.0, 1.0, 0.5, 4.0, math.nan], dtype=torch.float64)
    nodes = Nodes(sets, torch.tensor([0, 1, 0, 1, 1, 1]), latent, activation, ("The", "\0\ud800", " naïve"))
    return Graph(
        nodes,
        targets=torch.tensor([3, 5]),
        indptr=torch.tensor([0, 2, 5]),
        indices=torch.tensor([0, 2, 1, 3, 4]),
        weight=torch.tensor([0.5, -2.0, 0.25, 4.0, -1.0]),
        value=torch.tensor([-1.0, math.nan]),
        own=torch.tensor([0.25, -0.0]),
        total=torch.tensor([-1.25, 3.25]),
        l1=torch.tensor([2.75, 5.25]),
        importance=torch.tensor([0.0, 0.75], dtype=torch.float64),
        tokens=torch.tensor([7, -1]),
        strings=("The", "\0\ud800"),
        call={"model": {"name": "toy"}, "seed": None},
    )


def test_files_of_version_1_are_read_for_ever():
    with attrib.open_graphs(ARCHIVE) as graphs:
        assert same(graphs[0], archive_graph())


def test_the_command_line_finds_a_fault(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["attrib", "verify-file", str(file)])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert not stop.value.code
    assert "no fault in it" in capsys.readouterr().out
    with h5py.File(file, "r+") as root:
        root["graphs/2/tokens/ids"][0] = -7
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 1
    assert "/graphs/2: tokens/ids: -7" in capsys.readouterr().out.replace("\n", "")
