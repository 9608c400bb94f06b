"""Measurements that give no number, as a pass whose norms are held goes beyond what its dtype holds."""

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

import attrib
from attrib.core.types import AttribWarning
from attrib.graph.graph import Graph
from attrib.models.transformer import Model
from tests.support.builders import D_MODEL, attrib_model, prompt

TOKENS = prompt(3)
FAR = 1e75
"""Over a norm's denominator near zero, squared by each of two gated MLPs, this is more than float64 holds."""
SMALL = 1e-10


@pytest.fixture(scope="module")
def opened() -> tuple[Model, Graph]:
    """A model in which the first token's embedding is as large as its position's, and the other way: without one of them, the norms
    that were held for their sum blow the other up."""
    model = attrib_model("llama", torch.float64, n_layers=2)
    far = FAR * torch.linspace(-1, 1, D_MODEL, dtype=torch.float64)
    W_E, W_pos = model.params.W_E.clone(), torch.zeros(model.config.n_ctx, D_MODEL, dtype=torch.float64)
    W_E[TOKENS[0]], W_pos[0] = far, -far
    learned = replace(model, config=replace(model.config, positions="learned"), params=model.params._replace(W_E=W_E, W_pos=W_pos))
    (graph,) = attrib.graph.build(learned, attrib.graph.Neurons(1, 1), TOKENS, keep=attrib.Dense(), targets=attrib.TokenLogits([3, 5]))
    return learned, graph.only(torch.isin(graph.indices, graph.nodes.of_kind("token", "position")))


def verified(opened: tuple[Model, Graph], **options: Any) -> attrib.causal.Agreement:
    return attrib.causal.verify(opened[1], opened[0], n=10**6, **options)


def test_they_are_counted_named_and_left_out_of_the_figures(opened: tuple[Model, Graph]) -> None:
    with pytest.warns(AttribWarning, match=r"steps: \d+ of \d+ measurements have no number, first token .* at step 1: .*float64"):
        found = verified(opened, steps=1)
    table = found.table
    without = table.measured.isna()
    assert set(table.source[without]) <= {f"token {opened[1].strings[0]!r} @0", "position @0"}
    assert not table.measured.abs().eq(math.inf).any()
    for one in found.summary().itertuples():
        part = table[table.pair == one.pair]
        known = part[part.measured.notna()]
        assert one.no_number == len(part) - len(known)
        if len(known):
            assert one.largest == known.relative.max()
            assert math.isfinite(one.slope)
            assert one.edges == len(part)
    assert "without a number" in repr(found)


def test_a_small_step_has_numbers_and_says_nothing(opened: tuple[Model, Graph]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", AttribWarning)
        found = verified(opened, steps=SMALL)
    assert found.table.measured.notna().all()
    assert not found.summary().no_number.any()
    assert "without" not in repr(found)
