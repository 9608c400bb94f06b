"""What a page holds of a graph: every number, the parts of most influence where it is too large, and no string as markup."""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attrib
from attrib.core.types import InputError
from attrib.graph import influence
from attrib.graph.graph import Graph
from attrib.latents.labels import Label, Labels
from attrib.view.explorer.fitting import Most, fitted
from attrib.view.explorer.graph_payload import packed
from attrib.view.explorer.page import page
from tests.support.graphs import random_graph
from tests.support.typed import Command

GRAPH = random_graph(positions=5, latents=9)


def unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and columns, read as docs of the format say, by other means than the page's."""
    plain = gzip.decompress(data)
    length = int.from_bytes(plain[:4], "little")
    header = json.loads(plain[4 : 4 + length])
    begin = (4 + length + 7) // 8 * 8
    columns = {}
    for each in header["arrays"]:
        columns[each["name"]] = np.frombuffer(plain, "<" + each["type"], each["length"], begin + each["offset"])
    return header, columns


def test_every_number_of_a_graph_is_there() -> None:
    header, columns = unpacked(packed(GRAPH, Most()))
    nodes = GRAPH.nodes
    for name, whole in {"position": nodes.position, "latent": nodes.latent, "targets": GRAPH.targets, "indptr": GRAPH.indptr}.items():
        assert columns[name].tolist() == whole.tolist()
    assert columns["indices"].tolist() == GRAPH.indices.tolist()
    for name in ("weight", "value", "own", "total", "l1", "importance"):
        np.testing.assert_array_equal(columns[name], getattr(GRAPH, name).float().numpy())
    np.testing.assert_array_equal(columns["activation"], nodes.activation.float().numpy())
    assert [(each["kind"], each["site"], each["name"], each["size"]) for each in header["sets"]] == [tuple(each) for each in nodes.sets]
    assert [each["level"] for each in header["sets"]] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4]
    assert header["left_out"] == ""
    assert header["tokens"] == list(GRAPH.strings)
    assert header["labels"] == list(nodes.labels)


def test_the_same_graph_makes_the_same_bytes() -> None:
    assert packed(GRAPH, Most()) == packed(random_graph(positions=5, latents=9), Most())


def test_of_a_larger_graph_what_has_most_influence_stays_and_the_page_says_so() -> None:
    most = Most(nodes=30, edges=40)
    small = fitted(GRAPH, most).graph
    always = set(GRAPH.nodes.of_kind("token", "logit", "target").tolist())
    score = influence(GRAPH)
    others = sorted(set(range(len(GRAPH.nodes))) - always, key=lambda node: (-float(score[node]), node))[: 30 - len(always)]
    assert small.nodes.position.tolist() == GRAPH.nodes.position[torch.tensor(sorted(always | set(others)))].tolist()
    assert len(small) == 40
    header, columns = unpacked(packed(GRAPH, most))
    assert header["left_out"] == (
        f"This page holds 30 of the graph's {len(GRAPH.nodes)} nodes and 40 of the graph's {len(GRAPH)} edges, those of largest influence."
    )
    assert len(columns["weight"]) == 40
    # what is left out counts as dropped, so that rows are the same whole
    assert set(small.l1.tolist()) <= set(GRAPH.l1.tolist())


def test_labels_and_links_go_to_their_latents() -> None:
    [at] = [number for number, each in enumerate(GRAPH.nodes.sets) if each.name == "transcoder 1"]
    latent = int(GRAPH.nodes.latent[GRAPH.nodes.rows(at)][0])
    labels = Labels(
        (Label("transcoder 1", latent, "capitals", "me"), Label("transcoder 1", 10_000, "nowhere", "me"), Label("x", latent, "x", "me"))
    )
    header, _ = unpacked(packed(GRAPH, Most(), labels, {"transcoder 1": "https://example.org/"}))
    assert header["explanations"] == [[at, latent, "capitals", "me"]]
    assert [each["link"] for each in header["sets"]] == [
        "https://example.org/" if number == at else "" for number in range(len(header["sets"]))
    ]


def test_limits_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(InputError, match="max_nodes: 3; expected at least the 9 tokens"):
        packed(GRAPH, Most(nodes=3))
    with pytest.raises(InputError, match="max_edges"):
        packed(GRAPH, Most(edges=-1))
    huge = replace(GRAPH, value=torch.full_like(GRAPH.value, 1e300))
    with pytest.raises(InputError, match="value: it holds numbers that float32"):
        packed(huge, Most())


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"


def hostile() -> Graph:
    """A graph whose every string would act on a page that reads it as markup."""
    strings = (HOSTILE, "\u202eright to left", "\0\a\x1b[31m", "long" * 2500, "\n")
    names = (*strings, *(HOSTILE for _ in range(len(GRAPH.nodes.labels) - 5)))
    return replace(GRAPH, strings=strings, nodes=replace(GRAPH.nodes, labels=names), call={"model": HOSTILE})


def test_a_page_says_by_which_model_and_rules_a_graph_was_made() -> None:
    call: Any = {"model": {"name": "m", "sha256": "0"}, "policy": {"attention": "frozen", "norm": "exact"}, "keep": "Dense()"}
    for one in (call, {"kind": "graph with heads", "graph": call}):
        facts = dict(unpacked(packed(replace(GRAPH, call=one), Most()))[0]["facts"])
        assert (facts["model"], facts["policy"], facts["keep"]) == ("m", "attention frozen, norm exact", "Dense()")


def test_no_string_is_markup_and_the_policy_names_what_may_run() -> None:
    made = page(HOSTILE, packed(hostile(), Most()))
    assert made.count("<script") == made.count("</script>") == 2
    assert "onerror" not in made.split("<style>")[0] or "&lt;img" in made.split("<style>")[0]
    [script] = re.findall(r"<script>(.*?)</script>", made, re.S)
    [style] = re.findall(r"<style>(.*?)</style>", made, re.S)
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)
    for name, text in (("script-src", script), ("style-src", style)):
        assert f"{name} 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_command_writes_a_page_and_refuses_what_it_cannot(tmp_path: Path, command: Command) -> None:
    attrib.save(tmp_path / "g.h5", [GRAPH, random_graph(1)])
    out = tmp_path / "page.html"
    ran = command("view", tmp_path / "g.h5", "--html", out, "--prompt", 1)
    assert ran.status == 0, ran.err
    [data] = re.findall(r'id="data">([^<]*)<', out.read_text())
    assert unpacked(base64.b64decode(data))[1]["weight"].tolist() == random_graph(1).weight.float().tolist()
    before = out.read_bytes()
    for given, said in (
        ((), "exists already"),
        (("--overwrite", "--prompt", 7), "prompt: 7 is not among the 2 prompts"),
        (("--overwrite", "--max-nodes", 2), "max_nodes: 2"),
        (("--overwrite", "--neuronpedia", "nothing"), "--neuronpedia: 'nothing'"),
        (("--overwrite", "--neuronpedia", "mistyped=a/b"), "--neuronpedia: 'mistyped' is no dictionary of the page"),
        (("--overwrite", "--labels", tmp_path / "none.csv"), "none.csv"),
    ):
        ran = command("view", tmp_path / "g.h5", "--html", out, *given)
        assert ran.status
        assert said in ran.err
        assert "Traceback" not in ran.err
        assert out.read_bytes() == before
