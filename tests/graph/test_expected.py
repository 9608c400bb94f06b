"""Expectations over a corpus against dense activations."""

from typing import Any

import pytest
import torch

import attrib
from attrib.core.types import Dense, InputError
from attrib.graph import expected
from attrib.graph.expected import expected_activations
from attrib.graph.weights import global_weights
from tests.support.brought import dictionaries
from tests.support.builders import build
from tests.support.cut_cases import TOKENS
from tests.support.tolerances import ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CORPUS = [TOKENS[:5], TOKENS[2:6], TOKENS[4:5]]


@pytest.mark.parametrize("ignore", [None, [int(TOKENS[2]), int(TOKENS[4])]])
def test_expectations_are_means_over_positions(ignore: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expected, "PAIRS", 20)  # so that products are added up more than once
    model = build("llama", torch.float64)
    source, target = dictionaries(model, "transcoders")
    a, b = (torch.cat([attrib.encode(d, attrib.capture(model, ids, [d.site])[d.site]) for ids in CORPUS]) for d in (source, target))
    if ignore is not None:
        keep = ~torch.isin(torch.cat(CORPUS), torch.tensor(ignore))
        a, b = a[keep], b[keep]
        assert 0 < len(a) < 10
    mean = expected_activations(model, source, iter(CORPUS), ignore=ignore)
    assert isinstance(mean, torch.Tensor)
    assert_close(mean, a.mean(0), ROUNDING)
    pairs = expected_activations(model, source, CORPUS, target=target, ignore=ignore)
    weight = b.sum(0)[:, None]
    want = torch.where(weight > 0, b.T @ a / weight, 0.0)
    assert_close(torch.from_numpy(pairs.toarray()), want, ROUNDING)
    assert pairs.nnz == int(want.count_nonzero())
    assert 0 < pairs.nnz < want.numel()
    weights = global_weights(model, source, target, pairs, keep=Dense())
    plain = global_weights(model, source, target, mean, keep=Dense())
    assert_close(weights.dense("attribution"), plain.dense() * want, ROUNDING)


def test_a_corpus_without_a_position_is_refused():
    model = build("gpt2", torch.float64)
    source, _ = dictionaries(model, "transcoders")
    with pytest.raises(InputError, match="leaves no position"):
        expected_activations(model, source, [TOKENS[:1]], ignore=int(TOKENS[0]))
    with pytest.raises(InputError, match="ignore: token id -3"):
        expected_activations(model, source, CORPUS, ignore=-3)
