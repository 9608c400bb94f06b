"""What a TransformerBridge holds, under TransformerLens names, as attrib reads it.

A bridge wraps the modules of a transformers model and, in compatibility mode, rewrites their weights. So static facts come
from the transformers config, parameters from what the bridge gives under TransformerLens names, and what it does not
give (norms behind, norms on queries and keys) from its components.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from attrib.adapters.models.families import Rotary, family_of, model_config, rotary_of
from attrib.adapters.models.families.family import module_at
from attrib.adapters.models.families.gpt import OPT_OFFSET, pairs_as_halves
from attrib.core.types import UnsupportedError
from attrib.models.transformer import ModelConfig


def bridge_config(model: Any) -> ModelConfig:
    """Static facts of the transformers model inside a bridge. Raises UnsupportedError for other models."""
    inside = model.original_model
    if not hasattr(inside, "config"):
        raise UnsupportedError(f"{type(inside).__name__} in a TransformerBridge: attrib reads bridges over transformers models only.")
    config = model_config(inside.config)
    if config.embedding_scale != 1:
        # the number that the model multiplies by, rounded as it rounds it
        scale = _inside(inside.get_input_embeddings()).embed_scale
        config = replace(config, embedding_scale=float(scale.to(next(inside.parameters()).dtype)))
    return config


def bridge_state(model: Any, config: ModelConfig) -> Mapping[str, Tensor]:
    """Its parameters under TransformerLens names, with the weights that norms multiply by: 1 + w where a family stores w."""
    state = dict(model.tl_parameters())
    for i, block in enumerate(model.blocks):
        components = {f"{at}.w": getattr(block, at) for at in ("ln1_post", "ln2_post") if at in block._modules}
        components |= {f"attn.{at}.w": getattr(block.attn, at) for at in ("q_norm", "k_norm") if at in block.attn._modules}
        state |= {f"blocks.{i}.{name}": component.weight for name, component in components.items()}
    if getattr(model.cfg, "rmsnorm_uses_offset", False):
        state |= {name: value + 1 for name, value in state.items() if name.endswith(".w")}
    for i, block in enumerate(model.blocks):
        if "ln1" not in block._modules:  # norms behind alone, which TransformerLens 3 called ln1 and ln2, as it does where they are before
            state |= {f"blocks.{i}.ln{n}.w": state[f"blocks.{i}.ln{n}_post.w"] for n in (1, 2)}
        elif "ln2" not in block._modules:  # one norm for attention and MLP
            state |= {f"blocks.{i}.ln2.{part}": state[f"blocks.{i}.ln1.{part}"] for part in ("w", "b")}
    _check_filled(model, state, config)
    kind = model.original_model.config.model_type
    if kind == "opt":
        state["pos_embed.W_pos"] = state["pos_embed.W_pos"][OPT_OFFSET:]
    if kind == "gptj":
        d_rotary = model.original_model.config.rotary_dim
        for i in range(config.n_layers):
            for at in (f"blocks.{i}.attn.{name}" for name in ("W_Q", "b_Q", "W_K", "b_K")):
                state[at] = pairs_as_halves(state[at], 1, d_rotary)  # heads are apart already
    return {name: value.detach() for name, value in state.items()}


def _check_filled(model: Any, state: dict[str, Tensor], config: ModelConfig) -> None:
    """A bridge gives zeros for weights that it does not find. Biases may be missing; their zeros get the size they should have.

    Raises:
        UnsupportedError: for a matrix of zeros.
    """
    for i in range(config.n_layers):
        at = f"blocks.{i}.mlp"
        if len(state[f"{at}.b_in"]) != config.d_mlp and not state[f"{at}.b_in"].any():
            state[f"{at}.b_in"] = state[f"{at}.W_in"].new_zeros(config.d_mlp)
        for name in (f"blocks.{i}.attn.W_Q", f"{at}.W_in", f"{at}.W_out", *((f"{at}.W_gate",) if config.gated else ())):
            if name not in state or not state[name].any():
                raise UnsupportedError(
                    f"{model.cfg.model_name} in a TransformerBridge: it gives no {name}, and attrib would compute zeros."
                )


def bridge_rotary(model: Any, config: ModelConfig) -> Rotary:
    """The rotary tables of the transformers model, from its own module, past the bridge's hooks."""
    inside = model.original_model
    family = family_of(inside.config)
    source = SimpleNamespace(config=inside.config, table=_inside(module_at(inside, family.rotary)) if family.rotary else None)
    return rotary_of(source, replace(family, rotary=family.rotary and "table"), config, next(inside.parameters()).detach())


def _inside(component: Any) -> Any:
    """The transformers module in a component of the bridge."""
    return getattr(component, "_original_component", component)
