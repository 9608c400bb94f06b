"""`attrib graph --slug`: what circuit-tracer's users type, and the files that its frontend lists and shows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.cli.slug import ForFrontend
from attrib.core.types import InputError
from tests.support.builders import sae
from tests.support.graphs import random_graph
from tests.support.job_cases import tiny_smollm2
from tests.support.typed import Command

SITES = ("blocks.1.mlp.hook_in", "blocks.2.mlp.hook_in")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """A model of words that are numbers, and two transcoders, as they are typed."""
    folder = tmp_path_factory.mktemp("files")
    for site in SITES:
        sae("transcoder", site=site).save_model(folder / site)
    with tiny_smollm2(tmp_path_factory.mktemp("cache")) as name:
        yield ["-m", name, "-t", folder / SITES[0], "--transcoder_set", folder / SITES[1], "--max_n_logits", 2]


def test_what_a_user_of_circuit_tracer_types(usual: list[Any], tmp_path: Path, command: Command) -> None:
    folder, out = tmp_path / "new" / "files", tmp_path / "g.h5"
    typed = ["graph", "-p", "5", *usual, "--slug", "five", "--graph_file_dir", folder, "--node_threshold", 0.7, "--edge_threshold", 0.9]
    ran = command(*typed, "-o", out)
    assert ran.status == 0, ran.err
    assert f"circuit-tracer start-server --graph_file_dir {folder}" in ran.out
    with attrib.open_graphs(out) as graphs:
        whole = graphs[0]
    want = attrib.graph.prune(whole, 0.7, 0.9)
    found = attrib.graph.from_neuronpedia(folder / "five.json")
    assert torch.equal(found.weight, want.graph.weight)
    assert 0 < len(found) < len(whole)
    [listed] = json.loads((folder / "graph-metadata.json").read_text())["graphs"]
    assert (listed["slug"], listed["node_threshold"], listed["prompt"]) == ("five", 0.7, " 5")
    again = command(*typed)
    assert (again.status, "--overwrite" in again.err) == (1, True), "neither is replaced, and before anything is built"
    assert command(*typed, "--overwrite").status == 0, "without --out too"


def test_prompts_are_numbered(usual: list[Any], tmp_path: Path, command: Command) -> None:
    assert command("graph", "5", "9", *usual, "--slug", "two", "--graph-file-dir", tmp_path).status == 0
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [(each["slug"], each["prompt"]) for each in listed] == [("two-0", " 5"), ("two-1", " 9")]
    assert all((tmp_path / f"{each['slug']}.json").is_file() for each in listed)


def test_nodes_carry_their_share_of_the_whole_graph(tmp_path: Path) -> None:
    """By which the frontend prunes further: renormalised among those that are left, it would hide some of these at the threshold."""
    graph = random_graph(3, positions=5, latents=12)
    [path] = ForFrontend(tmp_path, "g", 0.6, 0.9, False).write([graph])
    nodes = json.loads(path.read_text())["nodes"]
    influence, kept = attrib.graph.influence(graph), attrib.graph.prune(graph, 0.6, 0.9).nodes.tolist()
    for node, number in zip(nodes, kept, strict=True):
        more = influence[influence >= influence[number]].sum() / influence.sum()
        if node["feature_type"] != "logit":
            assert node["influence"] == pytest.approx(float(more), abs=1e-9)
    latents = [node["influence"] for node in nodes if node["feature_type"] == "cross layer transcoder"]
    assert sum(share > 0.6 for share in latents) <= 1, "the last that reaches the threshold alone may be beyond it"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--slug", "a"], "--graph-file-dir: missing beside --slug"),
        (["--graph-file-dir", "d"], "--slug: missing beside --graph-file-dir"),
        (["--node-threshold", "0.5"], "--slug: missing beside --node-threshold"),
        (["--server"], "--slug: missing beside --server"),
        (["--slug", "../a", "--graph-file-dir", "d"], "--slug: '../a'; expected letters"),
        (["--slug", "graph-metadata", "--graph-file-dir", "d"], "other than graph-metadata"),
        (["--slug", "a", "--graph-file-dir", "d", "--server"], "circuit-tracer start-server --graph_file_dir d"),
        (["-o", "g.pt"], "this is attrib's HDF5. Name it g.h5"),
    ],
)
def test_what_cannot_be_is_refused_by_name_before_anything_is_loaded(
    typed: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = command("graph", "hot", "-m", "none", "-t", "none", *([] if "-o" in typed else ["-o", "g.h5"]), *typed)
    assert ran.status == 1
    assert said in " ".join(ran.err.split())
    assert list(tmp_path.iterdir()) == []


def test_shares_of_another_graph_are_refused(tmp_path: Path) -> None:
    graph = random_graph(0)
    shares = torch.rand(len(graph.nodes), dtype=torch.float64)
    for given, words in (
        ({"cumulative": shares[1:]}, "cumulative: .*expected a finite number from 0 for each of"),
        ({"cumulative": -shares}, "cumulative: .*expected a finite number from 0 for each of"),
        ({"cumulative": shares, "influence": shares}, "cumulative: given beside influence"),
        ({"influence": -shares}, "influence: .*expected a finite number from 0"),
    ):
        with pytest.raises(InputError, match=words):
            attrib.graph.to_neuronpedia(graph, tmp_path / "g.json", **given)
    assert list(tmp_path.iterdir()) == []
