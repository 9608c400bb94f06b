"""Compaction in plain torch: the rule as a mask over the dense tile, and the tile gathered by the mask."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib_kernels.compact.rules import Compacted, Rule, needed


def keep_mask(
    gradient: Float[Tensor, "rows columns"], attribution: Float[Tensor, "rows columns"], rule: Rule, amount: float | int
) -> Bool[Tensor, "rows columns"]:
    """Which entries the rule keeps, from the order of each row."""
    there, size = gradient != 0, attribution.abs()
    if rule == "dense":
        return there
    if rule == "threshold":
        return there & (size >= amount)
    ranked, order = size.sort(dim=-1, descending=True, stable=True)
    first = needed(ranked, amount) if rule == "mass" else torch.arange(size.shape[1], device=size.device).expand_as(size) < amount
    return there & torch.zeros_like(there).scatter(1, order, first)


def compact_reference(
    gradient: Float[Tensor, "rows columns"], activation: Float[Tensor, " columns"], rule: Rule, amount: float | int
) -> Compacted:
    """See `compact`."""
    attribution = gradient * activation
    mask = keep_mask(gradient, attribution, rule, amount)
    row, column = mask.nonzero(as_tuple=True)
    indptr = torch.searchsorted(row, torch.arange(len(gradient) + 1, device=row.device))
    return Compacted(indptr, column, gradient[mask], attribution[mask], attribution.sum(-1), attribution.abs().sum(-1))
