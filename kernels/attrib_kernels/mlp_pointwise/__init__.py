"""The slopes of the MLP's pointwise middle, written out: what its adjoint and its tangent map multiply by.

Plain, act(pre) between W_in and W_out; gated, act(gate_pre) * pre.

    plain   slope = act'(pre)
    gated   slope_gate = act'(gate_pre) pre,  slope_up = act(gate_pre)

    relu       act'(x) = [x > 0]                                       0 at 0, as in torch
    gelu       act'(x) = Φ(x) + x φ(x)                                 Φ, φ: the normal distribution and its density
    gelu_tanh  act'(x) = σ(y) + x σ(y) (1 - σ(y)) dy/dx                y = 2 √(2/π) (x + 0.044715 x³), as (1 + tanh(y/2))/2 = σ(y)
    silu       act'(x) = σ(x) + x σ(x) (1 - σ(x))                      σ: the logistic function

gelu as Hendrycks and Gimpel have it (2016, arXiv:1606.08415). 16-bit inputs are computed in float32 and rounded once.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["ACTIVATIONS", "Activation", "check_arguments", "slopes"]

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "gelu", "gelu_tanh", "silu")

Hidden = Float[Tensor, "positions d_mlp"]


def slopes(pre: Hidden, gate_pre: Hidden | None, activation: Activation) -> tuple[Hidden, ...]:
    """The derivatives of the MLP's middle: (act'(pre),), or with a gate (act'(gate_pre) pre, act(gate_pre)), for gate and up.

    Args:
        pre: x W_in + b_in.
        gate_pre: x W_gate + b_gate, or None where there is no gate.
        activation: relu, gelu, gelu_tanh or silu.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    check_arguments(pre, gate_pre, activation)
    if gate_pre is None:
        return (times_slope(pre.new_ones((), dtype=_wide_dtype(pre)), _wide(pre), activation).to(pre.dtype),)
    gate = _wide(gate_pre)
    return times_slope(_wide(pre), gate, activation).to(pre.dtype), act(gate, activation).to(pre.dtype)


def check_arguments(pre: Tensor, gate_pre: Tensor | None, activation: str) -> None:
    """Raise ValueError, naming the argument, for shapes, dtypes or devices that do not fit."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: {activation!r} came; expected one of {', '.join(ACTIVATIONS)}.")
    if pre.ndim != 2:
        raise ValueError(f"pre: shape {tuple(pre.shape)} came, expected [positions, d_mlp].")
    if gate_pre is not None and gate_pre.shape != pre.shape:
        raise ValueError(f"gate_pre: shape {tuple(gate_pre.shape)} came, expected that of pre, {tuple(pre.shape)}.")
    if gate_pre is not None and (gate_pre.dtype != pre.dtype or gate_pre.device != pre.device):
        raise ValueError(f"gate_pre: {gate_pre.dtype} on {gate_pre.device} came, and pre is {pre.dtype} on {pre.device}. Convert one.")


def act(x: Tensor, activation: Activation) -> Tensor:
    """act(x)."""
    match activation:
        case "relu":
            return x.clamp(min=0)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu(x)


def times_slope(by: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """by · act'(x), where `by` has the shape of x or is one number: torch's own derivatives, which are one launch each."""
    by = by.expand_as(x)
    match activation:
        case "relu":
            return by * (x > 0)
        case "gelu":
            return torch.ops.aten.gelu_backward(by, x)
        case "gelu_tanh":
            return torch.ops.aten.gelu_backward(by, x, approximate="tanh")
        case "silu":
            return torch.ops.aten.silu_backward(by, x)


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _wide(x: Tensor) -> Tensor:
    return x.to(_wide_dtype(x))
