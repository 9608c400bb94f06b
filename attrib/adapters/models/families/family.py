"""What an adapter must say about an architecture, and the facts that many of them read from a config in the same way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrib.adapters.models.families.weights import Rotary, Weights
from attrib.core.types import UnsupportedError
from attrib.models.transformer import Activation, ModelConfig, Params

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}

FIXED_ROPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary tables that are the same for every prompt."""


class Places(NamedTuple):
    """Where a transformers model holds what attrib calls by its sites: module paths, all but `layers` below one layer.

    `resid_pre` and `resid_post` are what a layer reads and gives.
    """

    layers: str
    z: str
    """Reads z: the output projection."""
    attn_out: str
    """Gives what attention adds to the stream."""
    resid_mid: str
    """Reads the stream after attention; empty in parallel blocks."""
    mlp_in: str
    """Reads mlp_in."""
    mlp_out: str
    """Gives what the MLP adds to the stream."""


@dataclass(frozen=True)
class Family:
    """One architecture of transformers."""

    facts: Callable[[Any], ModelConfig]
    """Static facts from the transformers config."""
    params: Callable[[Weights, Any, ModelConfig, Rotary], Params]
    """The pytree from weights, transformers config, facts and rotary tables."""
    places: Callable[[Any], Places]
    """Where the sites are, from the transformers config."""
    rotary: str = ""
    """The module that gives rotary tables, or (GPT-J) the table, by its path; empty where positions are learned."""
    refuse: Mapping[str, tuple[str, tuple[Any, ...]]] | None = None
    """Fields of the config that change the computation: what they ask for, and the values that attrib computes."""
    buffers: Sequence[str] = (r".*rotary_emb\..*inv_freq",)
    """Patterns of names in a state dict that are no parameters and say nothing that the config does not."""


def activation(name: str) -> Activation:
    """attrib's name of an activation function. Raises UnsupportedError for one that it lacks."""
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"activation function {name!r}: attrib knows {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def refuse(config: Any, features: Mapping[str, tuple[str, tuple[Any, ...]]]) -> None:
    """Raise UnsupportedError for the first config field that asks for more than attrib computes."""
    for field, (feature, usual) in features.items():
        if (value := getattr(config, field, usual[0])) not in usual:
            raise UnsupportedError(f"{config.model_type} with {field}={value!r}: attrib does not compute {feature} yet.")


def check_rope(config: Any) -> None:
    """Raise UnsupportedError where rotary tables depend on the prompt, or are of a kind that attrib has not been tested with."""
    parameters = getattr(config, "rope_parameters", None) or {}
    # Gemma 3 has parameters for each kind of layer
    several = [p for p in parameters.values() if isinstance(p, dict)] if "rope_type" not in parameters else [parameters]
    for each in several:
        kind = each.get("rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise UnsupportedError(f"rope_type={kind!r}: attrib does not compute rotary tables that depend on the prompt's length.")
        if kind not in FIXED_ROPES:
            raise UnsupportedError(f"rope_type={kind!r}: attrib knows {', '.join(FIXED_ROPES)}.")


def head_size(config: Any) -> int:
    """The size of one head, which some configs leave to be the stream's share."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def windows_of(sizes: Sequence[int | None], n_ctx: int) -> tuple[int | None, ...]:
    """`ModelConfig.windows`: a window as long as the context is none, and where no layer has one there is nothing to say."""
    seen = tuple(None if size is None or size >= n_ctx else size for size in sizes)
    return seen if any(size is not None for size in seen) else ()


def windows_by_type(config: Any) -> tuple[int | None, ...]:
    """Windows of a config that names the type of each layer. Raises UnsupportedError for types other than full and sliding."""
    sizes = {"full_attention": None, "sliding_attention": config.sliding_window}
    for kind in config.layer_types:
        if kind not in sizes:
            raise UnsupportedError(f"{config.model_type} with layer_types={kind!r}: attrib computes {' and '.join(sizes)}.")
    return windows_of([sizes[kind] for kind in config.layer_types], config.max_position_embeddings)


def no_rotary(like: Tensor) -> Rotary:
    """Tables without rows."""
    return Rotary(like.new_zeros(0, 0, 0), like.new_zeros(0, 0, 0))


def module_at(model: Any, path: str) -> Any:
    """The submodule or buffer at a dotted path; list entries by number. Of several paths with | between, the first that is there."""
    first, _, others = path.partition("|")
    found = model
    for part in first.split(".") if first else ():
        found = found[int(part)] if part.isdigit() else getattr(found, part, None) if others else getattr(found, part)
    return module_at(model, others) if found is None else found


def rotary_of(model: Any, family: Family, config: ModelConfig, like: Tensor) -> Rotary:
    """A model's own tables, as precise as it has them: whatever kind of rotary embedding it uses, attrib uses."""
    if not family.rotary:
        return no_rotary(like)
    source = module_at(model, family.rotary)
    positions = torch.arange(config.n_ctx, device=like.device)[None]
    if isinstance(source, Tensor):  # GPT-J: sin and cos of each pair, side by side
        sin, cos = (half.repeat(1, 2)[None] for half in source.detach().chunk(2, dim=-1))
    elif config.rotary_tables:
        kinds = layer_kinds(model.config.layer_types)
        cos, sin = (torch.cat(each) for each in zip(*(source(like, positions, kind) for kind in kinds), strict=True))
    else:
        cos, sin = source(like, positions)
    return Rotary(cos.to(like.dtype), sin.to(like.dtype))


def layer_kinds(layer_types: Sequence[str]) -> list[str]:
    """The types of layers that a model has, in the order of its rotary tables."""
    return sorted(set(layer_types))
