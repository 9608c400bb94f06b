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

import math
from typing import Literal

import torch
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
        return (act_and_slope(_wide(pre), activation)[1].to(pre.dtype),)
    act, slope = act_and_slope(_wide(gate_pre), activation)
    return (slope * _wide(pre)).to(pre.dtype), act.to(pre.dtype)


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


def act_and_slope(x: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """act(x) and act'(x)."""
    if activation == "relu":
        return x.clamp(min=0), (x > 0).to(x)
    if activation == "gelu":
        below = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return x * below, below + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    y, y_slope = x, None
    if activation == "gelu_tanh":
        c = 2 * math.sqrt(2 / math.pi)
        y, y_slope = c * (x + 0.044715 * x * x * x), c * (1 + 3 * 0.044715 * x * x)
    gate = torch.sigmoid(y)
    del y  # each of these is as large as all hidden units
    act = x * gate
    slope = act * (1 - gate)
    slope = slope if y_slope is None else slope * y_slope
    return act, gate + slope


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
