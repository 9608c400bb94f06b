"""`attention_pull_at` and `attention_push_at` for rows of several positions at once: one product for all of them.

Rows of one position share their pattern, their query and their key there, and `attention.py` multiplies these once for all. Here each
row brings its own, which is more to read and the same to multiply, and zeros are multiplied beyond what a row sees. It pays where asking
for a product takes longer than computing it: on a GPU. The maths is that of attention.py.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Policy
from attrib.engine.blocks.attention import (
    AttentionPoint,
    AttentionWeights,
    HeadNorm,
    head_norm_pull,
    head_norm_push,
    turn,
)
from attrib.engine.blocks.norm_mlp import Rows


def _at(norm: HeadNorm, position: Int[Tensor, " rows"]) -> HeadNorm:
    """The point of each row's position."""
    return HeadNorm(norm.unit.index_select(0, position), norm.inverse.index_select(0, position), norm.weight)


def _gains(point: AttentionPoint, pattern: Tensor, position: Int[Tensor, " rows"], scale: float, *, by_key: int | None = None) -> Tensor:
    """What the product of queries and keys is worth to the softmax, [kv_heads, group, rows, other], from the pattern there.

    Args:
        by_key: the first query, where rows are at keys; None where they are at queries.
    """
    if not point.slope.numel():
        return pattern * scale
    slope = point.slope[..., : pattern.shape[-1]] if by_key is None else point.slope[:, :, by_key:].mT
    return pattern * slope.index_select(2, position) * scale


def attention_pull_wide(
    point: AttentionPoint,
    weights: AttentionWeights,
    o: Float[Tensor, "rows d_q"],
    position: Int[Tensor, " rows"],
    scale: float,
    policy: Policy,
    out: Float[Tensor, "seen rows d_model"],
) -> Rows:
    """`attention_pull` and W_in^T of cotangents that live at one position each, on the first `seen` positions; causal.

    Args:
        out: is written, with zeros where a row does not see.
    """
    kv, group, _, d_head = point.q.shape
    (end, rows, _), d_q = out.shape, kv * group * d_head
    a = point.pattern[..., :end].index_select(2, position)
    by_head = rearrange(o, "n (kv g d) -> kv (g n) d", kv=kv, g=group)
    through = by_head @ rearrange(weights.W_in[:, -kv * d_head :], "m (kv d) -> kv d m", kv=kv)
    by_row = out.transpose(0, 1)
    torch.bmm(rearrange(a, "kv g n s -> n s (kv g)"), rearrange(through, "kv (g n) m -> n (kv g) m", g=group), out=by_row)
    del through
    if policy.attention != "exact":
        return out
    ds = rearrange(by_head @ point.v[:, :end].transpose(1, 2), "kv (g n) s -> kv g n s", g=group)
    z = point.z.index_select(2, position)
    ds.sub_(torch.linalg.vecdot(rearrange(by_head, "kv (g n) d -> kv g n d", g=group), z)[..., None])
    ds.mul_(_gains(point, a, position, scale))
    q = point.q.index_select(2, position)
    W_K, turns = weights.W_in[:, d_q : -kv * d_head], bool(point.cos.shape[-1])
    if turns or point.k_norm.unit.shape[-1]:  # keys differ by position: through head space
        keys = rearrange(ds, "kv g n s -> kv n s g") @ rearrange(q, "kv g n d -> kv n g d")
        keys = rearrange(keys, "kv n s d -> s n kv d")
        keys = turn(keys, point.cos[:end, None, None], point.sin[:end, None, None], back=True) if turns else keys.contiguous()
        head_norm_pull(point.k_norm.at(slice(end)), keys, policy)
        flat = out.view(end * rows, -1)
        torch.addmm(flat, keys.view(end * rows, -1), W_K.T, out=flat)
        del keys
    else:
        through = rearrange(q, "kv g n d -> kv (g n) d") @ rearrange(W_K, "m (kv d) -> kv d m", kv=kv)
        spread = rearrange(ds, "kv g n s -> n s (kv g)"), rearrange(through, "kv (g n) m -> n (kv g) m", g=group)
        torch.baddbmm(by_row, *spread, out=by_row)
    to_queries = rearrange(rearrange(ds, "kv g n s -> kv (g n) s") @ point.k[:, :end], "kv (g n) d -> n (kv g) d", g=group)
    if turns:
        cos, sin = (table.index_select(0, position)[:, None] for table in (point.cos, point.sin))
        to_queries = turn(to_queries, cos, sin, back=True)
    to_queries = to_queries.contiguous()
    head_norm_pull(_at(point.q_norm, position), to_queries[:, None], policy)
    _add_own(out, position, to_queries.view(rows, d_q) @ weights.W_in[:, :d_q].T)
    return out


def attention_push_wide(
    point: AttentionPoint,
    weights: AttentionWeights,
    tangents: Float[Tensor, "rows d_heads"],
    position: Int[Tensor, " rows"],
    end: int,
    scale: float,
    policy: Policy,
    out: Float[Tensor, "moved rows d_model"],
) -> Rows:
    """`attention_push` and W_O of head-space tangents that live at one position each, on the last `moved` positions; causal.

    Args:
        end: one past the last of the positions.
        out: is written, with zeros where nothing moves.
    """
    kv, group, total, d_head = point.q.shape
    begin, exact = total - len(out), policy.attention == "exact"
    split = rearrange(tangents, "n (heads d) -> n heads d", d=d_head)
    W_O = rearrange(weights.W_out, "(kv g d) m -> kv g d m", kv=kv, g=group)
    a = point.pattern[:, :, begin:].mT.index_select(2, position)  # [kv, g, rows, moved]
    through = rearrange(split[:, -kv:], "n kv d -> kv n d")[:, None] @ W_O
    by_row = out.transpose(0, 1)
    torch.bmm(rearrange(a, "kv g n t -> n t (kv g)"), rearrange(through, "kv g n m -> n (kv g) m"), out=by_row)
    del through
    if not exact:
        return out
    parts = (split[:, : kv * group], split[:, kv * group : -kv])
    norms = (point.q_norm, point.k_norm)
    turned = torch.cat([head_norm_push(_at(n, position), part[:, None], policy)[:, 0] for n, part in zip(norms, parts, strict=True)], dim=1)
    if point.cos.shape[-1]:
        cos, sin = (table.index_select(0, position)[:, None] for table in (point.cos, point.sin))
        turned = turn(turned, cos, sin, back=False)
    k = rearrange(turned[:, kv * group :], "n kv d -> kv n d")
    ds = rearrange(k @ rearrange(point.q[:, :, begin:], "kv g t d -> kv d (g t)"), "kv n (g t) -> kv g n t", g=group)
    ds = ds * _gains(point, a, position, scale, by_key=begin)
    through = point.v.index_select(1, position)[:, None] @ W_O
    torch.baddbmm(by_row, rearrange(ds, "kv g n t -> n t (kv g)"), rearrange(through, "kv g n m -> n (kv g) m"), out=by_row)
    through = point.z[:, :, begin:] @ W_O
    torch.baddbmm(out, rearrange(ds, "kv g n t -> t n (kv g)"), rearrange(through, "kv g t m -> t (kv g) m"), alpha=-1, out=out)
    del ds, through
    q = rearrange(turned[:, : kv * group], "n (kv g) d -> kv (g n) d", g=group)
    own = rearrange(q @ point.k[:, :end].transpose(1, 2), "kv (g n) s -> kv g n s", g=group)
    own = own * _gains(point, point.pattern[..., :end].index_select(2, position), position, scale)
    z = rearrange(rearrange(own, "kv g n s -> kv (g n) s") @ point.v[:, :end], "kv (g n) d -> kv g n d", g=group)
    z = z.addcmul(own.sum(-1, keepdim=True), point.z.index_select(2, position), value=-1)
    _add_own(out, position - begin, rearrange(z, "kv g n d -> n (kv g d)") @ weights.W_out)
    return out


def _add_own(out: Rows, at: Int[Tensor, " rows"], own: Float[Tensor, "rows d_model"]) -> None:
    """Add to each row what it has at its own position."""
    rows = out.shape[1]
    out.view(-1, out.shape[2]).index_add_(0, torch.add(torch.arange(rows, device=at.device), at, alpha=rows), own)
