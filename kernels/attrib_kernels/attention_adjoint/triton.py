"""The attention adjoint and its tangent map on tiles: nothing of size [rows, heads, positions, positions] exists.

Cotangent rows share one primal, so a query's part is one matrix for all of them. With r the row:

    dq[t,r] = o[t,r] @ C[t],    C[t] = scale Σ_s a[t,s] (v[s] - z[t]) k[s]^T         [d, d], one for all rows
    da[s,t] = v[s] @ o[t,r]^T                                                        [s, d] @ [d, t]
    dk[s,r] = scale Σ_t (da[s,t] - o[t,r]·z[t]) a[t,s] q[t]                          [s, t] @ [t, d]
    dv[s,r] = Σ_t a[t,s] o[t,r]                                                      [s, t] @ [t, d]

The queries' kernel has one program for each (head, t) and some rows; the keys' kernel one for each (row, key head, block of s), which
goes over the blocks of t below its keys (Dao et al. 2022, arXiv:2205.14135, section 3 and appendix B.4). Scores stand as [s, t]
there, so that they come out of one product as the next one reads them. o·z is made where the queries' kernel has o at hand, and read
by the keys' kernel. Sums are in float32. Runs on CUDA, and on CPU tensors under TRITON_INTERPRET=1.
"""

import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

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
from attrib_kernels.descriptors import describable, described
from attrib_kernels.impl import Loads, Precision

LENGTHS = ("positions", "rows", "rows_each", "heads")
"""Arguments that no kernel is compiled for: Triton would make one for a number that is 1, one for what 16 divides, and one for others."""

Kernel = Literal["queries", "keys", "tangent"]
Products = Literal["tf32", "tf32x3", "ieee", "16-bit"]


class Tiles(NamedTuple):
    """How a kernel is cut; positions, rows and columns are powers of two, and at least 16 as sides of a matrix product."""

    outer: int
    """Positions that a program is for (keys, or queries of the tangent); in the queries' kernel, keys that go into C at once. 64 are
    what a warpgroup of Hopper multiplies at once; of fewer, Triton makes the tensor-core instructions of the generation before."""
    inner: int
    """Positions that go by at once in its loop; in the queries' kernel, cotangent rows in one product with C."""
    warps: int
    stages: int
    """Tiles in shared memory: one is multiplied, others are on their way."""
    column: int = 0
    """Columns of C that one program of the queries' kernel makes; 0 are all."""


TILES: dict[tuple[Kernel, Products], dict[int, Tiles]] = {
    ("queries", "tf32"): {64: Tiles(64, 64, 4, 2), 128: Tiles(32, 64, 8, 2, 64), 256: Tiles(16, 64, 8, 1, 64)},
    ("queries", "tf32x3"): {64: Tiles(32, 64, 4, 2), 128: Tiles(64, 32, 8, 2, 64), 256: Tiles(16, 16, 8, 1, 32)},
    ("queries", "ieee"): {64: Tiles(16, 16, 4, 1, 32), 256: Tiles(16, 16, 8, 1, 32)},
    ("queries", "16-bit"): {64: Tiles(64, 64, 4, 3), 128: Tiles(64, 64, 8, 2), 256: Tiles(32, 64, 8, 1, 64)},
    ("keys", "tf32"): {64: Tiles(64, 16, 4, 3), 128: Tiles(64, 16, 8, 3), 256: Tiles(32, 16, 8, 2)},
    ("keys", "tf32x3"): {64: Tiles(64, 16, 8, 2), 128: Tiles(16, 16, 8, 2), 256: Tiles(16, 16, 8, 1)},
    ("keys", "ieee"): {64: Tiles(16, 16, 4, 1), 256: Tiles(16, 16, 8, 1)},
    ("keys", "16-bit"): {64: Tiles(64, 32, 4, 3), 128: Tiles(64, 64, 8, 2), 256: Tiles(64, 16, 8, 2)},
    ("tangent", "tf32"): {64: Tiles(64, 16, 4, 3), 128: Tiles(64, 16, 8, 2), 256: Tiles(16, 16, 8, 2)},
    ("tangent", "tf32x3"): {64: Tiles(64, 16, 8, 2), 128: Tiles(16, 16, 8, 2), 256: Tiles(16, 16, 8, 1)},
    ("tangent", "ieee"): {64: Tiles(16, 16, 4, 1), 256: Tiles(16, 16, 8, 1)},
    ("tangent", "16-bit"): {64: Tiles(64, 32, 4, 3), 128: Tiles(64, 16, 8, 3), 256: Tiles(32, 16, 8, 1)},
}
"""By kernel and products, the tiles up to a width of heads: as large as go without spilled registers on compute capability 8.0 and 9.0.
`python -m bench.kernels.compiled` compiles them, and tests hold its table."""


DESCRIBED: tuple[Products, ...] = ("tf32", "16-bit")
"""Products whose tiles may come by tensor descriptors. With `tf32x3` Triton would keep less in shared memory and more in registers:
tangents at d_head 64 and 128 then have 368 and 800 bytes of stack (3.6.0 and 3.7.1). `ieee` is for comparison alone."""
OF_A_POSITION, OF_A_ROW = (0, 2, 1, 3), (1, 2, 0, 3)
"""Dimensions of what is carried, [positions, rows, heads, d_head], where a tile is of many rows at one position, or of one row at many."""


def products_of(dtype: torch.dtype, precision: Precision) -> Products:
    """How numbers of a dtype are multiplied."""
    return precision if dtype == torch.float32 else "16-bit"


def width_of(d_head: int) -> int:
    """d_head, padded to what a tile can be."""
    return max(16, triton.next_power_of_2(d_head))


def tiles(kernel: Kernel, d_head: int, dtype: torch.dtype, precision: Precision, positions: int) -> Tiles:
    """The tiles of a kernel; short prompts get smaller ones, so that less of a tile is empty."""
    width, by_width = width_of(d_head), TILES[kernel, products_of(dtype, precision)]
    chosen = by_width[min((known for known in by_width if known >= width), default=max(by_width))]
    outer = min(chosen.outer, max(16, triton.next_power_of_2(positions)))
    inner = chosen.inner if kernel == "queries" else min(chosen.inner, outer)
    return chosen._replace(outer=outer, inner=inner, column=min(width, chosen.column or width))


# ------------------------------------------------------------------------------------------ kernels


@triton.jit
@typing.no_type_check
def _load(source, at, index, keep, e, D: tl.constexpr, DTYPE: tl.constexpr):
    """Vectors of D numbers as rows: of a pointer those that begin at `at`, of a descriptor the tile at `index`.

    Zero in the padding of D; of a pointer where not `keep`, of a descriptor beyond the tensor.
    """
    if isinstance(source, tl.tensor):
        tile = tl.load(source + at[:, None] + e[None, :], mask=keep[:, None] & (e < D)[None, :], other=0.0)
    else:
        tile = source.load(index).reshape(at.shape[0], e.shape[0])
    return tile.to(DTYPE)


@triton.jit
@typing.no_type_check
def _store(ptr, at, keep, e, value, D: tl.constexpr):
    """The counterpart of `_load` by a pointer."""
    tl.store(ptr + at[:, None] + e[None, :], value.to(ptr.dtype.element_ty), mask=keep[:, None] & (e < D)[None, :])


@triton.jit(do_not_specialize=LENGTHS)
@typing.no_type_check
def _query_kernel(
    o_tiles, a_ptr, k_tiles, v_tiles, z_ptr, dq_ptr, oz_ptr, positions, rows, rows_each, heads, scale,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, COLUMN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq[t] = o[t] @ C[t], and o[t]·z[t], for one (head, t), a block of columns of C and `rows_each` rows."""
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
        v = _load(v_tiles, at, (head // GROUP, first, 0), s <= t, e, D, tl.float32)
        B = a[:, None] * (v - z[None, :])
        k = _load(k_tiles, at, (head // GROUP, first, tl.program_id(2) * COLUMN), s <= t, c, D, OPERAND)
        C = tl.dot(tl.trans(B.to(OPERAND)), k, C, input_precision=PRECISION)
    C = (C * scale).to(OPERAND)

    begin = tl.program_id(1) * rows_each
    for first in range(begin, min(begin + rows_each, rows), BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        at = ((t.to(tl.int64) * rows + r) * heads + head) * D
        o = _load(o_tiles, at, (t, head, first, 0), r < rows, e, D, OPERAND)
        _store(dq_ptr, at, r < rows, c, tl.dot(o, C, input_precision=PRECISION), D)
        if tl.program_id(2) == 0:
            oz = tl.sum(o.to(tl.float32) * z[None, :], axis=1)
            tl.store(oz_ptr + (head.to(tl.int64) * rows + r) * positions + t, oz, mask=r < rows)


@triton.jit(do_not_specialize=LENGTHS)
@typing.no_type_check
def _key_kernel(
    o_tiles, a_ptr, q_tiles, v_tiles, oz_ptr, dk_ptr, dv_ptr, positions, rows, heads, scale,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, FROZEN: tl.constexpr,
):  # fmt: skip
    """dk and dv (dv alone where FROZEN) of a block of keys of one key head, for one row."""
    key_blocks, kv_heads = tl.cdiv(positions, KEYS), heads // GROUP
    part = tl.program_id(0) % (kv_heads * key_blocks)
    r = tl.program_id(0) // (kv_heads * key_blocks)
    kv, first_key = part // key_blocks, part % key_blocks * KEYS
    e, s = tl.arange(0, WIDTH), first_key + tl.arange(0, KEYS)
    here = s < positions
    if not FROZEN:
        v = _load(v_tiles, (kv * positions + s) * D, (kv, first_key, 0), here, e, D, OPERAND)

    dv = tl.zeros((KEYS, WIDTH), dtype=tl.float32)
    dk = tl.zeros((KEYS, WIDTH), dtype=tl.float32)
    for member in range(GROUP):
        head = kv * GROUP + member
        for first in range(first_key, positions, BLOCK):  # queries before the keys see none of them
            t = first + tl.arange(0, BLOCK)
            at_o = ((t.to(tl.int64) * rows + r) * heads + head) * D
            o = _load(o_tiles, at_o, (r, head, first, 0), t < positions, e, D, OPERAND)
            at = ((head * positions + t).to(tl.int64) * positions)[None, :] + s[:, None]
            a = tl.load(a_ptr + at, mask=(s[:, None] <= t[None, :]) & (t < positions)[None, :], other=0.0)  # [s, t]
            dv = tl.dot(a.to(OPERAND), o, dv, input_precision=PRECISION)
            if not FROZEN:
                q = _load(q_tiles, (head * positions + t) * D, (head, first, 0), t < positions, e, D, OPERAND)
                oz = tl.load(oz_ptr + (head.to(tl.int64) * rows + r) * positions + t, mask=t < positions, other=0.0)
                da = tl.dot(v, tl.trans(o), input_precision=PRECISION)
                ds = (da - oz[None, :]) * a.to(tl.float32)
                dk = tl.dot(ds.to(OPERAND), q, dk, input_precision=PRECISION)

    at = ((s.to(tl.int64) * rows + r) * kv_heads + kv) * D
    _store(dv_ptr, at, here, e, dv, D)
    if not FROZEN:
        _store(dk_ptr, at, here, e, dk * scale, D)


@triton.jit(do_not_specialize=LENGTHS)
@typing.no_type_check
def _tangent_kernel(
    q_dot_tiles, k_dot_tiles, v_dot_tiles, a_ptr, q_tiles, k_tiles, v_tiles, z_ptr, z_dot_ptr, positions, rows, heads, scale,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, FROZEN: tl.constexpr,
):  # fmt: skip
    """The tangent of z at a block of queries of one head, for one row."""
    query_blocks, kv_heads = tl.cdiv(positions, QUERIES), heads // GROUP
    part = tl.program_id(0) % (heads * query_blocks)
    r = tl.program_id(0) // (heads * query_blocks)
    head, first_query = part // query_blocks, (query_blocks - 1 - part % query_blocks) * QUERIES
    kv = head // GROUP
    e, t = tl.arange(0, WIDTH), first_query + tl.arange(0, QUERIES)
    at = ((t.to(tl.int64) * rows + r) * heads + head) * D
    at_query, here = (head * positions + t) * D, t < positions

    z_dot = tl.zeros((QUERIES, WIDTH), dtype=tl.float32)
    weight = tl.zeros((QUERIES,), dtype=tl.float32)  # Σ_s w[t,s]
    if not FROZEN:
        q = _load(q_tiles, at_query, (head, first_query, 0), here, e, D, OPERAND)
        q_dot = _load(q_dot_tiles, at, (r, head, first_query, 0), here, e, D, OPERAND)
    for first in range(0, min(first_query + QUERIES, positions), BLOCK):
        s = first + tl.arange(0, BLOCK)
        seen = s < positions
        at_a = ((head * positions + t).to(tl.int64) * positions)[:, None] + s[None, :]
        a = tl.load(a_ptr + at_a, mask=(s[None, :] <= t[:, None]) & here[:, None], other=0.0)
        at_key = ((s.to(tl.int64) * rows + r) * kv_heads + kv) * D
        if not FROZEN:
            at_s = (kv * positions + s) * D
            k = _load(k_tiles, at_s, (kv, first, 0), seen, e, D, OPERAND)
            k_dot = _load(k_dot_tiles, at_key, (r, kv, first, 0), seen, e, D, OPERAND)
            v = _load(v_tiles, at_s, (kv, first, 0), seen, e, D, OPERAND)
            w = tl.dot(q_dot, tl.trans(k), input_precision=PRECISION)
            w = tl.dot(q, tl.trans(k_dot), w, input_precision=PRECISION)
            w = w * a.to(tl.float32) * scale
            weight += tl.sum(w, axis=1)
            z_dot = tl.dot(w.to(OPERAND), v, z_dot, input_precision=PRECISION)
        v_dot = _load(v_dot_tiles, at_key, (r, kv, first, 0), seen, e, D, OPERAND)
        z_dot = tl.dot(a.to(OPERAND), v_dot, z_dot, input_precision=PRECISION)

    if not FROZEN:
        z_dot -= weight[:, None] * _load(z_ptr, at_query, (), here, e, D, tl.float32)
    _store(z_dot_ptr, at, here, e, z_dot, D)


# ---------------------------------------------------------------------------------------- launchers


def adjoint(
    cotangent: Rows, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float,
    *, frozen: bool = False, precision: Precision = "tf32", loads: Loads = "pointers",
) -> AttentionCotangents | FrozenCotangents:  # fmt: skip
    """Compute what `reference.adjoint` does. Arguments that are not contiguous are copied.

    Raises:
        ValueError: for float64, and for tensors on a device that Triton does not reach.
    """
    _check_reach(cotangent)
    o, a, q, k, v, z = (x.contiguous() for x in (cotangent, pattern, q, k, v, z))
    positions, rows, heads, d_head = o.shape
    fixed, which = _fixed(o, heads // len(k), precision), (d_head, o.dtype, precision, positions)
    width, read = width_of(d_head), _reader(loads, products_of(o.dtype, precision), o, q, k, v)
    dv = o.new_empty(positions, rows, len(k), d_head)
    dq, dk, oz = dv, dv, dv  # where frozen none of these is touched; a kernel wants some tensor all the same
    if not frozen:
        dq, dk, oz = torch.empty_like(o), torch.empty_like(dv), o.new_empty(heads, rows, positions, dtype=torch.float32)
    if o.numel() and not frozen:
        b = tiles("queries", *which)
        # C takes as long as a product with positions/2 rows: done for 4·positions rows at a time, that is an eighth more
        each = triton.cdiv(4 * positions, b.inner) * b.inner
        grid = (heads * positions, triton.cdiv(rows, each), triton.cdiv(d_head, b.column))
        _query_kernel[grid](
            read(o, (b.inner, width), OF_A_POSITION), a, read(k, (b.outer, b.column)), read(v, (b.outer, width)), z, dq, oz,
            positions, rows, each, heads, scale,
            COLUMN=b.column, BLOCK=b.outer, BLOCK_R=b.inner, num_warps=b.warps, num_stages=b.stages, **fixed,
        )  # fmt: skip
    if o.numel():
        b = tiles("keys", *which)
        of_scores = (q, v) if frozen else (read(q, (b.inner, width)), read(v, (b.outer, width)))
        _key_kernel[(rows * len(k) * triton.cdiv(positions, b.outer),)](
            read(o, (b.inner, width), OF_A_ROW), a, *of_scores, oz, dk, dv, positions, rows, heads, scale,
            KEYS=b.outer, BLOCK=b.inner, FROZEN=frozen, num_warps=b.warps, num_stages=b.stages, **fixed,
        )  # fmt: skip
    return FrozenCotangents(None, None, dv) if frozen else AttentionCotangents(dq, dk, dv)


def tangent(
    tangents: AttentionCotangents | FrozenCotangents, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float,
    *, precision: Precision = "tf32", loads: Loads = "pointers",
) -> Rows:  # fmt: skip
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
    z_dot = v_dot.new_empty(positions, rows, heads, d_head)
    if z_dot.numel():
        b, fixed = tiles("tangent", d_head, v_dot.dtype, precision, positions), _fixed(v_dot, heads // kv_heads, precision)
        read = _reader(loads, products_of(v_dot.dtype, precision), q_dot, k_dot, v_dot, q, k, v)
        of_queries, of_keys = (b.outer, width_of(d_head)), (b.inner, width_of(d_head))
        if tangents.q is not None:
            q_dot, k_dot = read(q_dot, of_queries, OF_A_ROW), read(k_dot, of_keys, OF_A_ROW)
            q, k, v = read(q, of_queries), read(k, of_keys), read(v, of_keys)
        _tangent_kernel[(rows * heads * triton.cdiv(positions, b.outer),)](
            q_dot, k_dot, read(v_dot, of_keys, OF_A_ROW), a, q, k, v, z, z_dot, positions, rows, heads, scale,
            QUERIES=b.outer, BLOCK=b.inner, FROZEN=tangents.q is None, num_warps=b.warps, num_stages=b.stages, **fixed,
        )  # fmt: skip
    return z_dot


def _reader(loads: Loads, products: Products, *tensors: Tensor) -> Callable[..., Any]:
    """How a kernel is given the tensors that it reads in tiles: as descriptors where that is asked for and can be, else as they are."""
    if loads == "descriptors" and products in DESCRIBED and describable(*tensors):
        return described
    return lambda x, *_: x


def _fixed(x: Tensor, group: int, precision: Precision) -> dict[str, Any]:
    """What every kernel is compiled for: heads, and how matrix products of a dtype are taken."""
    operand = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[x.dtype]
    if x.device.type == "cpu" and operand == tl.bfloat16:
        operand = tl.float32  # the interpreter would multiply the bits of bfloat16 as integers
    d_head = x.shape[-1]
    # of 16-bit operands there is one product alone, which Triton calls "ieee"
    how = precision if x.dtype == torch.float32 else "ieee"
    return {"GROUP": group, "D": d_head, "WIDTH": width_of(d_head), "OPERAND": operand, "PRECISION": how}


def _check_reach(x: Tensor) -> None:
    if x.dtype == torch.float64:
        raise ValueError('impl: "triton" sums in float32, and float64 came. Use impl="reference".')
    if x.device.type == "cpu" and any(isinstance(function, triton.JITFunction) for function in (tl.zeros, _key_kernel)):
        raise ValueError(
            'impl: "triton" needs CUDA tensors, and CPU tensors came. Use impl="reference", '
            "or set TRITON_INTERPRET=1 before anything imports triton."
        )
