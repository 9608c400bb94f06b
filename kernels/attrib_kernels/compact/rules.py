"""The four rules, and how the two that rank a row become a bound on single entries.

Write s_c = |attribution_c| for one row, sorted descending with NaN first as torch sorts, ties by column:

    topk k       keeps the first k                            n = min(k, columns)
    mass φ       keeps c while (running_c - s_c) < φ · l1     n = how many are

where `running` is summed in float64 whatever the dtype of s, and φ = 1 keeps all s_c > 0, however small beside the sum.

Such sums of sorted non-negative numbers never fall and s_c never rises, so running_c - s_c never falls, rounded or
not, and mass keeps the first n as well. (A sum made in parallel may fall by its rounding; n is then still how many
fall short, and which they are differs by no more than that.) The first n of a row are told apart without its order:

    cut = the n-th of the sorted s,   ties = n - #{s above cut}
    kept = {s above cut} and the first `ties` entries, by column, that equal the cut

where NaN is above every number and equal to itself. n = 0 is cut = NaN, ties = 0.
"""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rule = Literal["dense", "topk", "threshold", "mass"]


class Compacted(NamedTuple):
    """CSR rows of a tile with ascending columns, and the sums of every row over all its columns."""

    indptr: Int[Tensor, " rows_plus_1"]
    indices: Int[Tensor, " kept"]
    gradient: Float[Tensor, " kept"]
    attribution: Float[Tensor, " kept"]
    total: Float[Tensor, " rows"]
    l1: Float[Tensor, " rows"]


class Cut(NamedTuple):
    """Per row, the smallest kept |attribution| and how many entries equal to it are kept."""

    value: Float[Tensor, " rows"]
    ties: Int[Tensor, " rows"]


def check_rule(rule: str, amount: float | int) -> None:
    """Raises ValueError for an unknown rule or an amount that makes no sense."""
    match rule:
        case "topk" if not (amount >= 1 and amount % 1 == 0):
            raise ValueError(f"amount: {amount} for rule 'topk'; expected a whole number >= 1.")
        case "threshold" if not amount >= 0:
            raise ValueError(f"amount: {amount} for rule 'threshold' is not a bound on |attribution|; expected a number >= 0.")
        case "mass" if not 0 < amount <= 1:
            raise ValueError(f"amount: {amount} for rule 'mass' is not a fraction of a sum; expected 0 < amount <= 1.")
        case _ if rule not in get_args(Rule):
            raise ValueError(f"rule: {rule!r}; expected one of {', '.join(get_args(Rule))}.")


def check_tile(tile: Tensor, activation: Tensor) -> None:
    """Raises ValueError where shapes, dtypes or devices do not fit: a kernel would read beyond the end."""
    columns = tile.shape[-1]
    if activation.shape != (columns,):
        raise ValueError(f"activation: shape {list(activation.shape)}; expected [{columns}], one number for each column of the tile.")
    if (activation.dtype, activation.device) != (tile.dtype, tile.device):
        raise ValueError(f"activation: {activation.dtype} on {activation.device}; expected {tile.dtype} on {tile.device}, as the tile.")


def needed(ranked: Float[Tensor, "rows columns"], fraction: float) -> Bool[Tensor, "rows columns"]:
    """Which entries of rows in order, largest first, "mass" keeps: none where the sum of a row is not finite."""
    running = ranked.cumsum(-1, dtype=torch.float64)
    total = running[:, -1:].clone()
    if fraction == 1:
        return (ranked > 0) & total.isfinite()
    return running.sub_(ranked) < (fraction * total).where(total.isfinite(), torch.nan)


def cut(size: Float[Tensor, "rows columns"], rule: Rule, amount: float | int) -> Cut:
    """The bound that "topk" or "mass" puts on each row of |attribution|. There is at least one column."""
    if rule == "topk":
        ranked = size.topk(min(int(amount), size.shape[1])).values
        count = torch.full_like(size[:, 0], ranked.shape[1], dtype=torch.int64)
    else:
        ranked = size.sort(dim=-1, descending=True).values
        count = needed(ranked, amount).sum(-1)
    value = ranked.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    value = value.where(count > 0, torch.nan)
    return Cut(value, (count - _above(ranked, value[:, None]).sum(-1)).clamp(min=0))


def _above(size: Float[Tensor, "rows ranked"], bound: Float[Tensor, "rows 1"]) -> Bool[Tensor, "rows ranked"]:
    return (size > bound) | (size.isnan() & ~bound.isnan())
