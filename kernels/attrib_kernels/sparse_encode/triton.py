"""Sparse encode without the gathered vectors in memory: a program sums BLOCK_PAIRS dot products in registers.

    out[b, i] = Σ_w x[b, position[i], w] · table[latent[i], w],      table = W_encᵀ

A program owns BLOCK_PAIRS pairs and BLOCK_BATCH members of the batch, which share each row of the table that
is read, and walks along the width. Pairs sorted by position find x in the cache.
"""

import math
import typing

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from attrib_kernels.lowering import accumulator, check_device, rounded

BLOCK_PAIRS, BLOCK_WIDTH, BLOCK_BATCH = 16, 64, 4
"""Products held at once: 16 · 64 for one x, 4 times that for a batch; 32 registers for each thread of 4 warps."""


@triton.jit
@typing.no_type_check
def _encode(
    x, position, latent, table, out, batch, pairs, width,
    stride_member, stride_position, stride_width, stride_row, stride_column,
    ACC: tl.constexpr, BLOCK_BATCH: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
    member = (tl.program_id(1) * BLOCK_BATCH + tl.arange(0, BLOCK_BATCH)).to(tl.int64)
    p = tl.load(position + i, mask=i < pairs, other=0).to(tl.int64)
    row = tl.load(latent + i, mask=i < pairs, other=0).to(tl.int64)
    total = tl.zeros([BLOCK_BATCH, BLOCK_PAIRS], dtype=ACC)
    for start in range(0, width, BLOCK_WIDTH):
        w = (start + tl.arange(0, BLOCK_WIDTH)).to(tl.int64)
        there = (i < pairs)[:, None] & (w < width)[None, :]
        rows = tl.load(table + row[:, None] * stride_row + w[None, :] * stride_column, mask=there, other=0.0)
        at = member[:, None, None] * stride_member + p[None, :, None] * stride_position + w[None, None, :] * stride_width
        v = tl.load(x + at, mask=(member < batch)[:, None, None] & there[None, :, :], other=0.0)
        total += tl.sum(v.to(ACC) * rows.to(ACC)[None, :, :], 2)
    mask = (member < batch)[:, None] & (i < pairs)[None, :]
    tl.store(out + member[:, None] * pairs + i[None, :], rounded(total, out.dtype.element_ty), mask=mask)


def sparse_encode_triton(
    x: Float[Tensor, "*batch positions d_in"],
    position: Int[Tensor, " pairs"],
    latent: Int[Tensor, " pairs"],
    table: Float[Tensor, "d_sae d_in"],
    *,
    blocks: tuple[int, int, int] = (BLOCK_BATCH, BLOCK_PAIRS, BLOCK_WIDTH),
) -> Float[Tensor, "*batch pairs"]:
    """See `sparse_encode`; `table` is W_encᵀ with any strides. `blocks` are of batch, pairs and width: powers of two."""
    check_device("x", x)
    lead, pairs, width = x.shape[:-2], len(position), x.shape[-1]
    batch = math.prod(lead)
    out = torch.empty((*lead, pairs), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    x = x.reshape(batch, *x.shape[-2:])
    block_batch, block_pairs, block_width = blocks
    block_batch = min(block_batch, triton.next_power_of_2(batch))
    grid = (triton.cdiv(pairs, block_pairs), triton.cdiv(batch, block_batch))
    _encode[grid](
        x, position.contiguous(), latent.contiguous(), table, out, batch, pairs, width, *x.stride(), *table.stride(),
        ACC=accumulator(x.dtype), BLOCK_BATCH=block_batch, BLOCK_PAIRS=block_pairs, BLOCK_WIDTH=block_width,
    )  # fmt: skip
    return out
