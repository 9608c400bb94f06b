"""The pointwise middle of the MLP's adjoint in plain torch, and the slopes written out.

Plain, act(pre) between W_in and W_out; gated, act(gate_pre) * pre. With g the cotangent of that middle:

    plain   slope = act'(pre)                                          out = g slope
    gated   slope_gate = act'(gate_pre) pre,  slope_up = act(gate_pre)   out = cat(g slope_gate, g slope_up)

    relu       act'(x) = [x > 0]                                       0 at 0, as in torch
    gelu       act'(x) = Φ(x) + x φ(x)                                 Φ, φ: the normal distribution and its density
    gelu_tanh  act'(x) = σ(y) + x σ(y) (1 - σ(y)) dy/dx                y = 2 √(2/π) (x + 0.044715 x³), as (1 + tanh(y/2))/2 = σ(y)
    silu       act'(x) = σ(x) + x σ(x) (1 - σ(x))                      σ: the logistic function

16-bit inputs are computed in float32 and rounded once.
"""

import math
from functools import reduce
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "gelu", "gelu_tanh", "silu")

Rows = Float[Tensor, "positions rows d_mlp"]
HiddenRows = Float[Tensor, "positions rows d_hidden"]  # d_hidden is d_mlp, or twice that where there is a gate: gate, then up
Hidden = Float[Tensor, "positions d_mlp"]


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


def slopes(pre: Hidden, gate_pre: Hidden | None, activation: Activation) -> tuple[Hidden, ...]:
    """The derivatives of the MLP's middle: (act'(pre),), or with a gate (act'(gate_pre) pre, act(gate_pre)), for gate and up."""
    return tuple(slope.to(pre.dtype) for slope in _slopes(pre, gate_pre, activation))


def pointwise(g: Rows, pre: Hidden, gate_pre: Hidden | None, activation: Activation) -> HiddenRows:
    """Cotangents of the pre-activations from cotangents of the MLP's middle."""
    wide = _wide(g)
    return torch.cat([wide * slope[:, None] for slope in _slopes(pre, gate_pre, activation)], -1).to(g.dtype)


def tangent(x_dot: HiddenRows, pre: Hidden, gate_pre: Hidden | None, activation: Activation) -> Rows:
    """The transpose of `pointwise`: tangents of the MLP's middle from tangents of the pre-activations."""
    parts = _wide(x_dot).split(pre.shape[-1], -1)
    products = [part * slope[:, None] for part, slope in zip(parts, _slopes(pre, gate_pre, activation), strict=True)]
    return reduce(torch.add, products).to(x_dot.dtype)


def _slopes(pre: Hidden, gate_pre: Hidden | None, activation: Activation) -> tuple[Tensor, ...]:
    if gate_pre is None:
        return (act_and_slope(_wide(pre), activation)[1],)
    act, slope = act_and_slope(_wide(gate_pre), activation)
    return slope * _wide(pre), act


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
