"""What is shown of a result of a model that sees both ways: sources behind their targets count as well."""

import attrib
from attrib.view.chosen import Chosen
from attrib.view.tables import possible_pairs, tables
from tests.support.builders import build, dictionary, prompt


def edges_of(family: str) -> attrib.Edges:
    ends = (dictionary("topk", f"blocks.{layer}.hook_resid_pre", k=3) for layer in (0, 2))
    return attrib.latent_to_latent(build(family), *ends, [prompt(5)])  # type: ignore[arg-type]


def test_all_pairs_are_possible():
    edges = edges_of("gpt2 without masks")
    assert (edges.sources.position[edges.indices] > edges.targets.position[edges.row]).any()
    assert possible_pairs(edges.prompt(0)) == len(edges.sources) * len(edges.targets) == len(edges)
    assert "an active source and an active target" in str(list(tables(edges, [0], Chosen()))[1])


def test_of_others_those_that_attention_looks_back_at():
    edges = edges_of("gpt2")
    assert edges.call["model"].keys() == {"name", "sha256"}
    assert possible_pairs(edges.prompt(0)) < len(edges.sources) * len(edges.targets)
    assert "at or before an active target" in str(list(tables(edges, [0], Chosen()))[1])
