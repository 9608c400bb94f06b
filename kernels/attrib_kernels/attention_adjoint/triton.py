"""The attention adjoint and its tangent map on tiles: nothing of size [rows, heads, positions, positions] exists.

Cotangent rows share one primal, so every product here has the rows on one side. With r the row:

    dq[t,r]   = o[t,r] @ C[t],    C[t] = scale Σ_s a[t,s] (v[s] - z[t]) k[s]^T       one [d, d] matrix for all rows
    da[t,r,s] = o[t,r] @ v[s]^T                                                       [(t r), d] @ [d, s]
    dk[s,r]   = scale Σ_t (da[t,r,s] - o[t,r]·z[t]) a[t,s] q[t]                       [d, t] @ [t, (r s)]
    dv[s,r]   = Σ_t a[t,s] o[t,r]                                                     [s, t] @ [t, (r d)]

The queries' kernel has one program for each (head, t); the keys' kernel one for each (key head, block of s,
block of r), which goes over the blocks of t below its keys (Dao et al. 2022, arXiv:2205.14135, section 3 and
appendix B.4). Sums are in float32. Runs on CUDA, and on CPU tensors under TRITON_INTERPRET=1.
"""

import typing
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrib_kernels.attention_adjoint.reference import (
    AttentionCotangents,
    FrozenCotangents,
    Keys,
    Pattern,
    Queries,
    Rows,
)

ACCUMULATOR = {2: 8192, 4: 4096}
"""Numbers in one float32 accumulator, by the bytes of an operand. The keys' kernel has two accumulators and must leave registers free."""
STAGES = {2: 2, 4: 1}
"""Loads in flight, by the bytes of an operand: shared memory stays below what an A100 and an H100 have."""


class Blocks(NamedTuple):
    """Sizes of the tiles; each is a power of two, and at least 16 where it is a side of a matrix product alone."""

    width: int
    """d_head, padded."""
    column: int
    """Columns of C that one program of the queries' kernel makes."""
    position: int
    """Positions in a tile: queries or keys."""
    row: int
    """Cotangent rows in a tile of the keys' and the tangent's kernel."""
    apply: int
    """Cotangent rows in one product with C."""


def blocks(positions: int, rows: int, d_head: int, itemsize: int) -> Blocks:
    """Tiles that keep each accumulator at `ACCUMULATOR` numbers or fewer, up to a d_head of 256."""
    most, width = ACCUMULATOR[itemsize], max(16, triton.next_power_of_2(d_head))
    position = 16 if positions <= 16 or 32 * width > most else 32
    row = min(triton.next_power_of_2(rows), max(1, most // (position * width)))
    column = min(width, max(16, most // width))
    return Blocks(width, column, position, row, apply=max(16, min(64, triton.next_power_of_2(rows))))


# ------------------------------------------------------------------------------------------ kernels


@triton.jit
@typing.no_type_check
def _load(ptr, at, keep, e, D: tl.constexpr, DTYPE: tl.constexpr):
    """Vectors of D numbers that begin at `at` (of any rank); zero where not `keep`, and in the padding of D."""
    return tl.load(ptr + tl.expand_dims(at, -1) + e, mask=tl.expand_dims(keep, -1) & (e < D), other=0.0).to(DTYPE)


@triton.jit
@typing.no_type_check
def _store(ptr, at, keep, e, value, D: tl.constexpr):
    """The counterpart of `_load`."""
    tl.store(ptr + tl.expand_dims(at, -1) + e, value.to(ptr.dtype.element_ty), mask=tl.expand_dims(keep, -1) & (e < D))


@triton.jit
@typing.no_type_check
def _load_pattern(ptr, head, t, s, positions, DTYPE: tl.constexpr):
    """a[t,s] of one head, zero where query t does not see key s."""
    at = ((head * positions + t).to(tl.int64) * positions)[:, None] + s[None, :]
    return tl.load(ptr + at, mask=(s[None, :] <= t[:, None]) & (t < positions)[:, None], other=0.0).to(DTYPE)


@triton.jit
@typing.no_type_check
def _query_kernel(
    o_ptr, a_ptr, k_ptr, v_ptr, z_ptr, dq_ptr, positions, rows, rows_each, heads, scale,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, COLUMN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq[t] = o[t] @ C[t] for one (head, t), a block of columns of C and `rows_each` rows."""
    t = positions - 1 - tl.program_id(0) // heads  # late queries see most keys: they start first
    head = tl.program_id(0) % heads
    e, c = tl.arange(0, WIDTH), tl.program_id(2) * COLUMN + tl.arange(0, COLUMN)
    z = tl.load(z_ptr + (head * positions + t) * D + e, mask=e < D, other=0.0).to(tl.float32)
    a_row = a_ptr + (head * positions + t).to(tl.int64) * positions

    C = tl.zeros((WIDTH, COLUMN), dtype=tl.float32)
    for first in range(0, t + 1, BLOCK):
        s = first + tl.arange(0, BLOCK)
        at = (head // GROUP * positions + s) * D
        a = tl.load(a_row + s, mask=s <= t, other=0.0).to(tl.float32)
        B = a[:, None] * (_load(v_ptr, at, s <= t, e, D, tl.float32) - z[None, :])
        C = tl.dot(tl.trans(B.to(OPERAND)), _load(k_ptr, at, s <= t, c, D, OPERAND), C, input_precision=PRECISION)
    C = (C * scale).to(OPERAND)

    begin = tl.program_id(1) * rows_each
    for first in range(begin, min(begin + rows_each, rows), BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        at = ((t.to(tl.int64) * rows + r) * heads + head) * D
        dq = tl.dot(_load(o_ptr, at, r < rows, e, D, OPERAND), C, input_precision=PRECISION)
        _store(dq_ptr, at, r < rows, c, dq, D)


@triton.jit
@typing.no_type_check
def _key_kernel(
    o_ptr, a_ptr, q_ptr, v_ptr, z_ptr, dk_ptr, dv_ptr, positions, rows, heads, scale,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, FROZEN: tl.constexpr,
):  # fmt: skip
    """dk and dv (dv alone where FROZEN) of a block of keys of one key head, for a block of rows."""
    key_blocks, kv_heads = tl.cdiv(positions, BLOCK), heads // GROUP
    kv, first_key = tl.program_id(0) // key_blocks, tl.program_id(0) % key_blocks * BLOCK
    e, s = tl.arange(0, WIDTH), first_key + tl.arange(0, BLOCK)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    v = _load(v_ptr, (kv * positions + s) * D, s < positions, e, D, OPERAND)

    dv = tl.zeros((BLOCK, BLOCK_R * WIDTH), dtype=tl.float32)
    dk = tl.zeros((WIDTH, BLOCK_R * BLOCK), dtype=tl.float32)
    for member in range(GROUP):
        head = kv * GROUP + member
        for first in range(first_key, positions, BLOCK):  # queries before the keys see none of them
            t = first + tl.arange(0, BLOCK)
            at = ((t.to(tl.int64)[:, None] * rows + r[None, :]) * heads + head) * D
            o = _load(o_ptr, at, (t < positions)[:, None] & (r < rows)[None, :], e, D, OPERAND)
            a = _load_pattern(a_ptr, head, t, s, positions, OPERAND)
            dv = tl.dot(tl.trans(a), tl.reshape(o, (BLOCK, BLOCK_R * WIDTH)), dv, input_precision=PRECISION)
            if not FROZEN:
                at = (head * positions + t) * D
                q = _load(q_ptr, at, t < positions, e, D, OPERAND)
                z = _load(z_ptr, at, t < positions, e, D, tl.float32)
                oz = tl.sum(o.to(tl.float32) * z[:, None, :], axis=2)
                da = tl.dot(tl.reshape(o, (BLOCK * BLOCK_R, WIDTH)), tl.trans(v), input_precision=PRECISION)
                ds = (tl.reshape(da, (BLOCK, BLOCK_R, BLOCK)) - oz[:, :, None]) * a.to(tl.float32)[:, None, :]
                dk = tl.dot(tl.trans(q), tl.reshape(ds, (BLOCK, BLOCK_R * BLOCK)).to(OPERAND), dk, input_precision=PRECISION)

    at = ((s.to(tl.int64)[:, None] * rows + r[None, :]) * kv_heads + kv) * D
    _store(dv_ptr, at, (s < positions)[:, None] & (r < rows)[None, :], e, tl.reshape(dv, (BLOCK, BLOCK_R, WIDTH)), D)
    if not FROZEN:
        at = ((s.to(tl.int64)[None, :] * rows + r[:, None]) * kv_heads + kv) * D
        dk = tl.reshape(tl.trans(dk), (BLOCK_R, BLOCK, WIDTH)) * scale
        _store(dk_ptr, at, (s < positions)[None, :] & (r < rows)[:, None], e, dk, D)


@triton.jit
@typing.no_type_check
def _tangent_kernel(
    q_dot_ptr, k_dot_ptr, v_dot_ptr, a_ptr, q_ptr, k_ptr, v_ptr, z_ptr, z_dot_ptr, positions, rows, heads, scale,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, FROZEN: tl.constexpr,
):  # fmt: skip
    """The tangent of z at a block of queries of one head, for a block of rows."""
    query_blocks, kv_heads = tl.cdiv(positions, BLOCK), heads // GROUP
    head, first_query = tl.program_id(0) // query_blocks, (query_blocks - 1 - tl.program_id(0) % query_blocks) * BLOCK
    kv = head // GROUP
    e, t = tl.arange(0, WIDTH), first_query + tl.arange(0, BLOCK)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    at = ((t.to(tl.int64)[:, None] * rows + r[None, :]) * heads + head) * D
    here = (t < positions)[:, None] & (r < rows)[None, :]
    at_query = (head * positions + t) * D

    z_dot = tl.zeros((BLOCK, BLOCK_R * WIDTH), dtype=tl.float32)
    moved = tl.zeros((BLOCK * BLOCK_R, WIDTH), dtype=tl.float32)  # Σ_s w[t,r,s] v[s]
    weight = tl.zeros((BLOCK, BLOCK_R), dtype=tl.float32)  # Σ_s w[t,r,s]
    if not FROZEN:
        q = _load(q_ptr, at_query, t < positions, e, D, OPERAND)
        q_dot = tl.reshape(_load(q_dot_ptr, at, here, e, D, OPERAND), (BLOCK * BLOCK_R, WIDTH))
    for first in range(0, min(first_query + BLOCK, positions), BLOCK):
        s = first + tl.arange(0, BLOCK)
        a = _load_pattern(a_ptr, head, t, s, positions, OPERAND)
        at_v = ((s.to(tl.int64)[:, None] * rows + r[None, :]) * kv_heads + kv) * D
        v_dot = _load(v_dot_ptr, at_v, (s < positions)[:, None] & (r < rows)[None, :], e, D, OPERAND)
        z_dot = tl.dot(a, tl.reshape(v_dot, (BLOCK, BLOCK_R * WIDTH)), z_dot, input_precision=PRECISION)
        if not FROZEN:
            at_key = (kv * positions + s) * D
            k = _load(k_ptr, at_key, s < positions, e, D, OPERAND)
            v = _load(v_ptr, at_key, s < positions, e, D, OPERAND)
            at_k = ((s.to(tl.int64)[None, :] * rows + r[:, None]) * kv_heads + kv) * D
            k_dot = _load(k_dot_ptr, at_k, (s < positions)[None, :] & (r < rows)[:, None], e, D, OPERAND)
            k_dot = tl.trans(tl.reshape(k_dot, (BLOCK_R * BLOCK, WIDTH)))
            score = tl.reshape(tl.dot(q_dot, tl.trans(k), input_precision=PRECISION), (BLOCK, BLOCK_R, BLOCK))
            score += tl.reshape(tl.dot(q, k_dot, input_precision=PRECISION), (BLOCK, BLOCK_R, BLOCK))
            w = score * a.to(tl.float32)[:, None, :] * scale
            weight += tl.sum(w, axis=2)
            moved = tl.dot(tl.reshape(w, (BLOCK * BLOCK_R, BLOCK)).to(OPERAND), v, moved, input_precision=PRECISION)

    z_dot = tl.reshape(z_dot, (BLOCK, BLOCK_R, WIDTH))
    if not FROZEN:
        z = _load(z_ptr, at_query, t < positions, e, D, tl.float32)
        z_dot += tl.reshape(moved, (BLOCK, BLOCK_R, WIDTH)) - weight[:, :, None] * z[:, None, :]
    _store(z_dot_ptr, at, here, e, z_dot, D)


# ---------------------------------------------------------------------------------------- launchers


def adjoint(
    cotangent: Rows, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float, *, frozen: bool = False
) -> AttentionCotangents | FrozenCotangents:
    """Compute what `reference.adjoint` does. Arguments that are not contiguous are copied.

    Raises:
        ValueError: for float64, and for tensors on a device that Triton does not reach.
    """
    _check_reach(cotangent)
    o, a, q, k, v, z = (x.contiguous() for x in (cotangent, pattern, q, k, v, z))
    positions, rows, heads, d_head = o.shape
    b, group = blocks(positions, rows, d_head, o.element_size()), heads // len(k)
    shape = {"GROUP": group, "D": d_head, "WIDTH": b.width, "BLOCK": b.position} | _products(o)
    dv = o.new_empty(positions, rows, len(k), d_head)
    dk = dv if frozen else torch.empty_like(dv)
    if o.numel():
        grid = (len(k) * triton.cdiv(positions, b.position), triton.cdiv(rows, b.row))
        _key_kernel[grid](o, a, q, v, z, dk, dv, positions, rows, heads, scale, BLOCK_R=b.row, FROZEN=frozen, num_warps=8, **shape)
    if frozen:
        return FrozenCotangents(None, None, dv)
    dq = torch.empty_like(o)
    if o.numel():
        # C takes as long as a product with positions/2 rows: done for 4·positions rows at a time, that is an eighth more
        each = triton.cdiv(4 * positions, b.apply) * b.apply
        queries = (heads * positions, triton.cdiv(rows, each), triton.cdiv(d_head, b.column))
        _query_kernel[queries](
            o, a, k, v, z, dq, positions, rows, each, heads, scale, COLUMN=b.column, BLOCK_R=b.apply, num_warps=4, **shape
        )
    return AttentionCotangents(dq, dk, dv)


def tangent(
    tangents: AttentionCotangents | FrozenCotangents, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float
) -> Rows:
    """Compute what `reference.tangent` does. Arguments that are not contiguous are copied.

    Raises:
        ValueError: for float64, and for tensors on a device that Triton does not reach.
    """
    _check_reach(tangents.v)
    v_dot = tangents.v.contiguous()
    # where frozen these two are never read; a kernel wants some tensor all the same
    q_dot, k_dot = (v_dot, v_dot) if tangents.q is None else (tangents.q.contiguous(), tangents.k.contiguous())
    a, q, k, v, z = (x.contiguous() for x in (pattern, q, k, v, z))
    (positions, rows, kv_heads, d_head), heads = v_dot.shape, len(q)
    b = blocks(positions, rows, d_head, v_dot.element_size())
    z_dot = v_dot.new_empty(positions, rows, heads, d_head)
    if z_dot.numel():
        grid = (heads * triton.cdiv(positions, b.position), triton.cdiv(rows, b.row))
        _tangent_kernel[grid](
            q_dot, k_dot, v_dot, a, q, k, v, z, z_dot, positions, rows, heads, scale,
            GROUP=heads // kv_heads, D=d_head, WIDTH=b.width, BLOCK=b.position, BLOCK_R=b.row,
            FROZEN=tangents.q is None, num_warps=8, **_products(v_dot),
        )  # fmt: skip
    return z_dot


def _products(x: Tensor) -> dict[str, Any]:
    """How matrix products of a dtype are taken.

    Float32 ones are made of three TF32 products, which lose no more than a bit or two, or of one where torch's
    own CUDA products are TF32.
    """
    operand = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[x.dtype]
    if x.device.type == "cpu" and operand == tl.bfloat16:
        operand = tl.float32  # the interpreter would multiply the bits of bfloat16 as integers
    one = torch.backends.cuda.matmul.fp32_precision == "tf32"
    precision = "ieee" if x.dtype != torch.float32 else "tf32" if one else "tf32x3"
    return {"OPERAND": operand, "PRECISION": precision, "num_stages": STAGES[x.element_size()]}


def _check_reach(x: Tensor) -> None:
    if x.dtype == torch.float64:
        raise ValueError('impl: "triton" sums in float32, and float64 came. Use impl="reference".')
    if x.device.type == "cpu" and any(isinstance(function, triton.JITFunction) for function in (tl.zeros, _key_kernel)):
        raise ValueError(
            'impl: "triton" needs CUDA tensors, and CPU tensors came. Use impl="reference", '
            "or set TRITON_INTERPRET=1 before anything imports triton."
        )
