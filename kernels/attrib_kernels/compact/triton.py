"""Compaction in two passes over the tile: count and sum, then write in column order.

A program owns one row and `span` of its columns, `BLOCK` at a time:

    counts[r, part] = #kept,   sums over the part      first pass
    offsets = exclusive sum of counts, row by row      so indptr[r] = offsets[r, 0]
    write from offsets[r, part] on                     second pass, ranks by a running sum

The second pass judges each entry anew, by the same function of the same numbers, so it needs no mask in
memory. Rules that rank a row count its ties from its first column on, so one program has the whole row.
"""

import typing

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from attrib_kernels.compact.rules import Compacted, Cut, Rule, cut
from attrib_kernels.lowering import accumulator, check_device, rounded

BLOCK = 1024
"""Columns read at once: 8 for each thread of 4 warps."""

SPAN = 4096
"""Columns of one program, where the rule lets a row be divided: few rows still fill a device."""


@triton.jit
@typing.no_type_check
def judge(gradient, attribution, bound, ties, seen, RULE: tl.constexpr):
    """Which entries of a block [columns] are kept, and how many ties were seen up to its end."""
    keep = gradient != 0
    size = tl.abs(attribution)
    bound = tl.broadcast_to(bound, size.shape)
    if RULE == "threshold":
        keep = keep & (size >= bound)
    elif RULE == "ranked":
        # NaN is above every number and equal to itself
        tie = (size == bound) | ((size != size) & (bound != bound))
        above = (size > bound) | ((size != size) & (bound == bound))
        rank = seen + tl.cumsum(tie.to(tl.int32), 0) - tie.to(tl.int32)
        keep = keep & (above | (tie & (rank < ties)))
        seen += tl.sum(tie.to(tl.int32), 0)
    return keep, seen


@triton.jit
@typing.no_type_check
def _read(gradient, activation, row, column, end, stride_row, stride_column, ACC: tl.constexpr):
    """Gradient and attribution of a block, rounded as the tile is and then exact in ACC; zero beyond the end."""
    inside = column < end
    g = tl.load(gradient + row * stride_row + column.to(tl.int64) * stride_column, mask=inside, other=0.0)
    a = tl.load(activation + column, mask=inside, other=0.0)
    return g.to(ACC), rounded(g.to(ACC) * a.to(ACC), gradient.dtype.element_ty).to(ACC)


@triton.jit
@typing.no_type_check
def _count(
    gradient, activation, bound, ties, counts, total, l1,
    columns, span, stride_row, stride_column, stride_bound,
    RULE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = part * span
    end = tl.minimum(begin + span, columns)
    limit, room = tl.load(bound + row * stride_bound).to(ACC), tl.load(ties + row * stride_bound)
    count = tl.zeros([BLOCK], dtype=tl.int32)
    sums = tl.zeros([BLOCK], dtype=ACC)
    sizes = tl.zeros([BLOCK], dtype=ACC)
    seen = 0
    for start in range(begin, end, BLOCK):
        g, attribution = _read(gradient, activation, row, start + tl.arange(0, BLOCK), end, stride_row, stride_column, ACC)
        keep, seen = judge(g, attribution, limit, room, seen, RULE)
        count += keep.to(tl.int32)
        sums += attribution
        sizes += tl.abs(attribution)
    at = row * tl.num_programs(1) + part
    tl.store(counts + at, tl.sum(count, 0))
    tl.store(total + at, tl.sum(sums, 0))
    tl.store(l1 + at, tl.sum(sizes, 0))


@triton.jit
@typing.no_type_check
def _write(
    gradient, activation, bound, ties, offsets, indices, kept_gradient, kept_attribution,
    columns, span, stride_row, stride_column, stride_bound,
    RULE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = part * span
    end = tl.minimum(begin + span, columns)
    limit, room = tl.load(bound + row * stride_bound).to(ACC), tl.load(ties + row * stride_bound)
    slot = tl.load(offsets + row * tl.num_programs(1) + part)
    seen = 0
    for start in range(begin, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        g, attribution = _read(gradient, activation, row, column, end, stride_row, stride_column, ACC)
        keep, seen = judge(g, attribution, limit, room, seen, RULE)
        to = slot + tl.cumsum(keep.to(tl.int32), 0) - keep.to(tl.int32)
        tl.store(indices + to, column.to(tl.int64), mask=keep)
        tl.store(kept_gradient + to, g.to(gradient.dtype.element_ty), mask=keep)
        tl.store(kept_attribution + to, attribution.to(gradient.dtype.element_ty), mask=keep)
        slot += tl.sum(keep.to(tl.int32), 0)


def bound_of(amount: float | int, like: Float[Tensor, "*shape"]) -> Cut:
    """One bound for all rows, rounded as a comparison with a tile of this dtype rounds it; beyond the largest number it is infinite."""
    value = torch.full((1,), float(amount), dtype=torch.float64, device=like.device).to(like.dtype)
    return Cut(value, torch.zeros(1, dtype=torch.int64, device=like.device))


def offsets_of(counts: Int[Tensor, "rows parts"]) -> Int[Tensor, " parts_plus_1"]:
    """Where each part of each row begins in the CSR arrays, and where the last ends."""
    ends = counts.flatten().cumsum(0, dtype=torch.int64)
    return torch.cat([ends.new_zeros(1), ends])


def nothing(tile: Float[Tensor, "rows columns"]) -> Compacted:
    """The result for a tile without entries."""
    rows = len(tile)
    pointer, empty, sums = torch.zeros(rows + 1, dtype=torch.int64, device=tile.device), tile.new_zeros(0), tile.new_zeros(rows)
    return Compacted(pointer, pointer[:0].clone(), empty, empty.clone(), sums, sums.clone())


def compact_triton(
    gradient: Float[Tensor, "rows columns"],
    activation: Float[Tensor, " columns"],
    rule: Rule,
    amount: float | int,
    *,
    block: int = BLOCK,
    span: int = SPAN,
) -> Compacted:
    """See `compact`. `span` is a multiple of `block`, which is a power of two.

    The host waits for the device once, for the number of kept entries.
    """
    check_device("gradient", gradient)
    rows, columns = gradient.shape
    if rows * columns == 0:
        return nothing(gradient)
    ranked = rule in ("topk", "mass")
    limits = cut((gradient * activation).abs(), rule, amount) if ranked else bound_of(amount, gradient)
    block = min(block, triton.next_power_of_2(columns))
    span = columns if ranked else max(span, block)
    grid = (rows, triton.cdiv(columns, span))
    acc = accumulator(gradient.dtype)
    facts = (columns, span, *gradient.stride(), int(ranked))
    options = {"RULE": "ranked" if ranked else rule, "ACC": acc, "BLOCK": block}
    activation = activation.contiguous()

    sums_dtype = torch.float64 if acc == tl.float64 else torch.float32
    counts = torch.empty(grid, dtype=torch.int32, device=gradient.device)
    total, l1 = (torch.empty(grid, dtype=sums_dtype, device=gradient.device) for _ in range(2))
    _count[grid](gradient, activation, limits.value, limits.ties, counts, total, l1, *facts, **options)

    offsets = offsets_of(counts)
    kept = int(offsets[-1])
    indices = torch.empty(kept, dtype=torch.int64, device=gradient.device)
    kept_gradient, kept_attribution = (torch.empty(kept, dtype=gradient.dtype, device=gradient.device) for _ in range(2))
    if kept:
        _write[grid](gradient, activation, limits.value, limits.ties, offsets, indices, kept_gradient, kept_attribution, *facts, **options)
    total, l1 = (parts.sum(-1).to(gradient.dtype) for parts in (total, l1))
    return Compacted(offsets[:: grid[1]].clone(), indices, kept_gradient, kept_attribution, total, l1)
