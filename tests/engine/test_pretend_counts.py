"""What named cases may ask of a GPU at most, on a device that is not there; and what is done where it has too little memory."""

import warnings
from typing import Any

import pytest
import torch

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.edges import Edges
from attrib.core.rates import FREE
from attrib.core.types import Site, TopLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine import on_demand
from attrib.engine.sweep import cells
from attrib.graph.building import build as build_graphs
from bench.engine.cases import latents
from bench.engine.launches import CASES, SMALL, counted
from tests.support.builders import normal
from tests.support.pretend import NAME, pretending
from tests.support.tolerances import ROUNDING, assert_close

CEILINGS = {"small-linear": (398, 4, 121e6), "small-exact": (494, 4, 238e6)}
"""Launches, waits and bytes of a whole call, hashes of its weights among them. Counts have no noise: whoever asks for less lowers these."""


@pytest.mark.parametrize("case", CEILINGS)
def test_launches_waits_and_bytes(case: str):
    problem = CASES[case].build()
    found, counts = counted(problem, 16 << 30)
    total = counts.total
    launches, waits, size = CEILINGS[case]
    assert total.bytes <= size, counts.table(30, by=lambda count: count.bytes)
    assert total.launches <= launches, counts.table(30)
    assert total.waits <= waits, counts.table(30, by=lambda count: count.waits)
    assert counts.lines["elsewhere"].launches == 0
    _, without = counted(problem, 16 << 30, computes=False)
    assert (without.total.launches, without.total.waits) == (total.launches, total.waits), "what is asked for hangs on floating numbers"
    assert problem.source is not None
    assert isinstance(problem.target, Dictionary)
    on_host = attrib.latent_to_latent(
        problem.model, problem.source, problem.target, problem.tokens, policy=problem.policy, keep=attrib.TopK(20)
    )
    assert_close(found.total, on_host.total, ROUNDING)
    assert_close(found.l1, on_host.l1, ROUNDING)


def transcoders(model: attrib.Model) -> list[Dictionary]:
    """One in place of every MLP."""
    width = model.config.d_model
    return [
        from_tensors(
            site=Site(layer, "mlp_in"), writes=Site(layer, "mlp_out"), W_enc=normal(width, 40, seed=layer) * width**-0.5,
            W_dec=normal(40, width, seed=9 + layer), k=4,
        )
        for layer in range(model.config.n_layers)
    ]  # fmt: skip


GRAPH_CEILINGS = {1 << 30: (3167, 155), 600_000: (4441, 185)}
"""The same of a graph of 12 positions through transcoders, by its budget: in one sweep, and in several."""


@pytest.mark.parametrize("budget", GRAPH_CEILINGS)
def test_launches_and_waits_of_a_graph(budget: int):
    cuts = transcoders(PROBLEM.model)
    options: dict[str, Any] = {"targets": TopLogits(2), "keep": attrib.TopK(20), "budget": budget}
    (want,) = build_graphs(PROBLEM.model, cuts, PROBLEM.tokens[:12], **options)
    with pretending() as device:
        model, there = PROBLEM.model.to(device=NAME), [cut.to(device=NAME) for cut in cuts]
        device.begin()
        (found,) = build_graphs(model, there, PROBLEM.tokens[:12], **options)
        total = device.counts.total
    launches, waits = GRAPH_CEILINGS[budget]
    assert total.launches <= launches, device.counts.table(30)
    assert total.waits <= waits, device.counts.table(30, by=lambda count: count.waits)
    assert torch.equal(found.targets, want.targets)
    assert_close(found.total, want.total, ROUNDING)
    assert_close(found.l1, want.l1, ROUNDING)


# ------------------------------------------------------------------------------------ too little memory

PROBLEM = latents(SMALL, 0, 3, 16, d_sae=256, active=(6, 6))
LARGER = latents(SMALL, 0, 3, 64, d_sae=256, active=(24, 24))
"""Whose sweeps take more than the hashes of its weights."""


def attributed(limit: int | None) -> tuple[Edges, int]:
    """Two prompts' edges where so many bytes are there beside the weights; and the bytes that were held at the fullest."""
    assert problem_ends()
    with pretending() as device:
        model, source, target = (each.to(device=NAME) for each in problem_ends())
        before = device.held
        device.begin()
        device.limit = None if limit is None else before + limit
        found = attrib.latent_to_latent(model, source, target, [LARGER.tokens[:60], LARGER.tokens[4:40]])
        return found, device.counts.peak - before


def problem_ends() -> tuple[attrib.Model, Dictionary, Dictionary]:
    assert LARGER.source is not None
    assert isinstance(LARGER.target, Dictionary)
    return LARGER.model, LARGER.source, LARGER.target


@pytest.mark.long
def test_a_device_with_too_little_memory_goes_on_in_halves_or_says_so():
    want, peak = attributed(None)
    said, ended = [], 0
    for share in (0.9, 0.6, 0.005):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found, held = attributed(int(share * peak))
            except attrib.OutOfMemoryError as error:
                assert "out of memory while attributing 2 prompt(s)" in str(error)  # noqa: PT017
                ended += 1
                continue
        said += [str(each.message) for each in caught if "out of memory" in str(each.message)]
        assert held <= share * peak
        assert torch.equal(found.indices, want.indices)
        assert_close(found.gradient, want.gradient, ROUNDING)
        assert_close(found.total, want.total, ROUNDING)
    assert any("going on" in each for each in said)
    assert ended, "so little of it does not do in any case"


def graph_of(put_there: bool, max_nodes: int, monkeypatch: pytest.MonkeyPatch, fails: int) -> tuple[attrib.graph.Graph, list[int]]:
    """A graph whose rows are asked for part by part, where memory runs out the first times that sources are lifted."""
    model = PROBLEM.model
    cuts = transcoders(model)
    shared, lifted = on_demand.share, list[int]()

    def share(bundles: object, plan: object, *rest: object) -> object:
        lifted.append(int(plan.joint.meets is not None))  # type: ignore[attr-defined]
        if len(lifted) <= fails:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return shared(bundles, plan, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(on_demand, "share", share)
    monkeypatch.setattr(cells, "asking", lambda *_: FREE)  # else going down is less to ask for than lifting so few
    with pretending():
        on, those = (model.to(device=NAME), [cut.to(device=NAME) for cut in cuts]) if put_there else (model, cuts)
        (graph,) = build_graphs(on, those, PROBLEM.tokens[:12], targets=TopLogits(2), max_nodes=max_nodes)
    monkeypatch.undo()
    return graph, lifted


def test_rows_on_demand_go_on_without_lifting(monkeypatch: pytest.MonkeyPatch):
    want, lifted = graph_of(False, 8, monkeypatch, 0)
    assert lifted == [1], "the plan lifts sources, else this shows nothing"
    with pytest.warns(UserWarning, match="out of memory while sources were lifted"):
        found, tried = graph_of(True, 8, monkeypatch, 1)
    assert tried == [1, 0]
    assert torch.equal(found.targets, want.targets)
    assert torch.equal(found.indices, want.indices)
    assert_close(found.weight, want.weight, ROUNDING)
    with pytest.raises(attrib.OutOfMemoryError, match="out of memory"):
        graph_of(True, 8, monkeypatch, 2)
