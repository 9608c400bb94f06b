"""In which numbers an attribution computes, and how far its Jacobian is from float64.

Activations, primals and results are float32 or float64. The products of a sweep can be cheaper: TF32 rounds
their operands to 11 bits on CUDA, bfloat16 keeps all rows of a sweep in 8 bits; both add up in float32.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Condition, get_ident
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.rates import Products
from attrib.core.types import InputError
from attrib.models.transformer import Model


class Precision(NamedTuple):
    """What `dtype` asks for."""

    name: str
    path: torch.dtype
    """The dtype of the activations, the primal and the result."""
    sweep: torch.dtype
    """The dtype of the rows and weights of a sweep."""
    tf32: bool = False

    @property
    def is_reduced(self) -> bool:
        """Whether the sweep computes in fewer digits than the result is given in."""
        return self.tf32 or self.sweep != self.path

    @property
    def products(self) -> Products:
        """By which of a device's rates a sweep multiplies."""
        if self.sweep.itemsize < torch.float32.itemsize:
            return "bfloat16"
        return "float64" if self.sweep == torch.float64 else "tf32" if self.tf32 else "float32"

    @property
    def is_measured(self) -> bool:
        """Whether its error is measured unasked: wherever the products have fewer digits than float32, which every result has at least."""
        return self.is_reduced or self.path.itemsize < torch.float32.itemsize


FLOAT64 = Precision("float64", torch.float64, torch.float64)
"""What every other is measured against."""

_NAMED = {
    "float32": Precision("float32", torch.float32, torch.float32),
    "float64": FLOAT64,
    "tf32": Precision("tf32", torch.float32, torch.float32, tf32=True),
    "bfloat16": Precision("bfloat16", torch.float32, torch.bfloat16),
}


def precision_of(model: Model, dtype: torch.dtype | str | None) -> Precision:
    """The precision asked for; None is the model's own dtype. Raises InputError for one that is not known."""
    if dtype is None:
        name = str(model.dtype).removeprefix("torch.")
        # a model in halves is computed in them from its first layer on, which is not what dtype="bfloat16" asks for
        return Precision(name if name in _NAMED and name != "bfloat16" else f"{name} throughout", model.dtype, model.dtype)
    found = _NAMED.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise InputError(f"dtype: {dtype!r}; expected one of {', '.join(_NAMED)}.")
    return found


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Matrix products as the precision wants them, on CUDA and, where a CPU could round too, there; and as they were afterwards.

    The settings are the process's, and threads may compute at once: those that want the same have it together, and others wait for them.
    """
    with _wanted.by(precision):
        yield


class _Wanted:
    """Who has the process's settings, and what they are."""

    def __init__(self) -> None:
        self.changed, self.holders, self.tf32, self.set = Condition(), list[int](), False, ExitStack()

    @contextmanager
    def by(self, precision: Precision) -> Iterator[None]:
        """Have them for a while."""
        own = get_ident()
        if own in self.holders and self.tf32 != precision.tf32:  # within its own, for which it would wait
            with _setting(precision):
                yield
            return
        with self.changed:
            self.changed.wait_for(lambda: not self.holders or self.tf32 == precision.tf32)
            if not self.holders:
                self.tf32 = precision.tf32
                self.set.enter_context(_setting(precision))
            self.holders.append(own)
        try:
            yield
        finally:
            with self.changed:
                self.holders.remove(own)
                if not self.holders:
                    self.set.close()
                    self.changed.notify_all()


_wanted = _Wanted()


@contextmanager
def _setting(precision: Precision) -> Iterator[None]:
    """The process's settings, changed and put back.

    torch has two interfaces to one setting, and raises at what reads the older one while the newer one says otherwise.
    So the newer one alone is used, which can always be read; and the older one of a torch that has no other.
    """
    matmul, on_host = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
    with ExitStack() as afterwards:
        if hasattr(matmul, "fp32_precision"):
            afterwards.enter_context(_rounding(matmul, "tf32" if precision.tf32 else "ieee"))
            if on_host is not None:
                afterwards.enter_context(_rounding(on_host, "ieee"))
        else:
            afterwards.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("high" if precision.tf32 else "highest")
        sums, by_parts = matmul.allow_bf16_reduced_precision_reduction, getattr(matmul, _BY_PARTS, None)
        afterwards.callback(setattr, matmul, _SUMS, sums if by_parts is None else (sums, by_parts))
        setattr(matmul, _SUMS, False if by_parts is None else (False, by_parts))
        yield


_SUMS = "allow_bf16_reduced_precision_reduction"
_BY_PARTS = f"{_SUMS}_split_k"
"""Switches of cuBLAS: whether bfloat16 products are summed in fewer digits, and whether in parts. Not every torch has the second."""


@contextmanager
def _rounding(products_of: Any, to: str) -> Iterator[None]:
    """How operands of float32 are rounded. What has followed a wider setting of the user's follows it afterwards too."""
    before = products_of.fp32_precision
    products_of.fp32_precision = to
    try:
        yield
    finally:
        products_of.fp32_precision = "none"
        if products_of.fp32_precision != before:
            products_of.fp32_precision = before


class Error(NamedTuple):
    """How far sampled rows are from the same rows in float64, at the same primal point."""

    rows: int
    relative_frobenius: float
    top_1_percent_overlap: float
    """The share of each row's largest 1% of |attribution| (at least one) that float64 ranks there too; mean over rows."""


def error_of(rows: Float[Tensor, "rows sources"], exact: Float[Tensor, "rows sources"], activation: Float[Tensor, " sources"]) -> Error:
    """Compare sampled rows of a Jacobian with float64 ones."""
    rows, exact, activation = rows.double(), exact.double(), activation.double()
    norm = float(exact.norm())
    count = max(1, round(0.01 * rows.shape[1]))

    def top(gradient: Tensor) -> Tensor:
        size = (gradient * activation).abs()
        return torch.zeros_like(size, dtype=torch.bool).scatter(1, size.topk(min(count, size.shape[1])).indices, True)

    both = (top(rows) & top(exact)).sum(1) / min(count, rows.shape[1]) if rows.numel() else rows.new_ones(1)
    return Error(len(rows), float((rows - exact).norm()) / norm if norm else 0.0, float(both.double().mean()))
