"""Parts that lie one after another in a column: `ptr` says where each begins, and last where all end."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

Chosen = slice | Int[Tensor, " _"]
"""Places in a column: successive ones as a slice with both ends, which takes no copy, or any, in any order."""


def ptr_of(counts: Int[Tensor, " parts"]) -> Int[Tensor, " parts_plus_1"]:
    """Where parts of these lengths begin when they lie one after another."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def join_ptr(ptrs: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, " total_plus_1"]:
    """Where the parts of several columns begin when those columns lie one after another."""
    return ptr_of(torch.cat([ptr.diff() for ptr in ptrs]))


def part_of(ptr: Int[Tensor, " parts_plus_1"], entries: Int[Tensor, " chosen"]) -> Int[Tensor, " chosen"]:
    """Which part each entry lies in. Empty parts hold nothing."""
    return torch.searchsorted(ptr, entries, right=True) - 1


def counts_of(ptr: Int[Tensor, " parts_plus_1"], parts: Chosen) -> Int[Tensor, " chosen"]:
    """How many entries each of the chosen parts has; of a slice, without a look at the others."""
    return ptr[parts.start : parts.stop + 1].diff() if isinstance(parts, slice) else ptr[parts + 1] - ptr[parts]


def entries_of(ptr: Int[Tensor, " parts_plus_1"], parts: Chosen) -> Chosen:
    """The entries of chosen parts, one part after another."""
    if isinstance(parts, slice):
        return slice(int(ptr[parts.start]), int(ptr[parts.stop]))
    return ranges(ptr[parts], counts_of(ptr, parts))


def ranges(starts: Int[Tensor, " parts"], counts: Int[Tensor, " parts"]) -> Int[Tensor, " total"]:
    """start, start + 1, … of every part, one part after another.

    >>> ranges(torch.tensor([7, 0]), torch.tensor([2, 3])).tolist()
    [7, 8, 0, 1, 2]
    """
    before = counts.cumsum(0) - counts
    return torch.repeat_interleave(starts - before, counts) + torch.arange(int(counts.sum()))


def taken(strings: tuple[str, ...], chosen: Chosen) -> tuple[str, ...]:
    """The strings at these places."""
    return strings[chosen] if isinstance(chosen, slice) else tuple(strings[place] for place in chosen.tolist())
