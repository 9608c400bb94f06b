"""Tensors as Triton's tensor descriptors, from which Hopper's tensor memory accelerator (TMA) copies a whole tile by one instruction.

A descriptor holds the address, sizes and strides of a tensor and the shape of a tile. One thread asks for a tile by the index of its first
number, and what lies beyond the tensor arrives as zeros; a pointer has every thread compute its own addresses and masks. The hardware
wants addresses and strides that 16 bytes divide.
"""

import math
from collections.abc import Sequence
from typing import Any

import triton
from torch import Tensor

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # a Triton that has none
    TensorDescriptor = None

ALIGNED = 16
"""Bytes that must divide a tensor's address and the length of its rows."""
HOPPER = 90
"""The compute capability from which on there is a tensor memory accelerator, times ten."""


def describable(*tensors: Tensor) -> bool:
    """Whether the GPU in use, this Triton and all of the tensors, which are contiguous, let tiles be loaded by descriptors."""
    return TensorDescriptor is not None and _accelerated() and all(map(_aligned, tensors))


def described(x: Tensor, tile: tuple[int, int], order: Sequence[int] | None = None) -> Any:
    """A contiguous tensor as a descriptor of tiles that span its last two dimensions, once they are in `order`.

    Strides are computed from sizes, as kernels compute them: torch lets a contiguous tensor have any stride where a size is 1.
    """
    order = range(x.ndim) if order is None else order
    sizes, strides = [x.shape[dim] for dim in order], [math.prod(x.shape[dim + 1 :]) for dim in order]
    return TensorDescriptor(x, sizes, strides, [1] * (x.ndim - 2) + list(tile))


def _aligned(x: Tensor) -> bool:
    return x.data_ptr() % ALIGNED == 0 and x.shape[-1] * x.element_size() % ALIGNED == 0


def _accelerated() -> bool:
    """Whether there is a tensor memory accelerator, or an interpreter that does as if."""
    if triton.knobs.runtime.interpret:
        return True
    target = triton.runtime.driver.active.get_current_target()
    return bool(target.backend == "cuda" and target.arch >= HOPPER)
