"""Reading out at all positions in one launch: a program for some rows and some seeds of one position.

    out[r, c] += rows[start[r] + step[r] t] · seeds[c]         [r, width] @ [width, c]

No two programs write one number: a seed lies at one position. Rows are read where they lie, once for each block of seeds. Sums are in
float32. Runs on CUDA, and on CPU tensors under TRITON_INTERPRET=1.
"""

import typing
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from attrib_kernels.impl import Precision
from attrib_kernels.lowering import check_device, rounded
from attrib_kernels.read_out.reference import Cells, Flat, Found, Seeds

LENGTHS = ("positions", "stride_row", "stride_seed")
"""Arguments that the kernel is not compiled for."""


class Tiles(NamedTuple):
    """How the product is cut."""

    rows: int
    seeds: int
    inner: int
    """Numbers of a row that are multiplied at once."""
    warps: int
    stages: int


TILES = {
    "16-bit": Tiles(64, 64, 64, 4, 4),
    "tf32": Tiles(64, 64, 32, 4, 4),
    "tf32x3": Tiles(64, 64, 32, 4, 3),
    "ieee": Tiles(32, 32, 16, 4, 2),
}
"""By products, 64 seeds at once: with 50 active latents of a position rows are then read once. 128 rows at once spilled with 4 warps; with
8 there was room for one program in TF32 where 64 rows leave room for three."""


@triton.jit(do_not_specialize=LENGTHS)
@typing.no_type_check
def _read_kernel(
    rows_ptr, start_ptr, step_ptr, spans_ptr, seeds_ptr, out_ptr, positions, stride_row, stride_seed,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, SEEDS: tl.constexpr, INNER: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of rows and seeds at one position; nothing where fewer live or lie there."""
    t = tl.program_id(2)
    first, end = tl.load(spans_ptr + t), tl.load(spans_ptr + positions + t)
    low, high = tl.load(spans_ptr + 2 * positions + t), tl.load(spans_ptr + 3 * positions + t)
    r = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = low + tl.program_id(1) * SEEDS + tl.arange(0, SEEDS)
    if (first + tl.program_id(0) * ROWS < end) & (low + tl.program_id(1) * SEEDS < high):
        lives, lies = r < end, c < high
        cell = tl.load(start_ptr + r, mask=lives, other=0) + tl.load(step_ptr + r, mask=lives, other=0) * t
        found = tl.zeros((ROWS, SEEDS), dtype=tl.float32)
        for begin in range(0, WIDTH, INNER):
            e = begin + tl.arange(0, INNER)
            is_there = (e < WIDTH)[None, :]
            row = tl.load(rows_ptr + cell[:, None] * WIDTH + e[None, :], mask=lives[:, None] & is_there, other=0.0).to(OPERAND)
            seed = tl.load(seeds_ptr + c.to(tl.int64)[:, None] * WIDTH + e[None, :], mask=lies[:, None] & is_there, other=0.0).to(OPERAND)
            found = tl.dot(row, tl.trans(seed), found, input_precision=PRECISION)
        into = out_ptr + r.to(tl.int64)[:, None] * stride_row + c.to(tl.int64)[None, :] * stride_seed
        keep = lives[:, None] & lies[None, :]
        before = tl.load(into, mask=keep, other=0.0).to(tl.float32)
        tl.store(into, rounded(before + found, out_ptr.dtype.element_ty), mask=keep)


def read_out(
    rows: Flat, start: Cells, step: Cells, alive: Sequence[tuple[int, int]], begins: Sequence[int], seeds: Seeds, out: Found,
    *, precision: Precision = "tf32",
) -> None:  # fmt: skip
    """Compute what `reference.read_out` does. Rows and seeds that are not contiguous are copied.

    Raises:
        ValueError: for float64, and for tensors on a device that Triton does not reach.
    """
    if torch.float64 in (rows.dtype, out.dtype):
        raise ValueError('impl: "triton" sums in float32, and float64 came. Use impl="reference".')
    if rows.device.type != "meta":
        check_device("rows", rows)
    most_rows = max((end - first for first, end in alive), default=0)
    most_seeds = max((high - low for low, high in pairwise(begins)), default=0)
    if not most_rows or not most_seeds:
        return
    products = precision if rows.dtype == torch.float32 else "16-bit"
    b = TILES[products]
    operand = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[rows.dtype]
    if rows.device.type == "cpu" and operand == tl.bfloat16:
        operand = tl.float32  # the interpreter would multiply the bits of bfloat16 as integers
    spans = torch.tensor([*zip(*alive, strict=True), begins[:-1], begins[1:]], dtype=torch.int32).to(rows.device, non_blocking=True)
    grid = (triton.cdiv(most_rows, b.rows), triton.cdiv(most_seeds, b.seeds), len(alive))
    _read_kernel[grid](
        rows.contiguous(), start.contiguous(), step.contiguous(), spans, seeds.contiguous(), out, len(alive), *out.stride(),
        WIDTH=rows.shape[1], ROWS=b.rows, SEEDS=b.seeds, INNER=b.inner, OPERAND=operand,
        PRECISION="ieee" if products == "16-bit" else products, num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip
