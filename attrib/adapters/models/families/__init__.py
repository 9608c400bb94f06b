"""Architectures of transformers, each as an entry of one table: facts from its config, parameters from its weights.

What is not in the table, or asks for more than its entry says, is refused by name before any number is computed.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attrib.adapters.models.families import gpt, llama
from attrib.adapters.models.families.family import Family, Places, activation, refuse, rotary_of
from attrib.adapters.models.families.weights import Rotary, Weights
from attrib.core.types import UnsupportedError
from attrib.models.transformer import ModelConfig, Params

__all__ = ["FAMILIES", "Family", "Places", "Rotary", "activation", "check_architecture", "family_of", "model_config", "params", "rotary_of"]

FAMILIES: dict[str, Family] = gpt.FAMILIES | llama.FAMILIES

_EVERYWHERE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "is_encoder_decoder": ("encoder-decoders", (False, None)),
    "add_cross_attention": ("cross-attention", (False, None)),
}
"""Fields of any config that change the computation, with the values that attrib computes."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def check_architecture(model_type: object, config: Any = None) -> None:
    """Raise UnsupportedError for an architecture that is not in the table; says why where that can be told."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return
    why = ""
    if any(getattr(config, field, None) for field in _EXPERTS):
        why = " It is a mixture of experts, and attrib computes MLPs that every token passes."
    elif getattr(config, "is_encoder_decoder", False):
        why = " It has an encoder, and attrib computes decoders alone."
    elif getattr(config, "text_config", None) is not None:
        why = " It has parts for other input than text: load its language model by itself."
    raise UnsupportedError(f"architecture {model_type!r} is not supported yet; attrib computes {', '.join(sorted(FAMILIES))}.{why}")


def family_of(config: Any) -> Family:
    """The entry of a transformers config. Raises UnsupportedError where there is none."""
    check_architecture(config.model_type, config)
    return FAMILIES[config.model_type]


def model_config(config: Any) -> ModelConfig:
    """Static facts from a transformers config. Raises UnsupportedError, naming the feature, where attrib would differ."""
    family = family_of(config)
    refuse(config, _EVERYWHERE | dict(family.refuse or {}))
    quantised = getattr(config, "quantization_config", None) or {}
    method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    if quantised and method != "gguf":  # transformers dequantises GGUF files as it reads them
        raise UnsupportedError(f"{config.model_type} with quant_method={method!r}: attrib does not compute with quantised weights.")
    return family.facts(config)


def params(config: Any, facts: ModelConfig, state: Mapping[str, Tensor], rotary: Rotary) -> Params:
    """The pytree from a state dict, every tensor of which is used.

    Raises:
        InputError: where a tensor is missing.
        UnsupportedError: where one is left over.
    """
    family, weights = family_of(config), Weights(state, config.model_type)
    made = family.params(weights, config, facts, rotary)
    weights.finish(family.buffers)
    return made
