"""Attention head by head: patterns, what each head adds to the stream, and its weights.

A model stores queries of all heads side by side, and keys and values once for each group of heads that shares them. Here every
array has one entry for each of the model's n_heads, in the model's order: head h reads the keys and values h // group.
"""

from collections.abc import Iterable
from typing import NamedTuple

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from attrib.adapters.given import as_model, takes
from attrib.core.shown import in_one_line
from attrib.core.types import EXACT, InputError, Policy, Site
from attrib.models.tokens import TokensLike
from attrib.models.transformer import Model, Stream, centres, enter, heads, pattern_of, rms
from attrib.passes.capture import Edits, capture, check_value

Layers = int | Iterable[int] | None
"""A layer, several, or all of them."""


@in_one_line
class AttentionHeads(NamedTuple):
    """What the heads of one layer compute of a stream.

    `query` and `key` are those whose products are the scores: behind the norms and the rotation that some families have.
    `pattern[..., q, k]` is how much position q takes from position k: rows sum to 1, and are 0 where k is behind q (in causal
    attention) or outside the layer's window. `z = pattern @ value`, which the site of that name holds side by side.
    """

    query: Float[Tensor, "*batch heads positions d_head"]
    key: Float[Tensor, "*batch heads positions d_head"]
    value: Float[Tensor, "*batch heads positions d_head"]
    pattern: Float[Tensor, "*batch heads positions positions"]
    z: Float[Tensor, "*batch heads positions d_head"]


@in_one_line
class HeadWeights(NamedTuple):
    """One layer's matrices, head by head.

    Queries, keys and values are read from the normed stream, whose norm keeps its own weights unless the model was loaded with them
    folded. `W_V[h] @ W_O[h]` is what head h moves from one position to another; `b_O` belongs to no head.
    """

    W_Q: Float[Tensor, "heads d_model d_head"]
    b_Q: Float[Tensor, "heads d_head"]
    W_K: Float[Tensor, "heads d_model d_head"]
    b_K: Float[Tensor, "heads d_head"]
    W_V: Float[Tensor, "heads d_model d_head"]
    b_V: Float[Tensor, "heads d_head"]
    W_O: Float[Tensor, "heads d_head d_model"]
    b_O: Float[Tensor, " d_model"]


@takes(model=as_model)
def attention_heads(model: Model, layer: int, x: Stream, *, policy: Policy = EXACT) -> AttentionHeads:
    """Queries, keys, values, pattern and output of every head of a layer, from the stream `x` at its `resid_pre`.

    A pure function of `x`, for every transform of torch.func. What head h takes to position q from position k is
    `pattern[h, q, k] * value[h, k]`: direct attribution by source position is one product with it.

    Args:
        x: [*batch, positions, d_model], as `attrib.capture` gives it at "blocks.{layer}.hook_resid_pre".
        policy: frozen attention holds the pattern, a frozen norm its denominator.

    Raises:
        InputError: for a layer that the model does not have, or a stream of another width, dtype or device.
    """
    layer = _layer(model, layer)
    check_value(model, Site(layer, "resid_pre"), x, "x")
    q, k, v = heads(model, layer, enter(model.config, model.params.blocks[layer].norm_1, x, policy), policy)
    pattern = pattern_of(model, layer, q, k)
    if policy.attention == "frozen":
        pattern = pattern.detach()
    key, value = (part.repeat_interleave(q.shape[-3], dim=-3) for part in (k, v))
    query, pattern = q.flatten(-4, -3), pattern.flatten(-4, -3)
    return AttentionHeads(query, key, value, pattern, pattern @ value)


@takes(model=as_model)
def attention_patterns(
    model: Model, tokens: TokensLike, layers: Layers = None, *, put: Edits | None = None
) -> dict[int, Float[Tensor, "*batch heads positions positions"]]:
    """Attention patterns by layer: [..., head, query position, key position], rows summing to 1.

    Args:
        tokens: as `attrib.capture` takes them; one prompt gives [heads, positions, positions].
        layers: a layer, several, or None for all.
        put: by site, what stands there in place of the model's own value, as `attrib.walk` takes it: patterns under an ablation,
            or behind a dictionary's reconstruction.

    Raises:
        InputError: for a layer that the model does not have, and as `attrib.capture`.
    """
    sites = {layer: Site(layer, "resid_pre") for layer in _layers(model, layers)}
    streams = capture(model, tokens, sites.values(), put=put)
    return {layer: attention_heads(model, layer, streams[site]).pattern for layer, site in sites.items()}


@takes(model=as_model)
def head_outputs(
    model: Model, tokens: TokensLike, layers: Layers = None, *, put: Edits | None = None
) -> dict[int, Float[Tensor, "*batch heads positions d_model"]]:
    """What each head adds to the residual stream, by layer: [..., head, position, d_model].

    The sum over heads, and the biases that belong to no head (`b_O`, and that of a norm behind it), is `attn_out`. Families that norm
    what attention writes divide by one denominator for all heads: each head's share is divided by that, so that the sum holds.

    Args:
        tokens, layers, put: as `attention_patterns`. A result is n_heads times as large as the stream.

    Raises:
        InputError: as `attention_patterns`.
    """
    sites = {layer: Site(layer, "z") for layer in _layers(model, layers)}
    found = capture(model, tokens, sites.values(), put=put)
    return {layer: _written_by_head(model, layer, found[site]) for layer, site in sites.items()}


@takes(model=as_model)
def head_weights(model: Model, layer: int) -> HeadWeights:
    """The matrices of every head of a layer. Raises InputError for a layer that the model does not have."""
    layer, config = _layer(model, layer), model.config
    p, group = model.params.blocks[layer].attention, config.n_heads // config.n_kv_heads

    def apart(part: Tensor, times: int) -> Tensor:
        return rearrange(part, "... (heads d) -> heads ... d", d=config.d_head).repeat_interleave(times, dim=0)

    return HeadWeights(
        apart(p.W_Q, 1), apart(p.b_Q, 1), apart(p.W_K, group), apart(p.b_K, group), apart(p.W_V, group), apart(p.b_V, group),
        rearrange(p.W_O, "(heads d) m -> heads d m", d=config.d_head), p.b_O,
    )  # fmt: skip


def _written_by_head(model: Model, layer: int, z: Float[Tensor, "*batch positions d_q"]) -> Float[Tensor, "*batch heads positions d_model"]:
    config, block = model.config, model.params.blocks[layer]
    W_O = head_weights(model, layer).W_O
    written = einsum(rearrange(z, "... t (h d) -> ... h t d", h=len(W_O)), W_O, "... h t d, h d m -> ... h t m")
    if not config.post_norm:
        return written
    # attn_out = norm(Σ_h written_h + b_O): with its denominator held, the norm is linear, and each head has its share
    whole = z @ block.attention.W_O + block.attention.b_O
    if centres(config):
        whole, written = (part - part.mean(-1, keepdim=True) for part in (whole, written))
    return written / rms(config, whole)[..., None, :, :] * block.post_1.weight


def _layers(model: Model, layers: Layers) -> list[int]:
    if layers is None:
        return list(range(model.config.n_layers))
    return [_layer(model, layer) for layer in (layers if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers])]


def _layer(model: Model, layer: int) -> int:
    """A layer that the model has, from what Python takes as an index."""
    count = model.config.n_layers
    if isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < count:
        return layer
    raise InputError(f"layer: {layer!r}; expected a whole number from 0 to {count - 1}, as {model.name} has layers.")
