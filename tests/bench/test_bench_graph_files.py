"""The halves of bench/peers/graph_files.py that run here: files that are right pass, and one wrong edge does not."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attrib.graph import from_circuit_tracer, to_neuronpedia
from attrib.graph.files.pickles import read_pickle, write_pickle
from bench.peers import graph_files

NAME = "theirs-all"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `write` leaves, and what circuit-tracer would make of the first of its graphs, made by attrib in its place."""
    graph_files.write(tmp_path)
    state = read_pickle(tmp_path / "ours-0.pt")
    matrix = state["adjacency_matrix"]
    every = torch.ones(len(matrix), dtype=torch.bool)
    tensors = {
        "matrix": matrix, "active": state["active_features"], "tokens": state["input_tokens"], "activation": state["activation_values"],
        "probability": state["logit_probabilities"], "logits": torch.tensor([each.vocab_idx for each in state["logit_targets"]]),
        "node_mask": every, "edge_mask": matrix != 0, "sizes": torch.tensor([3, 60]),
    }  # fmt: skip
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / f"{NAME}.safetensors")
    write_pickle(tmp_path / f"{NAME}.again.pt", state)
    path = to_neuronpedia(from_circuit_tracer(tmp_path / "ours-0.pt"), tmp_path / "frontend" / f"{NAME}.json")
    document = json.loads(path.read_text())
    del document["attrib"]
    for node in document["nodes"]:
        if node["node_id"] == "4_-2_5":  # circuit-tracer gives a direction a number beyond the vocabulary
            node["node_id"] = "4_63_5"
    for link in document["links"]:
        link["target"] = link["target"].replace("4_-2_5", "4_63_5")
    path.write_text(json.dumps(document))
    return tmp_path


def status(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(sys, "argv", ["graph_files", "compare", str(folder)])
    return graph_files.main()


def test_right_files_pass(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert status(folder, monkeypatch)
    assert "circuit-tracer's JSON in attrib" in capsys.readouterr().out


@pytest.mark.few
@pytest.mark.parametrize("wrong", ["matrix", "activation", "json"])
def test_one_wrong_number_does_not(wrong: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    if wrong == "json":
        path = folder / "frontend" / f"{NAME}.json"
        document = json.loads(path.read_text())
        document["links"][3]["weight"] *= 1.5
        path.write_text(json.dumps(document))
    else:
        tensors = load_file(folder / f"{NAME}.safetensors")
        tensors[wrong].flatten()[tensors[wrong].abs().argmax()] *= 1.5
        save_file(tensors, folder / f"{NAME}.safetensors")
    assert not status(folder, monkeypatch)


def test_an_empty_folder_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not status(tmp_path, monkeypatch)
