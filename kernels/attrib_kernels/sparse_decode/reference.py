"""Sparse decode in plain torch: gather the decoder rows, scale, add up by position. Every transform of torch.func passes through."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sparse_decode_reference(
    value: Float[Tensor, "*batch active"],
    position: Int[Tensor, " active"],
    latent: Int[Tensor, " active"],
    W_dec: Float[Tensor, "d_sae d_out"],
    positions: int,
) -> Float[Tensor, "*batch positions d_out"]:
    """See `sparse_decode`. 16-bit floats are summed in float32, and rounded once."""
    wide = torch.promote_types(value.dtype, torch.float32)
    rows = value.to(wide)[..., None] * W_dec.index_select(0, latent).to(wide)
    zero = torch.zeros((*value.shape[:-1], positions, W_dec.shape[1]), dtype=wide, device=value.device)
    return zero.index_add(-2, position, rows).to(value.dtype)
