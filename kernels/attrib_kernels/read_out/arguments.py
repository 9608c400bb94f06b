"""What the arguments of reading out must be; a kernel given anything else would read or write outside them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def check_arguments(
    rows: Tensor, start: Tensor, step: Tensor, alive: Sequence[tuple[int, int]], begins: Sequence[int], seeds: Tensor, out: Tensor
) -> None:
    """Raise ValueError for the first argument that does not fit. That cells lie within `rows` is not looked at: it would be waited for."""
    tensors = {"start": start, "step": step, "seeds": seeds, "out": out}
    for name, x in tensors.items():
        if x.device != rows.device:
            raise ValueError(f"{name}: on {x.device}, and rows are on {rows.device}. Move all to one device.")
    for name, x in (("start", start), ("step", step)):
        if x.dtype != torch.int64 or x.shape != (len(out),):
            raise ValueError(
                f"{name}: {x.dtype} of shape {tuple(x.shape)} came, expected torch.int64 of [{len(out)}], one for each row of out."
            )
    if seeds.dtype != rows.dtype or seeds.shape != (out.shape[1], rows.shape[1]):
        raise ValueError(
            f"seeds: {seeds.dtype} of shape {tuple(seeds.shape)} came, expected {rows.dtype} of {[out.shape[1], rows.shape[1]]}, "
            "one for each column of out, as wide as rows."
        )
    if len(begins) != len(alive) + 1 or begins[0] < 0 or begins[-1] > len(seeds) or any(low > high for low, high in pairwise(begins)):
        raise ValueError(f"begins: expected {len(alive) + 1} numbers that rise from 0 up to {len(seeds)}; {list(begins)[:9]} came.")
    for first, end in alive:
        if not 0 <= first <= end <= len(out):
            raise ValueError(f"alive: rows [{first}, {end}) of {len(out)}; expected 0 <= first <= end <= {len(out)}.")
