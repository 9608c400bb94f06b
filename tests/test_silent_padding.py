"""Padding is left out: what a mask hides is no token of a prompt, on either side."""

from typing import Any

import pytest
import torch

from attrib.tokens import unpadded
from attrib.types import InputError


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        ([7, 8, 0, 0], [1, 1, 0, 0]),
        ([0, 0, 7, 8], [0, 0, 1, 1]),
        ([0, 7, 8, 0], [False, True, True, False]),
        (torch.tensor([7, 8]), torch.tensor([True, True])),
    ],
)
def test_what_a_mask_hides_at_the_ends_is_left_out(ids: Any, mask: Any):
    found = unpadded(ids, mask, "prompt 3")
    assert found.tolist() == [7, 8]
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([1, 0, 1], "prompt 3 hides position 1 between"),
        ([0, 0, 0], "prompt 3 is 0 everywhere"),
        ([1, 2, 1], "prompt 3 holds other values"),
        ([1, 1], r"prompt 3 has ids of shape \[3\] and a mask of \[2\]"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask: Any, says: str):
    with pytest.raises(InputError, match=says):
        unpadded([5, 6, 7], mask, "prompt 3")
