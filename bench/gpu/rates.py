"""What a GPU can do at most, by its makers' data sheets: products without sparsity, and bytes of its memory, per second."""

from typing import NamedTuple

from bench.engine.ours import Dtype


class Rates(NamedTuple):
    """Per second."""

    float32: float
    tf32: float
    bfloat16: float
    bytes: float

    def of(self, dtype: Dtype) -> float:
        """Operations of products in a precision, two for each multiply-add."""
        return {"float32": self.float32, "tf32": self.tf32, "bfloat16": self.bfloat16}[dtype]


RATES = {
    "NVIDIA H200": Rates(67e12, 494.5e12, 989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": Rates(67e12, 494.5e12, 989e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": Rates(19.5e12, 156e12, 312e12, 2.039e12),
}
"""By the name that CUDA gives them."""


def floor_seconds(name: str, dtype: Dtype, flops: float, size: float) -> float | None:
    """The least time for so many operations and bytes, whichever takes longer; None for a GPU that is not in the table."""
    rates = RATES.get(name)
    return None if rates is None else max(flops / rates.of(dtype), size / rates.bytes)
