"""Reading out in plain torch, position by position."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Flat = Float[Tensor, "cells width"]
Cells = Int[Tensor, " rows"]
Seeds = Float[Tensor, "seeds width"]
Found = Float[Tensor, "rows seeds"]


def read_out(
    rows: Flat, start: Cells, step: Cells, alive: Sequence[tuple[int, int]], begins: Sequence[int], seeds: Seeds, out: Found
) -> None:
    """Compute what `attrib_kernels.read_out` says; 16-bit numbers are summed in float32 and rounded once."""
    sums = torch.promote_types(rows.dtype, torch.float32)
    for t, (first, end) in enumerate(alive):
        low, high = begins[t], begins[t + 1]
        if first < end and low < high:
            here = rows.index_select(0, start[first:end] + step[first:end] * t).to(sums)
            into = out[first:end, low:high]
            into.copy_(into + here @ seeds[low:high].to(sums).T)
