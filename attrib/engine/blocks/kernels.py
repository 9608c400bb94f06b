"""The one door to attrib_kernels. `impl` is "torch" or "triton", and is always chosen by the caller.

Triton kernels run on CUDA, and on a CPU under TRITON_INTERPRET=1; they are imported on use. None is used
where it was not asked for: the READMEs beside the kernels say what was measured of each.
"""

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from attrib_kernels.attention_adjoint import AttentionCotangents, FrozenCotangents, attention_adjoint, attention_tangent
from attrib_kernels.compact import Compacted
from attrib_kernels.compact import compact as _compact
from attrib_kernels.mlp_pointwise import slopes
from attrib_kernels.read_out import read_out as _read_out
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Dense, InputError, Keep, Mass, Threshold, TopK

__all__ = [
    "AttentionCotangents",
    "Compacted",
    "FrozenCotangents",
    "Impl",
    "attention_pull",
    "attention_push",
    "check_impl",
    "compact",
    "read_out",
    "slopes",
]

Impl = Literal["torch", "triton"]


def check_impl(impl: Impl) -> None:
    """Raises InputError where `impl` cannot run here."""
    if impl != "triton":
        return
    try:
        import triton
    except ImportError:
        raise InputError(
            "method: 'adjoint-triton' needs the package triton, which is not installed; pip install 'attrib[gpu]', or use 'adjoint'."
        ) from None
    if not torch.cuda.is_available() and not triton.knobs.runtime.interpret:
        raise InputError("method: 'adjoint-triton' needs CUDA, and there is none here. Use 'adjoint', or set TRITON_INTERPRET=1 to try it.")


def attention_pull(
    o: Float[Tensor, "positions rows heads d_head"],
    pattern: Float[Tensor, "heads positions positions"],
    q: Float[Tensor, "heads positions d_head"],
    k: Float[Tensor, "kv_heads positions d_head"],
    v: Float[Tensor, "kv_heads positions d_head"],
    z: Float[Tensor, "heads positions d_head"],
    scale: float,
    frozen: bool,
) -> AttentionCotangents | FrozenCotangents:
    """Cotangents of (rotated) queries, keys and values by the Triton kernel."""
    return attention_adjoint(o, pattern, q, k, v, z, scale, impl="triton", frozen=frozen, precision=_precision())


def attention_push(
    tangents: AttentionCotangents | FrozenCotangents,
    pattern: Float[Tensor, "heads positions positions"],
    q: Float[Tensor, "heads positions d_head"],
    k: Float[Tensor, "kv_heads positions d_head"],
    v: Float[Tensor, "kv_heads positions d_head"],
    z: Float[Tensor, "heads positions d_head"],
    scale: float,
) -> Float[Tensor, "positions rows heads d_head"]:
    """Tangents of z by the Triton kernel."""
    return attention_tangent(tangents, pattern, q, k, v, z, scale, impl="triton", precision=_precision())


def read_out(
    rows: Float[Tensor, "cells width"],
    start: Int[Tensor, " rows"],
    step: Int[Tensor, " rows"],
    alive: Sequence[tuple[int, int]],
    begins: Sequence[int],
    seeds: Float[Tensor, "seeds width"],
    out: Float[Tensor, "rows seeds"],
) -> None:
    """Add products of rows and seeds that are at one position to `out`, by the Triton kernel."""
    _read_out(rows, start, step, alive, begins, seeds, out, impl="triton", precision=_precision())


def _precision() -> Literal["tf32", "tf32x3"]:
    """How kernels multiply float32 numbers: in TF32 where torch does, which `dtype="tf32"` asks for, and else as exactly as float32."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def compact(gradient: Float[Tensor, "rows columns"], activation: Float[Tensor, " columns"], keep: Keep, impl: Impl) -> Compacted:
    """Select from a tile of a Jacobian where it lies; see attrib.core.types for the rules."""
    where: Literal["reference", "triton"] = "triton" if impl == "triton" else "reference"
    match keep:
        case TopK(k=k):
            return _compact(gradient, activation, "topk", k, impl=where)
        case Threshold(t=t):
            return _compact(gradient, activation, "threshold", t, impl=where)
        case Mass(fraction=fraction):
            return _compact(gradient, activation, "mass", fraction, impl=where)
        case Dense():
            return _compact(gradient, activation, "dense", impl=where)
    assert_never(keep)
