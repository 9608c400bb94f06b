"""How far two ways of computing one value may lie apart: every tolerance of the tests, in one place."""

import torch
from torch import Tensor

FOREIGN = {torch.float32: 1e-4, torch.float64: 1e-9}
"""attrib against another library, and one way through attrib against another."""

DICTIONARY = {torch.float32: 1e-6, torch.float64: 1e-12}
"""attrib's dictionaries against sae-lens: the same few operations in another order."""

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
"""The same operations on the same numbers, in products of another shape."""

COMPONENT = {torch.float32: 1e-4, torch.float64: 1e-10}
"""One component's written derivative, or a sweep over a few of them, against torch.func's."""

FINITE_DIFFERENCE = 1e-6
"""Exact derivatives against central differences in float64 with a step of 1e-5."""

PROBABILITY = 5e-3
"""A probability quoted with two digits."""


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value where that is more than 1. NaN anywhere is an infinite error."""
    difference = (got.detach().double() - want.detach().double()).abs()
    if difference.numel() == 0:
        return 0.0
    largest = difference.max().item() / max(1.0, want.detach().double().abs().max().item())
    return largest if largest == largest else float("inf")


def assert_close(got: Tensor, want: Tensor, tolerance: float | dict[torch.dtype, float] = FOREIGN, what: object = "") -> None:
    """Same shape, same dtype, and no further apart than the tolerance (a table is read by the dtype of `want`)."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    assert got.dtype == want.dtype, f"{what}: {got.dtype}, expected {want.dtype}"
    bound = tolerance if isinstance(tolerance, float) else tolerance[want.dtype]
    assert (found := error(got, want)) <= bound, f"{what}: {found:.2e} apart, tolerance {bound:.0e}"
