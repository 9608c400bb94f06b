"""Sparse decode: the vectors that chosen latents write at chosen positions.

    out[b, p] = Σ_{i: position[i] = p} value[b, i] · W_dec[latent[i]]

Its adjoint with respect to `value` is sparse encode with W_decᵀ, and with respect to `W_dec` sparse decode
with position and latent exchanged (see `rule`), so the two operations close under differentiation.
"""

from jaxtyping import Float, Int
from torch import Tensor

from attrib_kernels.impl import Impl, check_impl
from attrib_kernels.sparse_decode.reference import sparse_decode_reference

__all__ = ["Impl", "sparse_decode"]


def sparse_decode(
    value: Float[Tensor, "*batch active"],
    position: Int[Tensor, " active"],
    latent: Int[Tensor, " active"],
    W_dec: Float[Tensor, "d_sae d_out"],
    positions: int,
    *,
    impl: Impl,
) -> Float[Tensor, "*batch positions d_out"]:
    """Σ value · W_dec[latent] at each position, without bias; positions without a latent are zero.

    Works under vmap, vjp, jvp, jacrev and jacfwd with respect to `value` and `W_dec`; the gradient of `W_dec`
    is dense and made only where it is asked for. 16-bit floats are summed in float32.

    Args:
        position: ascending (not checked: impl="triton" finds each position's latents by bisection), below `positions`.
        latent: below d_sae (not checked by impl="triton").
        positions: how many there are, with a latent or without.

    Raises:
        ValueError: for dtypes, devices or lengths that do not fit together.
    """
    check_impl(impl)
    check(value, position, latent, W_dec, positions)
    if impl == "reference":
        return sparse_decode_reference(value, position, latent, W_dec, positions)
    from attrib_kernels.sparse_decode.rule import decode

    return decode(value, position, latent, W_dec, positions)


def check(value: Tensor, position: Tensor, latent: Tensor, W_dec: Tensor, positions: int) -> None:
    """Raises ValueError where a kernel would read beyond the end or add different dtypes."""
    if positions < 0:
        raise ValueError(f"positions: {positions}; expected a number >= 0.")
    if not value.shape[-1:] == position.shape == latent.shape:
        shapes = ", ".join(str(list(t.shape)) for t in (value, position, latent))
        raise ValueError(f"value, position, latent: shapes {shapes}; expected [*batch, active], [active] and [active].")
    for name, other in (("position", position), ("latent", latent), ("W_dec", W_dec)):
        if other.device != value.device:
            raise ValueError(f"{name}: on {other.device}; expected {value.device}, where `value` is.")
    if W_dec.dtype != value.dtype:
        raise ValueError(f"W_dec: {W_dec.dtype}; expected {value.dtype}, as `value`. Convert one of them.")
