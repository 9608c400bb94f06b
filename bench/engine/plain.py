"""A transformer and its dictionaries written plainly from their parameters, for one prompt: no engine, no sharing.

    mid  = x + attention(norm(x)),    post = mid + mlp(norm(mid)),    logits = norm(x) W_U + b_U
    b    = act((x - b_dec) W_enc + b_enc),    x^ = b W_dec + b_dec,   both dense over the dictionary

It is what the notebook calls a model and an SAE for, and an independent check of attrib's own functions:
only the containers of the parameters are attrib's. Under LINEAR the attention patterns and the norms'
denominators are detached.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from attrib.core.types import Policy, UnsupportedError
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Activation, Model, Norm

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def embed(model: Model, tokens: Int[Tensor, " positions"]) -> Float[Tensor, "positions d_model"]:
    """The stream before layer 0."""
    x = model.params.W_E[tokens]
    return x + model.params.W_pos[: len(tokens)] if model.config.positions == "learned" else x


def norm(model: Model, p: Norm, x: Float[Tensor, "positions d_model"], policy: Policy) -> Float[Tensor, "positions d_model"]:
    """LayerNorm or RMSNorm."""
    if model.config.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    size = torch.sqrt(x.square().mean(-1, keepdim=True) + model.config.eps)
    return x / (size.detach() if policy.norm == "frozen" else size) * p.weight + p.bias


def rotate(model: Model, x: Float[Tensor, "heads positions d_head"]) -> Float[Tensor, "heads positions d_head"]:
    """Rotary embedding of the whole head: its halves are the two coordinates that turn."""
    cos, sin = model.params.rotary_cos[0, : x.shape[1]], model.params.rotary_sin[0, : x.shape[1]]
    left, right = x.tensor_split(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def attention(model: Model, layer: int, x: Float[Tensor, "positions d_model"], policy: Policy) -> Float[Tensor, "positions d_model"]:
    """Causal softmax attention; keys and values of grouped heads are repeated."""
    p, c, positions = model.params.blocks[layer].attention, model.config, len(x)
    group = c.n_heads // c.n_kv_heads
    q = (x @ p.W_Q + p.b_Q).view(positions, c.n_heads, c.d_head).transpose(0, 1)
    k = (x @ p.W_K + p.b_K).view(positions, c.n_kv_heads, c.d_head).transpose(0, 1)
    v = (x @ p.W_V + p.b_V).view(positions, c.n_kv_heads, c.d_head).transpose(0, 1).repeat_interleave(group, 0)
    if c.positions == "rotary":
        q, k = rotate(model, q), rotate(model, k)
    mask = torch.full((positions, positions), -math.inf, device=x.device, dtype=x.dtype).triu(1)
    pattern = torch.softmax(q @ k.repeat_interleave(group, 0).transpose(1, 2) * c.attention_scale + mask, -1)
    if policy.attention == "frozen":
        pattern = pattern.detach()
    return (pattern @ v).transpose(0, 1).reshape(positions, -1) @ p.W_O + p.b_O


def mlp(model: Model, layer: int, x: Float[Tensor, "positions d_model"]) -> Float[Tensor, "positions d_model"]:
    """The MLP, gated or not."""
    p, act = model.params.blocks[layer].mlp, ACTIVATIONS[model.config.activation]
    inner = x @ p.W_in + p.b_in
    inner = act(x @ p.W_gate + p.b_gate) * inner if model.config.gated else act(inner)
    return inner @ p.W_out + p.b_out


def forward(
    model: Model, x: Float[Tensor, "positions d_model"], first: int, stop: int, policy: Policy
) -> Float[Tensor, "positions d_model"]:
    """The stream before layer `stop` from that before layer `first`: the notebook's start_at_layer and stop_at_layer."""
    for layer in range(first, stop):
        block = model.params.blocks[layer]
        x = x + attention(model, layer, norm(model, block.norm_1, x, policy), policy)
        x = x + mlp(model, layer, norm(model, block.norm_2, x, policy))
    return x


def unembed(model: Model, x: Float[Tensor, "positions d_model"], policy: Policy) -> Float[Tensor, "positions d_vocab"]:
    """The whole vocabulary's logits at every position, as a model's forward gives them."""
    return norm(model, model.params.norm_final, x, policy) @ model.params.W_U + model.params.b_U


def encode(dictionary: Dictionary, x: Float[Tensor, "positions d_in"]) -> Float[Tensor, "positions d_sae"]:
    """Every latent at every position."""
    p, config = dictionary.params, dictionary.config
    if config.normalisation != "none":
        raise UnsupportedError(f"the notebook recipe of the bench: {dictionary.name} normalises its input ({config.normalisation}).")
    pre = (x - p.b_dec if config.apply_b_dec_to_input else x) @ p.W_enc + p.b_enc
    return torch.relu(pre) * passes(dictionary, pre.detach())


def passes(dictionary: Dictionary, pre: Float[Tensor, "positions d_sae"]) -> Bool[Tensor, "positions d_sae"]:
    """Which latents the rule lets through, beside the ReLU: the largest k, or those above the threshold."""
    if dictionary.config.rule == "topk":
        return torch.zeros_like(pre, dtype=torch.bool).scatter(-1, pre.topk(dictionary.config.k or 0, dim=-1).indices, True)
    return pre > dictionary.params.threshold


def decode(dictionary: Dictionary, latents: Float[Tensor, "positions d_sae"]) -> Float[Tensor, "positions d_out"]:
    """The reconstruction from every latent, zero or not."""
    return latents @ dictionary.params.W_dec + dictionary.params.b_dec
