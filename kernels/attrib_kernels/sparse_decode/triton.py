"""Sparse decode without the gathered rows in memory: a program sums one position's latents in registers.

    first[p] = #{i: position[i] < p}                                 by bisection: positions are sorted
    out[b, p, :] = Σ_{first[p] <= i < first[p + 1]} value[b, i] · W_dec[latent[i], :]

A program owns one position, BLOCK_WIDTH columns and BLOCK_BATCH members of the batch, which share each
decoder row that is read. No two programs write one place, so there are no atomics and sums repeat exactly.
"""

import math
import typing

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from attrib_kernels.lowering import accumulator, check_device, rounded

BLOCK_ACTIVE, BLOCK_WIDTH, BLOCK_BATCH = 8, 128, 8
"""Products held at once: 8 · 128 for one value, 8 times that for a batch; 64 registers for each thread of 4 warps."""


@triton.jit
@typing.no_type_check
def _decode(
    value, latent, first, table, out, batch, active, positions, width, stride_row, stride_column,
    ACC: tl.constexpr, BLOCK_BATCH: tl.constexpr, BLOCK_ACTIVE: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64)
    column = (tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)).to(tl.int64)
    member = (tl.program_id(2) * BLOCK_BATCH + tl.arange(0, BLOCK_BATCH)).to(tl.int64)
    begin, end = tl.load(first + position), tl.load(first + position + 1)
    total = tl.zeros([BLOCK_BATCH, BLOCK_WIDTH], dtype=ACC)
    for start in range(begin, end, BLOCK_ACTIVE):
        i = start + tl.arange(0, BLOCK_ACTIVE)
        row = tl.load(latent + i, mask=i < end, other=0).to(tl.int64)
        rows = tl.load(
            table + row[:, None] * stride_row + column[None, :] * stride_column,
            mask=(i < end)[:, None] & (column < width)[None, :], other=0.0,
        )  # fmt: skip
        v = tl.load(value + member[:, None] * active + i[None, :], mask=(member < batch)[:, None] & (i < end)[None, :], other=0.0)
        total += tl.sum(v.to(ACC)[:, :, None] * rows.to(ACC)[None, :, :], 1)
    at = (member[:, None] * positions + position) * width + column[None, :]
    tl.store(out + at, rounded(total, out.dtype.element_ty), mask=(member < batch)[:, None] & (column < width)[None, :])


def sparse_decode_triton(
    value: Float[Tensor, "*batch active"],
    position: Int[Tensor, " active"],
    latent: Int[Tensor, " active"],
    W_dec: Float[Tensor, "d_sae d_out"],
    positions: int,
    *,
    blocks: tuple[int, int, int] = (BLOCK_BATCH, BLOCK_ACTIVE, BLOCK_WIDTH),
) -> Float[Tensor, "*batch positions d_out"]:
    """See `sparse_decode`; W_dec with any strides. `blocks` are of batch, latents and width: powers of two."""
    check_device("value", value)
    lead, active, width = value.shape[:-1], value.shape[-1], W_dec.shape[1]
    batch = math.prod(lead)
    out = torch.empty((*lead, positions, width), dtype=value.dtype, device=value.device)
    if out.numel() == 0:
        return out
    first = torch.searchsorted(position.contiguous(), torch.arange(positions + 1, dtype=position.dtype, device=position.device))
    block_batch, block_active, block_width = blocks
    block_batch = min(block_batch, triton.next_power_of_2(batch))
    grid = (positions, triton.cdiv(width, block_width), triton.cdiv(batch, block_batch))
    _decode[grid](
        value.contiguous(), latent.contiguous(), first, W_dec, out, batch, active, positions, width, *W_dec.stride(),
        ACC=accumulator(value.dtype), BLOCK_BATCH=block_batch, BLOCK_ACTIVE=block_active, BLOCK_WIDTH=block_width,
    )  # fmt: skip
    return out
