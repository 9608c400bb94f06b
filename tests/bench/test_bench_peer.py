"""The half of bench/peers/circuit_tracer.py that runs here: it accepts edges that are right, and no others.

The graphs are attrib's own plain transforms', in place of circuit-tracer's.
"""

import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

import attrib
from attrib.adapters import load_dictionaries
from tests.adapters.test_dictionary_folders import clt, transcoder_set
from tests.support.builders import prompt, randomise
from tests.support.hooked import LAYER, LLAMA, TINY

with install_import_hook("bench", "tests.support.checked.first_calls"):
    from bench.measure import Time
    from bench.peers import circuit_tracer as peer_graph
    from bench.peers.circuit_tracer import Graph

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
CONFIGS = {"gpt2": TINY | LAYER | {"n_layers": 3, "device": "cpu"}, "llama": TINY | LLAMA | {"n_layers": 3, "device": "cpu"}}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Graph]:
    """A folder with one case, and the graph in it."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    folder = tmp_path_factory.mktemp("peer") / request.param
    make = {"gpt2": transcoder_set, "llama": clt}[request.param]
    layers = load_dictionaries(make(folder / "transcoders"))
    hooked = HookedTransformer(HookedTransformerConfig(**CONFIGS[request.param]))
    randomise(hooked, seed=0)
    graph = plain(attrib.from_transformer_lens(hooked), layers, prompt(6), torch.tensor([3, 7]))
    write(folder, dict(hooked.named_parameters()), graph)
    return folder, graph


def plain(model: attrib.Model, layers: list[attrib.Dictionary], tokens: torch.Tensor, logits: torch.Tensor) -> Graph:
    """The graph by torch.func: all latents, errors and tokens as factors of the replaced pass; at the first position its token alone."""
    replaced = attrib.replace(model, layers, policy=attrib.LINEAR)
    leaves, token = replaced.leaves(tokens), model.params.W_E[tokens]
    sizes, rest = [len(each) for each in leaves.activations], leaves.embedded - token

    def function(activations: torch.Tensor, errors: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        parts = tuple(a * f for a, f in zip(leaves.activations, activations.split(sizes), strict=True))
        scaled = tuple(error * factor[:, None] for error, factor in zip(leaves.errors, errors, strict=True))
        there = leaves.with_activations(parts)._replace(errors=scaled, embedded=token * scale[:, None] + rest)
        last = replaced.forward(there, effect="direct")[-1]
        return torch.cat([*replaced.latents(there, effect="direct"), last[logits] - last.mean()])

    ones = torch.ones(sum(sizes)), torch.ones(len(leaves.errors), len(tokens)), torch.ones(len(tokens))
    latents, errors, tokens_of = torch.func.jacrev(function, (0, 1, 2))(*ones)
    place = torch.cat([
        torch.stack([torch.full_like(cut.latents.position, layer), cut.latents.position, cut.latents.latent], 1)
        for layer, cut in enumerate(leaves.cuts)
    ])  # fmt: skip
    later = place[:, 1] > 0
    errors[:, :, 0] = 0
    rows = torch.cat([later, torch.ones(len(logits), dtype=torch.bool)])
    edges = torch.cat([latents[:, later], errors.flatten(1), tokens_of], 1)[rows]
    return Graph(tokens, logits, place[later], torch.cat(leaves.activations)[later], edges.detach())


def write(folder: Path, parameters: dict[str, torch.Tensor], graph: Graph) -> None:
    peer_graph.write_case(folder, CONFIGS[folder.name], parameters, graph, Time(cpu=1.0, wall=1.0), None)


def status(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(sys, "argv", ["peer_graph", "compare", str(folder)])
    return peer_graph.main()


def changed(graph: Graph, kind: str, by: float) -> Graph:
    """The largest value of a kind moved by a part of itself."""
    whole = getattr(graph, "activation" if kind == "activation" else "edges").clone()
    count = len(graph.logits)
    values = {"activation": whole, "to_latents": whole[:-count], "to_logits": whole[-count:]}[kind]
    values.view(-1)[values.abs().argmax()] *= 1 + by
    return graph._replace(**{"activation" if kind == "activation" else "edges": whole})


def test_right_edges_pass_and_wrong_ones_do_not(
    case: tuple[Path, Graph], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder, graph = case
    parameters = peer_graph.load_file(folder / "model.safetensors")
    assert (graph.latents[:, 1] > 0).all(), "circuit-tracer has none at the first position"
    assert graph.edges[: -len(graph.logits)].abs().max() > 0.01
    assert status(folder.parent, monkeypatch)
    assert f"{graph.edges.count_nonzero():,}" in (said := capsys.readouterr().out)
    assert folder.name in said
    for wrong in (changed(graph, "to_latents", 1e-4), changed(graph, "to_latents", float("nan"))):
        write(folder, parameters, wrong)
        assert not status(folder.parent, monkeypatch)
    write(folder, parameters, graph)
    assert status(folder.parent, monkeypatch)


@pytest.mark.parametrize("kind", ["to_latents", "to_logits", "activation"])
def test_every_value_counts(case: tuple[Path, Graph], kind: str):
    _, graph = case
    difference, relative = peer_graph.distance(graph, changed(graph, kind, 1e-3))
    assert relative == pytest.approx(1e-3, rel=0.01)
    assert (difference > 0) == (kind != "activation")


def test_other_latents_are_infinitely_far(case: tuple[Path, Graph]):
    _, graph = case
    other = graph.latents.clone()
    other[0, 2] += 1
    assert peer_graph.distance(graph, graph._replace(latents=other)) == (float("inf"), float("inf"))
    fewer = Graph(graph.tokens, graph.logits, graph.latents[1:], graph.activation[1:], graph.edges[1:, 1:])
    assert peer_graph.distance(graph, fewer) == (float("inf"), float("inf"))


def test_an_empty_folder_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not status(tmp_path, monkeypatch)
