"""`attrib verify`: stored edges and graphs against what their model does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import attrib
from attrib.core.edges import Edges
from tests.support.builders import prompt
from tests.support.job_cases import SITES, corpus
from tests.support.typed import Command

TOKENS = [prompt(length, seed=length) for length in (7, 4, 9)]


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def edges(beside: Path) -> list[Edges]:
    model, (source, target) = attrib.load_model(beside / "model"), [attrib.load_dictionary(beside / site) for site in SITES]
    return [
        attrib.latent_to_latent(model, source, target, TOKENS),
        attrib.token_to_latent(model, target, TOKENS, policy=attrib.LINEAR),
        attrib.latent_to_logit(model, target, TOKENS, logits=attrib.Difference(3, 5)),
        attrib.latent_to_metric(model, source, TOKENS, lambda logits: logits[-1, 0]),
    ]


def given(beside: Path) -> list[str]:
    return [f"--at={name}={beside / name}" for name in ("model", *SITES)]


def test_true_edges_pass_and_are_told_by_pair_and_step(tmp_path: Path, beside: Path, edges: list[Edges], command: Command) -> None:
    path = attrib.save(tmp_path / "edges.h5", edges[:3])
    ran = command("verify", path, "--sources", 4, "--top", 1, *given(beside))
    assert ran.status == 0, ran.err
    assert [ran.out.count(f"{one.sources.site} -> {one.targets.site}") for one in edges[:3]] == [4, 4, 4], "at two steps, in two tables"
    assert "furthest apart at step 0.001" in ran.out
    ran = command("verify", path, "--step", 1, "--sources", 99, "--prompt", 2, "--kind", "latent_to_logit", "--json", *given(beside))
    said = json.loads(ran.out)
    assert (ran.status, len(said["summary"]), said["call"]["steps"]) == (0, 1, [1.0])
    assert said["summary"][0]["edges"] == len(edges[2].prompt(2))
    assert {line["prompt"] for line in said["worst"]} == {2}
    ran = command("verify", path, "--step", 1, "--edges", 3, "--kind", "latent_to_logit", "--json", *given(beside))
    assert json.loads(ran.out)["summary"][0]["edges"] == 3
    ran = command("verify", path, "--edges", 3, "--sources", 2, *given(beside))
    assert (ran.status, "n_edges: 3 edges beside n, 2 sources" in ran.err) == (1, True)


def test_a_wrong_edge_in_a_file_is_found(tmp_path: Path, beside: Path, edges: list[Edges], command: Command) -> None:
    whole = edges[2]
    wrong = whole.attribution.clone()
    at = int(wrong.abs().argmax())
    wrong[at] *= -1
    path = attrib.save(tmp_path / "edges.h5", replace(whole, attribution=wrong))
    ran = command("verify", path, "--sources", 999, "--step", 1e-3, "--top", 1, "--json", *given(beside))
    worst = json.loads(ran.out)["worst"][0]
    i = int(whole.indices[at])
    assert worst["source"].startswith(f"{SITES[1]}[{int(whole.sources.latent[i])}] @{int(whole.sources.position[i])} ")
    assert worst["measured"] == pytest.approx(-worst["predicted"], rel=1e-3)
    assert ran.status == 0  # one among many, which a median does not see
    path = attrib.save(tmp_path / "all.h5", replace(whole, attribution=1.5 * whole.attribution))
    ran = command("verify", path, "--sources", 5, *given(beside))
    assert (ran.status, "do not predict what their model does" in ran.err) == (1, True), ran.err


@pytest.mark.few
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "7"], "prompt: 7 is not in"),
        (["--kind", "token_to_logit"], "kind: no block of token_to_logit"),
        (["--kind", "latent_to_metric"], "target: the edges go to the metric"),
        (["--step", "0"], "steps: [0.0]; expected numbers above 0"),
        (["--step", "nan"], "steps: [nan]"),
        (["--dtype", "int8"], "dtype: 'int8'"),
        (["--at", "model"], "at: 'model'; expected NAME=FOLDER"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, beside: Path, edges: list[Edges], command: Command, options: list[str], words: str
) -> None:
    path = attrib.save(tmp_path / "edges.h5", edges)
    ran = command("verify", path, *given(beside), *options)
    assert ran.status == 1
    assert words in ran.err, ran.err
    assert ran.err.count("\n") == 1


def test_another_model_is_refused(tmp_path: Path, beside: Path, edges: list[Edges], command: Command) -> None:
    call: dict[str, Any] = json.loads(json.dumps(edges[0].call))
    call["source"]["sha256"] = "0" * 64
    path = attrib.save(tmp_path / "edges.h5", replace(edges[0], call=call))
    ran = command("verify", path, *given(beside))
    assert (ran.status, "what is here under this name is not what the file was made with" in ran.err) == (1, True), ran.err


@pytest.mark.long
def test_a_file_of_graphs_is_measured_by_the_numbers_of_its_prompts(tmp_path: Path, beside: Path, command: Command) -> None:
    model, dictionaries = attrib.load_model(beside / "model"), [attrib.load_dictionary(beside / site) for site in SITES]
    graphs = attrib.graph.build(model, dictionaries, TOKENS[:2])
    path = attrib.save(tmp_path / "graphs.h5", graphs)
    ran = command("verify", path, "--prompt", 1, "--sources", 40, "--json", *given(beside))
    said = json.loads(ran.out)
    assert ran.status == 0, ran.err
    assert {line["prompt"] for line in said["worst"]} == {1}
    assert all(line["median"] < 1e-3 for line in said["summary"] if line["step"] < 1)
    wrong = [replace(g, weight=-g.weight, total=-g.total, own=g.own + 2 * g.total) for g in graphs]  # whose rows still add up
    ran = command("verify", attrib.save(tmp_path / "wrong.h5", wrong), "--sources", 5, *given(beside))
    assert (ran.status, "do not predict what their model does" in ran.err) == (1, True), ran.err
    ran = command("verify", path, "--kind", "latent_to_latent", *given(beside))
    assert (ran.status, "has no effect on graphs" in ran.err) == (1, True), ran.err
    assert command("verify", tmp_path / "none.h5").status == 1
