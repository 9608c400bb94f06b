"""What a device does in a second, and what it takes to ask it for anything: by the name that CUDA gives it.

The rates are those of the makers' data sheets, of products without sparsity and of the device's own memory. What asking costs is measured
on the GPU at hand by `bash bench/gpu.sh --only asking`; it has not been on any of those below, and each has the usual figures.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import torch

from attrib.core.devices import backend

Products = Literal["float64", "float32", "tf32", "bfloat16"]
"""In which numbers products go, as far as a device's rates tell them apart: float16 goes as fast as bfloat16."""

LAUNCH, WAIT = 5e-6, 10e-6
"""Seconds, as others report them: to ask a GPU for one operation, and to wait until it has done all that it was asked for."""


class Rates(NamedTuple):
    """Operations of products and bytes of its memory in a second, and seconds of asking."""

    float64: float
    float32: float
    tf32: float
    bfloat16: float
    bytes: float
    launch: float = LAUNCH
    wait: float = WAIT

    def of(self, products: Products) -> float:
        """Operations of products in a precision, two for each multiply-add."""
        return {"float64": self.float64, "float32": self.float32, "tf32": self.tf32, "bfloat16": self.bfloat16}[products]


RATES = {
    "NVIDIA H200": Rates(67e12, 67e12, 494.5e12, 989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": Rates(67e12, 67e12, 494.5e12, 989e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": Rates(19.5e12, 19.5e12, 156e12, 312e12, 2.039e12),
}
"""By name. Products of float64 are those of tensor cores, which are as fast as products of float32 without them."""
UNKNOWN = RATES["NVIDIA A100-SXM4-80GB"]
"""Those of a device that is not in the table: a slow one among those that are, so that asking is not taken for dearer than it is."""


class Asking(NamedTuple):
    """What asking costs, in the operations of products that the device does meanwhile."""

    launch: int
    wait: int


FREE = Asking(0, 0)
"""Of a CPU, which does by itself what it asks for."""


@lru_cache
def asking(device: torch.device, products: Products = "float32") -> Asking:
    """What asking costs on a device, by its name, beside products in a precision: the faster these are, the more go undone meanwhile."""
    if device.type == "cpu":
        return FREE
    named = getattr(backend(device), "get_device_name", None)
    rates = UNKNOWN if named is None else RATES.get(named(device), UNKNOWN)
    return Asking(round(rates.launch * rates.of(products)), round(rates.wait * rates.of(products)))
