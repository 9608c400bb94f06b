"""The MLP's pointwise adjoint and its transpose as a pair of torch.autograd.Functions, each the backward of the other.

Both are linear in what they carry and act on every position alone, so vmap over what is carried makes more
rows, and vmap over the primal makes more positions. Derivatives with respect to the primal are those of the
plain reference.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrib_kernels.batching import fold, unfold
from attrib_kernels.impl import Impl, module_of
from attrib_kernels.mlp_pointwise import reference
from attrib_kernels.mlp_pointwise.reference import Activation, Hidden, HiddenRows, Rows

PACKAGE = "attrib_kernels.mlp_pointwise"


class Pointwise(torch.autograd.Function):
    """`apply(g, pre, gate_pre, activation, impl)`."""

    @staticmethod
    def forward(g: Rows, pre: Hidden, gate_pre: Hidden | None, activation: Activation, impl: Impl) -> HiddenRows:
        """Run the chosen implementation."""
        return module_of(PACKAGE, impl).pointwise(g, pre, gate_pre, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs: the map is linear, so its output is not needed."""
        *tensors, ctx.activation, ctx.impl = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """The transpose of what came."""
        return _backward(ctx, cotangent, push, reference.pointwise)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """One call with more rows, or with more positions where the primal has the batch dimension."""
        return _batched(pull, info.batch_size, in_dims, inputs)


class PointwiseTangent(torch.autograd.Function):
    """`apply(x_dot, pre, gate_pre, activation, impl)`."""

    @staticmethod
    def forward(x_dot: HiddenRows, pre: Hidden, gate_pre: Hidden | None, activation: Activation, impl: Impl) -> Rows:
        """Run the chosen implementation."""
        return module_of(PACKAGE, impl).tangent(x_dot, pre, gate_pre, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs: the map is linear, so its output is not needed."""
        *tensors, ctx.activation, ctx.impl = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """The transpose of what came."""
        return _backward(ctx, cotangent, pull, reference.tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """One call with more rows, or with more positions where the primal has the batch dimension."""
        return _batched(push, info.batch_size, in_dims, inputs)


def pull(*inputs: Any) -> Tensor:
    """`Pointwise.apply`, with a type."""
    return Pointwise.apply(*inputs)  # type: ignore[no-untyped-call]


def push(*inputs: Any) -> Tensor:
    """`PointwiseTangent.apply`, with a type."""
    return PointwiseTangent.apply(*inputs)  # type: ignore[no-untyped-call]


def _backward(ctx: Any, cotangent: Tensor, transpose: Callable[..., Tensor], plain: Callable[..., Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients of both Functions: the transpose for what is carried, the plain reference's for the primal."""
    carried, pre, gate_pre = ctx.saved_tensors
    of_carried = transpose(cotangent, pre, gate_pre, ctx.activation, ctx.impl) if ctx.needs_input_grad[0] else None
    if not any(ctx.needs_input_grad[1:3]):
        return of_carried, None, None, None, None
    if gate_pre is None:
        (of_pre,) = torch.func.vjp(lambda p: plain(carried, p, None, ctx.activation), pre)[1](cotangent)
        return of_carried, of_pre, None, None, None
    of_pre, of_gate = torch.func.vjp(lambda p, gate: plain(carried, p, gate, ctx.activation), pre, gate_pre)[1](cotangent)
    return of_carried, of_pre, of_gate, None, None


def _batched(apply: Callable[..., Tensor], size: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> tuple[Tensor, int]:
    carried, pre, gate_pre, *options = inputs
    if in_dims[1] is None and in_dims[2] is None:
        out, to = apply(fold(carried, in_dims[0], 1, size), pre, gate_pre, *options), 1
    else:
        gate = None if gate_pre is None else fold(gate_pre, in_dims[2], 0, size)
        out, to = apply(fold(carried, in_dims[0], 0, size), fold(pre, in_dims[1], 0, size), gate, *options), 0
    return unfold(out, to, size), to
