"""The adjoint and the tangent map of causal softmax attention in plain torch, head by head.

Per cotangent row, for query position t and key position s <= t of one head, with o the cotangent of z:

    da[t,s] = o[t]·v[s]
    ds[t,s] = scale a[t,s] (da[t,s] - o[t]·z[t])
    dq[t]   = Σ_s ds[t,s] k[s]
    dk[s]   = Σ_t ds[t,s] q[t]        summed over the heads of a group
    dv[s]   = Σ_t a[t,s] o[t]         summed over the heads of a group

The transpose of that map carries tangents forward; with q̇, k̇, v̇ the tangents it is the derivative of z:

    ẇ[t,s] = scale a[t,s] (q̇[t]·k[s] + q[t]·k̇[s])
    ż[t]   = Σ_s ẇ[t,s] (v[s] - z[t]) + Σ_s a[t,s] v̇[s]

`frozen` holds the pattern: only dv, or only v̇, is left. 16-bit inputs are summed in float32 and rounded once.
"""

from typing import Literal, NamedTuple, overload

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "positions rows heads d_head"]
KeyRows = Float[Tensor, "positions rows kv_heads d_head"]
Pattern = Float[Tensor, "heads positions positions"]
Queries = Float[Tensor, "heads positions d_head"]
Keys = Float[Tensor, "kv_heads positions d_head"]


class AttentionCotangents(NamedTuple):
    """Cotangents (or tangents) of the rotated queries, the rotated keys and the values."""

    q: Rows
    k: KeyRows
    v: KeyRows


class FrozenCotangents(NamedTuple):
    """The same where the pattern is frozen: queries and keys have none."""

    q: None
    k: None
    v: KeyRows


@overload
def adjoint(
    cotangent: Rows, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float, *, frozen: Literal[False] = False
) -> AttentionCotangents: ...
@overload
def adjoint(
    cotangent: Rows, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float, *, frozen: bool
) -> AttentionCotangents | FrozenCotangents: ...
def adjoint(
    cotangent: Rows, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float, *, frozen: bool = False
) -> AttentionCotangents | FrozenCotangents:
    """Pull cotangents of z back to queries, keys and values; the largest intermediate is [positions, rows, positions] of one head."""
    dtype, (o, a, q, k, v, z) = _accumulate(cotangent, pattern.tril(), q, k, v, z)
    group = len(q) // len(k)
    dq: list[Tensor] = []  # of each query head, as below
    dk: list[Tensor] = []
    dv: list[Tensor] = []
    for head in range(len(q)):
        kv, o_h, a_h = head // group, o[:, :, head], a[head]
        dv.append(torch.einsum("ts,tre->sre", a_h, o_h))
        if not frozen:
            da = o_h @ v[kv].T
            ds = scale * a_h[:, None] * (da - (o_h * z[head][:, None]).sum(-1, keepdim=True))
            dq.append(ds @ k[kv])
            dk.append(torch.einsum("trs,te->sre", ds, q[head]))
    if frozen:
        return FrozenCotangents(None, None, _over_groups(dv, group).to(dtype))
    return AttentionCotangents(torch.stack(dq, 2).to(dtype), _over_groups(dk, group).to(dtype), _over_groups(dv, group).to(dtype))


def tangent(
    tangents: AttentionCotangents | FrozenCotangents, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float
) -> Rows:
    """Push tangents of queries, keys and values forward to z; of values alone where the pattern is frozen."""
    dtype, (a, q, k, v, z, v_dot) = _accumulate(pattern.tril(), q, k, v, z, tangents.v)
    group = len(q) // len(k)
    z_dot = [torch.einsum("ts,sre->tre", a[head], v_dot[:, :, head // group]) for head in range(len(q))]
    if tangents.q is not None:
        _, (q_dot, k_dot) = _accumulate(tangents.q, tangents.k)
        for head in range(len(q)):
            kv = head // group
            score = q_dot[:, :, head] @ k[kv].T + torch.einsum("te,sre->trs", q[head], k_dot[:, :, kv])
            w = scale * a[head][:, None] * score
            z_dot[head] = z_dot[head] + w @ v[kv] - w.sum(-1, keepdim=True) * z[head][:, None]
    return torch.stack(z_dot, 2).to(dtype)


def _over_groups(parts: list[Tensor], group: int) -> Tensor:
    """Sum what the query heads of one group have for their shared key head."""
    return torch.stack(parts, 2).unflatten(2, (-1, group)).sum(3)


def _accumulate(first: Tensor, *others: Tensor) -> tuple[torch.dtype, list[Tensor]]:
    """The dtype of the result, and everything in the dtype of the sums: float32 for 16-bit numbers."""
    dtype = first.dtype
    return dtype, [x.to(torch.promote_types(dtype, torch.float32)) for x in (first, *others)]
