"""Hugging Face models: GPT-2 and Llama, as objects or as local folders, into attrib's pytree.

Reads parameters and never writes them; tied or unchanged tensors are shared, not copied.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from attrib.model import MLP, Activation, Attention, Block, Model, ModelConfig, Norm, Params, Tokenizer
from attrib.types import FormatError, InputError, UnsupportedError

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


def activation(name: str) -> Activation:
    """attrib's name of an activation function. Raises UnsupportedError for one that it lacks."""
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"activation function {name!r}: attrib knows {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _zeros_like_columns(weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[-1])


def gpt2_params(state: Mapping[str, Tensor], n_layers: int) -> Params:
    """Parameters of a GPT2LMHeadModel's state dict; its Conv1D weights already stand [in, out]."""

    def norm(name: str) -> Norm:
        return Norm(state[f"{name}.weight"], state[f"{name}.bias"])

    def block(i: int) -> Block:
        at = f"transformer.h.{i}"
        W_Q, W_K, W_V = state[f"{at}.attn.c_attn.weight"].chunk(3, dim=1)
        b_Q, b_K, b_V = state[f"{at}.attn.c_attn.bias"].chunk(3)
        W_in, b_in = state[f"{at}.mlp.c_fc.weight"], state[f"{at}.mlp.c_fc.bias"]
        return Block(
            norm(f"{at}.ln_1"),
            Attention(W_Q, b_Q, W_K, b_K, W_V, b_V, state[f"{at}.attn.c_proj.weight"], state[f"{at}.attn.c_proj.bias"]),
            norm(f"{at}.ln_2"),
            MLP(W_in, b_in, W_in[:, :0], b_in[:0], state[f"{at}.mlp.c_proj.weight"], state[f"{at}.mlp.c_proj.bias"]),
        )

    W_E = state["transformer.wte.weight"]
    no_rotary = W_E.new_zeros(0, 0, 0)
    W_U = state.get("lm_head.weight", W_E).T
    blocks = tuple(block(i) for i in range(n_layers))
    return Params(
        W_E, state["transformer.wpe.weight"], no_rotary, no_rotary, blocks, norm("transformer.ln_f"), W_U, _zeros_like_columns(W_U)
    )


def llama_params(state: Mapping[str, Tensor], n_layers: int, cos: Tensor, sin: Tensor) -> Params:
    """Parameters of a LlamaForCausalLM's state dict, with its rotary tables [1, n_ctx, d_head]."""

    def linear(name: str) -> tuple[Tensor, Tensor]:
        weight = state[f"{name}.weight"].T
        return weight, state.get(f"{name}.bias", _zeros_like_columns(weight))

    def norm(name: str) -> Norm:
        weight = state[f"{name}.weight"]
        return Norm(weight, torch.zeros_like(weight))

    def block(i: int) -> Block:
        at = f"model.layers.{i}"
        attention = Attention(*(t for part in "qkvo" for t in linear(f"{at}.self_attn.{part}_proj")))
        W_in, b_in = linear(f"{at}.mlp.up_proj")
        W_out, b_out = linear(f"{at}.mlp.down_proj")
        W_gate, b_gate = linear(f"{at}.mlp.gate_proj")
        mlp = MLP(W_in, b_in, W_gate, b_gate, W_out, b_out)
        return Block(norm(f"{at}.input_layernorm"), attention, norm(f"{at}.post_attention_layernorm"), mlp)

    W_E = state["model.embed_tokens.weight"]
    W_U = state.get("lm_head.weight", W_E).T
    blocks = tuple(block(i) for i in range(n_layers))
    return Params(W_E, W_E[:0], cos, sin, blocks, norm("model.norm"), W_U, _zeros_like_columns(W_U))


def _refuse(config: Any, features: Mapping[str, tuple[str, Any]]) -> None:
    """Raise UnsupportedError for the first config field that asks for more than attrib computes."""
    for field, (feature, usual) in features.items():
        if (value := getattr(config, field, usual)) != usual:
            raise UnsupportedError(f"{config.model_type} with {field}={value!r}: attrib does not compute {feature} yet.")


def model_config(config: Any) -> ModelConfig:
    """Static facts from a transformers config. Raises UnsupportedError, naming the feature, where attrib would differ."""
    if config.model_type == "gpt2":
        _refuse(
            config,
            {
                "scale_attn_by_inverse_layer_idx": ("attention scaled by the layer number", False),
                "scale_attn_weights": ("unscaled attention", True),
                "add_cross_attention": ("cross-attention", False),
            },
        )
        return ModelConfig(
            n_layers=config.n_layer, d_model=config.n_embd, n_heads=config.n_head, n_kv_heads=config.n_head,
            d_head=config.n_embd // config.n_head, d_mlp=config.n_inner or 4 * config.n_embd,
            d_vocab=config.vocab_size, n_ctx=config.n_positions, norm="layer", eps=config.layer_norm_epsilon,
            activation=activation(config.activation_function), gated=False, positions="learned",
            attention_scale=(config.n_embd // config.n_head) ** -0.5,
        )  # fmt: skip
    if config.model_type == "llama":
        rope = (config.rope_parameters or {}).get("rope_type", "default")
        if rope in ("dynamic", "longrope"):
            raise UnsupportedError(f"rope_type={rope!r}: attrib does not compute rotary tables that depend on the prompt's length.")
        return ModelConfig(
            n_layers=config.num_hidden_layers, d_model=config.hidden_size, n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads, d_head=config.head_dim, d_mlp=config.intermediate_size,
            d_vocab=config.vocab_size, n_ctx=config.max_position_embeddings, norm="rms", eps=config.rms_norm_eps,
            activation=activation(config.hidden_act), gated=True, positions="rotary",
            attention_scale=config.head_dim**-0.5,
        )  # fmt: skip
    raise UnsupportedError(
        f"architecture {config.model_type!r}: attrib computes gpt2 (LayerNorm, learned positions, plain MLP) and "
        "llama (RMSNorm, rotary positions, gated MLP). Other architectures are not supported yet."
    )


def from_hugging_face(model: Any, tokenizer: Any = None, *, name: str | None = None) -> Model:
    """attrib's model from a transformers GPT2LMHeadModel or LlamaForCausalLM, which is left as it is.

    Args:
        model: the transformers model; its parameters are shared, not copied.
        tokenizer: its tokenizer, to give prompts as text.
    """
    if not hasattr(model, "config") or not hasattr(model, "state_dict"):
        raise InputError(f"model: expected a transformers GPT2LMHeadModel or LlamaForCausalLM, got {type(model).__name__}.")
    config = model_config(model.config)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    if "lm_head.weight" not in state:
        raise InputError(
            f"model: {type(model).__name__} has no unembedding; expected a GPT2LMHeadModel or LlamaForCausalLM (AutoModelForCausalLM)."
        )
    if config.positions == "rotary":
        # the model's own tables: whatever rope_type and precision it uses, attrib uses
        positions = torch.arange(config.n_ctx, device=model.device)[None]
        cos, sin = (t for t in model.model.rotary_emb(state["model.embed_tokens.weight"], positions))
        params = llama_params(state, config.n_layers, cos, sin)
    else:
        params = gpt2_params(state, config.n_layers)
    name = name or model.config.name_or_path or model.config.model_type
    return Model(params, config, name, None if tokenizer is None else from_hugging_face_tokenizer(tokenizer))


def from_hugging_face_tokenizer(tokenizer: Any) -> Tokenizer:
    """attrib's view of a transformers tokenizer. Prompts begin with what it puts first itself, if anything."""
    first = tokenizer("a").input_ids[:1]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    bos = first[0] if first and first[0] in tokenizer.all_special_ids else None
    return Tokenizer(
        encode=lambda text: tokenizer(text, add_special_tokens=False).input_ids,
        decode=tokenizer.decode,
        bos=bos,
        sha256=hashlib.sha256(definition.encode()).hexdigest(),
    )


def rotary_tables(base: float, d_head: int, n_ctx: int) -> tuple[Tensor, Tensor]:
    """cos and sin [1, n_ctx, d_head] of the usual rotary embedding, in float32 as transformers computes them."""
    inverse_frequency = 1.0 / base ** (torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)
    angles = torch.arange(n_ctx, dtype=torch.float32)[:, None] * inverse_frequency
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos()[None], angles.sin()[None]


def load_folder(folder: Path, *, name: str | None = None) -> Model:
    """A model from a local folder that `save_pretrained` wrote (config.json, safetensors, tokenizer.json).

    Imports transformers.

    Raises:
        InputError: where the folder holds no model.
        FormatError: where its files are damaged.
        UnsupportedError: for architectures that attrib does not compute.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"model: {folder} holds no config.json; expected a folder written by transformers' save_pretrained.")
    try:
        facts = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise FormatError(f"model: {folder / 'config.json'} is damaged: {error}") from error
    model_type = facts.get("model_type") if isinstance(facts, dict) else None
    if model_type not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"architecture {model_type!r} of {folder}: attrib computes gpt2 and llama. Other architectures are not supported yet."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, local_files_only=True, output_loading_info=True)
    except SafetensorError as error:
        raise FormatError(f"model: the weights in {folder} are damaged: {error}") from error
    except OSError as error:  # transformers' word for a file that is not there
        raise InputError(
            f"model: {folder} holds no safetensors weights; expected a folder written by transformers' save_pretrained."
        ) from error
    if loaded["missing_keys"]:  # transformers fills these with random numbers
        raise FormatError(f"model: the weights in {folder} lack {', '.join(sorted(loaded['missing_keys']))}.")
    tokenizer = None
    if any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return from_hugging_face(model, tokenizer, name=name or folder.name)
