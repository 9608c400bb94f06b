"""Differentiation of sparse encode: out[b, i] = x[b, position[i]] · W[latent[i]], with W = W_encᵀ.

It is linear in x and in W. With g the cotangent of `out`:

    x*[b, p] = Σ_{i: position[i] = p} g[b, i] · W[latent[i]]               sparse decode of g
    W*[l]    = Σ_b Σ_{i: latent[i] = l} g[b, i] · x[b, position[i]]         sparse decode, position and latent exchanged

Decode wants its pairs sorted, so g is put in order of position first. Under vmap a batched x is the kernel's
own batch; where W or the indices are batched, each member gets a range of positions and of rows of its own.
"""

from typing import Any

import torch
from torch import Tensor

from attrib_kernels.sparse_decode.rule import apart, decode, table_adjoint, to_front
from attrib_kernels.sparse_encode.triton import sparse_encode_triton


def encode(x: Tensor, position: Tensor, latent: Tensor, W: Tensor) -> Tensor:
    """out, to be differentiated and batched by `Encode`."""
    return Encode.apply(x, position, latent, W)  # type: ignore[no-untyped-call]


class Encode(torch.autograd.Function):
    """`sparse_encode_triton` for torch.autograd and torch.func."""

    @staticmethod
    def forward(x: Tensor, position: Tensor, latent: Tensor, W: Tensor) -> Tensor:
        """out."""
        return sparse_encode_triton(x, position, latent, W)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Both derivatives need the inputs alone."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        """x* and W*, each only where it is wanted."""
        x, position, latent, W = ctx.saved_tensors
        of_x = of_W = None
        if ctx.needs_input_grad[0]:
            order = position.argsort(stable=True)
            sorted_g, sorted_position, sorted_latent = (t.index_select(-1, order) for t in (g, position, latent))
            of_x = decode(sorted_g, sorted_position, sorted_latent, W, x.shape[-2])
        if ctx.needs_input_grad[3]:
            of_W = table_adjoint(g, position, latent, x, len(W))
        return of_x, None, None, of_W

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, _position: None, _latent: None, W_tangent: Tensor | None) -> Tensor:
        """The product rule."""
        x, position, latent, W = ctx.saved_tensors
        parts = [(x_tangent, W), (x, W_tangent)]
        moved = [encode(v, position, latent, w) for v, w in parts if v is not None and w is not None]
        return sum(moved[1:], moved[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, position: Tensor, latent: Tensor, W: Tensor) -> tuple[Tensor, int]:
        """One call of the kernel for all members."""
        (x, position, latent, W), batched = to_front(in_dims, x, position, latent, W)
        if batched == [True, False, False, False]:
            return encode(x, position, latent, W), 0
        members = info.batch_size
        pairs = position.shape[-1]
        out = encode(
            x.movedim(0, -3).flatten(-3, -2) if batched[0] else x,
            apart(position, batched[1], members, x.shape[-2] if batched[0] else 0),
            apart(latent, batched[2], members, W.shape[1] if batched[3] else 0),
            W.flatten(0, 1) if batched[3] else W,
        ).unflatten(-1, (members, pairs))
        return out, out.ndim - 2
