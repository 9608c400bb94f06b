"""Random models of GPT-2's and Llama's shape without transformers: number for number those that builders.py makes with it.

They go through attrib's adapter, from a state dict and the fields of a config.
"""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attrib.adapters.models.families import Rotary, model_config, params
from attrib.adapters.models.hugging_face import rotary_tables
from attrib.models.transformer import Model

# The fields whose defaults are transformers', which attrib's adapter or the shapes below ask for
_FIELDS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_layer": 0, "n_embd": 0, "n_head": 0, "n_positions": 0, "n_inner": None, "vocab_size": 0, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new", "tie_word_embeddings": True,
    },
    "llama": {
        "num_hidden_layers": 0, "hidden_size": 0, "num_attention_heads": 0, "num_key_value_heads": None, "head_dim": None,
        "intermediate_size": 0, "max_position_embeddings": 0, "vocab_size": 0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "rope_theta": 10000.0,
    },
}  # fmt: skip
_NO_MATTER = {"attn_implementation", "bos_token_id", "eos_token_id", "pad_token_id"}
"""What a config says that changes no number that attrib computes."""


def random_weight(name: str, shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A parameter's value far from its default, in float64, by its shape: matrices keep the stream's size about constant."""
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if len(shape) == 1:
        return 1 + 0.3 * noise if name.endswith(("weight", ".w")) else 0.3 * noise
    # half as large again as 1/sqrt(d_model): attention is then far from uniform and activations from linear
    d_model = max(shape[-2:]) if len(shape) == 3 else min(shape)  # 3: TransformerLens' heads apart
    return 1.5 * noise * d_model**-0.5


def can_be_made(family: str, facts: Mapping[str, Any]) -> bool:
    """Whether `plain_model` knows a family and all fields of its config."""
    return family in _FIELDS and not set(facts) - set(_FIELDS[family]) - _NO_MATTER


def plain_model(family: str, facts: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Model:
    """attrib's model of a config, whose weights are drawn in the order in which transformers lists them."""
    fields = SimpleNamespace(**_FIELDS[family] | {key: value for key, value in facts.items() if key not in _NO_MATTER}, model_type=family)
    config = model_config(fields)
    shapes = _gpt2(fields, config.d_mlp) if family == "gpt2" else _llama(fields, config.d_head, config.n_kv_heads)
    generator = torch.Generator().manual_seed(seed)
    state = {name: random_weight(name, shape, generator).float().to(dtype) for name, shape in shapes}
    state.setdefault("lm_head.weight", next(iter(state.values())))
    none = torch.zeros(0, 0, 0, dtype=dtype)
    rotary = (none, none) if family == "gpt2" else rotary_tables(fields.rope_theta, config.d_head, config.n_ctx)
    return Model(params(fields, config, state, Rotary(*(table.to(dtype) for table in rotary))), config, f"tiny-{family}", None)


_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _gpt2(fields: SimpleNamespace, d_mlp: int) -> _Shapes:
    d, at = fields.n_embd, "transformer"
    yield f"{at}.wte.weight", (fields.vocab_size, d)
    yield f"{at}.wpe.weight", (fields.n_positions, d)
    layer: dict[str, tuple[int, ...]] = {
        "ln_1": (d,), "attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "ln_2": (d,), "mlp.c_fc": (d, d_mlp), "mlp.c_proj": (d_mlp, d)
    }  # fmt: skip
    for part, shape in [(f"h.{i}.{part}", shape) for i in range(fields.n_layer) for part, shape in layer.items()] + [("ln_f", (d,))]:
        yield f"{at}.{part}.weight", shape
        yield f"{at}.{part}.bias", shape[-1:]
    if not fields.tie_word_embeddings:
        yield "lm_head.weight", (fields.vocab_size, d)


def _llama(fields: SimpleNamespace, d_head: int, n_kv_heads: int) -> _Shapes:
    d, q, kv, wide = fields.hidden_size, fields.num_attention_heads * d_head, n_kv_heads * d_head, fields.intermediate_size
    yield "model.embed_tokens.weight", (fields.vocab_size, d)
    for i in range(fields.num_hidden_layers):
        for part, shape in {
            "q": (q, d),
            "k": (kv, d),
            "v": (kv, d),
            "o": (d, q),
            "gate": (wide, d),
            "up": (wide, d),
            "down": (d, wide),
        }.items():
            of, biased = ("self_attn", fields.attention_bias) if part in "qkvo" else ("mlp", fields.mlp_bias)
            yield f"model.layers.{i}.{of}.{part}_proj.weight", shape
            if biased:
                yield f"model.layers.{i}.{of}.{part}_proj.bias", shape[:1]
        yield f"model.layers.{i}.input_layernorm.weight", (d,)
        yield f"model.layers.{i}.post_attention_layernorm.weight", (d,)
    yield "model.norm.weight", (d,)
    if not fields.tie_word_embeddings:
        yield "lm_head.weight", (fields.vocab_size, d)
