"""Neuronpedia's JSON: attrib's graphs come back bit for bit, circuit-tracer's are read though ids mean two nodes, nothing is believed."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attrib.core.types import FormatError, InputError
from attrib.graph import Graph, NodeSet, from_neuronpedia, to_neuronpedia
from attrib.graph.files import neuronpedia_reading
from attrib.graph.files.ids import cantor
from tests.graph.test_files_circuit_tracer import edges_of
from tests.store.test_graphs import empty_graph, odd_graph, same
from tests.support.graphs import random_graph

Json = dict[str, Any]
SCHEMA = {
    "metadata": {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str},
    "nodes": {
        "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "jsNodeId": str, "clerp": str,
        "influence": (float, type(None)), "activation": (float, type(None)),
    },
    "links": {"source": str, "target": str, "weight": float},
}  # fmt: skip
"""What the published schema requires of each, and the types that it gives."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a-slug.json"


def read(path: Path) -> Json:
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def put(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


# ------------------------------------------------------------------------------------------------ attrib's own


@pytest.mark.parametrize("graph", [random_graph(0), odd_graph(), random_graph(1, positions=2, latents=0)])
def test_a_graph_comes_back_bit_for_bit(graph: Graph, path: Path):
    assert same(from_neuronpedia(to_neuronpedia(graph, path)), graph)
    assert same(from_neuronpedia(to_neuronpedia(from_neuronpedia(path), path, overwrite=True)), graph)


def test_numbers_keep_their_last_digit(path: Path):
    graph = random_graph()
    graph = replace(graph, weight=(graph.weight / 3).float(), own=-0.0 * graph.own, importance=graph.importance * 1e-310)
    assert same(from_neuronpedia(to_neuronpedia(graph, path)), graph)


@pytest.mark.parametrize("graph", [random_graph(0), odd_graph()])
def test_what_the_schema_requires_is_there(graph: Graph, path: Path):
    found = read(to_neuronpedia(graph, path, influence=torch.ones(len(graph.nodes)), scan="gemma-2-2b"))
    assert {*found} == {"metadata", "qParams", "nodes", "links", "attrib"}
    for part, types in SCHEMA.items():
        for each in [found[part]] if isinstance(found[part], dict) else found[part]:
            for name, kind in types.items():
                assert isinstance(each[name], kind), (part, name, each)  # type: ignore[arg-type]
    assert found["qParams"] == {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    assert found["metadata"]["slug"] == "a-slug"
    assert found["metadata"]["prompt_tokens"] == list(graph.strings)
    ids = [node["node_id"] for node in found["nodes"]]
    assert len({*ids}) == len(ids)
    assert {link[end] for link in found["links"] for end in ("source", "target")} <= {*ids}


def test_nodes_are_called_as_circuit_tracer_calls_them(path: Path):
    graph = random_graph()
    nodes = read(to_neuronpedia(graph, path))["nodes"]
    for node, found in enumerate(nodes):
        each = graph.nodes.sets[int(graph.nodes.set_of[node])]
        layer, at, index = each.site.split(".")[1] if "." in each.site else "E", found["ctx_idx"], int(graph.nodes.latent[node])
        assert at == graph.nodes.position[node]
        match each.kind:
            case "latent":
                assert found["node_id"] == f"{layer}_{index}_{at}"
                assert (found["layer"], found["feature"], found["jsNodeId"]) == (layer, cantor(int(layer), index), f"{layer}_{index}-0")
                assert (found["feature_type"], found["activation"]) == ("cross layer transcoder", graph.nodes.activation[node])
            case "error":
                assert (found["node_id"], found["feature"], found["layer"]) == (f"{layer}_-1_{at}", -1, layer)
                assert found["feature_type"] == "mlp reconstruction error"
            case "token":
                assert (found["node_id"], found["layer"], found["feature_type"]) == (f"E_{index}_{at}", "E", "embedding")
            case "logit":
                p = float(graph.importance[graph.row_of[node]])
                assert (found["node_id"], found["layer"], found["feature"]) == (f"4_{index}_{at}", "4", index)
                assert found["clerp"] == f'Output "{graph.nodes.labels[node - len(graph.nodes)]}" (p={p:.3f})'
                assert found["token_prob"] == p
            case _:
                assert found["feature"] < -1
                assert found["feature_type"] == ("logit" if each.kind == "target" else "bias")
    features = [(node["layer"], node["feature"]) for node in nodes if node["feature_type"] == "bias"]
    assert len({*features}) == len(features)  # a frontend takes those of one number for one latent, and drops what is everywhere
    assert [node["is_target_logit"] for node in nodes].index(True) == int(graph.nodes.of_kind("logit")[0])
    assert sum(node["is_target_logit"] for node in nodes) == 1


def test_cantors_pairing_is_one_to_one():
    assert [cantor(0, 0), cantor(1, 0), cantor(0, 1), cantor(2, 0)] == [0, 1, 2, 3]
    assert len({cantor(layer, index) for layer in range(30) for index in range(30)}) == 900


def test_two_dictionaries_and_errors_of_a_layer_are_told_apart(path: Path):
    graph = random_graph()
    sets = [each._replace(site=re.sub(r"blocks\.\d", "blocks.1", each.site)) for each in graph.nodes.sets]
    graph = replace(graph, nodes=replace(graph.nodes, sets=tuple(sets)))
    assert same(from_neuronpedia(to_neuronpedia(graph, path)), graph)
    ids = {node["node_id"] for node in read(path)["nodes"]}
    latents = graph.nodes.of_kind("latent")
    index, at = int(graph.nodes.latent[latents[-1]]), int(graph.nodes.position[latents[-1]])
    assert f"1_{index}_{at}_2" in ids


def test_influence_is_cumulative(path: Path):
    graph = random_graph()
    influence = torch.rand(len(graph.nodes), generator=torch.Generator().manual_seed(0))
    found = read(to_neuronpedia(graph, path, influence=influence, threshold=0.8))
    for node, each in enumerate(found["nodes"]):
        share = influence.double()[influence >= influence[node]].sum() / influence.double().sum()
        assert each["influence"] is None if each["feature_type"] == "logit" else abs(each["influence"] - share) < 1e-12
    assert found["metadata"]["node_threshold"] == 0.8
    assert all(each["influence"] is None for each in read(to_neuronpedia(graph, path, overwrite=True))["nodes"])


def test_labels_and_metadata_are_shown(path: Path):
    graph = random_graph()
    latent = int(graph.nodes.of_kind("latent")[3])
    found = read(to_neuronpedia(graph, path, labels={latent: "dogs"}, metadata={"info": {"creator_name": "a"}}, prompt="p"))
    assert found["nodes"][latent]["clerp"] == "dogs"
    assert (found["metadata"]["info"], found["metadata"]["prompt"]) == ({"creator_name": "a"}, "p")


def test_the_listing_has_each_graph_once(path: Path):
    other = path.with_name("other.json")
    listing = path.with_name("graph-metadata.json")
    for each, prompt in ((path, "first"), (other, "second"), (path, "third")):
        to_neuronpedia(random_graph(), each, prompt=prompt, overwrite=True)
    assert [(each["slug"], each["prompt"]) for each in read(listing)["graphs"]] == [("other", "second"), ("a-slug", "third")]
    for wrong in ('{"graphs": [1]}', "[]", "no", "[" * 100_000):
        listing.write_text(wrong)
        with pytest.raises(InputError, match=r"graph-metadata\.json is no listing of graphs"):
            to_neuronpedia(random_graph(), path.with_name("new.json"))
        assert listing.read_text() == wrong
        assert not path.with_name("new.json").exists()


def replaced(**columns: Any) -> Graph:
    return replace(random_graph(), **columns)


def twice() -> Graph:
    """A logit of one token, twice."""
    graph = random_graph()
    latent = graph.nodes.latent.clone()
    latent[graph.nodes.of_kind("logit")] = 5
    return replace(graph, nodes=replace(graph.nodes, latent=latent))


def nowhere() -> Graph:
    sets = tuple(each._replace(site="x") for each in random_graph().nodes.sets)
    return replaced(nodes=replace(random_graph().nodes, sets=sets))


REFUSED: dict[str, tuple[Callable[[], Graph], Json, str]] = {
    "a name": (random_graph, {"name": "a.txt"}, "path: a.txt; expected a name that ends in .json"),
    "the listing's name": (random_graph, {"name": "graph-metadata.json"}, "other than graph-metadata.json"),
    "no folder": (random_graph, {"name": "no/a.json"}, "does not exist; make it first"),
    "influence of others": (random_graph, {"influence": torch.ones(3)}, "influence: torch.float32 [3]; expected a finite number"),
    "negative influence": (random_graph, {"influence": -torch.ones(66)}, "influence: torch.float32 [66]"),
    "a label of no node": (random_graph, {"labels": {66: "a"}}, "labels: node 66; expected numbers below 66"),
    "metadata of its own": (random_graph, {"metadata": {"slug": "b"}}, "metadata: 'slug' follows from the graph"),
    "metadata that is no JSON": (random_graph, {"metadata": {"info": torch.ones(1)}}, "graph: it cannot be written as JSON"),
    "a call that is no JSON": (lambda: replaced(call={"a": float("nan")}), {}, "graph: it cannot be written as JSON"),
    "NaN": (lambda: replaced(weight=random_graph().weight * float("nan")), {}, "graph: edges/data: not all are finite"),
    "a token twice": (twice, {}, "graph: two nodes are '4_5_3'"),
    "no layer": (nowhere, {}, "'x', which is in no layer"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_refused(case: str, tmp_path: Path):
    made, options, said = REFUSED[case]
    options = dict(options)
    with pytest.raises(InputError, match=re.escape(said)):
        to_neuronpedia(made(), tmp_path / options.pop("name", "a.json"), **options)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ circuit-tracer's


def node(kind: str, layer: int | str, index: int, at: int, **more: Any) -> Json:
    """A node as circuit-tracer writes it."""
    named = {
        "cross layer transcoder": f"{layer}_{index}_{at}", "mlp reconstruction error": f"0_{layer}_{at}", "embedding": f"E_{index}_{at}",
        "logit": f"{layer}_{index}_{at}",
    }  # fmt: skip
    return {
        "node_id": named[kind], "feature": index, "layer": str(layer), "ctx_idx": at, "feature_type": kind, "token_prob": 0.0,
        "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0, "jsNodeId": "x", "clerp": "", "influence": 0.5, "activation": None,
    } | more  # fmt: skip


LATENT, ERROR, TOKEN, LOGIT = "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"


def theirs() -> Json:
    """Three layers, two tokens. `0_1_1` is latent 1 of layer 0, and the error of layer 1; `0_2_1` is latent 2, and the error of layer 2."""
    nodes = [
        node(LATENT, 0, 1, 1, activation=2.0, clerp="dogs"), node(LATENT, 0, 2, 1, activation=3.0), node(LATENT, 1, 7, 1, activation=4.0),
        node(LATENT, 2, 9, 1, activation=5.0), node(ERROR, 0, -1, 1), node(ERROR, 1, -1, 1), node(ERROR, 2, -1, 1),
        node(TOKEN, "E", 3, 0), node(TOKEN, "E", 4, 1),
        node(LOGIT, 4, 8, 1, token_prob=0.625, influence=None, clerp='Output " a" b" (p=0.625)'),
    ]  # fmt: skip
    links = [
        ("E_4_1", "0_1_1", 1.0),
        ("0_1_1", "1_7_1", 2.0),  # not the error of its own layer
        ("E_3_0", "1_7_1", 3.0),
        ("0_1_1", "2_9_1", 4.0),  # a latent of layer 1 follows, so it is one of layer 0
        ("1_7_1", "2_9_1", 5.0),
        ("0_0_1", "2_9_1", 6.0),
        ("0_1_1", "2_9_1", 7.0),  # an error went before
        ("0_1_1", "4_8_1", 8.0),  # both, in turn
        ("0_1_1", "4_8_1", 9.0),
        ("0_2_1", "4_8_1", 10.0),  # an error of layer 1 went before
    ]
    return {
        "metadata": {
            "slug": "s", "scan": "gpt2", "transcoder_list": ["a", "b", "c"], "prompt_tokens": ["x", "y"], "prompt": "xy",
            "node_threshold": 0.8,
        },
        "qParams": {
            "pinnedIds": ["0_0_1", "1_7_1"], "supernodes": [["pets", "0_1_1"]], "linkType": "both", "clickedId": "0_1_1", "sg_pos": "",
        },
        "nodes": nodes,
        "links": [dict(zip(("source", "target", "weight"), link, strict=True)) for link in links],
    }  # fmt: skip


IN, OUT, END = "mlp.hook_in", "hook_mlp_out", "blocks.2.hook_resid_post"
A, B, C, D = (("latent", f"blocks.{layer}.{IN}", 1, index) for layer, index in ((0, 1), (0, 2), (1, 7), (2, 9)))
ERRORS = [("error", f"blocks.{layer}.{OUT}", 1, -1) for layer in range(3)]
X, Y, Z = ("token", "embed", 0, 3), ("token", "embed", 1, 4), ("logit", END, 1, 8)
EDGES = {
    (A, Y): 1.0, (C, A): 2.0, (C, X): 3.0, (D, A): 4.0, (D, C): 5.0, (D, ERRORS[0]): 6.0, (D, ERRORS[1]): 7.0, (Z, A): 8.0,
    (Z, ERRORS[1]): 9.0, (Z, ERRORS[2]): 10.0,
}  # fmt: skip


def test_circuit_tracers_own_files_are_read_with_their_collisions(path: Path):
    graph = from_neuronpedia(put(path, theirs()))
    assert edges_of(graph) == EDGES
    assert graph.nodes.labels == ("x", "y", ' a" b')
    assert graph.nodes.activation[graph.nodes.of_kind("latent")].tolist() == [2.0, 3.0, 4.0, 5.0]
    assert graph.importance.tolist() == [0, 0, 0, 0, 0.625]
    assert [each.name for each in graph.nodes.sets if each.kind == "latent"] == ["a", "b", "c"]
    assert (graph.tokens.tolist(), graph.strings) == ([3, 4], ("x", "y"))
    assert graph.value.isnan().all()
    dense = torch.from_numpy(graph.to_scipy().toarray())[graph.targets]
    assert torch.equal(graph.l1, dense.abs().sum(1))
    # what it says beside is written again, under ids of one meaning
    found = read(to_neuronpedia(graph, path.with_name("again.json")))
    assert found["metadata"] == theirs()["metadata"] | {"slug": "again", "schema_version": 1}
    assert found["qParams"] == theirs()["qParams"] | {"pinnedIds": ["0_-1_1", "1_7_1"]}
    shown = {each["node_id"]: each["clerp"] for each in found["nodes"]}
    assert (shown["0_1_1"], shown["1_-1_1"]) == ("dogs", "")
    assert [each["influence"] for each in found["nodes"]] == [None if each["feature_type"] == LOGIT else 0.5 for each in found["nodes"]]
    assert same(from_neuronpedia(path.with_name("again.json")), graph)
    # and read by who knows nothing of attrib's key
    del found["attrib"]
    assert edges_of(from_neuronpedia(put(path, found))) == EDGES


def with_attention() -> Json:
    """As Neuronpedia's other generator writes it: two layers, in each a dictionary for attention before that for the MLP."""

    def plain(name: str, kind: str, layer: int | str, at: int, clerp: str = "", **more: Any) -> Json:
        return {
            "node_id": name,
            "jsNodeId": name,
            "feature": None,
            "feature_type": kind,
            "layer": layer,
            "ctx_idx": at,
            "clerp": clerp,
        } | more

    traced = {
        "pair_wise_contributors": [["E_4_1", "E_3_0", 0.5], ["0_lor_1_1", "0_bias_lorsa_bQ_1", -0.25]],
        "top_q_marginal_contributors": [["0_lor_1_1", 0.75]], "top_k_marginal_contributors": [["0_bias_lorsa_bQ_1", 0.125]],
    }  # fmt: skip
    nodes = [
        plain("E_3_0", "embedding", "E", 0, 'Emb: "x"', activation=None), plain("E_4_1", "embedding", "E", 1),
        plain("0_cro_1_1", LATENT, 0, 1, "F2", activation=2.0, feature=2), plain("0_lor_1_1", "lorsa", 0, 1, "F2", activation=3.0),
        plain("1_lor_1_1", "lorsa", 1, 1, activation=4.0, qk_tracing_results=traced), plain("0_error_attn_1", "lorsa error", 0, 1),
        plain("0_error_mlp_1", ERROR, 0, 1), plain("2_8_1", LOGIT, 2, 1, 'Logit " a" (p=0.625)', token_prob=0.625, influence=0.5),
    ]  # fmt: skip
    links = [
        ("E_4_1", "0_lor_1_1"),
        ("0_lor_1_1", "0_cro_1_1"),
        ("0_error_attn_1", "0_cro_1_1"),
        ("0_error_mlp_1", "1_lor_1_1"),
        ("1_lor_1_1", "2_8_1"),
    ]
    return {
        "metadata": {"slug": "s", "scan": "qwen3", "prompt_tokens": ["x", "y"], "prompt": "xy"}, "qParams": {}, "nodes": nodes,
        "links": [{"source": source, "target": target, "weight": 1.0 + at} for at, (source, target) in enumerate(links)],
        "qk_only_nodes": {"0_bias_lorsa_bQ_1": plain("0_bias_lorsa_bQ_1", "bias", 0, 1)},
    }  # fmt: skip


def test_graphs_with_dictionaries_for_attention_are_read(path: Path):
    graph = from_neuronpedia(put(path, with_attention()))
    low, high = (("latent", f"blocks.{layer}.hook_resid_pre", 1, 1) for layer in (0, 1))
    passed, left = ("latent", f"blocks.0.{IN}", 1, 1), ("error", "blocks.0.hook_attn_out", 1, -1)
    end = ("logit", "blocks.1.hook_resid_post", 1, 8)  # one above the last layer
    want = [(low, ("token", "embed", 1, 4)), (passed, low), (passed, left), (high, ("error", f"blocks.0.{OUT}", 1, -1)), (end, high)]
    assert edges_of(graph) == {edge: 1.0 + at for at, edge in enumerate(want)}
    assert graph.nodes.activation[graph.nodes.of_kind("latent")].tolist() == [3.0, 2.0, 4.0]
    # who is in its queries and keys is written again under the new ids, and what is none of the nodes too
    found = read(to_neuronpedia(graph, path.with_name("again.json")))
    [traced] = [each["qk_tracing_results"] for each in found["nodes"] if "qk_tracing_results" in each]
    assert traced["pair_wise_contributors"] == [["E_4_1", "E_3_0", 0.5], ["0_1_1", "0_bias_lorsa_bQ_1", -0.25]]
    assert found["qk_only_nodes"] == with_attention()["qk_only_nodes"]
    assert same(from_neuronpedia(path.with_name("again.json")), graph)
    # but not where some of them are gone, which a frontend would look up
    part = graph.take(torch.tensor([node for node in range(len(graph.nodes)) if graph.nodes.activation[node] != 3.0]))
    assert not [each for each in read(to_neuronpedia(part, path.with_name("part.json")))["nodes"] if "qk_tracing_results" in each]
    for wrong in (3, {"pair_wise_contributors": 3}, {"pair_wise_contributors": [3]}):
        document = with_attention()
        document["nodes"][4]["qk_tracing_results"] = wrong
        with pytest.raises(FormatError, match="nodes: '1_lor_1_1': qk_tracing_results: not an object of lists of lists"):
            from_neuronpedia(put(path, document))


def linked(*links: tuple[str, str], shuffled: bool = False) -> Json:
    document = theirs()
    document["links"] = [{"source": source, "target": target, "weight": 1.0 + number} for number, (source, target) in enumerate(links)]
    if shuffled:
        document["nodes"].reverse()
    return document


UNDECIDED: list[tuple[Json, int, str]] = [
    (linked(("0_1_1", "4_8_1")), 1, "number 0 from '0_1_1'"),  # nothing beside it
    (linked(("0_1_1", "4_8_1"), ("E_3_0", "4_8_1")), 1, "number 0 from '0_1_1'"),
    (linked(("0_1_1", "2_9_1"), ("1_7_1", "2_9_1"), shuffled=True), 1, "number 0 from '0_1_1'"),  # nodes in another order
    (linked(("1_7_1", "2_9_1"), ("E_3_0", "2_9_1"), ("0_1_1", "2_9_1")), 1, "number 2 from '0_1_1'"),  # links in another order
    (linked(("0_1_1", "4_8_1"), ("1_7_1", "4_8_1"), ("0_1_1", "2_9_1")), 2, "number 0 from '0_1_1'"),  # targets in another order
]


@pytest.mark.parametrize("number", range(len(UNDECIDED)))
def test_what_nothing_decides_is_asked_for(number: int, path: Path):
    document, count, said = UNDECIDED[number]
    put(path, document)
    with pytest.raises(InputError, match=rf"ambiguous: {count} of {len(document['links'])} links .*{said}, and nothing tells"):
        from_neuronpedia(path)
    kinds = {}
    for kind in ("latent", "error"):
        graph = from_neuronpedia(path, ambiguous=kind)  # type: ignore[arg-type]
        kinds[kind] = [source for _, source in edges_of(graph) if source in (A, ERRORS[1])]
    assert kinds == {"latent": [A] * count, "error": [ERRORS[1]] * count}


def test_less_is_enough(path: Path):
    """No activations, no probability but the clerp's, a token that is gone, layers as numbers, no saved view."""
    document = theirs()
    del document["qParams"], document["metadata"]["transcoder_list"]
    for each in document["nodes"]:
        for name in ("token_prob", "influence", "activation", "jsNodeId", "feature"):
            each.pop(name)
        each["layer"] = int(each["layer"]) if each["layer"] != "E" else "E"
    document["nodes"] = [each for each in document["nodes"] if each["node_id"] != "E_3_0"]
    document["links"] = [link for link in document["links"] if link["source"] != "E_3_0"]
    graph = from_neuronpedia(put(path, document))
    assert edges_of(graph) == {pair: weight for pair, weight in EDGES.items() if pair[1] != X}
    assert graph.nodes.activation[graph.nodes.of_kind("latent")].isnan().all()
    assert (graph.tokens.tolist(), graph.importance[-1].item()) == ([-1, 4], 0.625)
    assert same(from_neuronpedia(to_neuronpedia(graph, path, overwrite=True)), graph)


# -------------------------------------------------------------------------------------------------- hostile files


def at(*place: str | int, value: Any) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        part: Any = document
        for name in place[:-1]:
            part = part[name]
        part[place[-1]] = value

    return change


def add(part: str, value: Any) -> Callable[[Json], None]:
    return lambda document: document[part].append(value)


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


WRONG: dict[str, tuple[Callable[[Json], Any], str]] = {
    "lists within lists": (at("qParams", "pinnedIds", value=nested(900)), "qParams: lists within lists without end"),
    "no nodes": (lambda document: document.pop("nodes"), "nodes: None, and not a list"),
    "no links": (at("links", value={}), "links: a dict, and not a list"),
    "no metadata": (at("metadata", value=[]), "metadata: a list, and not an object"),
    "tokens that are none": (at("metadata", "prompt_tokens", value=["x", 1]), "metadata: prompt_tokens: not a list of texts"),
    "a node that is none": (add("nodes", 3), "nodes: 3, and not an object"),
    "an id that is none": (at("nodes", 0, "node_id", value=3), "nodes: 3: node_id: 3, and not a str"),
    "a position that is none": (at("nodes", 0, "ctx_idx", value=True), "nodes: '0_1_1': ctx_idx: True, and not a int"),
    "a position outside": (at("nodes", 4, "ctx_idx", value=2), "ctx_idx: 2, which is outside the 2 tokens"),
    "a position below 0": (at("nodes", 4, "ctx_idx", value=-1), "ctx_idx: -1, which is outside"),
    "another position": (at("nodes", 0, "ctx_idx", value=0), "nodes: '0_1_1': not the id of a latent in layer 0 at position 0"),
    "another layer": (at("nodes", 0, "layer", value="1"), "not the id of a latent in layer 1 at position 1"),
    "a layer that is none": (at("nodes", 4, "layer", value="one"), "layer: 'one', and not a number from 0"),
    "layers without end": (at("nodes", 4, "layer", value="999999999"), "nodes: of 1000000000 layers"),
    "a kind that attrib has not": (at("nodes", 0, "feature_type", value="bias"), "feature_type: 'bias', and attrib reads 'cross layer"),
    "an id of another kind": (at("nodes", 7, "node_id", value="embedding"), "nodes: 'embedding': not the id of a token"),
    "an activation that is none": (at("nodes", 0, "activation", value="2"), "activation: '2', and not a finite number"),
    "an activation without end": (at("nodes", 0, "activation", value=10**400), "activation: 1000.*, and not a finite number"),
    "a node twice": (add("nodes", node(LATENT, 1, 7, 1)), "nodes: two latent nodes of layer 1, position 1, number 7"),
    "a logit without probability": (
        lambda document: document["nodes"][9].update({"token_prob": None, "clerp": "a"}), "neither token_prob nor its clerp",
    ),
    "a link that is none": (at("links", 0, value="a"), "links: 'a', and not an object"),
    "a link without weight": (lambda document: document["links"][0].pop("weight"), "links: number 0: weight: None, and not a finite"),
    "a link from nowhere": (at("links", 0, "source", value="9_9_9"), "links: the source '9_9_9' of '0_1_1' is no node of the file"),
    "a link to nowhere": (at("links", 0, "target", value="9_9_9"), "links: the target '9_9_9' is no latent or logit of the file"),
    "a link to a token": (at("links", 0, "target", value="E_3_0"), "links: the target 'E_3_0' is no latent or logit"),
    "a link from above": (at("links", 0, "source", value="2_9_1"), "links: the source '2_9_1' of '0_1_1' is not before it"),
    "a link to itself": (at("links", 4, "source", value="2_9_1"), "links: the source '2_9_1' of '2_9_1' is not before it"),
    "a link from a logit": (at("links", 4, "source", value="4_8_1"), "links: the source '4_8_1' of '2_9_1' is not before it"),
    "a link twice": (
        at("links", value=[{"source": "1_7_1", "target": "2_9_1", "weight": 1}] * 2), "links: two from '1_7_1' to '2_9_1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_refused_by_name(case: str, path: Path):
    change, said = WRONG[case]
    document = theirs()
    change(document)
    with pytest.raises(FormatError, match=said) as raised:
        from_neuronpedia(put(path, document), ambiguous="latent")
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"), ("[]", "a list, and not an object"), ("{", "not JSON"), ('{"nodes": NaN}', "NaN is no number of JSON"),
        ("[" * 100_000, "not JSON"), ('{"a": ' + "9" * 5000 + "}", "not JSON"), ("\xff", "not JSON"),
        ('{"a": -Infinity}', "-Infinity is no"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(text: str, said: str, path: Path):
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=said):
        from_neuronpedia(path)


OWN_WRONG: dict[str, tuple[Callable[[Json], Any], str]] = {
    "another version": (at("attrib", "format_version", value=2), "format version 2; this attrib reads version 1"),
    "no object": (at("attrib", value=3), "attrib: "),
    "no sets": (lambda document: document["attrib"].pop("sets"), "attrib: 'sets'"),
    "a set of no kind": (at("attrib", "sets", 0, 0, value="word"), "sets/kind: 'word', and not token"),
    "sets without end": (at("attrib", "sets", 0, 3, value=1 << 40), "sets/size: they sum to"),
    "a position of text": (at("attrib", "position", 0, value="0"), "position: not a list of whole numbers"),
    "a position too large": (at("attrib", "position", 0, value=1 << 70), "attrib: "),
    "a value of text": (at("attrib", "value", 0, value="0"), "value: not a list of numbers"),
    "a total that is not known": (at("attrib", "total", 0, value=None), "rows/total: not all are finite"),
    "another dtype": (at("attrib", "dtypes", "total", value="complex64"), "attrib: 'complex64'"),
    "another latent": (at("attrib", "latent", 12, value=77), "66 nodes, which are not the 66 of the file"),
    "a node less": (lambda document: document["nodes"].pop(), "66 nodes, which are not the 65 of the file"),
    "a link less": (lambda document: document["links"].pop(), "attrib: indptr"),
    "a link to another": (at("links", -1, "target", value="4_-2_2"), "attrib: '4_-2_2'"),
    "links in another order": (lambda document: document["links"].reverse(), "attrib: "),
    "a row of a token": (at("attrib", "targets", 0, value=0), "rows/target: not all are of the kinds"),
    "a call that is none": (at("attrib", "call", value=[]), "call: it is no object"),
    "strings that are none": (at("attrib", "strings", value=[1] * 4), "strings: not a list of texts"),
}


@pytest.mark.parametrize("case", OWN_WRONG)
def test_attribs_own_key_is_not_believed(case: str, path: Path):
    change, said = OWN_WRONG[case]
    document = read(to_neuronpedia(random_graph(), path))
    change(document)
    with pytest.raises(FormatError, match=said):
        from_neuronpedia(put(path, document))


def test_a_file_too_large_for_the_memory_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch):
    put(path, theirs())
    monkeypatch.setattr(neuronpedia_reading, "free_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"has [\d,]+ bytes, which may take 32 times as much"):
        from_neuronpedia(path)


def test_cut_files_are_refused(path: Path):
    raw = to_neuronpedia(random_graph(), path).read_bytes()
    for part in range(20):
        path.write_bytes(raw[: len(raw) * part // 20])
        with pytest.raises(FormatError, match="not JSON, or damaged"):
            from_neuronpedia(path)


def test_no_file_and_no_logits(path: Path):
    with pytest.raises(InputError, match="there is no file"):
        from_neuronpedia(path)
    os.mkfifo(path)
    with pytest.raises(InputError, match="is a pipe"):
        from_neuronpedia(path)
    path.unlink()
    graph = replace(empty_graph(), nodes=replace(empty_graph().nodes, sets=(NodeSet("token", "embed", "", 1),)))
    assert same(from_neuronpedia(to_neuronpedia(graph, path)), graph)
