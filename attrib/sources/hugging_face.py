"""Hugging Face models, as objects or as local folders, into attrib's pytree (see families/ for the architectures).

Reads parameters and never writes them; tied or unchanged tensors are shared, not copied.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from attrib.model import Model, Tokenizer
from attrib.sources.check import TOLERANCE, check_model
from attrib.sources.families import activation, check_architecture, family_of, model_config, params, rotary_of
from attrib.sources.families.weights import is_buffer
from attrib.types import FormatError, InputError, UnsupportedError

__all__ = ["activation", "from_hugging_face", "from_hugging_face_tokenizer", "load_folder", "model_config", "rotary_tables"]


def from_hugging_face(model: Any, tokenizer: Any = None, *, name: str | None = None) -> Model:
    """attrib's model from a transformers causal language model, which is left as it is.

    Args:
        model: the transformers model; its parameters are shared, not copied, and keep their dtype.
        tokenizer: its tokenizer, to give prompts as text.

    Raises:
        InputError: for what is no causal language model, or lacks a tensor.
        UnsupportedError: for an architecture or a feature that attrib does not compute, and for parameters it does not know.
    """
    if not hasattr(model, "config") or not hasattr(model, "state_dict"):
        raise InputError(f"model: expected a transformers causal language model (AutoModelForCausalLM), got {type(model).__name__}.")
    config = model_config(model.config)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    if "lm_head.weight" not in state:
        raise InputError(f"model: {type(model).__name__} has no unembedding; expected a causal language model (AutoModelForCausalLM).")
    _check_dtypes(model)
    like = model.get_input_embeddings().weight.detach()
    if config.embedding_scale != 1:
        # the number that the model multiplies by, rounded as it rounds it
        config = replace(config, embedding_scale=float(model.get_input_embeddings().embed_scale.to(like.dtype)))
    rotary = rotary_of(model, family_of(model.config), config, like)
    made = params(model.config, config, state, rotary)
    name = name or model.config.name_or_path or model.config.model_type
    return Model(made, config, name, None if tokenizer is None else from_hugging_face_tokenizer(tokenizer))


def _check_dtypes(model: Any) -> None:
    """Raise InputError where parameters are not all of one floating dtype: attrib converts nothing unasked."""
    dtypes = {parameter.dtype: name for name, parameter in model.named_parameters()}
    for dtype, name in dtypes.items():
        if dtype not in TOLERANCE:
            raise UnsupportedError(f"model: {name} is {dtype}; attrib knows {', '.join(map(str, TOLERANCE))}. Dequantise the model first.")
    if len(dtypes) > 1:
        what = ", ".join(f"{dtype} ({name})" for dtype, name in dtypes.items())
        raise InputError(f"model: parameters of several dtypes: {what}. Bring them to one first: model.to(torch.float32).")


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

    Imports transformers. The model is compared with the original on a few tokens.

    Raises:
        InputError: where the folder holds no model, or attrib's values are not the original's.
        FormatError: where its files are damaged.
        UnsupportedError: for an architecture, a feature or a tensor that attrib does not know.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"model: {folder} holds no config.json; expected a folder written by transformers' save_pretrained.")
    try:
        facts = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise FormatError(f"model: {folder / 'config.json'} is damaged: {error}") from error
    if not isinstance(facts, dict):
        raise FormatError(f"model: {folder / 'config.json'} holds a {type(facts).__name__}, expected an object with a model_type.")
    check_architecture(facts.get("model_type"), SimpleNamespace(**facts))
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a field of the wrong type has errors of its own
        raise FormatError(f"model: transformers cannot read {folder / 'config.json'}: {error}") from error
    model_config(config)  # refuses before any weight is read, for they can be large
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
    family = family_of(config)
    if left := sorted(name for name in loaded["unexpected_keys"] if not is_buffer(name, family.buffers)):
        raise UnsupportedError(
            f"model: the weights in {folder} have {left[0]}, which {type(model).__name__} does not use: a part that attrib does not know."
        )
    tokenizer = None
    if any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    made = from_hugging_face(model, tokenizer, name=name or folder.name)
    check_model(made, model).require()
    return made
