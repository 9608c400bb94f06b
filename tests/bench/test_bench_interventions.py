"""The benches of interventions: what is timed beside attrib computes the same, and what differs has no figures."""

from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.causal import ablate_each
from bench.causal import ablations
from bench.peers import interventions
from tests.support.builders import build, dictionary, prompt
from tests.support.tolerances import assert_close


@pytest.mark.parametrize(("kind", "site"), [("topk", "blocks.1.hook_resid_pre"), ("transcoder", "blocks.1.mlp.hook_in")])
def test_what_is_timed_beside_it_computes_the_same(kind: str, site: str):
    model, one, ids = build("llama"), dictionary(kind, site), prompt(6)
    found = ablate_each(model, one, ids)
    chosen = attrib.forward(model, ids)[-1].topk(10).indices
    assert_close(ablations.by_hand(model, one, ids, chosen), found.ablated)
    for n in range(0, len(found), 9):
        assert_close(ablations.without(model, one, found, n, ids)[chosen], found.ablated[n])


def test_what_differs_has_no_figures():
    ways: dict[str, Any] = {"attrib": (lambda: sum(range(1000)), 1.0), "forward": (lambda: sum(range(100_000)), 2.0)}
    device = torch.device("cpu")
    right = ablations._timed(ways, {"forward": 1e-6}, 10, 2, device)
    assert right["checked"]
    assert right["times_less"]["forward"] == right["cpu_s"]["forward"] / right["cpu_s"]["attrib"]
    assert "10 ablations" in next(ablations.rows({"case": right}))
    wrong = ablations._timed(ways, {"forward": 1e-3}, 10, 2, device)
    assert not wrong["checked"]
    assert "cpu_s" not in wrong
    assert not ablations._timed(ways, {"forward": float("nan")}, 10, 2, device)["checked"]


def test_every_way_of_circuit_tracer_has_options(tmp_path: Path):
    model, dictionaries = build("llama"), [dictionary("transcoder", f"blocks.{layer}.mlp.hook_in", seed=layer) for layer in range(4)]
    for way in interventions.WAYS:
        logits = attrib.causal.intervene(model, dictionaries, prompt(4), **interventions.options_of(way, 4))
        assert_close(logits, attrib.forward(model, prompt(4)))  # without edits nothing moves, whatever is held
    assert not interventions.compare(tmp_path)  # of nothing, nothing agrees
