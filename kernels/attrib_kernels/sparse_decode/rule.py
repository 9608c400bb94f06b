"""Differentiation of sparse decode: out[b, p] = Σ_{i: position[i] = p} value[b, i] · W[latent[i]].

It is linear in `value` and in W. With g the cotangent of `out`:

    value*[b, i] = g[b, position[i]] · W[latent[i]]                          sparse encode with Wᵀ
    W*[l]        = Σ_b Σ_{i: latent[i] = l} value[b, i] · g[b, position[i]]   sparse decode, position and latent exchanged

so a derivative of any order is made of these two kernels. Under vmap a batched `value` is the kernel's own
batch; where W or the indices are batched, each member gets a range of positions and of rows of its own.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib_kernels.sparse_decode.triton import sparse_decode_triton


def decode(value: Tensor, position: Tensor, latent: Tensor, W: Tensor, positions: int) -> Tensor:
    """out, to be differentiated and batched by `Decode`."""
    return Decode.apply(value, position, latent, W, positions)  # type: ignore[no-untyped-call]


class Decode(torch.autograd.Function):
    """`sparse_decode_triton` for torch.autograd and torch.func."""

    @staticmethod
    def forward(value: Tensor, position: Tensor, latent: Tensor, W: Tensor, positions: int) -> Tensor:
        """out."""
        return sparse_decode_triton(value, position, latent, W, positions)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Both derivatives need the inputs alone."""
        *tensors, ctx.positions = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None]:
        """value* and W*, each only where it is wanted."""
        from attrib_kernels.sparse_encode.rule import encode  # each rule is the other's adjoint

        value, position, latent, W = ctx.saved_tensors
        of_value = encode(g, position, latent, W) if ctx.needs_input_grad[0] else None
        of_W = table_adjoint(value, position, latent, g, len(W)) if ctx.needs_input_grad[3] else None
        return of_value, None, None, of_W, None

    @staticmethod
    def jvp(ctx: Any, value_tangent: Tensor | None, _position: None, _latent: None, W_tangent: Tensor | None, _positions: None) -> Tensor:
        """The product rule."""
        value, position, latent, W = ctx.saved_tensors
        parts = [(value_tangent, W), (value, W_tangent)]
        moved = [decode(v, position, latent, w, ctx.positions) for v, w in parts if v is not None and w is not None]
        return sum(moved[1:], moved[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], value: Tensor, position: Tensor, latent: Tensor, W: Tensor, positions: int
    ) -> tuple[Tensor, int]:
        """One call of the kernel for all members."""
        (value, position, latent, W), batched = to_front(in_dims, value, position, latent, W)
        if batched == [True, False, False, False]:
            return decode(value, position, latent, W, positions), 0
        members = info.batch_size
        value = value if batched[0] else value.expand(members, *value.shape)
        out = decode(
            value.movedim(0, -2).flatten(-2),
            apart(position, batched[1], members, positions),
            apart(latent, batched[2], members, W.shape[1] if batched[3] else 0),
            W.flatten(0, 1) if batched[3] else W,
            members * positions,
        ).unflatten(-2, (members, positions))
        return out, out.ndim - 3


def table_adjoint(
    value: Float[Tensor, "*batch pairs"],
    position: Int[Tensor, " pairs"],
    row: Int[Tensor, " pairs"],
    x: Float[Tensor, "*batch positions width"],
    rows: int,
) -> Float[Tensor, "rows width"]:
    """Σ_b Σ_{i: row[i] = r} value[b, i] · x[b, position[i]] for every r: the dense adjoint of a table of weights."""
    members = math.prod(value.shape[:-1])
    row, position = apart(row, False, members, 0), apart(position, False, members, x.shape[-2])
    order = row.argsort(stable=True)
    value, row, position = (t.index_select(0, order) for t in (value.flatten(), row, position))
    return decode(value, row, position, x.flatten(0, -2), rows)


def apart(index: Tensor, batched: bool, members: int, step: int) -> Int[Tensor, " members_times_pairs"]:
    """Indices of all members in one row, those of member m raised by m · step."""
    index = index if batched else index.expand(members, *index.shape)
    return (index + step * torch.arange(members, device=index.device)[:, None]).flatten()


def to_front(in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[list[Tensor], list[bool]]:
    """Each tensor with its vmapped dimension first, and which have one."""
    pairs = list(zip(tensors, in_dims, strict=False))
    return [t if d is None else t.movedim(d, 0) for t, d in pairs], [d is not None for _, d in pairs]
