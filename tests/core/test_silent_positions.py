"""Positions in every form that means some, and one clear error for what does not."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import attrib
from attrib.core.positions import least_length, plain_positions
from attrib.core.types import InputError
from tests.support.builders import build, dictionary, prompt

MASK = [False] * 5 + [True, False]


@pytest.mark.few
@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        (torch.tensor(MASK), [5]),
        (np.array(MASK), [5]),
        (MASK, [5]),
        (torch.tensor([1, -1]), [1, 6]),
        (np.array([1, 1, 3], dtype=np.uint8), [1, 3]),
        (torch.tensor(2), [2]),
        (np.int64(-2), [5]),
        ([np.int64(1), torch.tensor(4)], [1, 4]),
        (range(1, 4), [1, 2, 3]),
        (slice(4, None), [4, 5, 6]),
        (slice(None, None, 3), [0, 3, 6]),
        (slice(-2, None), [5, 6]),
        ("4:", [4, 5, 6]),
        ("last", [6]),
        ("all", [*range(7)]),
        (None, [*range(7)]),
    ],
    ids=repr,
)
def test_every_form_of_positions(positions: Any, chosen: list[int]):
    model, target, ids = build("gpt2"), dictionary("standard"), prompt(7)
    whole = attrib.token_to_latent(model, target, ids)
    edges = attrib.token_to_latent(model, target, ids, positions=positions)
    wanted = whole.targets.position[torch.isin(whole.targets.position, torch.tensor(chosen))]
    assert edges.targets.position.tolist() == wanted.tolist()
    assert {*edges.targets.position.tolist()} == {*chosen}
    stored = json.loads(json.dumps(edges.call["positions"]))  # and what is stored means the same
    assert attrib.token_to_latent(model, target, ids, positions=stored).targets.position.tolist() == wanted.tolist()
    assert attrib.path(model, None, target, ids, positions=positions).targets.position.tolist() == wanted.tolist()


def test_all_positions_of_logits_are_not_the_last_alone():
    model, source, ids = build("gpt2"), dictionary("standard"), prompt(4)
    every = attrib.latent_to_logit(model, source, ids, logits=attrib.TokenLogits([3]), positions="all")
    assert every.targets.position.tolist() == [0, 1, 2, 3]
    assert attrib.plan(model, source, attrib.TokenLogits([3]), ids, positions="all").packs[0].task.targets == ((1, 1, 1, 1),)


def test_a_slice_is_taken_of_each_prompt():
    edges = attrib.latent_to_logit(build("gpt2"), dictionary("standard"), [prompt(3), prompt(6)], logits=[3], positions=slice(-2, None))
    assert edges.targets.position.tolist() == [1, 2, 4, 5]
    assert edges.call["positions"] == "-2:"


@pytest.mark.parametrize(
    ("positions", "says"),
    [
        ([0, 3], r"positions: \[0, 3\] for prompt 1, which has 3 tokens; expected numbers from -3 to 2"),
        ([True, False, True, False], "a mask of 4 for prompt 1, which has 3 tokens"),
        ([], r"positions: \[\] for prompt 0"),
        ([False, False, False], "a mask of 3 for prompt 0, which has 4 tokens"),
        ("3:", "'3:' chooses none of prompt 1, which has 3 tokens"),
        ("first", "positions: 'first'; expected whole numbers"),
        ("1:2:0", "positions: '1:2:0'"),
        (1.0, "positions: 1.0; expected"),
        ([1.5], "positions: 1.5; expected"),
        ([1, True], "positions: True; expected"),
        (True, "positions: True; expected"),
        (torch.tensor([0.5]), "positions: 0.5; expected"),
        (torch.ones(2, 2, dtype=torch.bool), r"positions: of shape \[2, 2\]"),
        ({"a": 1}, "positions: {'a': 1}; expected"),
        (torch.tensor([0, 0, 1, 1]), "4 numbers that are all 0 or 1, as of a mask; give a mask as booleans"),
        ([1, 1, 0], "3 numbers that are all 0 or 1"),
        (1 << 20000, "a number of more than 64 bits"),
    ],
    ids=lambda given: repr(given) if not isinstance(given, int) or given < 9 else "huge",
)
def test_what_is_no_choice_of_positions(positions: Any, says: str):
    with pytest.raises(InputError, match=says):
        plain_positions(positions, [4, 3])


@pytest.mark.parametrize(
    ("positions", "length"),
    [(None, 1), (3, 4), ([0, -5], 5), ("2:", 3), ("last", 1), ("5:2:-1", 4), ([False, True, False], 3), (99, 9), ("9:", 9)],
    ids=repr,
)
def test_the_least_length_that_has_them(positions: Any, length: int):
    assert least_length(positions, 9) == length
