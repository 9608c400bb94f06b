"""The adjoint and the tangent map as a pair of torch.autograd.Functions, each the backward of the other.

Both are linear in what they carry (cotangent or tangents) and share one primal among its rows:

    adjoint: o -> (dq, dk, dv)        its backward is the tangent map
    tangent: (q̇, k̇, v̇) -> ż           its backward is the adjoint

vmap over what is carried makes more rows; vmap over the primal makes more heads. Derivatives with respect to
the primal (pattern, q, k, v, z as independent variables) are those of the plain reference.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrib_kernels.attention_adjoint import reference
from attrib_kernels.attention_adjoint.reference import AttentionCotangents, FrozenCotangents, Keys, Pattern, Queries, Rows
from attrib_kernels.batching import fold, unfold
from attrib_kernels.impl import Impl, Loads, Precision, module_of

PACKAGE = "attrib_kernels.attention_adjoint"

Cotangents = AttentionCotangents | FrozenCotangents


def _how(impl: Impl, precision: Precision, loads: Loads) -> dict[str, str]:
    """What an implementation is told of how to multiply and load: the reference knows of neither."""
    return {"precision": precision, "loads": loads} if impl == "triton" else {}


def _adjoint(
    cotangent: Rows,
    pattern: Pattern,
    q: Queries,
    k: Keys,
    v: Keys,
    z: Queries,
    scale: float,
    frozen: bool,
    impl: Impl,
    precision: Precision,
    loads: Loads,
) -> Cotangents:
    """The chosen implementation of the adjoint."""
    return module_of(PACKAGE, impl).adjoint(cotangent, pattern, q, k, v, z, scale, frozen=frozen, **_how(impl, precision, loads))


def _tangent(
    tangents: Cotangents,
    pattern: Pattern,
    q: Queries,
    k: Keys,
    v: Keys,
    z: Queries,
    scale: float,
    impl: Impl,
    precision: Precision,
    loads: Loads,
) -> Rows:
    """The chosen implementation of the tangent map."""
    return module_of(PACKAGE, impl).tangent(tangents, pattern, q, k, v, z, scale, **_how(impl, precision, loads))


class AttentionAdjoint(torch.autograd.Function):
    """`apply(cotangent, pattern, q, k, v, z, scale, frozen, impl, precision, loads)` gives (dq, dk, dv), or (dv,) where frozen."""

    @staticmethod
    def forward(
        cotangent: Rows, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries,
        scale: float, frozen: bool, impl: Impl, precision: Precision, loads: Loads,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Run the chosen implementation."""
        return _flat(_adjoint(cotangent, pattern, q, k, v, z, scale, frozen, impl, precision, loads))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the inputs: the map is linear, so its output is not needed."""
        *tensors, ctx.scale, ctx.frozen, ctx.impl, ctx.precision, ctx.loads = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The tangent map of what came."""
        cotangent, *primal = ctx.saved_tensors
        carried = None
        if ctx.needs_input_grad[0]:
            carried = push(*_three(cotangents), *primal, ctx.scale, ctx.impl, ctx.precision, ctx.loads)

        def plain(a: Pattern, q: Queries, k: Keys, v: Keys, z: Queries) -> tuple[Tensor, ...]:
            return _flat(reference.adjoint(cotangent, a, q, k, v, z, ctx.scale, frozen=ctx.frozen))

        of_primal = _of_primal(ctx.needs_input_grad[1:6], plain, primal, cotangents)
        return carried, *of_primal, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """One call with more rows, or with more heads where the primal has the batch dimension."""
        (cotangent, *primal), options, size = inputs[:6], inputs[6:], info.batch_size
        if all(dim is None for dim in in_dims[1:6]):
            out = pull(fold(cotangent, in_dims[0], 1, size), *primal, *options)
            return tuple(unfold(part, 1, size) for part in out), (1,) * len(out)
        folded = [fold(x, dim, 0, size) for x, dim in zip(primal, in_dims[1:6], strict=True)]
        out = pull(fold(cotangent, in_dims[0], 2, size), *folded, *options)
        return tuple(unfold(part, 2, size) for part in out), (2,) * len(out)


class AttentionTangent(torch.autograd.Function):
    """`apply(q̇, k̇, v̇, pattern, q, k, v, z, scale, impl, precision, loads)` gives ż; q̇ and k̇ are None where the pattern is frozen."""

    @staticmethod
    def forward(
        q_dot: Tensor | None, k_dot: Tensor | None, v_dot: Tensor,
        pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float, impl: Impl, precision: Precision, loads: Loads,
    ) -> Rows:  # fmt: skip
        """Run the chosen implementation."""
        return _tangent(_named(q_dot, k_dot, v_dot), pattern, q, k, v, z, scale, impl, precision, loads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs: the map is linear, so its output is not needed."""
        *tensors, ctx.scale, ctx.impl, ctx.precision, ctx.loads = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """The adjoint of what came."""
        q_dot, k_dot, v_dot, *primal = ctx.saved_tensors
        frozen = q_dot is None
        carried: tuple[Tensor | None, ...] = (None, None, None)
        if any(ctx.needs_input_grad[:3]):
            carried = _three(pull(cotangent, *primal, ctx.scale, frozen, ctx.impl, ctx.precision, ctx.loads))

        def plain(a: Pattern, q: Queries, k: Keys, v: Keys, z: Queries) -> tuple[Tensor, ...]:
            return (reference.tangent(_named(q_dot, k_dot, v_dot), a, q, k, v, z, ctx.scale),)

        of_primal = _of_primal(ctx.needs_input_grad[3:8], plain, primal, (cotangent,))
        return *carried, *of_primal, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """One call with more rows, or with more heads where the primal has the batch dimension."""
        tangents, primal, options, size = inputs[:3], inputs[3:8], inputs[8:], info.batch_size
        to = 1 if all(dim is None for dim in in_dims[3:8]) else 2
        carried = [None if x is None else fold(x, dim, to, size) for x, dim in zip(tangents, in_dims[:3], strict=True)]
        if to == 2:
            primal = tuple(fold(x, dim, 0, size) for x, dim in zip(primal, in_dims[3:8], strict=True))
        return unfold(push(*carried, *primal, *options), to, size), to


def pull(*inputs: Any) -> tuple[Tensor, ...]:
    """`AttentionAdjoint.apply`, with a type."""
    return AttentionAdjoint.apply(*inputs)  # type: ignore[no-untyped-call]


def push(*inputs: Any) -> Tensor:
    """`AttentionTangent.apply`, with a type."""
    return AttentionTangent.apply(*inputs)  # type: ignore[no-untyped-call]


def _of_primal(
    needed: tuple[bool, ...], function: Callable[..., tuple[Tensor, ...]], primal: list[Tensor], cotangents: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the plain reference with respect to the primal; None each where nobody asks."""
    if not any(needed):
        return (None,) * len(primal)
    return torch.func.vjp(function, *primal)[1](cotangents)


def _flat(cotangents: Cotangents) -> tuple[Tensor, ...]:
    return (cotangents.v,) if cotangents.q is None else tuple(cotangents)


def _three(flat: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None, Tensor]:
    return (None, None, flat[0]) if len(flat) == 1 else (flat[0], flat[1], flat[2])


def _named(q: Tensor | None, k: Tensor | None, v: Tensor) -> Cotangents:
    return FrozenCotangents(None, None, v) if q is None or k is None else AttentionCotangents(q, k, v)
