"""TransformerLens models, processed or not, into attrib's pytree.

A HookedTransformer and a TransformerBridge both give parameters under TransformerLens names, with
heads apart; attrib lays them side by side. Nothing is hooked, run or written.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from attrib.model import MLP, Attention, Block, Model, ModelConfig, Norm, Params, Tokenizer
from attrib.sources.hugging_face import activation, from_hugging_face_tokenizer, model_config
from attrib.types import InputError, UnsupportedError

# Fields of a HookedTransformerConfig that change the computation, with the value that attrib computes.
_USUAL: dict[str, tuple[str, tuple[Any, ...]]] = {
    "attn_only": ("models without MLPs", (False,)),
    "parallel_attn_mlp": ("attention and MLP in parallel", (False,)),
    "attention_dir": ("attention that is not causal", ("causal",)),
    "use_local_attn": ("local attention", (False,)),
    "window_size": ("sliding-window attention", (None,)),
    "positional_embedding_type": ("other position embeddings than learned and rotary", ("standard", "rotary")),
    "rotary_adjacent_pairs": ("rotary embeddings of adjacent pairs", (False,)),
    "normalization_type": ("other norms than LayerNorm and RMSNorm", ("LN", "LNPre", "RMS", "RMSPre")),
    "use_normalization_before_and_after": ("norms after attention and MLP", (False,)),
    "post_embedding_ln": ("a norm after the embedding", (False,)),
    "use_qk_norm": ("norms on queries and keys", (False,)),
    "attn_scores_soft_cap": ("soft caps on attention scores", (None, -1.0, 0.0)),
    "output_logits_soft_cap": ("soft caps on logits", (None, -1.0, 0.0)),
    "num_experts": ("mixtures of experts", (None,)),
    "scale_attn_by_inverse_layer_idx": ("attention scaled by the layer number", (False,)),
    "use_attention_sinks": ("attention sinks", (False,)),
    "use_logn_attn": ("attention scaled by the logarithm of the position", (False,)),
    "clip_qkv": ("clipped queries, keys and values", (None,)),
    "use_dynamic_ntk_rope": ("rotary tables that depend on the prompt's length", (False,)),
    "final_rms": ("a final RMSNorm after LayerNorms", (False,)),
    "load_in_4bit": ("4-bit weights", (False,)),
}

# Architectures that TransformerLens computes in another order, told apart by their name alone.
_OTHER_ORDER = {
    "OlmoeForCausalLM": "norms on queries and keys",
    "Olmo2ForCausalLM": "norms after attention and MLP",
    "Olmo3ForCausalLM": "norms after attention and MLP",
}


def from_transformer_lens(model: Any, *, name: str | None = None) -> Model:
    """attrib's model from a HookedTransformer or a TransformerBridge, which is left as it is.

    Weights come over as they stand: folded, centred or raw. Logits equal the model's own.

    Raises:
        UnsupportedError: for a feature that attrib does not compute, by name.
    """
    is_bridge = hasattr(model, "original_model") and hasattr(model, "tl_parameters")
    if not is_bridge and not (hasattr(model, "cfg") and hasattr(model, "blocks")):
        raise InputError(
            f"model: expected a HookedTransformer or a TransformerBridge, got {type(model).__name__}. "
            "For a transformers model use from_hugging_face."
        )
    if is_bridge and not hasattr(model.original_model, "config"):
        raise UnsupportedError(
            f"{type(model.original_model).__name__} in a TransformerBridge: attrib reads bridges over transformers models only."
        )
    config = model_config(model.original_model.config) if is_bridge else _hooked_config(model.cfg)
    state = {key: value.detach() for key, value in (model.tl_parameters() if is_bridge else model.state_dict()).items()}
    if config.gated and not is_bridge:
        state = _without_gated_bias(state, config)
    rotary = (state["embed.W_E"].new_zeros(0, 0, 0),) * 2
    if config.positions == "rotary":
        rotary = _bridge_rotary(model, config) if is_bridge else _hooked_rotary(model)
    tokenizer = None if getattr(model, "tokenizer", None) is None else _tokenizer(model)
    return Model(_params(state, config, *rotary), config, name or model.cfg.model_name, tokenizer)


def _params(state: Mapping[str, Tensor], config: ModelConfig, cos: Tensor, sin: Tensor) -> Params:
    W_E = state["embed.W_E"]
    ones, zeros = W_E.new_ones(config.d_model), W_E.new_zeros(config.d_model)

    def norm(at: str) -> Norm:
        return Norm(state.get(f"{at}.w", ones), state.get(f"{at}.b", zeros))

    def columns(at: str, every: int = 1) -> Tensor:
        """[heads, d_model, d_head] as [d_model, heads · d_head], of every so many heads."""
        return rearrange(state[at][::every], "heads d_model d_head -> d_model (heads d_head)")

    def key_heads(at: str, part: str) -> tuple[Tensor, Tensor]:
        """Keys or values of grouped queries, once for each group, whether TransformerLens repeats them or not."""
        if f"{at}._W_{part}" in state:
            return columns(f"{at}._W_{part}"), state[f"{at}._b_{part}"].flatten()
        every = config.n_heads // config.n_kv_heads
        return columns(f"{at}.W_{part}", every), state[f"{at}.b_{part}"][::every].flatten()

    def block(i: int) -> Block:
        at = f"blocks.{i}.attn"
        attention = Attention(
            columns(f"{at}.W_Q"), state[f"{at}.b_Q"].flatten(), *key_heads(at, "K"), *key_heads(at, "V"),
            state[f"{at}.W_O"].flatten(0, 1), state[f"{at}.b_O"],
        )  # fmt: skip
        at = f"blocks.{i}.mlp"
        W_in, b_in = state[f"{at}.W_in"], state[f"{at}.b_in"]
        W_gate = state[f"{at}.W_gate"] if config.gated else W_in[:, :0]
        b_gate = state.get(f"{at}.b_gate", b_in.new_zeros(W_gate.shape[1]))
        mlp = MLP(W_in, b_in, W_gate, b_gate, state[f"{at}.W_out"], state[f"{at}.b_out"])
        return Block(norm(f"blocks.{i}.ln1"), attention, norm(f"blocks.{i}.ln2"), mlp)

    W_pos = state["pos_embed.W_pos"] if config.positions == "learned" else W_E[:0]
    blocks = tuple(block(i) for i in range(config.n_layers))
    return Params(W_E, W_pos, cos, sin, blocks, norm("ln_final"), state["unembed.W_U"], state["unembed.b_U"])


def _hooked_config(cfg: Any) -> ModelConfig:
    for field, (feature, usual) in _USUAL.items():
        if (value := getattr(cfg, field, usual[0])) not in usual:
            raise UnsupportedError(f"{cfg.model_name} with {field}={value!r}: attrib does not compute {feature} yet.")
    if cfg.original_architecture in _OTHER_ORDER:
        feature = _OTHER_ORDER[cfg.original_architecture]
        raise UnsupportedError(
            f"{cfg.model_name} with original_architecture={cfg.original_architecture!r}: attrib does not compute {feature} yet."
        )
    return ModelConfig(
        n_layers=cfg.n_layers, d_model=cfg.d_model, n_heads=cfg.n_heads, n_kv_heads=cfg.n_key_value_heads or cfg.n_heads,
        d_head=cfg.d_head, d_mlp=cfg.d_mlp, d_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx,
        norm="layer" if cfg.normalization_type.startswith("LN") else "rms", eps=cfg.eps,
        activation=activation(cfg.act_fn), gated=cfg.gated_mlp,
        positions="rotary" if cfg.positional_embedding_type == "rotary" else "learned",
        attention_scale=1 / (cfg.attn_scale if cfg.attn_scale > 0 else math.sqrt(cfg.d_head)) if cfg.use_attn_scale else 1.0,
    )  # fmt: skip


def _without_gated_bias(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """HookedTransformer adds a gated MLP's `b_in` after the product with the gate, so it is a part of the output's bias."""
    moved = dict(state)
    for i in range(config.n_layers):
        b_in, at = state[f"blocks.{i}.mlp.b_in"], f"blocks.{i}.mlp.b_out"
        if b_in.any():
            moved[at] = state[at] + b_in @ state[f"blocks.{i}.mlp.W_out"]
            moved[f"blocks.{i}.mlp.b_in"] = torch.zeros_like(b_in)
    return moved


def _hooked_rotary(model: Any) -> tuple[Tensor, Tensor]:
    """The model's own tables, or longer ones of the same kind: TransformerLens begins with 2048 positions and adds more on need."""
    attention, cfg = model.blocks[0].attn, model.cfg
    cos, sin = attention.rotary_cos.detach(), attention.rotary_sin.detach()
    if cos.shape[0] < cfg.n_ctx:
        sin, cos = (
            t.to(cos.device) for t in attention.calculate_sin_cos_rotary(cfg.rotary_dim, cfg.n_ctx, base=cfg.rotary_base, dtype=cfg.dtype)
        )
    return cos[None], sin[None]


def _bridge_rotary(model: Any, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """The tables of the transformers module inside the bridge, past its hooks."""
    module = model.original_model.model.rotary_emb
    module = getattr(module, "_original_component", module)
    cos, sin = module(next(model.original_model.parameters()).detach(), torch.arange(config.n_ctx)[None])
    return cos, sin


def _tokenizer(model: Any) -> Tokenizer:
    """The model's tokenizer, with the beginning-of-sequence token that TransformerLens would put first."""
    tokenizer = from_hugging_face_tokenizer(model.tokenizer)
    bos = model.tokenizer.bos_token_id if model.cfg.default_prepend_bos else None
    return replace(tokenizer, bos=bos)
