"""Compaction fused with the product that makes the tile: gradient = cotangent · directionᵀ, one block at a time.

A program makes a block [BLOCK_ROWS, BLOCK_COLUMNS] of the gradient in registers, judges it and forgets it:

    counts[r, block], sums over the block      first pass
    offsets = exclusive sum of counts          row by row, block by block
    the block again, written from its offsets  second pass

Both passes make the block by the same function with the same blocking, so in the same order of summation,
and judge it alike. The tile is never in memory; the product is computed twice.
"""

import typing

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from attrib_kernels.compact.rules import Compacted, Rule
from attrib_kernels.compact.triton import bound_of, nothing, offsets_of
from attrib_kernels.lowering import accumulator, check_device, rounded

BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_WIDTH = 32, 64, 32
"""A block of 2048 sums is 16 registers for each thread of 4 warps in float32; operands are 12 KiB a step."""


@triton.jit
@typing.no_type_check
def _block(
    cotangent, direction, activation, bound, row, column, rows, columns, width,
    stride_row, stride_row_width, stride_column, stride_column_width, stride_activation,
    RULE: tl.constexpr, ACC: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient, attribution and what is kept of one block; zero and not kept beyond the edges."""
    product = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype=ACC)
    for start in range(0, width, BLOCK_WIDTH):
        at = (start + tl.arange(0, BLOCK_WIDTH)).to(tl.int64)
        left = tl.load(
            cotangent + row[:, None] * stride_row + at[None, :] * stride_row_width,
            mask=(row < rows)[:, None] & (at < width)[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            direction + column[None, :] * stride_column + at[:, None] * stride_column_width,
            mask=(column < columns)[None, :] & (at < width)[:, None], other=0.0,
        )  # fmt: skip
        if WIDEN:
            left, right = left.to(ACC), right.to(ACC)
        product = tl.dot(left, right, product, input_precision="ieee", out_dtype=ACC)
    # beyond the edges an infinite operand has met a zero: what came of it must not be seen
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    gradient = tl.where(inside, rounded(product, cotangent.dtype.element_ty).to(ACC), 0.0)
    a = tl.load(activation + column * stride_activation, mask=column < columns, other=0.0).to(ACC)
    attribution = tl.where(inside, rounded(gradient * a[None, :], cotangent.dtype.element_ty).to(ACC), 0.0)
    keep = gradient != 0
    if RULE == "threshold":
        keep = keep & (tl.abs(attribution) >= tl.load(bound).to(ACC))
    return gradient, attribution, keep


@triton.jit
@typing.no_type_check
def _count(
    cotangent, direction, activation, bound, counts, total, l1, rows, columns, width,
    stride_row, stride_row_width, stride_column, stride_column_width, stride_activation,
    RULE: tl.constexpr, ACC: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = (tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    _, attribution, keep = _block(
        cotangent, direction, activation, bound, row, column, rows, columns, width,
        stride_row, stride_row_width, stride_column, stride_column_width, stride_activation,
        RULE, ACC, WIDEN, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_WIDTH,
    )  # fmt: skip
    at = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(counts + at, tl.sum(keep.to(tl.int32), 1), mask=row < rows)
    tl.store(total + at, tl.sum(attribution, 1), mask=row < rows)
    tl.store(l1 + at, tl.sum(tl.abs(attribution), 1), mask=row < rows)


@triton.jit
@typing.no_type_check
def _write(
    cotangent, direction, activation, bound, offsets, indices, kept_gradient, kept_attribution, rows, columns, width,
    stride_row, stride_row_width, stride_column, stride_column_width, stride_activation,
    RULE: tl.constexpr, ACC: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = (tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    gradient, attribution, keep = _block(
        cotangent, direction, activation, bound, row, column, rows, columns, width,
        stride_row, stride_row_width, stride_column, stride_column_width, stride_activation,
        RULE, ACC, WIDEN, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_WIDTH,
    )  # fmt: skip
    at = row * tl.num_programs(1) + tl.program_id(1)
    slot = tl.load(offsets + at, mask=row < rows, other=0)
    after = tl.load(offsets + at + 1, mask=row < rows, other=0)
    to = slot[:, None] + tl.cumsum(keep.to(tl.int32), 1) - keep.to(tl.int32)
    # never into a neighbour's entries, should a compiler order the two products differently
    keep = keep & (to < after[:, None])
    tl.store(indices + to, tl.broadcast_to(column[None, :], [BLOCK_ROWS, BLOCK_COLUMNS]), mask=keep)
    tl.store(kept_gradient + to, gradient.to(cotangent.dtype.element_ty), mask=keep)
    tl.store(kept_attribution + to, attribution.to(cotangent.dtype.element_ty), mask=keep)


def compact_product_triton(
    cotangent: Float[Tensor, "rows width"],
    direction: Float[Tensor, "columns width"],
    activation: Float[Tensor, " columns"],
    rule: Rule,
    amount: float | int,
    *,
    blocks: tuple[int, int, int] = (BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_WIDTH),
) -> Compacted:
    """See `compact_product`. `blocks` are of rows, columns and width: powers of two, at least 16.

    The host waits for the device once, for the number of kept entries.
    """
    check_device("cotangent", cotangent)
    (rows, width), columns, device = cotangent.shape, len(direction), cotangent.device
    if rows * columns == 0:
        return nothing(cotangent)
    acc = accumulator(cotangent.dtype)
    block_rows, block_columns, block_width = blocks
    grid = (triton.cdiv(rows, block_rows), triton.cdiv(columns, block_columns))
    operands = (cotangent, direction, activation, bound_of(amount, cotangent).value)
    facts = (rows, columns, width, *cotangent.stride(), *direction.stride(), *activation.stride())
    options = {
        "RULE": rule, "ACC": acc, "BLOCK_ROWS": block_rows, "BLOCK_COLUMNS": block_columns, "BLOCK_WIDTH": block_width,
        "WIDEN": cotangent.dtype == torch.bfloat16 and not cotangent.is_cuda,  # the interpreter's dot takes bfloat16 for integers
    }  # fmt: skip

    sums_dtype = torch.float64 if acc == tl.float64 else torch.float32
    counts = torch.empty((rows, grid[1]), dtype=torch.int32, device=device)
    total, l1 = (torch.empty((rows, grid[1]), dtype=sums_dtype, device=device) for _ in range(2))
    _count[grid](*operands, counts, total, l1, *facts, **options)

    offsets = offsets_of(counts)
    kept = int(offsets[-1])
    indices = torch.empty(kept, dtype=torch.int64, device=device)
    kept_gradient, kept_attribution = (torch.empty(kept, dtype=cotangent.dtype, device=device) for _ in range(2))
    if kept:
        _write[grid](*operands, offsets, indices, kept_gradient, kept_attribution, *facts, **options)
    total, l1 = (parts.sum(-1).to(cotangent.dtype) for parts in (total, l1))
    return Compacted(offsets[:: grid[1]].clone(), indices, kept_gradient, kept_attribution, total, l1)
