"""Sparse encode in plain torch: gather both sides of every pair, multiply, sum. Every transform of torch.func passes through."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sparse_encode_reference(
    x: Float[Tensor, "*batch positions d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    position: Int[Tensor, " pairs"],
    latent: Int[Tensor, " pairs"],
) -> Float[Tensor, "*batch pairs"]:
    """See `sparse_encode`. 16-bit floats are summed in float32, and rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    columns = W_enc.T.index_select(0, latent).to(wide)
    return (x.index_select(-2, position).to(wide) * columns).sum(-1).to(x.dtype)
