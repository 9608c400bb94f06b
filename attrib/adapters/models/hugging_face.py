"""Hugging Face models and tokenizers, as objects, into attrib's own (see families/ for the architectures, model_folder.py for files).

Reads parameters and never writes them; tied or unchanged tensors are shared, not copied.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attrib.adapters.attachments import check_attachments, check_made_of, check_wrapper
from attrib.adapters.loading import check_finite
from attrib.adapters.models.check import TOLERANCE
from attrib.adapters.models.families import activation, family_of, model_config, params, rotary_of
from attrib.adapters.models.text import from_transformers
from attrib.core.types import InputError, UnsupportedError
from attrib.models.transformer import Model

__all__ = ["activation", "from_hugging_face", "model_config", "rotary_tables"]


def from_hugging_face(model: Any, tokenizer: Any = None, *, name: str | None = None) -> Model:
    """attrib's model from a transformers causal language model, which is left as it is.

    Args:
        model: the transformers model; its parameters keep their dtype, and are shared but where attrib has them in another order (GPT-J).
        tokenizer: its tokenizer, to give prompts as text.

    Raises:
        InputError: for what is no causal language model, lacks a tensor, or holds a number that is not finite.
        UnsupportedError: for an architecture or a feature that attrib does not compute, for parameters it does not know, and
            for what is attached to the model (hooks, adapters, replaced modules; see attachments.py).
    """
    check_wrapper(model)
    if not hasattr(model, "config") or not hasattr(model, "state_dict"):
        raise InputError(f"model: expected a transformers causal language model (AutoModelForCausalLM), got {type(model).__name__}.")
    config = model_config(model.config)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    if "lm_head.weight" not in state:
        raise InputError(f"model: {type(model).__name__} has no unembedding; expected a causal language model (AutoModelForCausalLM).")
    _check_dtypes(model)
    check_attachments(model)
    check_made_of(model)
    like = model.get_input_embeddings().weight.detach()
    if config.embedding_scale != 1:
        # the number that the model multiplies by, rounded as it rounds it
        config = replace(config, embedding_scale=float(model.get_input_embeddings().embed_scale.to(like.dtype)))
    rotary = rotary_of(model, family_of(model.config), config, like)
    made = params(model.config, config, state, rotary)
    name = name or model.config.name_or_path or model.config.model_type
    return check_finite(Model(made, config, name, None if tokenizer is None else from_transformers(tokenizer)))


def _check_dtypes(model: Any) -> None:
    """Raise InputError where parameters are not all of one floating dtype: attrib converts nothing unasked."""
    dtypes = {parameter.dtype: name for name, parameter in model.named_parameters()}
    for dtype, name in dtypes.items():
        if dtype not in TOLERANCE:
            raise UnsupportedError(f"model: {name} is {dtype}; attrib knows {', '.join(map(str, TOLERANCE))}. Dequantise the model first.")
    if len(dtypes) > 1:
        what = ", ".join(f"{dtype} ({name})" for dtype, name in dtypes.items())
        raise InputError(f"model: parameters of several dtypes: {what}. Bring them to one first: model.to(torch.float32).")


def rotary_tables(base: float, d_head: int, n_ctx: int) -> tuple[Tensor, Tensor]:
    """cos and sin [1, n_ctx, d_head] of the usual rotary embedding, in float32 as transformers computes them."""
    inverse_frequency = 1.0 / base ** (torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)
    angles = torch.arange(n_ctx, dtype=torch.float32)[:, None] * inverse_frequency
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos()[None], angles.sin()[None]
