"""The heads of one layer linearised at their primal point: the tangent map and the adjoint of attention, written out.

For one head, with c the scale of its scores:

    a = softmax(c q k^T),  z = a v,  o the cotangent of z
    ds[t,s] = c a[t,s] (o[t]·v[s] - o[t]·z[t])
    q̄[t] = Σ_s ds[t,s] k[s],  k̄[s] = Σ_t ds[t,s] q[t],  v̄[s] = Σ_t a[t,s] o[t]        frozen: v̄ alone
    ż[t] = Σ_s a[t,s] v̇[s] + Σ_s ds[t,s] (v[s] - z[t]),  ds[t,s] = c a[t,s] (q̇[t]·k[s] + q[t]·k̇[s])

Where scores are capped, c a[t,s] is times the cap's slope (`_gain`); where queries and keys are normed, q̄ and k̄ go
through N of that norm before they are projected (`HeadNorm`). A window needs nothing: a is zero outside it.

In *head space* a row holds the queries, keys and values of all heads side by side, q | k | v, before norms and
rotation; where attention is frozen, v alone. Rows are [positions, rows, width]. docs/engine.md derives each map.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from attrib.core.types import Policy
from attrib.engine.blocks import kernels as ops
from attrib.engine.blocks.kernels import AttentionCotangents, FrozenCotangents, Impl
from attrib.engine.blocks.norm_mlp import Rows, fold_norm
from attrib.engine.blocks.product import dots
from attrib.models.transformer import (
    Model,
    ModelConfig,
    attention_scores,
    enter,
    pattern_of,
    project,
    rotary,
    turned_heads,
)

QUERY_BLOCK = 64
"""Query positions of one block of the attention maps: blocks skip what a causal mask hides, and bound the memory."""


# ------------------------------------------------------------------------- norms of queries and keys


class HeadNorm(NamedTuple):
    """The point of a norm of queries or keys, before they are rotated; of no width where there is none.

    `inverse` and `weight` are of each head, or of one that stands for all where they are normed together.
    """

    unit: Float[Tensor, "positions heads d_unit"]
    inverse: Float[Tensor, "positions normed 1"]
    weight: Float[Tensor, "weights d_unit"]

    def at(self, index: slice) -> "HeadNorm":
        """The point of some positions."""
        return HeadNorm(self.unit[index], self.inverse[index], self.weight)


def head_norm(config: ModelConfig, weight: Float[Tensor, " d_weight"], y: Float[Tensor, "positions width"], n_heads: int) -> HeadNorm:
    """The point of the norm of projected queries or keys `y`."""
    if config.qk_norm == "none":  # nobody asks for its numbers, so there are none; not views, which would hold what they are views of
        none = y.new_empty(len(y), n_heads, 0)
        return HeadNorm(none, y.new_empty(len(y), n_heads, 1), none[0])
    y = rearrange(y, "t (heads d) -> t heads d", heads=n_heads)
    over = (1, 2) if config.qk_norm == "whole" else (2,)
    inverse = (y.pow(2).mean(over, keepdim=True) + config.eps).rsqrt()
    return HeadNorm(y * inverse, inverse, rearrange(weight, "(heads d) -> heads d", d=y.shape[-1]))


def head_norm_map(norm: HeadNorm, y: Float[Tensor, "positions rows heads d_head"], policy: Policy) -> Tensor:
    """N(y), in place; weights are the caller's, who knows their side."""
    if policy.norm == "exact":
        along = (y * norm.unit[:, None]).sum(-1, keepdim=True)
        size = y.shape[-1]
        if norm.inverse.shape[1] != y.shape[2]:
            along, size = along.sum(2, keepdim=True), size * y.shape[2]
        y.addcmul_(along, norm.unit[:, None], value=-1 / size)
    return y.mul_(norm.inverse[:, None])


def head_norm_pull(norm: HeadNorm, y: Float[Tensor, "positions rows heads d_head"], policy: Policy) -> None:
    """Cotangents before the norm from those after it, in place."""
    if norm.unit.shape[-1]:
        head_norm_map(norm, y.mul_(norm.weight), policy)


def head_norm_push(norm: HeadNorm, y: Float[Tensor, "positions rows heads d_head"], policy: Policy) -> Tensor:
    """Tangents after the norm from those before it."""
    return head_norm_map(norm, y.clone(), policy).mul_(norm.weight) if norm.unit.shape[-1] else y


# ------------------------------------------------------------------------------------------ maps


class AttentionPoint(NamedTuple):
    """The heads of one prompt, normed and rotated; query heads are grouped by the key head that they read."""

    q: Float[Tensor, "kv_heads group positions d_head"]
    k: Float[Tensor, "kv_heads positions d_head"]
    v: Float[Tensor, "kv_heads positions d_head"]
    z: Float[Tensor, "kv_heads group positions d_head"]
    pattern: Float[Tensor, "kv_heads group positions positions"]
    slope: Float[Tensor, "kv_heads group capped capped"]  # of the cap on scores; `capped` is 0 where there is none
    q_norm: HeadNorm
    k_norm: HeadNorm
    cos: Float[Tensor, "positions d_rotary"]  # d_rotary is 0 where positions are not rotary
    sin: Float[Tensor, "positions d_rotary"]


def takes_norm(policy: Policy) -> bool:
    """Whether the norm before attention, a number for each position, can go into its pattern, of which nothing but values is made."""
    return policy.attention == "frozen" and policy.norm == "frozen"


def with_norm(point: AttentionPoint, inverse: Float[Tensor, "positions 1"]) -> AttentionPoint:
    """The point with 1 / s of the norm before attention in its pattern, for each key: its numbers are scaled in place of all rows."""
    return point._replace(pattern=point.pattern * inverse.T)


class AttentionWeights(NamedTuple):
    """One layer's matrices into head space, norm_1 folded in, and out of it."""

    W_in: Float[Tensor, "d_model d_heads"]
    W_out: Float[Tensor, "d_q d_model"]


def attention_weights(model: Model, layer: int, policy: Policy) -> AttentionWeights:
    """q | k | v side by side, or v alone where attention is frozen."""
    block = model.params.blocks[layer]
    p = block.attention
    parts = [p.W_V] if policy.attention == "frozen" else [p.W_Q, p.W_K, p.W_V]
    return AttentionWeights(fold_norm(model.config, block.norm_1, *parts), p.W_O)


def attention_point(model: Model, layer: int, x: Float[Tensor, "positions d_model"]) -> AttentionPoint:
    """The point of a layer's heads at the whole stream `x` of one prompt."""
    config, p = model.config, model.params.blocks[layer]
    projected = project(model, layer, enter(config, p.norm_1, x))
    q, k, v = turned_heads(model, layer, projected)
    pattern = pattern_of(model, layer, q, k)
    z = rearrange(rearrange(pattern, "kv g t s -> kv (g t) s") @ v, "kv (g t) d -> kv g t d", t=len(x))
    slope = pattern.new_zeros(*pattern.shape[:2], 0, 0)
    if config.score_cap is not None:
        slope = 1 - (attention_scores(q, k, config.attention_scale) / config.score_cap).tanh().square()
    q_norm = head_norm(config, p.attention.q_norm, projected.q, config.n_heads)
    k_norm = head_norm(config, p.attention.k_norm, projected.k, config.n_kv_heads)
    return AttentionPoint(q, k, v, z, pattern, slope, q_norm, k_norm, *rotary(model, layer, len(x)))


Index = slice | int


def _gain(point: AttentionPoint, queries: Index, keys: Index, scale: float) -> Float[Tensor, "kv_heads group *some"]:
    """What the product of queries and keys is worth to the softmax: c a, less what a cap takes."""
    gain = point.pattern[:, :, queries, keys] * scale
    return gain * point.slope[:, :, queries, keys] if point.slope.numel() else gain


def turn(
    y: Float[Tensor, "*rows d_head"],
    cos: Float[Tensor, "*tables d_rotary"],
    sin: Float[Tensor, "*tables d_rotary"],
    back: bool,
    out: Float[Tensor, "*both d_head"] | None = None,
) -> Float[Tensor, "*both d_head"]:
    """`model.rotate`, or `back` its adjoint, written where it is wanted; rows and tables broadcast. `out` is not `y`."""
    width = cos.shape[-1]
    if out is None:
        out = y.new_empty(*torch.broadcast_shapes(y.shape[:-1], cos.shape[:-1]), y.shape[-1])
    out[..., width:] = y[..., width:]
    if not width:
        return out
    turned = torch.mul(y[..., :width], cos, out=out[..., :width])
    (y_1, y_2), (sin_1, sin_2), (out_1, out_2) = (part.chunk(2, dim=-1) for part in (y[..., :width], sin, turned))
    out_1.addcmul_(y_2, sin_2 if back else sin_1, value=1 if back else -1)
    out_2.addcmul_(y_1, sin_1 if back else sin_2, value=-1 if back else 1)
    return out


class HeadRows(NamedTuple):
    """Rows in head space, their queries, keys and values apart; values alone where attention is frozen."""

    v: Float[Tensor, "positions rows kv_heads d_head"]
    k: Float[Tensor, "positions rows kv_heads d_head"] | None = None
    q: Float[Tensor, "positions rows heads d_head"] | None = None

    @property
    def parts(self) -> list[Float[Tensor, "positions rows _ d_head"]]:
        """Those that are there."""
        return [part for part in self if part is not None]


def head_rows(point: AttentionPoint, rows: Float[Tensor, "*rows d_heads"]) -> list[Float[Tensor, "*rows _ d_head"]]:
    """Rows of head space, or cells, as views of the parts that `HeadRows` has of them, in its order."""
    kv, group, _, d_head = point.q.shape
    heads = rows.unflatten(-1, (-1, d_head))
    return [heads] if heads.shape[-2] == kv else list(heads.split([kv * group, kv, kv], dim=-2))[::-1]


def attention_pull(
    point: AttentionPoint, o: Rows, scale: float, policy: Policy, impl: Impl = "torch", out: Rows | None = None, *, causal: bool = True
) -> Rows:
    """Head-space cotangents from those of z, on the first `positions` positions of the prompt; in `out` where it is given.

    Where attention is not causal, these are all of them.
    """
    kv, group, _, d_head = point.q.shape
    if out is None:
        out = o.new_empty(*o.shape[:2], d_head * (kv * (group + 2) if policy.attention == "exact" else kv))
    into = HeadRows(*head_rows(point, out))
    found = pull_heads(point, rearrange(o, "t n (kv g d) -> t n kv g d", kv=kv, g=group), scale, policy, impl, into, causal=causal)
    for part, there in zip(found.parts, into.parts, strict=True):
        if part is not there:
            there.copy_(part)
    return out


def head_room(
    point: AttentionPoint, like: Tensor, positions: int, rows: int, impl: Impl = "torch", *, causal: bool = True
) -> Float[Tensor, "positions rows kv_heads group d_head"]:
    """Zeros for cotangents of z, which lie as `pull_heads` multiplies them: what is put there is not laid out again."""
    kv, group, _, d_head = point.q.shape
    if _by_kernel(point, impl, causal):
        return like.new_zeros(positions, rows, kv, group, d_head)
    return rearrange(like.new_zeros(kv, positions, group, rows, d_head), "kv t g n d -> t n kv g d")


def pull_heads(
    point: AttentionPoint,
    o: Float[Tensor, "positions rows kv_heads group d_head"],
    scale: float,
    policy: Policy,
    impl: Impl = "torch",
    into: HeadRows | None = None,
    *,
    causal: bool = True,
) -> HeadRows:
    """`attention_pull`, its parts apart.

    Args:
        into: where queries and keys are written; these are then given back. Values lie elsewhere.
    """
    if _by_kernel(point, impl, causal):
        return _pull_by_kernel(point, rearrange(o, "t n kv g d -> t n (kv g) d").contiguous(), scale, policy)
    kv, group, _, d_head = point.q.shape
    positions, rows = o.shape[:2]
    o = rearrange(o, "t n kv g d -> kv t g n d")
    dv, dk, dq = o.new_empty(kv, positions, rows * d_head), None, None
    if policy.attention == "exact":
        own = dots(o, rearrange(point.z[:, :, :positions], "kv g t d -> kv t g d"))
        dq = o.new_empty(positions, rows, kv * group, d_head) if into is None or into.q is None else into.q
    cos, sin = (table[:positions, None, None] for table in (point.cos, point.sin))
    for first in reversed(range(0, positions, QUERY_BLOCK)):  # the last queries see every key: others add to what these write
        end = min(first + QUERY_BLOCK, positions)
        reach = end if causal else positions
        block, a = o[:, first:end], point.pattern[:, :, first:end, :reach]
        block = block if block[0].is_contiguous() else block.contiguous()
        to_values = rearrange(a, "kv g t s -> kv s (t g)"), rearrange(block, "kv t g n d -> kv (t g) (n d)")
        if end == positions:
            torch.bmm(*to_values, out=dv)
        else:
            torch.baddbmm(dv[:, :reach], *to_values, out=dv[:, :reach])
        del to_values
        if dq is None:
            continue
        ds = rearrange(block, "kv t g n d -> kv (t g n) d") @ point.v[:, :reach].transpose(1, 2)
        ds = rearrange(ds, "kv (t g n) s -> kv t g n s", g=group, n=rows)
        ds.sub_(own[:, first:end, ..., None])
        ds.mul_(rearrange(_gain(point, slice(first, end), slice(reach), scale), "kv g t s -> kv t g 1 s"))
        q = rearrange(point.q[:, :, first:end], "kv g t d -> kv (t g) d")
        to_keys = rearrange(rearrange(ds, "kv t g n s -> kv (n s) (t g)") @ q, "kv (n s) d -> kv n s d", n=rows)
        if dk is None:
            dk = to_keys
        else:
            dk[:, :, :reach] += to_keys
        to_queries = rearrange(ds, "kv t g n s -> kv (t g n) s") @ point.k[:, :reach]
        at = dq[first:end]
        apart = rearrange(to_queries, "kv (t g n) d -> t n kv g d", g=group, n=rows)  # one behind the other they would be a copy
        turn(apart, cos[first:end, None], sin[first:end, None], True, out=at.unflatten(2, (kv, group)))
        del apart
        head_norm_pull(point.q_norm.at(slice(first, end)), at, policy)
        del ds, to_keys, to_queries  # a block is gone before the next is made
    values = rearrange(dv, "kv s (n d) -> s n kv d", n=rows)
    if dk is None:
        return HeadRows(values)
    keys, there = rearrange(dk, "kv n s d -> s n kv d"), None if into is None else into.k
    keys = keys if there is None and not cos.shape[-1] else turn(keys, cos, sin, True, out=there)
    head_norm_pull(point.k_norm.at(slice(positions)), keys, policy)
    return HeadRows(values, keys, dq)


def _by_kernel(point: AttentionPoint, impl: Impl, causal: bool) -> bool:
    """Whether a Triton kernel does it: these know no caps, and causal masks alone."""
    return impl == "triton" and causal and not point.slope.numel()


def _on_first(point: AttentionPoint, positions: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pattern, q, k, v and z of the first positions, with all heads in one dimension, as the kernels take them."""
    q, z = point.q[:, :, :positions].flatten(0, 1), point.z[:, :, :positions].flatten(0, 1)
    return point.pattern[:, :, :positions, :positions].flatten(0, 1), q, point.k[:, :positions], point.v[:, :positions], z


def _pull_by_kernel(point: AttentionPoint, o: Float[Tensor, "positions rows heads d_head"], scale: float, policy: Policy) -> HeadRows:
    positions = len(o)
    found = ops.attention_pull(o, *_on_first(point, positions), scale, policy.attention == "frozen")
    if found.q is None or found.k is None:
        return HeadRows(found.v)
    cos, sin = (table[:positions, None, None] for table in (point.cos, point.sin))
    q, k = (turn(part, cos, sin, back=True) if cos.shape[-1] else part for part in (found.q, found.k))
    for part, norm in ((q, point.q_norm), (k, point.k_norm)):
        head_norm_pull(norm.at(slice(positions)), part, policy)
    return HeadRows(found.v, k, q)


def _push_by_kernel(point: AttentionPoint, tangents: Rows, scale: float, policy: Policy) -> Rows:
    kv, group, total, d_head = point.q.shape
    begin = total - len(tangents)
    split = rearrange(F.pad(tangents, (0, 0, 0, 0, begin, 0)), "t n (heads d) -> t n heads d", d=d_head)
    v = split[:, :, -kv:].contiguous()
    carried: AttentionCotangents | FrozenCotangents = FrozenCotangents(None, None, v)
    if policy.attention == "exact":
        raw = [split[:, :, : kv * group], split[:, :, kv * group : -kv]]
        normed = [head_norm_push(norm, part, policy) for norm, part in zip((point.q_norm, point.k_norm), raw, strict=True)]
        turned = turn(torch.cat(normed, dim=2), point.cos[:, None, None], point.sin[:, None, None], back=False)
        carried = AttentionCotangents(turned[:, :, : kv * group].contiguous(), turned[:, :, kv * group :].contiguous(), v)
    z = ops.attention_push(carried, *_on_first(point, total), scale)
    return rearrange(z[begin:], "t n heads d -> t n (heads d)")


def attention_push(
    point: AttentionPoint,
    tangents: Rows,
    scale: float,
    policy: Policy,
    impl: Impl = "torch",
    out: Rows | None = None,
    *,
    causal: bool = True,
) -> Rows:
    """Tangents of z from head-space tangents, on the last `positions` positions of the prompt; before them nothing moves.

    Where attention is not causal, these are all of them.
    """
    if out is None:
        out = tangents.new_empty(*tangents.shape[:2], point.q.shape[0] * point.q.shape[1] * point.q.shape[3])
    if _by_kernel(point, impl, causal):
        return out.copy_(_push_by_kernel(point, tangents, scale, policy))
    kv, group, total, d_head = point.q.shape
    positions, rows, _ = tangents.shape
    begin = total - positions
    exact = policy.attention == "exact"
    split = rearrange(tangents, "t n (heads d) -> t n heads d", d=d_head)
    v = rearrange(split[:, :, -kv:], "s n kv d -> kv s (n d)")
    if exact:
        cos, sin = (table[begin:, None, None] for table in (point.cos, point.sin))
        parts = [split[:, :, : kv * group], split[:, :, kv * group : -kv]]
        for which, norm in enumerate((point.q_norm, point.k_norm)):
            parts[which] = head_norm_push(norm.at(slice(begin, None)), parts[which], policy)
            if point.cos.shape[-1]:
                parts[which] = turn(parts[which], cos, sin, back=False)
        q, k = rearrange(parts[0], "t n (kv g) d -> kv g t n d", g=group), rearrange(parts[1], "s n kv d -> kv n s d")
    z = rearrange(out, "t n (kv g d) -> t n kv g d", kv=kv, g=group)
    for first in range(0, positions, QUERY_BLOCK):
        end = min(first + QUERY_BLOCK, positions)
        at, reach = slice(begin + first, begin + end), begin + end if causal else total
        a = point.pattern[:, :, at, :reach]
        moved = rearrange(a[..., begin:], "kv g t s -> kv (g t) s") @ v[:, : reach - begin]
        if exact:
            ds = rearrange(q[:, :, first:end], "kv g t n d -> kv (g t n) d") @ point.k[:, :reach].transpose(1, 2)
            ds = rearrange(ds, "kv (g t n) s -> kv g t n s", g=group, n=rows)
            ds[..., begin:] += _by_key(point.q[:, :, at], k[:, :, : reach - begin])
            ds.mul_(_gain(point, at, slice(reach), scale)[:, :, :, None])
            by_row = rearrange(moved, "kv gt (n d) -> kv (gt n) d", n=rows)
            torch.baddbmm(by_row, rearrange(ds, "kv g t n s -> kv (g t n) s"), point.v[:, :reach], out=by_row)
        moved = rearrange(moved, "kv (g t) (n d) -> kv g t n d", g=group, n=rows)
        if exact:
            moved.addcmul_(ds.sum(-1, keepdim=True), point.z[:, :, at, None], value=-1)
        z[first:end] = rearrange(moved, "kv g t n d -> t n kv g d")
        if exact:
            del ds, by_row  # a block is gone before the next is made
        del moved
    return out


def _by_key(q: Float[Tensor, "kv group t d"], k: Float[Tensor, "kv rows s d"]) -> Float[Tensor, "kv group t rows s"]:
    """q[t] · k̇[s] of every row."""
    by_key = rearrange(q, "kv g t d -> kv (g t) d") @ rearrange(k, "kv n s d -> kv d (n s)")
    return rearrange(by_key, "kv (g t) (n s) -> kv g t n s", g=q.shape[1], n=k.shape[1])


def attention_pull_at(
    point: AttentionPoint,
    weights: AttentionWeights,
    o: Float[Tensor, "rows d_q"],
    position: int,
    scale: float,
    policy: Policy,
    out: Float[Tensor, "seen rows d_model"] | None = None,
    *,
    causal: bool = True,
) -> Float[Tensor, "seen rows d_model"]:
    """`attention_pull` and W_in^T of cotangents that live at one position only, on all positions that it sees: those up to it, or all.

    Each head's value cotangent is a[p, s] o, of rank one over s, and its key cotangent ds[p, s] q[p]: so o is
    projected through W_V once, q[p] through W_K once for all rows, and both are spread over s by numbers.
    The cotangents are those of `unit`, the norm's own adjoint is still to come.
    """
    kv, group, total, d_head = point.q.shape
    rows, end, d_q = len(o), position + 1 if causal else total, kv * group * d_head
    exact = policy.attention == "exact"
    a = point.pattern[:, :, position, :end]
    o = rearrange(o, "n (kv g d) -> kv (g n) d", kv=kv, g=group)
    through = o @ rearrange(weights.W_in[:, -kv * d_head :], "m (kv d) -> kv d m", kv=kv)
    y = through.new_empty(end, rows, through.shape[-1]) if out is None else out
    factors = rearrange(a, "kv g s -> s (kv g)"), rearrange(through, "kv (g n) m -> (kv g) (n m)", g=group)
    torch.mm(*factors, out=rearrange(y, "s n m -> s (n m)"))
    if not exact:
        return y
    ds = rearrange(o @ point.v[:, :end].transpose(1, 2), "kv (g n) s -> kv g n s", g=group)
    ds.sub_((rearrange(o, "kv (g n) d -> kv g n d", g=group) * point.z[:, :, position, None]).sum(-1, keepdim=True))
    ds.mul_(_gain(point, position, slice(end), scale)[:, :, None])
    q, W_K = point.q[:, :, position], rearrange(weights.W_in[:, d_q : -kv * d_head], "m (kv d) -> kv d m", kv=kv)
    spread = rearrange(ds, "kv g n s -> s n (kv g)").contiguous()  # or it is multiplied position by position
    if point.cos.shape[-1] or point.k_norm.unit.shape[-1]:
        keys = _keys_through(point, q, W_K, end, policy)
        torch.baddbmm(y, spread, rearrange(keys, "kv g s m -> s (kv g) m"), out=y)
    else:
        flat = rearrange(y, "s n m -> (s n) m")
        torch.addmm(flat, rearrange(spread, "s n h -> (s n) h"), rearrange(q @ W_K, "kv g m -> (kv g) m"), out=flat)
    to_queries = rearrange(rearrange(ds, "kv g n s -> kv (g n) s") @ point.k[:, :end], "kv (g n) d -> n (kv g) d", g=group)
    if point.cos.shape[-1]:
        to_queries = turn(to_queries, point.cos[position], point.sin[position], back=True)
    head_norm_pull(point.q_norm.at(slice(position, position + 1)), to_queries[None], policy)
    torch.addmm(y[position], rearrange(to_queries, "n h d -> n (h d)"), weights.W_in[:, :d_q].T, out=y[position])
    return y


def _keys_through(
    point: AttentionPoint,
    q: Float[Tensor, "kv_heads group d_head"],
    W_K: Float[Tensor, "kv_heads d_head d_model"],
    end: int,
    policy: Policy,
) -> Float[Tensor, "kv_heads group end d_model"]:
    """q as a cotangent of the key at each position, back through rotation, norm and W_K."""
    kv, group, d_head = q.shape
    back = turn(q[:, :, None].expand(kv, group, end, d_head), point.cos[:end], point.sin[:end], back=True)
    norm = point.k_norm.at(slice(end))
    if not norm.unit.shape[-1]:
        return rearrange(rearrange(back, "kv g s d -> kv (g s) d") @ W_K, "kv (g s) m -> kv g s m", g=group)
    back = rearrange(back, "kv g s d -> s g kv d") * norm.weight
    apart = norm.inverse.shape[1] == kv
    if apart:
        head_norm_map(norm, back, policy)
    keys = rearrange(rearrange(back, "s g kv d -> kv (g s) d") @ W_K, "kv (g s) m -> kv g s m", g=group)
    if apart:
        return keys
    if policy.norm == "exact":  # N(y) = (y - unit ⟨unit, y⟩ / D) / s, and unit goes through W_K once for all heads
        along = rearrange((back * norm.unit[:, None]).sum(-1), "s g kv -> kv g s 1") / (kv * d_head)
        keys.addcmul_(along, rearrange(norm.unit, "s kv d -> s (kv d)") @ rearrange(W_K, "kv d m -> (kv d) m"), value=-1)
    return keys.mul_(norm.inverse[:, 0])  # in place: of the size of all heads, it is the largest part of many a step


def attention_push_at(
    point: AttentionPoint,
    weights: AttentionWeights,
    tangents: Float[Tensor, "rows d_heads"],
    position: int,
    scale: float,
    policy: Policy,
    out: Float[Tensor, "moved rows d_model"] | None = None,
    *,
    causal: bool = True,
) -> Float[Tensor, "moved rows d_model"]:
    """`attention_push` and W_O of head-space tangents that live at one position only, on all that see it: those from it on, or all.

    The mirror of `attention_pull_at`: v̇ goes through W_O once, (v[p] - z[t]) W_O is shared by all rows.
    """
    kv, group, total, d_head = point.q.shape
    rows, begin, end = len(tangents), position if causal else 0, position + 1 if causal else total
    exact = policy.attention == "exact"
    split = rearrange(tangents, "n (heads d) -> n heads d", d=d_head)
    a, gain = point.pattern[:, :, begin:, position], _gain(point, slice(begin, None), position, scale)
    W_O = rearrange(weights.W_out, "(kv g d) m -> kv g d m", kv=kv, g=group)
    through = rearrange(split[:, -kv:], "n kv d -> kv n d")[:, None] @ W_O
    if out is None:
        out = through.new_empty(a.shape[-1], rows, through.shape[-1])
    factors = rearrange(a, "kv g t -> t (kv g)"), rearrange(through, "kv g n m -> (kv g) (n m)")
    torch.mm(*factors, out=rearrange(out, "t n m -> t (n m)"))
    if not exact:
        return out
    here, parts = slice(position, position + 1), (split[:, : kv * group], split[:, kv * group : -kv])
    normed = [head_norm_push(norm.at(here), part[None], policy)[0] for norm, part in zip((point.q_norm, point.k_norm), parts, strict=True)]
    turned = torch.cat(normed, dim=1)
    if point.cos.shape[-1]:
        turned = turn(turned, point.cos[position], point.sin[position], back=False)
    k = rearrange(turned[:, kv * group :], "n kv d -> kv d n")
    ds = rearrange(rearrange(point.q[:, :, begin:], "kv g t d -> kv (g t) d") @ k, "kv (g t) n -> kv g t n", g=group)
    ds = ds * gain[..., None]
    moved = (point.v[:, None, position, None] - point.z[:, :, begin:]) @ W_O
    torch.baddbmm(out, rearrange(ds, "kv g t n -> t n (kv g)"), rearrange(moved, "kv g t m -> t (kv g) m"), out=out)
    q = rearrange(turned[:, : kv * group], "n (kv g) d -> kv (g n) d", g=group)
    own = rearrange(q @ point.k[:, :end].transpose(1, 2), "kv (g n) s -> kv g n s", g=group)
    own = own * _gain(point, position, slice(end), scale)[:, :, None]
    z = rearrange(rearrange(own, "kv g n s -> kv (g n) s") @ point.v[:, :end], "kv (g n) d -> kv g n d", g=group)
    z = z - own.sum(-1, keepdim=True) * point.z[:, :, position, None]
    own_position = out[position - begin]
    torch.addmm(own_position, rearrange(z, "kv g n d -> n (kv g d)"), weights.W_out, out=own_position)
    return out
