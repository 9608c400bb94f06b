"""The strongest pairs of a bilinear form, without all pairs where a bound will do.

With rows l_i and r_j the weight of a pair is l_i · r_j, and no larger than |l_i| |r_j|. So where a rule keeps by size, rows that are too
short for any of their pairs to be kept are left out before products are taken, and what is kept is the same.
"""

from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.keep import kept
from attrib.core.types import Keep, Threshold, TopK


@dataclass(frozen=True)
class Rows:
    """One side of the form."""

    vector: Float[Tensor, "rows d"]

    @cached_property
    def norm(self) -> Float[Tensor, " rows"]:
        """The length of each row."""
        return self.vector.norm(dim=1)

    @cached_property
    def order(self) -> Int[Tensor, " rows"]:
        """The longest first."""
        return self.norm.argsort(descending=True)

    @cached_property
    def longest(self) -> float:
        """The length of the longest."""
        return float(self.norm.max()) if len(self.norm) else 0.0

    @cached_property
    def total(self) -> Float[Tensor, " d"]:
        """The sum of all rows."""
        return self.vector.sum(0)


class Pairs(NamedTuple):
    """Some pairs, by the rows of both sides, in order of those."""

    left: Int[Tensor, " pairs"]
    right: Int[Tensor, " pairs"]
    weight: Float[Tensor, " pairs"]


def strongest(left: Rows, right: Rows, keep: Keep, scale: float = 1.0) -> Pairs:
    """The pairs that a rule keeps of all of them, each weighing `scale` times its product."""
    bound = _bound(left, right, keep, scale) * (1 - 128 * torch.finfo(left.vector.dtype).eps)  # products round
    rows = (left.norm * right.longest >= bound).nonzero()[:, 0]
    columns = (right.norm * left.longest >= bound).nonzero()[:, 0]
    weight = left.vector.index_select(0, rows) @ right.vector.index_select(0, columns).T
    place = (weight.abs() >= bound).flatten().nonzero()[:, 0] if bound else torch.arange(weight.numel(), device=weight.device)
    value = weight.flatten().index_select(0, place)[None] * scale
    chosen = kept(keep, value, value)[0]
    place, value = place[chosen], value[0, chosen]
    return Pairs(rows[place // max(1, len(columns))], columns[place % max(1, len(columns))], value)


def _bound(left: Rows, right: Rows, keep: Keep, scale: float) -> float:
    """A size that the product of every pair that is kept has at least."""
    match keep:
        case Threshold(t):
            return float(t) / scale
        case TopK(k):
            side = isqrt(4 * k) + 1
            few = left.vector.index_select(0, left.order[:side]) @ right.vector.index_select(0, right.order[:side]).T
            return float(few.abs().flatten().topk(k).values[-1]) if few.numel() >= k else 0.0
    return 0.0
