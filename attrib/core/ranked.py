"""The largest entries of each row, told without putting whole rows in order.

All functions keep the first n entries of a row in the order "largest first, of equals the earlier column". Sorting is most of what
that would cost, and is not needed: a bound tells the first n from the rest, and only what lies at the bound has to be ranked. Rows of
few entries each, and not of as many, are sorted together (`largest_of_runs`).
"""

from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BINS: Final = 512
"""Bins of one row. The last holds all that is 2^-32 of the row's largest or less, which is seldom where a fraction is reached."""
_MANTISSA: Final = 4
"""Bits of the mantissa that tell bins apart: a bin is 2^-4 wide, so that few entries of a row share the one that is sorted."""
_AT_ONCE: Final = 1 << 17
"""Entries that are binned at once: what is made of them stays in a processor's cache, and takes a few MB however large a tile is."""


def largest(size: Float[Tensor, "rows columns"], k: int) -> Bool[Tensor, "rows columns"]:
    """The k largest of each row. NaN is above every number, and equal to itself."""
    if k >= size.shape[1]:
        return torch.ones_like(size, dtype=torch.bool)
    least = size.topk(k).values[:, -1:]
    found = ~(size < least)
    if size.device.type != "cpu":  # which rows are crowded would have to be waited for
        return _with_the_first_ties(size, least, k)
    crowded = (found.sum(-1) > k).nonzero()[:, 0]  # more are equal to the least than there is room for, or it is NaN
    found[crowded] = _with_the_first_ties(size[crowded], least[crowded], k)
    return found


def _with_the_first_ties(size: Float[Tensor, "rows columns"], least: Float[Tensor, "rows 1"], k: int) -> Bool[Tensor, "rows columns"]:
    none, least_is_none = size.isnan(), least.isnan()
    above = (size > least) | (none & ~least_is_none)
    tie = (size == least) | (none & least_is_none)
    room = k - above.sum(-1, keepdim=True)
    return above | (tie & (tie.cumsum(-1) <= room))


def largest_of_runs(size: Float[Tensor, " entries"], run: Int[Tensor, " entries"], k: int) -> Bool[Tensor, " entries"]:
    """The k largest of each run: of the entries that share a number, which lie in order of these. NaN is above every number."""
    order = size.argsort(descending=True, stable=True)
    order = order[run[order].argsort(stable=True)]
    rank = torch.arange(len(run), device=run.device) - torch.searchsorted(run, run)  # the runs are where they were, each in its own order
    return torch.zeros_like(run, dtype=torch.bool).index_fill(0, order[rank < k], True)


def fewest(size: Float[Tensor, "rows columns"], fraction: float) -> Bool[Tensor, "rows columns"]:
    """The fewest of each row whose sum is at least the fraction of the whole row's.

    An entry is one of them while the sum of those before it is below fraction · total. Sums are made in float64 whatever the dtype
    of `size`, so an entry is in doubt only where the two differ by float64's rounding; in what order sums are made is fixed for
    each device, so the same row has the same answer, alone and among others. The whole of a sum is all that is not zero, however
    small. A row whose sum is not finite has no fraction, and nothing of it is kept.
    """
    if fraction == 1:
        return (size > 0) & size.sum(-1, keepdim=True, dtype=torch.float64).isfinite()
    if size.device.type != "cpu":  # where a histogram would add in an order of its own each time, and sorting is cheap
        return in_order(size, fraction)
    rows = max(1, _AT_ONCE // max(1, size.shape[1]))
    found = torch.empty_like(size, dtype=torch.bool)
    for some, into in zip(size.split(rows), found.split(rows), strict=True):
        into.copy_(_by_bins(some, fraction))
    return found


def in_order(size: Float[Tensor, "rows columns"], fraction: float) -> Bool[Tensor, "rows columns"]:
    """What `fewest` gives for less than the whole, by sorting whole rows."""
    ranked, order = size.sort(dim=-1, descending=True, stable=True)
    running = ranked.cumsum(-1, dtype=torch.float64)
    goal = _goal(running, fraction)
    return torch.zeros_like(size, dtype=torch.bool).scatter(-1, order, running.sub_(ranked) < goal)


def _goal(running: Float[Tensor, "rows sums"], fraction: float) -> Float[Tensor, "rows 1"]:
    """What is to be reached of each row's last sum: NaN where that is not finite, which no number is below."""
    total = running[:, -1:]
    return (fraction * total).where(total.isfinite(), torch.nan)


def _by_bins(size: Float[Tensor, "rows columns"], fraction: float) -> Bool[Tensor, "rows columns"]:
    """Bins from the top as long as their sum falls short, and of the next the first entries until it does not."""
    if 0 in size.shape:
        return torch.zeros_like(size, dtype=torch.bool)
    bins = _bin_of(size)
    running = torch.zeros(len(size), BINS, dtype=torch.float64).scatter_add_(1, bins, size.double()).cumsum_(-1)
    goal = _goal(running, fraction)
    border = (running < goal).sum(-1, keepdim=True)  # at most the last: a fraction is no more than 1
    above = running.gather(1, (border - 1).clamp_min(0)).where(border > 0, 0.0)
    found = bins < border
    row, column = (bins == border).nonzero(as_tuple=True)
    found[row, column] = _needed(size[row, column].double(), row, above, goal)
    return found


def _bin_of(size: Float[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
    """The bin of each entry, the row's largest being in the first: a float that is not negative is in the order of its bits."""
    wide = size if size.dtype == torch.float64 else size.float()
    bits, mantissa = (torch.int64, 52) if wide.dtype == torch.float64 else (torch.int32, 23)
    leading = wide.view(bits) >> (mantissa - _MANTISSA)
    return (leading.amax(-1, keepdim=True) - leading).clamp_(max=BINS - 1).long()


def _needed(
    size: Float[Tensor, " members"], row: Int[Tensor, " members"], above: Float[Tensor, "rows 1"], goal: Float[Tensor, "rows 1"]
) -> Bool[Tensor, " members"]:
    """Which members of one bin of each row are needed, with the sum above that bin and the sum to be reached; `row` is ascending."""
    counts = torch.bincount(row, minlength=len(above))
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    table = size.new_zeros(len(above), int(counts.max()))
    table[row, place] = size
    ranked, order = table.sort(dim=-1, descending=True, stable=True)
    before = above + (ranked.cumsum(-1) - ranked)
    return torch.zeros_like(table, dtype=torch.bool).scatter(-1, order, before < goal)[row, place]
