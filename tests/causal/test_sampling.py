"""What the next token is drawn from is what transformers would draw from, and a draw depends on the seed and the prompt alone."""

import math

import pytest
import torch
from torch import Tensor

from attrib.causal.sampling import Sampling, drawn, probabilities, uniform
from attrib.core.types import InputError
from tests.support.builders import normal

CASES = [
    (temperature, top_k, top_p)
    for temperature in (0.3, 1.0, 2.0)
    for top_k in (None, 1, 7, 60, 500)
    for top_p in (None, 1e-6, 0.3, 0.9, 0.999, 1.0)
]


def by_transformers(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """The probabilities that transformers' own processors leave, in their order."""
    from transformers.generation import logits_process as of

    steps = [of.TemperatureLogitsWarper(temperature)]
    steps += [] if top_k is None else [of.TopKLogitsWarper(top_k)]
    steps += [] if top_p is None else [of.TopPLogitsWarper(top_p)]
    for step in steps:
        logits = step(torch.zeros(len(logits), 1, dtype=torch.int64), logits)
    return logits.softmax(-1)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CASES)
def test_the_distribution_is_transformers(temperature: float, top_k: int | None, top_p: float | None):
    logits = 3 * normal(5, 60, dtype=torch.float64)
    found = probabilities(logits, Sampling(temperature, top_k, top_p))
    torch.testing.assert_close(found, by_transformers(logits, temperature, top_k, top_p), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.sum(-1), torch.ones(5, dtype=torch.float64))


def test_temperature_0_is_the_limit():
    logits = normal(4, 60)
    found = probabilities(logits, Sampling())
    assert torch.equal(found.argmax(-1), logits.argmax(-1))
    torch.testing.assert_close(found, probabilities(logits, Sampling(1e-4)))
    assert probabilities(torch.tensor([1.0, 2.0, 2.0]), Sampling()).tolist() == [0, 1, 0]  # of equals the first


def test_of_equally_probable_tokens_the_first_are_kept():
    found = probabilities(torch.zeros(4), Sampling(1.0, top_p=0.5))
    assert found.tolist() == [0.5, 0.5, 0, 0]
    assert probabilities(torch.tensor([0.0, 1.0, 1.0]), Sampling(1.0, top_k=1)).tolist() == [0, 0.5, 0.5]  # as transformers has it


def test_tokens_that_are_ruled_out_are_never_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    p = probabilities(logits, Sampling(1.0))
    for u, token in ((0.0, 1), (0.4999, 1), (0.5, 3), (1 - 2**-53, 3)):
        assert drawn(p, torch.tensor([u], dtype=torch.float64)).tolist() == [token]
    assert drawn(p, torch.tensor([1.0], dtype=torch.float64)).tolist() == [3]  # where rounding brings u to 1


def test_draws_have_the_distribution():
    p = probabilities(normal(1, 6, dtype=torch.float64), Sampling(1.0))
    u = torch.tensor([uniform(3, b"prompt", 0, draw) for draw in range(20_000)], dtype=torch.float64)
    assert bool(((u >= 0) & (u < 1)).all())
    counts = drawn(p.expand(len(u), -1), u).bincount(minlength=6)
    chi_squared = float(((counts - p[0] * len(u)) ** 2 / (p[0] * len(u))).sum())
    assert chi_squared < 20.5  # 5 degrees of freedom: p = 0.001


def test_draws_differ_by_seed_prompt_repeat_and_number():
    given = [(0, b"a", 0, 0), (1, b"a", 0, 0), (0, b"b", 0, 0), (0, b"a", 1, 0), (0, b"a", 0, 1), (1, b"", 0, 11), (11, b"", 0, 1)]
    assert len({uniform(*one) for one in given}) == len(given)
    assert uniform(*given[0]) == uniform(*given[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature: -1; expected a number of at least 0"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"temperature": math.inf}, "temperature: inf"),
        ({"temperature": 1.0, "top_k": 0}, "top_k: 0; expected a whole number of at least 1"),
        ({"temperature": 1.0, "top_p": 0}, "top_p: 0; expected a number above 0"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p: 1.1"),
        ({"temperature": 1.0, "seed": -1}, "seed: -1"),
        ({"top_k": 5}, "top_k: no effect at temperature 0"),
        ({"top_p": 0.5}, "top_p: no effect at temperature 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        Sampling(**options)
