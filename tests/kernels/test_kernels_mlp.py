"""The slopes of the MLP's middle against torch's own activations."""

from typing import Any

import pytest
import torch
from attrib_kernels.mlp_pointwise import ACTIVATIONS, check_arguments, slopes
from torch import Tensor
from torch.func import jvp
from torch.nn import functional as F

from tests.support.builders import normal
from tests.support.kernel_device import DEVICE
from tests.support.tolerances import assert_close

GATED = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
EVERY = pytest.mark.parametrize("activation", ACTIVATIONS)

EXACT = 1e-12
"""The same few operations in another order, in float64."""
ROUNDED = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""In a dtype against float64 on the same numbers."""

TORCH = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}


def middle(pre: Tensor, gate_pre: Tensor | None, activation: str) -> Tensor:
    """What the MLP does between its matrices, by torch's activations."""
    return TORCH[activation](pre) if gate_pre is None else TORCH[activation](gate_pre) * pre


def numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return normal(*shape, dtype=dtype, seed=seed).to(DEVICE)


@EVERY
@GATED
def test_slopes_are_the_derivatives_of_torchs_activations(activation: Any, gated: bool):
    """At 0, near it, and far out on both sides, where a careless formula loses its digits or overflows."""
    x = torch.cat([torch.linspace(-40, 40, 4001), torch.tensor([0.0, -0.0, 1e-8, -1e-8, 300.0, -300.0])]).double().to(DEVICE)[None]
    up = numbers(*x.shape)
    if gated:
        got = slopes(up, x, activation)
        want = (jvp(lambda gate: middle(up, gate, activation), (x,), (torch.ones_like(x),))[1], TORCH[activation](x))
    else:
        got, want = slopes(x, None, activation), (jvp(TORCH[activation], (x,), (torch.ones_like(x),))[1],)
    assert len(got) == len(want)
    for name, slope, derivative in zip(("gate", "up"), got, want, strict=False):
        assert_close(slope, derivative, EXACT, name)


def test_the_slope_of_relu_at_zero_is_zero():
    assert slopes(torch.zeros(1, 1), None, "relu")[0].item() == 0
    assert slopes(torch.ones(1, 1), torch.zeros(1, 1), "relu")[0].item() == 0


@pytest.mark.parametrize("dtype", list(ROUNDED), ids=lambda dtype: str(dtype).removeprefix("torch."))
@EVERY
@GATED
def test_every_dtype(gated: bool, activation: Any, dtype: torch.dtype):
    """16-bit numbers are computed in float32 and rounded once."""
    pre, gate_pre = (3 * numbers(3, 33, dtype=dtype, seed=seed) for seed in (1, 2))
    got = slopes(pre, gate_pre if gated else None, activation)
    want = slopes(pre.double(), gate_pre.double() if gated else None, activation)
    for slope, exact in zip(got, want, strict=True):
        assert_close(slope, exact.to(dtype), ROUNDED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"activation": "tanh"}, "activation: 'tanh' came; expected one of relu, gelu, gelu_tanh, silu"),
        ({"pre": torch.zeros(7)}, r"pre: shape \(7,\) came, expected \[positions, d_mlp\]"),
        ({"gate_pre": torch.zeros(3, 8)}, r"gate_pre: shape \(3, 8\) came, expected that of pre, \(3, 7\)"),
        ({"gate_pre": torch.zeros(3, 7).half()}, r"gate_pre: torch\.float16 on cpu came, and pre is torch\.float32 on cpu"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], message: str):
    fitting = {"pre": torch.zeros(3, 7), "gate_pre": None, "activation": "relu"}
    check_arguments(**fitting)
    with pytest.raises(ValueError, match=message):
        check_arguments(**fitting | given)
