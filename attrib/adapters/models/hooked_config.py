"""What a HookedTransformer's config says, in attrib's terms, and what is refused.

Every field of a HookedTransformerConfig stands in one of three tables: it is read, it changes no number, or attrib
computes only its usual values. A field in none of them may have its default value alone, so that a newer
TransformerLens cannot bring in a feature that attrib would pass over in silence.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from attrib.adapters.models.hugging_face import activation
from attrib.core.types import UnsupportedError
from attrib.models.transformer import ModelConfig

READ = {
    "d_model", "d_head", "n_layers", "n_ctx", "n_heads", "d_mlp", "d_vocab", "n_key_value_heads", "positional_embedding_type",
    "gated_mlp", "eps", "act_fn", "normalization_type", "model_name", "default_prepend_bos", "parallel_attn_mlp", "rotary_dim",
    "use_attn_scale", "attn_scale", "scale_attn_by_inverse_layer_idx", "use_qk_norm", "use_local_attn", "attn_types", "window_size",
    "rotary_adjacent_pairs", "use_normalization_before_and_after", "attn_scores_soft_cap", "output_logits_soft_cap",
    "original_architecture", "attn_only", "attention_dir", "use_logn_attn", "use_dynamic_ntk_rope", "train_seq_length", "final_rms",
    # these reach attrib through the model's own rotary tables
    "rotary_base", "rotary_base_local", "rotary_scaling_factor", "use_NTK_by_parts_rope", "NTK_by_parts_low_freq_factor",
    "NTK_by_parts_high_freq_factor", "NTK_by_parts_factor", "NTK_original_ctx_len", "use_yarn_rope", "yarn_factor",
    "yarn_attention_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_original_max_position_embeddings", "yarn_truncate",
    "yarn_global_attn_only",
}  # fmt: skip
"""Fields that attrib takes a fact from, or checks beside another."""

HARMLESS = {
    # where the model came from and how it began
    "from_checkpoint", "checkpoint_index", "checkpoint_label_type", "checkpoint_value", "tokenizer_name", "tokenizer_prepends_bos",
    "trust_remote_code", "init_mode", "init_weights", "initializer_range", "seed", "n_params", "tie_word_embeddings",
    # where it lies; attrib takes tensors as they are
    "device", "dtype",
    # which values can be hooked, not what they are
    "use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in", "use_hook_tokens", "ungroup_grouped_query_attention",
    # read by bridges alone
    "uses_rms_norm", "layer_norm_folding",
    # parts of features that are refused themselves: mixtures of experts, T5
    "norm_topk_prob", "experts_per_token", "relative_attention_max_distance", "relative_attention_num_buckets", "decoder_start_token_id",
}  # fmt: skip
"""Fields that change no number of the forward pass, alone."""


def _is(*usual: Any) -> Callable[[Any, Any], bool]:
    return lambda value, cfg: value in usual


REFUSED: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "post_embedding_ln": ("a norm after the embedding", _is(False)),
    "num_experts": ("mixtures of experts", _is(None, 0)),
    "use_attention_sinks": ("attention sinks", _is(False)),
    "clip_qkv": ("clipped queries, keys and values", _is(None)),
    "load_in_4bit": ("4-bit weights", _is(False)),
    "quantization_method": ("quantized weights", _is(None)),
    "n_devices": ("models spread over several devices", _is(1)),
    "d_vocab_out": ("another vocabulary for outputs than for inputs", lambda value, cfg: value in (-1, cfg.d_vocab)),
}
"""Fields of which attrib computes the usual values only: the feature's name, and what is usual."""

# Checks of fields in READ that attrib takes some values of.
_PARTLY: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "positional_embedding_type": ("other position embeddings than learned and rotary", _is("standard", "rotary")),
    "normalization_type": ("other norms than LayerNorm and RMSNorm", _is("LN", "LNPre", "RMS", "RMSPre", None)),
    "attention_dir": ("other attention than causal and bidirectional", _is("causal", "bidirectional")),
    "use_local_attn": (  # TransformerLens masks nothing there, and so has no windows either
        "windows of attention that is not causal",
        lambda value, cfg: not value or cfg.attention_dir == "causal",
    ),
    "use_normalization_before_and_after": (
        "norms behind components in a model without norms",
        lambda value, cfg: not value or cfg.normalization_type is not None,
    ),
    "final_rms": ("a final RMSNorm after LayerNorms", lambda value, cfg: not value or cfg.normalization_type in ("RMS", "RMSPre")),
    "use_logn_attn": ("attention scaled by the logarithm of the position", lambda value, cfg: not value or _within_training(cfg)),
    "use_dynamic_ntk_rope": (
        "rotary tables that depend on the prompt's length",
        lambda value, cfg: not value or _within_training(cfg),
    ),
}

# TransformerLens tells these apart by the architecture's name alone.
_NORMS_AFTER = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")
_HEADS_NORMED_TOGETHER = ("OlmoeForCausalLM", *_NORMS_AFTER)


def _within_training(cfg: Any) -> bool:
    """Whether every prompt that fits is as short as those of training, where these features do nothing."""
    return bool(cfg.n_ctx <= (cfg.train_seq_length or cfg.n_ctx))


def refuse_unknown(cfg: Any) -> None:
    """Raise UnsupportedError, naming the field, for whatever a HookedTransformerConfig asks beyond attrib."""
    for field, (feature, is_usual) in (REFUSED | _PARTLY).items():
        if hasattr(cfg, field) and not is_usual(value := getattr(cfg, field), cfg):
            raise UnsupportedError(f"{cfg.model_name} with {field}={value!r}: attrib does not compute {feature} yet.")
    if cfg.original_architecture in _HEADS_NORMED_TOGETHER and cfg.use_qk_norm:
        raise UnsupportedError(
            f"{cfg.model_name} with use_qk_norm=True: {cfg.original_architecture} has norms on queries and keys already."
        )
    if cfg.original_architecture in _NORMS_AFTER and (cfg.parallel_attn_mlp or cfg.use_normalization_before_and_after):
        field = "parallel_attn_mlp" if cfg.parallel_attn_mlp else "use_normalization_before_and_after"
        raise UnsupportedError(f"{cfg.model_name} with {field}=True: attrib does not compute it in {cfg.original_architecture} yet.")
    for fact in dataclasses.fields(cfg):
        if fact.name in READ | HARMLESS | REFUSED.keys():
            continue
        default = fact.default_factory() if callable(fact.default_factory) else fact.default
        if (value := getattr(cfg, fact.name, default)) != default:
            raise UnsupportedError(
                f"{cfg.model_name} with {fact.name}={value!r}: attrib does not know this field of TransformerLens' config. "
                f"Models in which it is {default!r} can be read."
            )


def hooked_config(cfg: Any) -> ModelConfig:
    """Static facts from a HookedTransformerConfig.

    Windows and soft caps mean the same in both. Which rotary table a layer uses is left to whoever reads the tables.

    Raises:
        UnsupportedError: for a feature that attrib does not compute, by name.
    """
    refuse_unknown(cfg)
    norms_after, has_norms, has_mlps = cfg.original_architecture in _NORMS_AFTER, cfg.normalization_type is not None, not cfg.attn_only
    windows: tuple[int | None, ...] = ()
    if cfg.use_local_attn:
        windows = tuple(cfg.window_size if kind == "local" else None for kind in cfg.attn_types[: cfg.n_layers])
    return ModelConfig(
        n_layers=cfg.n_layers, d_model=cfg.d_model, n_heads=cfg.n_heads, n_kv_heads=cfg.n_key_value_heads or cfg.n_heads,
        d_head=cfg.d_head, d_mlp=cfg.d_mlp if has_mlps else 0, d_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx,
        norm="none" if not has_norms else "layer" if cfg.normalization_type.startswith("LN") else "rms", eps=cfg.eps,
        # TransformerLens' gelu_fast writes out the constant that gelu_new computes; without MLPs nothing is activated
        activation=activation("gelu_new" if cfg.act_fn == "gelu_fast" else cfg.act_fn) if has_mlps else "relu",
        gated=cfg.gated_mlp and has_mlps,
        positions="rotary" if cfg.positional_embedding_type == "rotary" else "learned",
        attention_scale=1 / cfg.attn_scale if cfg.use_attn_scale else 1.0,
        parallel=cfg.parallel_attn_mlp and has_mlps,
        pre_norm=has_norms and not norms_after, post_norm=norms_after or cfg.use_normalization_before_and_after,
        qk_norm="head" if cfg.use_qk_norm else "whole" if cfg.original_architecture in _HEADS_NORMED_TOGETHER else "none",
        windows=windows if any(window is not None for window in windows) else (),
        score_cap=_cap(cfg.attn_scores_soft_cap), logit_cap=_cap(cfg.output_logits_soft_cap), causal=cfg.attention_dir == "causal",
    )  # fmt: skip


def _cap(value: float | None) -> float | None:
    """TransformerLens writes -1, 0 or None for no cap."""
    return value if value is not None and value > 0 else None
