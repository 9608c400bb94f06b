"""The pointwise middle of the MLP's adjoint in one pass: slopes are made in registers from the pre-activations.

A program has one position and a block of hidden units; it makes their slopes once and goes over
`rows_each` cotangent rows. Runs on CUDA, and on CPU tensors under TRITON_INTERPRET=1.
"""

import typing
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrib_kernels.mlp_pointwise.reference import Activation, Hidden, HiddenRows, Rows

UNITS = 256
"""Hidden units of a tile: 1 KiB of float32 in one row."""
TILE_ROWS = 16
"""Rows of a tile: 4096 numbers, 32 for each thread of 4 warps."""
ROWS_EACH = 128
"""Rows of one program: its slopes are one load and some forty operations, shared by them all."""


@triton.jit
@typing.no_type_check
def _act_and_slope(x, ACTIVATION: tl.constexpr):
    """act(x) and act'(x) of float32 numbers, as `reference.act_and_slope`."""
    if ACTIVATION == "relu":
        act = tl.maximum(x, 0.0)
        slope = (x > 0).to(tl.float32)
    elif ACTIVATION == "gelu":
        below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        act = x * below
        slope = below + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    else:
        if ACTIVATION == "gelu_tanh":
            y = 1.5957691216057308 * (x + 0.044715 * x * x * x)
            y_slope = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
        else:
            y = x
            y_slope = 1.0
        small = tl.exp(-tl.abs(y))  # never overflows
        gate = tl.where(y >= 0, 1.0, small) / (1.0 + small)
        act = x * gate
        slope = gate + x * gate * (1.0 - gate) * y_slope
    return act, slope


@triton.jit
@typing.no_type_check
def _kernel(
    in_ptr, pre_ptr, gate_ptr, out_ptr, rows, width, rows_each,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, TANGENT: tl.constexpr, UNITS: tl.constexpr, TILE_ROWS: tl.constexpr,
):  # fmt: skip
    """out = in * slopes, one part of d_hidden for each slope; where TANGENT its transpose, the sum over the parts."""
    unit_blocks = tl.cdiv(width, UNITS)
    t = (tl.program_id(0) // unit_blocks).to(tl.int64)
    unit = tl.program_id(0) % unit_blocks * UNITS + tl.arange(0, UNITS)
    inside = unit < width
    pre = tl.load(pre_ptr + t * width + unit, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        up, slope = _act_and_slope(tl.load(gate_ptr + t * width + unit, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
        first = (slope * pre)[None, :]
        second = up[None, :]
        hidden = 2 * width
    else:
        _, slope = _act_and_slope(pre, ACTIVATION)
        first = slope[None, :]
        hidden = width

    begin = tl.program_id(1) * rows_each
    for row in range(begin, min(begin + rows_each, rows), TILE_ROWS):
        r = row + tl.arange(0, TILE_ROWS)
        keep = (r < rows)[:, None] & inside[None, :]
        narrow = ((t * rows + r) * width)[:, None] + unit[None, :]
        wide = ((t * rows + r) * hidden)[:, None] + unit[None, :]
        if TANGENT:
            out = tl.load(in_ptr + wide, mask=keep, other=0.0).to(tl.float32) * first
            if GATED:
                out += tl.load(in_ptr + wide + width, mask=keep, other=0.0).to(tl.float32) * second
            tl.store(out_ptr + narrow, out.to(out_ptr.dtype.element_ty), mask=keep)
        else:
            g = tl.load(in_ptr + narrow, mask=keep, other=0.0).to(tl.float32)
            tl.store(out_ptr + wide, (g * first).to(out_ptr.dtype.element_ty), mask=keep)
            if GATED:
                tl.store(out_ptr + wide + width, (g * second).to(out_ptr.dtype.element_ty), mask=keep)


def pointwise(g: Rows, pre: Hidden, gate_pre: Hidden | None, activation: Activation) -> HiddenRows:
    """Compute what `reference.pointwise` does. Arguments that are not contiguous are copied.

    Raises:
        ValueError: for float64, and for tensors on a device that Triton does not reach.
    """
    out = g.new_empty(*g.shape[:2], pre.shape[-1] * (1 if gate_pre is None else 2))
    _launch(g, pre, gate_pre, out, activation, tangent=False)
    return out


def tangent(x_dot: HiddenRows, pre: Hidden, gate_pre: Hidden | None, activation: Activation) -> Rows:
    """Compute what `reference.tangent` does. Arguments that are not contiguous are copied.

    Raises:
        ValueError: for float64, and for tensors on a device that Triton does not reach.
    """
    out = x_dot.new_empty(*x_dot.shape[:2], pre.shape[-1])
    _launch(x_dot, pre, gate_pre, out, activation, tangent=True)
    return out


def _launch(x: Tensor, pre: Tensor, gate_pre: Tensor | None, out: Tensor, activation: Activation, tangent: bool) -> None:
    """Fill `out`."""
    _check_reach(x)
    if not out.numel():
        return
    (positions, rows, _), width = x.shape, pre.shape[-1]
    x, pre = x.contiguous(), pre.contiguous()
    # without a gate its pointer is never read; a kernel wants some tensor all the same
    gate = pre if gate_pre is None else gate_pre.contiguous()
    grid: Any = (positions * triton.cdiv(width, UNITS), triton.cdiv(rows, ROWS_EACH))
    _kernel[grid](
        x, pre, gate, out, rows, width, ROWS_EACH,
        ACTIVATION=activation, GATED=gate_pre is not None, TANGENT=tangent, UNITS=UNITS, TILE_ROWS=TILE_ROWS, num_warps=4,
    )  # fmt: skip


def _check_reach(x: Tensor) -> None:
    if x.dtype == torch.float64:
        raise ValueError('impl: "triton" computes in float32, and float64 came. Use impl="reference".')
    if x.device.type == "cpu" and any(isinstance(function, triton.JITFunction) for function in (tl.zeros, _kernel)):
        raise ValueError(
            'impl: "triton" needs CUDA tensors, and CPU tensors came. Use impl="reference", '
            "or set TRITON_INTERPRET=1 before anything imports triton."
        )
