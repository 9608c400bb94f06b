"""GPT-2 and its kin: LayerNorm and plain MLPs, with learned positions (GPT-2, GPT-Neo, OPT) or partly rotary heads
(GPT-NeoX, GPT-J, Phi), and often attention and MLP side by side.

GPT-J and Phi norm once for both; attrib's second norm is then the first. GPT-J turns neighbouring pairs of a head,
(x_0, x_1), (x_2, x_3), ...; attrib turns halves. With the columns of W_Q and W_K taken in the order 0, 2, ..., 1, 3, ...
the pairs are halves, and since both are permuted alike, q · k is the same sum.
"""

from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from attrib.adapters.models.families.family import Family, Places, activation, check_rope, head_size, windows_of
from attrib.adapters.models.families.weights import Rotary, Weights
from attrib.core.types import UnsupportedError
from attrib.models.transformer import MLP, Attention, Block, ModelConfig, Norm, Params


def _plain_mlp(into: tuple[Tensor, Tensor], out_of: tuple[Tensor, Tensor]) -> MLP:
    W_in, b_in = into
    return MLP(W_in, b_in, W_in[:, :0], b_in[:0], *out_of)


# ------------------------------------------------------------------------------------------------ GPT-2


def _gpt2(config: Any) -> ModelConfig:
    return ModelConfig(
        n_layers=config.n_layer, d_model=config.n_embd, n_heads=config.n_head, n_kv_heads=config.n_head,
        d_head=config.n_embd // config.n_head, d_mlp=config.n_inner or 4 * config.n_embd,
        d_vocab=config.vocab_size, n_ctx=config.n_positions, norm="layer", eps=config.layer_norm_epsilon,
        activation=activation(config.activation_function), gated=False, positions="learned",
        attention_scale=(config.n_embd // config.n_head) ** -0.5,
    )  # fmt: skip


def _gpt2_params(weights: Weights, config: Any, facts: ModelConfig, rotary: Rotary) -> Params:
    def conv(name: str) -> tuple[Tensor, Tensor]:
        return weights(f"{name}.weight"), weights(f"{name}.bias")  # Conv1D: already [in, out]

    def block(i: int) -> Block:
        at = f"transformer.h.{i}"
        weight, bias = conv(f"{at}.attn.c_attn")
        (W_Q, W_K, W_V), (b_Q, b_K, b_V) = weight.chunk(3, dim=1), bias.chunk(3)
        attention = Attention(W_Q, b_Q, W_K, b_K, W_V, b_V, *conv(f"{at}.attn.c_proj"))
        mlp = _plain_mlp(conv(f"{at}.mlp.c_fc"), conv(f"{at}.mlp.c_proj"))
        return Block(weights.layer_norm(f"{at}.ln_1"), attention, weights.layer_norm(f"{at}.ln_2"), mlp)

    W_pos = weights("transformer.wpe.weight")
    return weights.params(facts, rotary, block, "transformer.wte", lambda: weights.layer_norm("transformer.ln_f"), W_pos)


# ---------------------------------------------------------------------------------------------- GPT-Neo


def _gpt_neo(config: Any) -> ModelConfig:
    sizes = [config.window_size if kind == "local" else None for kind in config.attention_layers]
    return ModelConfig(
        n_layers=config.num_layers, d_model=config.hidden_size, n_heads=config.num_heads, n_kv_heads=config.num_heads,
        d_head=config.hidden_size // config.num_heads, d_mlp=config.intermediate_size or 4 * config.hidden_size,
        d_vocab=config.vocab_size, n_ctx=config.max_position_embeddings, norm="layer", eps=config.layer_norm_epsilon,
        activation=activation(config.activation_function), gated=False, positions="learned", attention_scale=1.0,
        windows=windows_of(sizes, config.max_position_embeddings),
    )  # fmt: skip


def _gpt_neo_params(weights: Weights, config: Any, facts: ModelConfig, rotary: Rotary) -> Params:
    def block(i: int) -> Block:
        at = f"transformer.h.{i}"
        attention = Attention(*(t for part in ("q", "k", "v", "out") for t in weights.linear(f"{at}.attn.attention.{part}_proj")))
        mlp = _plain_mlp(weights.linear(f"{at}.mlp.c_fc"), weights.linear(f"{at}.mlp.c_proj"))
        return Block(weights.layer_norm(f"{at}.ln_1"), attention, weights.layer_norm(f"{at}.ln_2"), mlp)

    W_pos = weights("transformer.wpe.weight")
    return weights.params(facts, rotary, block, "transformer.wte", lambda: weights.layer_norm("transformer.ln_f"), W_pos)


# ------------------------------------------------------------------------------------------------ GPT-J


def _gptj(config: Any) -> ModelConfig:
    if not config.rotary_dim or config.rotary_dim not in range(2, config.n_embd // config.n_head + 1, 2):
        raise UnsupportedError(f"gptj with rotary_dim={config.rotary_dim!r}: attrib computes heads of which a stated, even part is rotary.")
    return replace(_gpt2(config), positions="rotary", parallel=True)


def pairs_as_halves(weight: Tensor, n_heads: int, d_rotary: int) -> Tensor:
    """Columns [heads · d_head], in each head the rotary ones reordered from neighbouring pairs to halves."""
    d_head = weight.shape[-1] // n_heads
    order = torch.cat([torch.arange(0, d_rotary, 2), torch.arange(1, d_rotary, 2), torch.arange(d_rotary, d_head)])
    heads = rearrange(weight, "... (heads d) -> ... heads d", heads=n_heads)
    return rearrange(heads[..., order.to(weight.device)], "... heads d -> ... (heads d)")


def _gptj_params(weights: Weights, config: Any, facts: ModelConfig, rotary: Rotary) -> Params:
    def block(i: int) -> Block:
        at = f"transformer.h.{i}"
        (W_Q, b_Q), (W_K, b_K), v, out = (weights.linear(f"{at}.attn.{part}_proj") for part in ("q", "k", "v", "out"))
        W_Q, b_Q, W_K, b_K = (pairs_as_halves(t, facts.n_heads, config.rotary_dim) for t in (W_Q, b_Q, W_K, b_K))
        mlp = _plain_mlp(weights.linear(f"{at}.mlp.fc_in"), weights.linear(f"{at}.mlp.fc_out"))
        norm = weights.layer_norm(f"{at}.ln_1")
        return Block(norm, Attention(W_Q, b_Q, W_K, b_K, *v, *out), norm, mlp)

    return weights.params(facts, rotary, block, "transformer.wte", lambda: weights.layer_norm("transformer.ln_f"))


# --------------------------------------------------------------------------------------- GPT-NeoX, Phi


def _gpt_neox(config: Any) -> ModelConfig:
    return _partly_rotary(config, config.hidden_size // config.num_attention_heads, parallel=config.use_parallel_residual)


def _phi(config: Any) -> ModelConfig:
    return _partly_rotary(config, head_size(config), parallel=True)


def _partly_rotary(config: Any, d_head: int, *, parallel: bool) -> ModelConfig:
    """What both say under the same names."""
    check_rope(config)
    return ModelConfig(
        n_layers=config.num_hidden_layers, d_model=config.hidden_size, n_heads=config.num_attention_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads, d_head=d_head,
        d_mlp=config.intermediate_size, d_vocab=config.vocab_size, n_ctx=config.max_position_embeddings,
        norm="layer", eps=config.layer_norm_eps, activation=activation(config.hidden_act), gated=False,
        positions="rotary", attention_scale=d_head**-0.5, parallel=parallel,
    )  # fmt: skip


def _gpt_neox_params(weights: Weights, config: Any, facts: ModelConfig, rotary: Rotary) -> Params:
    def block(i: int) -> Block:
        at = f"gpt_neox.layers.{i}"
        # a head's query, key and value lie side by side, then come the next head's
        fused = (
            rearrange(t, "... (heads part d) -> part ... (heads d)", heads=facts.n_heads, part=3)
            for t in weights.linear(f"{at}.attention.query_key_value")
        )
        (W_Q, W_K, W_V), (b_Q, b_K, b_V) = fused
        attention = Attention(W_Q, b_Q, W_K, b_K, W_V, b_V, *weights.linear(f"{at}.attention.dense"))
        mlp = _plain_mlp(weights.linear(f"{at}.mlp.dense_h_to_4h"), weights.linear(f"{at}.mlp.dense_4h_to_h"))
        norm_2 = weights.layer_norm(f"{at}.post_attention_layernorm")  # its name, also where it reads what attention reads
        return Block(weights.layer_norm(f"{at}.input_layernorm"), attention, norm_2, mlp)

    return weights.params(facts, rotary, block, "gpt_neox.embed_in", lambda: weights.layer_norm("gpt_neox.final_layer_norm"))


def _phi_params(weights: Weights, config: Any, facts: ModelConfig, rotary: Rotary) -> Params:
    def block(i: int) -> Block:
        at = f"model.layers.{i}"
        parts = ("q_proj", "k_proj", "v_proj", "dense")
        attention = Attention(*(t for part in parts for t in weights.linear(f"{at}.self_attn.{part}")))
        mlp = _plain_mlp(weights.linear(f"{at}.mlp.fc1"), weights.linear(f"{at}.mlp.fc2"))
        norm = weights.layer_norm(f"{at}.input_layernorm")
        return Block(norm, attention, norm, mlp)

    return weights.params(facts, rotary, block, "model.embed_tokens", lambda: weights.layer_norm("model.final_layernorm"))


# -------------------------------------------------------------------------------------------------- OPT

OPT_OFFSET = 2
"""OPT's position table begins with rows that no prompt without padding reads."""


def _opt(config: Any) -> ModelConfig:
    if config.word_embed_proj_dim != config.hidden_size:
        raise UnsupportedError(
            f"opt with word_embed_proj_dim={config.word_embed_proj_dim!r} and hidden_size={config.hidden_size!r}: "
            "attrib does not compute projections between embeddings and the stream yet."
        )
    d_head = config.hidden_size // config.num_attention_heads
    return ModelConfig(
        n_layers=config.num_hidden_layers, d_model=config.hidden_size, n_heads=config.num_attention_heads,
        n_kv_heads=config.num_attention_heads, d_head=d_head, d_mlp=config.ffn_dim, d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings, norm="layer", eps=1e-5, activation=activation(config.activation_function),
        gated=False, positions="learned", attention_scale=d_head**-0.5,
    )  # fmt: skip


def _opt_params(weights: Weights, config: Any, facts: ModelConfig, rotary: Rotary) -> Params:
    affine = {"affine": config.layer_norm_elementwise_affine, "width": facts.d_model}

    def block(i: int) -> Block:
        at = f"model.decoder.layers.{i}"
        attention = Attention(*(t for part in ("q", "k", "v", "out") for t in weights.linear(f"{at}.self_attn.{part}_proj")))
        mlp = _plain_mlp(weights.linear(f"{at}.fc1"), weights.linear(f"{at}.fc2"))
        norm_1 = weights.layer_norm(f"{at}.self_attn_layer_norm", **affine)
        return Block(norm_1, attention, weights.layer_norm(f"{at}.final_layer_norm", **affine), mlp)

    def final() -> Norm:
        return weights.layer_norm("model.decoder.final_layer_norm", **affine)

    W_pos = weights("model.decoder.embed_positions.weight")[OPT_OFFSET:]
    return weights.params(facts, rotary, block, "model.decoder.embed_tokens", final, W_pos)


# ------------------------------------------------------------------------------------------------ table


def _gpt_neox_places(config: Any) -> Places:
    mid = "" if config.use_parallel_residual else "post_attention_layernorm"
    return Places("gpt_neox.layers", "attention.dense", "attention.dense", mid, "mlp", "mlp")


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        _gpt2,
        _gpt2_params,
        lambda config: Places("transformer.h", "attn.c_proj", "attn.c_proj", "ln_2", "mlp", "mlp"),
        refuse={
            "scale_attn_by_inverse_layer_idx": ("attention scaled by the layer number", (False,)),
            "scale_attn_weights": ("unscaled attention", (True,)),
        },
        buffers=(r".*\.attn\.(masked_)?bias",),
    ),
    "gpt_neo": Family(
        _gpt_neo,
        _gpt_neo_params,
        lambda config: Places("transformer.h", "attn.attention.out_proj", "attn.attention.out_proj", "ln_2", "mlp", "mlp"),
        buffers=(r".*\.attn\.attention\.(masked_)?bias",),
    ),
    "gptj": Family(
        _gptj,
        _gptj_params,
        lambda config: Places("transformer.h", "attn.out_proj", "attn.out_proj", "", "mlp", "mlp"),
        rotary="transformer.rotary_emb.embed_positions|transformer.h.0.attn.embed_positions",  # the first from transformers 5.24 on
        buffers=(r".*\.attn\.(masked_)?bias", r".*\.(attn|rotary_emb)\.embed_positions"),
    ),
    "gpt_neox": Family(
        _gpt_neox,
        _gpt_neox_params,
        _gpt_neox_places,
        rotary="gpt_neox.rotary_emb",
        buffers=(r".*rotary_emb\..*inv_freq", r".*\.attention\.(masked_)?bias"),
    ),
    "phi": Family(
        _phi,
        _phi_params,
        lambda config: Places("model.layers", "self_attn.dense", "self_attn.dense", "", "mlp", "mlp"),
        rotary="model.rotary_emb",
        refuse={"qk_layernorm": ("LayerNorms on queries and keys", (False,))},
    ),
    "opt": Family(
        _opt,
        _opt_params,
        lambda config: Places("model.decoder.layers", "self_attn.out_proj", "self_attn.out_proj", "final_layer_norm", "fc1", "fc2"),
        refuse={
            "do_layer_norm_before": ("norms after the stream is added to", (True,)),
            "_remove_final_layer_norm": ("a model without its last norm", (False,)),
        },
    ),
}
