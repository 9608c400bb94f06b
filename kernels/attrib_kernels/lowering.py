"""What the Triton kernels of attrib share: where they may run, what they sum in, how a sum is rounded."""

import typing

import torch
import triton
import triton.language as tl
from torch import Tensor


def check_device(name: str, tensor: Tensor) -> None:
    """Raises ValueError for a tensor that a kernel cannot reach."""
    if not tensor.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"{name}: on {tensor.device}, which impl='triton' cannot reach; expected a CUDA tensor. Use impl='reference', or set "
            "TRITON_INTERPRET=1 before triton is imported to interpret the kernel (for tests: it is slow)."
        )


def accumulator(dtype: torch.dtype) -> typing.Any:
    """Triton's type for sums of numbers of a dtype: never narrower than float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
@typing.no_type_check
def rounded(x, DTYPE: tl.constexpr):
    """A float32 or float64 block in DTYPE, to the nearest, ties to even.

    bfloat16 is rounded by its bits, because Triton's interpreter cuts them off in a cast, and what the tests
    see should be what runs. Adding half of what is dropped, and the last kept bit less one, rounds ties to even.
    """
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        up = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet = (bits >> 16) | 0x40  # a NaN stays one, where rounding could carry it to zero
        result = tl.where(x != x, quiet, up).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = x.to(DTYPE)
    return result
