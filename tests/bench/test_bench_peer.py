"""The half of bench/peers/circuit_tracer.py that runs here: it accepts edges that are right, and no others.

The graphs are attrib's own plain transforms', in place of circuit-tracer's.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

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
    from bench.peers.circuit_tracer import Graph, Known

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
    active = torch.cat(leaves.activations)[later]
    return Graph(tokens, logits, place[later], active, edges.detach(), torch.arange(len(active)))


def write(folder: Path, parameters: dict[str, torch.Tensor], graph: Graph) -> None:
    peer_graph.write_case(folder, CONFIGS[folder.name], parameters, graph, Known(Time(cpu=1.0, wall=1.0), None, "another program 1.0"))


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


@pytest.mark.long
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
    assert "another program 1.0" in said
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
    fewer = Graph(graph.tokens, graph.logits, graph.latents[1:], graph.activation[1:], graph.edges[1:, 1:], graph.rows[:-1])
    assert peer_graph.distance(graph, fewer) == (float("inf"), float("inf"))


def test_an_empty_folder_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not status(tmp_path, monkeypatch)


def test_some_rows_are_compared_alone(case: tuple[Path, Graph], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    folder, graph = case
    parameters, rows = peer_graph.load_file(folder / "model.safetensors"), torch.arange(1, len(graph.latents), 3)
    count = len(graph.latents)
    some = graph._replace(edges=torch.cat([graph.edges[rows], graph.edges[count:]]), rows=rows)
    write(folder, parameters, some)
    assert status(folder.parent, monkeypatch)
    assert "1.00*" in capsys.readouterr().out, "their seconds are said to be scaled"
    write(folder, parameters, some._replace(edges=some.edges.roll(1, 0)))
    assert not status(folder.parent, monkeypatch)
    write(folder, parameters, graph)


def test_one_batch_in_so_many_is_computed(monkeypatch: pytest.MonkeyPatch):
    """With as much of circuit-tracer as is asked: rows say which latents they are of."""

    class AttributionContext:
        n_layers = 2

        def compute_batch(self, layers: torch.Tensor, positions: torch.Tensor, inject_values: torch.Tensor, retain_graph: bool = True):
            return inject_values.sum(1, keepdim=True).expand(-1, 5)

    whole = AttributionContext.compute_batch
    name = "circuit_tracer.attribution.context_transformerlens"
    monkeypatch.setattr(peer_graph, "import_module", {name: SimpleNamespace(AttributionContext=AttributionContext)}.__getitem__)
    context, values = AttributionContext(), torch.arange(1.0, 23.0)[:, None].expand(-1, 3)
    with peer_graph.Sampled(3) as sampled:
        for _ in range(2):  # as a second run would, after one that loads
            context.compute_batch(layers=torch.full((2,), 2), positions=torch.zeros(2), inject_values=torch.ones(2, 3))
            batches = [
                context.compute_batch(layers=torch.zeros(len(some)), positions=torch.zeros(len(some)), inject_values=some)
                for some in values.split(4)
            ]
    found = torch.cat(batches)
    rows = sampled.rows(len(values), 4)
    assert rows.tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    assert torch.equal(found.nonzero()[:, 0].unique(), rows)
    assert torch.equal(found[rows], 3 * values[rows, :1].expand(-1, 5))
    sampled.spent = Time(2.0, 3.0)
    assert sampled.scaled(Time(10.0, 20.0)) == Time(14.0, 26.0), "2 of 6 batches were computed"
    assert AttributionContext.compute_batch is whole
