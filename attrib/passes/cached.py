"""The model over new tokens behind old ones, whose keys and values are held: what generation is made of.

Keys and values of a position depend on what stands before it alone. So after a pass over tokens 0 … n - 1 the pass over token n
needs of them k and v of each layer, and nothing else:

    z_n = softmax(q_n [k_0 … k_n]^T · scale, what n sees) [v_0 … v_n]

A cache is a value: a pass takes one and returns a longer one. Rows of a batch may hold different numbers of positions. Then the
shorter have slots that hold none, of position -1, which no query sees; a row computes what it would compute alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.adapters.given import as_model, takes
from attrib.core.shown import in_one_line
from attrib.core.types import EXACT, InputError, Policy, Site, UnsupportedError
from attrib.models.tokens import TokensLike, to_batch
from attrib.models.transformer import (
    Model,
    Put,
    Stream,
    embed,
    pattern_where,
    project,
    turned_heads,
    unembed,
    walk,
    weighted,
    window,
)
from attrib.passes.capture import Edits, put_of

NO_POSITION = -1
"""The position of a slot that holds none."""


@in_one_line
class Cache(NamedTuple):
    """Keys and values of every layer, rotated where the model rotates, and the position that each slot holds."""

    keys: tuple[Float[Tensor, "*batch kv_heads slots d_head"], ...]
    values: tuple[Float[Tensor, "*batch kv_heads slots d_head"], ...]
    positions: Int[Tensor, "*batch slots"]

    @property
    def lengths(self) -> Int[Tensor, "*batch"]:
        """How many positions each row holds."""
        return (self.positions != NO_POSITION).sum(-1)

    def rows(self, chosen: Int[Tensor, " chosen"] | Sequence[int]) -> "Cache":
        """Some of the rows of a batch, without the slots that none of them uses."""
        chosen = torch.as_tensor(chosen, device=self.positions.device)
        positions = self.positions.index_select(0, chosen)
        first = int((positions != NO_POSITION).any(0).int().argmax()) if len(chosen) else 0

        def of(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(part.index_select(0, chosen)[..., first:, :] for part in parts)

        return Cache(of(self.keys), of(self.values), positions[:, first:])


def empty_cache(model: Model, batch: tuple[int, ...] = ()) -> Cache:
    """A cache that holds no position."""
    config = model.config
    nothing = model.params.W_E.new_zeros(*batch, config.n_kv_heads, 0, config.d_head)
    return Cache((nothing,) * config.n_layers, (nothing,) * config.n_layers, torch.zeros(*batch, 0, dtype=torch.int64, device=model.device))


def stacked(caches: Sequence[Cache]) -> Cache:
    """One batch of caches of single prompts, the shorter with empty slots before their first position.

    Args:
        caches: at least one, each without batch dimensions.
    """
    slots = max(cache.positions.shape[-1] for cache in caches)

    def padded(part: Tensor) -> Tensor:
        return torch.nn.functional.pad(part, (0, 0, slots - part.shape[-2], 0))

    positions = [torch.nn.functional.pad(c.positions, (slots - len(c.positions), 0), value=NO_POSITION) for c in caches]
    keys, values = (
        tuple(torch.stack([padded(part) for part in parts]) for parts in zip(*whole, strict=True))
        for whole in ([c.keys for c in caches], [c.values for c in caches])
    )
    return Cache(keys, values, torch.stack(positions))


@takes(model=as_model)
def cached_forward(
    model: Model, tokens: TokensLike, cache: Cache | None = None, *, put: Edits | None = None
) -> tuple[Float[Tensor, "*batch positions d_vocab"], Cache]:
    """Logits at new tokens, and the cache that holds them beside the old ones.

    `forward` of all tokens is `cached_forward` of the first and then, with its cache, of the rest. It is a pure function, which
    leaves the cache as it was: one cache of a prompt serves any number of continuations.

    Args:
        tokens: what follows the cached positions, as `attrib.forward` takes it: [positions], or [batch, positions].
        cache: what an earlier call returned; None where the tokens are the first.
        put: by site, what stands there at the new positions in place of the model's own value; see `attrib.walk`.

    Raises:
        InputError: where tokens and cache have different batches, together they are longer than the context, or the cache is of
            another model; and as `attrib.forward`.
        UnsupportedError: for a model whose attention is not causal.
    """
    ids = to_batch(model, tokens)
    cache = empty_cache(model, tuple(ids.shape[:-1])) if cache is None else cache
    last, cache = extended(model, ids, cache, put_of(model, Site(0, "resid_pre"), put))
    return unembed(model, last), cache


def extended(model: Model, ids: Int[Tensor, "*batch positions"], cache: Cache, put: Put | None = None) -> tuple[Stream, Cache]:
    """The last stream at new tokens, and the longer cache. Raises InputError as `cached_forward`."""
    _check(model, ids, cache)
    new = ids.shape[-1]
    at = cache.lengths[..., None] + torch.arange(new, device=ids.device)
    held = torch.cat([cache.positions, at], -1)
    seen = _Seen(at, held)
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def attention(model: Model, layer: int, x: Stream, policy: Policy = EXACT) -> Tensor:
        q, k, v = turned_heads(model, layer, project(model, layer, x), policy, at)
        keys.append(torch.cat([cache.keys[layer], k], -2))
        values.append(torch.cat([cache.values[layer], v], -2))
        config = model.config
        pattern = pattern_where(q, keys[layer], seen.within(window(config, layer)), config.attention_scale, config.score_cap)
        return weighted(pattern, values[layer])

    *_, (_, last) = walk(model, Site(0, "resid_pre"), embed(model, ids, at), put=put, attention=attention)
    return last, Cache(tuple(keys), tuple(values), held)


class _Seen:
    """Which slots each new position sees, worked out once for each window that a layer has."""

    def __init__(self, at: Int[Tensor, "*batch positions"], held: Int[Tensor, "*batch slots"]) -> None:
        self._ahead = at[..., :, None] - held[..., None, :]
        self._real = (held != NO_POSITION)[..., None, :]
        self._found: dict[int | None, Tensor] = {}

    def within(self, window: int | None) -> Bool[Tensor, "*batch 1 1 positions slots"]:
        if window not in self._found:
            seen = (self._ahead >= 0) & self._real
            self._found[window] = (seen if window is None else seen & (self._ahead < window))[..., None, None, :, :]
        return self._found[window]


def _check(model: Model, ids: Int[Tensor, "*batch positions"], cache: Cache) -> None:
    config = model.config
    if not config.causal:
        raise UnsupportedError(
            f"model: {model.name} has attention that is not causal, so that old positions would see new ones; no cache serves."
        )
    if len(cache.keys) != config.n_layers or cache.keys[0].shape[-1] != config.d_head or cache.keys[0].shape[-3] != config.n_kv_heads:
        held = f"{len(cache.keys)} layers of {cache.keys[0].shape[-3]} key heads of {cache.keys[0].shape[-1]}" if cache.keys else "no layer"
        raise InputError(
            f"cache: it holds {held}, and {model.name} has {config.n_layers} of {config.n_kv_heads} of {config.d_head}; give one that "
            "this model returned."
        )
    if cache.positions.shape[:-1] != ids.shape[:-1]:
        raise InputError(
            f"tokens: shape {list(ids.shape)} behind a cache of the batch {list(cache.positions.shape[:-1])}; expected the same rows."
        )
    if not ids.shape[-1]:
        raise InputError("tokens: none; expected at least one new token in every row.")
    slots = cache.positions.shape[-1]
    if slots + ids.shape[-1] > config.n_ctx:  # slots may be empty, so rows are counted only where they could be too long
        longest = int(cache.lengths.max()) + ids.shape[-1]
        if longest > config.n_ctx:
            raise InputError(f"tokens: with the cache {longest} positions, and {model.name} has {config.n_ctx}. Shorten the prompt.")
