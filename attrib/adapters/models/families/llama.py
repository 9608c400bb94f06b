"""Llama and its kin: RMSNorm, rotary positions, gated MLP.

They differ in norms (Gemma's 1 + w; after attention and MLP as well in Gemma 2 and 3, only after in OLMo 2; on
queries and keys in Qwen 3, Gemma 3 and OLMo 2), windows, soft caps, biases and in how projections are fused (Phi-3).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from attrib.adapters.models.families.family import (
    Family,
    Places,
    activation,
    check_rope,
    head_size,
    layer_kinds,
    windows_by_type,
    windows_of,
)
from attrib.adapters.models.families.weights import Rotary, Weights
from attrib.core.types import UnsupportedError
from attrib.models.transformer import ABSENT, MLP, Attention, Block, ModelConfig, Params


def llama_facts(config: Any, act: str = "hidden_act") -> ModelConfig:
    """What all of them say under the same names, but for the activation function, whose name is in the field `act`."""
    check_rope(config)
    d_head = head_size(config)
    return ModelConfig(
        n_layers=config.num_hidden_layers, d_model=config.hidden_size, n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads or config.num_attention_heads, d_head=d_head, d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size, n_ctx=config.max_position_embeddings, norm="rms", eps=config.rms_norm_eps,
        activation=activation(getattr(config, act)), gated=True, positions="rotary",
        attention_scale=d_head**-0.5,
    )  # fmt: skip


def _one_window(config: Any) -> ModelConfig:
    """Mistral and Phi-3: every layer has the same window."""
    sizes = [config.sliding_window] * config.num_hidden_layers
    return replace(llama_facts(config), windows=windows_of(sizes, config.max_position_embeddings))


def _qwen2(config: Any) -> ModelConfig:
    return replace(llama_facts(config), windows=windows_by_type(config))


def _qwen3(config: Any) -> ModelConfig:
    return replace(_qwen2(config), qk_norm="head")


def _embedding_scale(config: Any) -> float:
    """The square root of the stream's width, as the float32 number that transformers holds."""
    return float(torch.tensor(config.hidden_size**0.5))


def _gemma(config: Any) -> ModelConfig:
    return replace(llama_facts(config), embedding_scale=_embedding_scale(config))


def _gemma2(config: Any) -> ModelConfig:
    return replace(
        llama_facts(config, "hidden_activation"),
        embedding_scale=_embedding_scale(config),
        attention_scale=config.query_pre_attn_scalar**-0.5,
        post_norm=True,
        windows=windows_by_type(config),
        score_cap=config.attn_logit_softcapping,
        logit_cap=config.final_logit_softcapping,
    )


def _gemma3(config: Any) -> ModelConfig:
    if config.attn_logit_softcapping is not None:
        raise UnsupportedError(
            f"gemma3_text with attn_logit_softcapping={config.attn_logit_softcapping!r}: transformers itself leaves this cap out, "
            "so what the model means cannot be told."
        )
    kinds = layer_kinds(config.layer_types)
    tables = tuple(kinds.index(kind) for kind in config.layer_types)
    return replace(_gemma2(config), qk_norm="head", rotary_tables=tables)


def _olmo2(config: Any) -> ModelConfig:
    return replace(llama_facts(config), pre_norm=False, post_norm=True, qk_norm="whole")


class _Norms(NamedTuple):
    """The names of a layer's norms, None where there is none, and whether they multiply by 1 + w."""

    norm_1: str | None = "input_layernorm"
    norm_2: str | None = "post_attention_layernorm"
    post_1: str | None = None
    post_2: str | None = None
    one_plus: bool = False


LLAMA = _Norms()
GEMMA = _Norms(one_plus=True)
SANDWICH = _Norms("input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm", one_plus=True)
AFTER = _Norms(None, None, "post_attention_layernorm", "post_feedforward_layernorm")


def _attention(weights: Weights, at: str, facts: ModelConfig, one_plus: bool) -> Attention:
    made = Attention(*(t for part in "qkvo" for t in weights.linear(f"{at}.{part}_proj")))
    if facts.qk_norm == "none":
        return made
    q_norm, k_norm = (weights.rms_norm(f"{at}.{part}_norm", one_plus=one_plus).weight for part in "qk")
    return made._replace(q_norm=q_norm, k_norm=k_norm)


def _fused_attention(weights: Weights, at: str, facts: ModelConfig, one_plus: bool) -> Attention:
    """Phi-3: all queries, then all keys, then all values, in one projection."""
    sizes = [facts.n_heads * facts.d_head, facts.n_kv_heads * facts.d_head, facts.n_kv_heads * facts.d_head]
    weight, bias = weights.linear(f"{at}.qkv_proj")
    (W_Q, W_K, W_V), (b_Q, b_K, b_V) = weight.split(sizes, dim=1), bias.split(sizes)
    return Attention(W_Q, b_Q, W_K, b_K, W_V, b_V, *weights.linear(f"{at}.o_proj"))


def _mlp(weights: Weights, at: str) -> MLP:
    W_in, b_in = weights.linear(f"{at}.up_proj")
    W_gate, b_gate = weights.linear(f"{at}.gate_proj")
    return MLP(W_in, b_in, W_gate, b_gate, *weights.linear(f"{at}.down_proj"))


def _fused_mlp(weights: Weights, at: str) -> MLP:
    """Phi-3: the gate, then what it gates, in one projection."""
    weight, bias = weights.linear(f"{at}.gate_up_proj")
    (W_gate, W_in), (b_gate, b_in) = weight.chunk(2, dim=1), bias.chunk(2)
    return MLP(W_in, b_in, W_gate, b_gate, *weights.linear(f"{at}.down_proj"))


def _params(
    norms: _Norms = LLAMA,
    attention: Callable[[Weights, str, ModelConfig, bool], Attention] = _attention,
    mlp: Callable[[Weights, str], MLP] = _mlp,
) -> Callable[[Weights, Any, ModelConfig, Rotary], Params]:
    def params(weights: Weights, config: Any, facts: ModelConfig, rotary: Rotary) -> Params:
        def block(i: int) -> Block:
            at = f"model.layers.{i}"
            norm_1, norm_2, post_1, post_2 = (
                ABSENT if name is None else weights.rms_norm(f"{at}.{name}", one_plus=norms.one_plus) for name in norms[:4]
            )
            attended = attention(weights, f"{at}.self_attn", facts, norms.one_plus)
            return Block(norm_1, attended, norm_2, mlp(weights, f"{at}.mlp"), post_1, post_2)

        return weights.params(facts, rotary, block, "model.embed_tokens", lambda: weights.rms_norm("model.norm", one_plus=norms.one_plus))

    return params


def _places(norms: _Norms = LLAMA) -> Callable[[Any], Places]:
    # without a norm before the MLP, it reads the stream itself
    return lambda config: Places(
        "model.layers", "self_attn.o_proj", norms.post_1 or "self_attn.o_proj", norms.norm_2 or "mlp", "mlp", norms.post_2 or "mlp"
    )


_BIDIRECTIONAL = {"use_bidirectional_attention": ("attention that is not causal", (None, False))}
_ROTARY = "model.rotary_emb"

FAMILIES: dict[str, Family] = {
    "llama": Family(llama_facts, _params(), _places(), _ROTARY),
    "mistral": Family(_one_window, _params(), _places(), _ROTARY),
    "qwen2": Family(_qwen2, _params(), _places(), _ROTARY),
    "qwen3": Family(_qwen3, _params(), _places(), _ROTARY),
    "gemma": Family(_gemma, _params(GEMMA), _places(GEMMA), _ROTARY, _BIDIRECTIONAL),
    "gemma2": Family(_gemma2, _params(SANDWICH), _places(SANDWICH), _ROTARY, _BIDIRECTIONAL),
    "gemma3_text": Family(_gemma3, _params(SANDWICH), _places(SANDWICH), _ROTARY, _BIDIRECTIONAL),
    "phi3": Family(_one_window, _params(LLAMA, _fused_attention, _fused_mlp), _places(), _ROTARY),
    "olmo2": Family(_olmo2, _params(AFTER), _places(AFTER), _ROTARY),
}
