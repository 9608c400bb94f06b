"""Sparse encode: chosen latents at chosen positions.

    out[b, i] = x[b, position[i]] · W_enc[:, latent[i]]

Its adjoint with respect to `x` is sparse decode with W_encᵀ, and with respect to W_encᵀ sparse decode of x
by latent (see `rule` and `sparse_decode`).
"""

from jaxtyping import Float, Int
from torch import Tensor

from attrib_kernels.impl import Impl, check_impl
from attrib_kernels.sparse_encode.reference import sparse_encode_reference

__all__ = ["Impl", "sparse_encode"]


def sparse_encode(
    x: Float[Tensor, "*batch positions d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    position: Int[Tensor, " pairs"],
    latent: Int[Tensor, " pairs"],
    *,
    impl: Impl,
) -> Float[Tensor, "*batch pairs"]:
    """x[position] · W_enc[:, latent] of each pair, in the order of the pairs, without bias.

    Works under vmap, vjp, jvp, jacrev and jacfwd with respect to `x` and `W_enc`; the gradient of `W_enc` is
    dense and made only where it is asked for. 16-bit floats are summed in float32.

    Args:
        W_enc: with any strides. A column is read at a time, so a view `W_enc_T.T` of contiguous
            [d_sae, d_in] is read in whole lines, and a contiguous [d_in, d_sae] one number per line.
        position: in any order, below the number of positions (not checked by impl="triton").
        latent: below d_sae (not checked by impl="triton").

    Raises:
        ValueError: for dtypes, devices or lengths that do not fit together.
    """
    check_impl(impl)
    check(x, W_enc, position, latent)
    if impl == "reference":
        return sparse_encode_reference(x, W_enc, position, latent)
    from attrib_kernels.sparse_encode.rule import encode

    return encode(x, position, latent, W_enc.T)


def check(x: Tensor, W_enc: Tensor, position: Tensor, latent: Tensor) -> None:
    """Raises ValueError where a kernel would read beyond the end or multiply different dtypes."""
    if x.shape[-1] != W_enc.shape[0]:
        raise ValueError(f"W_enc: shape {list(W_enc.shape)}; expected [{x.shape[-1]}, d_sae], the width of `x` first.")
    if position.shape != latent.shape:
        raise ValueError(f"position, latent: shapes {list(position.shape)}, {list(latent.shape)}; expected one of each for every pair.")
    for name, other in (("W_enc", W_enc), ("position", position), ("latent", latent)):
        if other.device != x.device:
            raise ValueError(f"{name}: on {other.device}; expected {x.device}, where `x` is.")
    if W_enc.dtype != x.dtype:
        raise ValueError(f"W_enc: {W_enc.dtype}; expected {x.dtype}, as `x`. Convert one of them.")
