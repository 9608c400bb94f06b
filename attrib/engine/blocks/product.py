"""The one door to products of rows by a matrix: torch's own, or oneDNN's where ATTRIB_PRODUCT=onednn asks for it.

On a CPU torch gives float32 products to MKL. A torch built with oneDNN can multiply by that too, which was faster on an AMD processor,
through an operation that torch keeps for compiled models: the same float32, added up in another order, so that last bits differ.
docs/engine.md says what it gave where it was measured.

The choice is the user's, by a variable of the environment, and not that of a clock: a choice by timing would change bits between two
runs of one prompt, and what a job writes must not depend on which worker wrote it, or when. For the same reason what is taken depends on
dtype, shape and layout alone, never on what was multiplied before.

oneDNN compiles a kernel for every number of rows that it has not met, which takes about 0.5 ms, and keeps the last 1024 of them (see
docs/engine.md for their memory). So a product goes there where what it saves is more than that (`LEAST_FLOPS`).
"""

import os
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from attrib.core.types import InputError

LEAST_FLOPS = 1 << 29
"""Operations of the least product that is faster by oneDNN even where its kernel has to be compiled."""

LEAST_SIDE = 64
"""The fewest rows and columns of a matrix at which this was measured."""

VARIABLE = "ATTRIB_PRODUCT"


def product(a: Float[Tensor, "*rows inner"], w: Float[Tensor, "inner width"]) -> Float[Tensor, "*rows width"]:
    """`a @ w`."""
    if not _is_taken(a, w):
        return a @ w
    return _by_onednn(a.view(-1, len(w)), w).view(*a.shape[:-1], w.shape[1])


def product_into(a: Float[Tensor, "rows inner"], w: Float[Tensor, "inner width"], out: Float[Tensor, "rows width"]) -> None:
    """`a @ w` into `out`; beside it there is room for as much again."""
    if _is_taken(a, w):
        out.copy_(_by_onednn(a, w))
    elif _is_taken(w.T, a.T):  # (a w)^T = w^T a^T: of the two factors one has to lie row by row
        out.copy_(_by_onednn(w.T, a.T).T)
    else:
        torch.mm(a, w, out=out)


def _is_taken(a: Tensor, w: Tensor) -> bool:
    """Whether oneDNN multiplies: it was asked for, is there, knows how these lie, and has enough to do."""
    if min(w.shape) < LEAST_SIDE or 2 * a.numel() * w.shape[1] < LEAST_FLOPS:
        return False
    # a part of a wider matrix goes to plain loops in oneDNN, a thousand times slower
    lies = a.is_contiguous() and (w.is_contiguous() or w.T.is_contiguous())
    return lies and _is_plain(a) and _is_plain(w) and _is_asked_for() and _operation() is not None


def _is_plain(x: Tensor) -> bool:
    """Whether it is a float32 tensor on a CPU, which no transform and no tape looks through."""
    is_followed = (x.requires_grad and torch.is_grad_enabled()) or is_functorch_wrapped_tensor(x)
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.layout == torch.strided and not is_followed


def _is_asked_for() -> bool:
    """Raises InputError where the variable says what is not known."""
    given = os.environ.get(VARIABLE, "torch")
    if given not in ("torch", "onednn"):
        raise InputError(f"{VARIABLE}: {given!r} in the environment; expected 'torch' or 'onednn'. Set one of them, or unset it.")
    return given == "onednn"


@cache
def _operation() -> Any:
    """Torch's operation for oneDNN's product; None in a torch that has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)


def _by_onednn(a: Float[Tensor, "rows inner"], w: Float[Tensor, "inner width"]) -> Float[Tensor, "rows width"]:
    found: Tensor = _operation()(a, w.T, None, "none", [], "")
    return found
