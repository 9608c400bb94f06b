"""A model's folder, which may come from anywhere: its config is held against its weights before memory is taken for either."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from attrib.adapters.dictionaries.tensors import LONGEST_JSON, Shapes, read_json
from attrib.adapters.loading import make_private, no_bars
from attrib.adapters.models.check import check_model
from attrib.adapters.models.families import check_architecture, family_of, model_config
from attrib.adapters.models.families.weights import is_buffer
from attrib.adapters.models.hugging_face import from_hugging_face
from attrib.core.types import AttribError, FormatError, InputError, UnsupportedError, first_line
from attrib.models.tokenizer import guarded
from attrib.models.transformer import Model, ModelConfig

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
LARGEST_INDEX = 1 << 24
"""Bytes of an index, at most: of 150,000 weights."""
LARGEST_VOCABULARY, LARGEST_OTHER = 1 << 26, 1 << 22
"""Bytes of a tokenizer's JSON, and of what else transformers reads beside config.json. In memory JSON takes up to thirty times as much."""
MOST_LAYERS = 10_000
"""transformers lists them, before there is a weight that bears them out."""
TABLES, TABLES_PER_WEIGHT = 1 << 28, 4
"""Bytes that masks and tables of positions may have, and as many more for each weight: no weight's shape bears them out."""


def load_folder(folder: Path, *, dtype: torch.dtype | None = None) -> Model:
    """A model from a local folder that `save_pretrained` wrote (config.json, safetensors, tokenizer.json).

    Imports transformers, which runs no code of the folder. The model is compared with the original on a few tokens.

    Args:
        dtype: in which transformers loads it; left out, what it is stored in.

    Raises:
        InputError: where the folder holds no model, or attrib's values are not the original's.
        FormatError: where its files are damaged, or contradict each other.
        UnsupportedError: for an architecture, a feature or a tensor that attrib does not know.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"model: {folder} holds no {CONFIG}; expected a folder written by transformers' save_pretrained.")
    facts = _json(folder / CONFIG, LONGEST_JSON)
    _check_sizes(folder)
    check_architecture(facts.get("model_type"), SimpleNamespace(**facts))
    for key, value in facts.items():
        if ("layer" in key or key == "attention_types") and (most := max(_integers(value), default=0)) > MOST_LAYERS:
            raise FormatError(f"model: {folder / CONFIG} says {most:,} in {key}; expected at most {MOST_LAYERS:,}.")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **here)
    except Exception as error:  # a field of the wrong type has errors of its own
        raise FormatError(f"model: transformers cannot read {folder / CONFIG}: {error}") from error
    _check_shapes(folder, config)
    try:
        as_wished = here | ({} if dtype is None else {"dtype": dtype})
        with no_bars():
            model, loaded = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **as_wished)
        has_tokenizer = any((folder / file).is_file() for file in TOKENIZER)
        tokenizer = guarded(AutoTokenizer.from_pretrained)(folder, **here) if has_tokenizer else None
    except Exception as error:  # each of its libraries has its own for a damaged file
        raise FormatError(f"model: transformers cannot load {folder}: {first_line(error)}") from error
    if loaded["missing_keys"]:  # transformers fills these with random numbers
        raise FormatError(f"model: the weights in {folder} lack {', '.join(sorted(loaded['missing_keys']))}.")
    family = family_of(config)
    if left := sorted(key for key in loaded["unexpected_keys"] if not is_buffer(key, family.buffers)):
        raise UnsupportedError(
            f"model: the weights in {folder} have {left[0]}, which {type(model).__name__} does not use: a part that attrib does not know."
        )
    try:
        make_private(model)
        made = from_hugging_face(model, tokenizer, name=folder.name)
        check = check_model(made, model)
    except AttribError:
        raise
    except Exception as error:  # of settings that no weight's shape contradicts, such as what part of a head is rotated
        raise FormatError(f"model: what {folder / CONFIG} says cannot be computed: {first_line(error)}") from error
    check.require()
    return made


def _check_shapes(folder: Path, config: Any) -> None:
    """Raise FormatError where a config asks for what the weights have not."""
    from transformers import AutoModelForCausalLM

    try:
        facts = model_config(config)  # refuses before any weight is looked for
    except AttribError:
        raise
    except Exception as error:  # of sizes that go into each other no more
        raise FormatError(f"model: {folder / CONFIG} cannot be: {first_line(error)}.") from error
    stored = dict(_shapes(folder))
    if not 0 < facts.n_layers <= len(stored):
        raise FormatError(f"model: {folder / CONFIG} says {facts.n_layers:,} layers, and the weights are {len(stored)} tensors.")
    if facts.n_ctx < 1:
        raise FormatError(f"model: {folder / CONFIG} says a context of {facts.n_ctx:,} tokens; expected at least 1.")
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # of sizes that no tensor has, of settings that are none
        raise FormatError(f"model: transformers cannot make what {folder / CONFIG} says: {first_line(error)}") from error
    _check_tables(folder, facts, empty, stored)
    for key, tensor in empty.state_dict().items():
        found = stored.get(key, stored.get(key.removeprefix(f"{empty.base_model_prefix}.")))  # of the model without its unembedding
        if found is not None and found != list(tensor.shape):
            raise FormatError(f"model: {key} is {found} in the weights of {folder}, and {list(tensor.shape)} by its {CONFIG}.")


def _check_tables(folder: Path, facts: ModelConfig, empty: Any, stored: Shapes) -> None:
    """Raise FormatError where masks and tables of positions are out of proportion to the weights."""
    buffers = {key: buffer.nbytes for key, buffer in empty.named_buffers() if "original" not in key}
    # of each frequency: cos and sin, for both numbers of a pair, at every position
    tables = sum(size * (4 * facts.n_ctx if key.endswith("inv_freq") else 1) for key, size in buffers.items())
    most = TABLES + TABLES_PER_WEIGHT * sum(prod(shape) for shape in stored.values())
    if tables > most:
        raise FormatError(
            f"model: {folder / CONFIG} says a context of {facts.n_ctx:,} tokens, whose tables have {tables:,} bytes; beside these weights "
            f"attrib takes up to {most:,}. Give it a shorter context."
        )


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of the stored tensors, from the headers of their files."""
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not (folder / INDEX).is_file():
            raise InputError(f"model: {folder} holds no safetensors weights; expected a folder written by transformers' save_pretrained.")
        parts = _json(folder / INDEX, LARGEST_INDEX).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(part, str) and Path(part).name == part for part in parts.values()):
            raise FormatError(f"model: {folder / INDEX} has no weight_map of names of files beside it.")
        files = sorted(set(parts.values()))
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as opened:
                yield from [(key, list(opened.get_slice(key).get_shape())) for key in opened.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise FormatError(f"model: {folder / file} is missing or damaged: {error}") from error


def _check_sizes(folder: Path) -> None:
    """Raise FormatError where JSON that transformers reads whole is larger than any model's."""
    for path in folder.glob("*.json"):
        most = {INDEX: LARGEST_INDEX, "tokenizer.json": LARGEST_VOCABULARY, "vocab.json": LARGEST_VOCABULARY}.get(path.name, LARGEST_OTHER)
        if path.is_file() and (size := path.stat().st_size) > most:
            raise FormatError(f"model: {path} has {size:,} bytes; expected at most {most:,}.")


def _json(path: Path, most: int) -> dict[str, Any]:
    """A file's JSON object, of so many bytes at most."""
    found = read_json(path, "model", most=most)
    if not isinstance(found, dict):
        raise FormatError(f"model: {path} holds a {type(found).__name__}, expected an object.")
    return found


def _integers(value: Any) -> Iterator[int]:
    """All that are in a JSON value, however deep."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, int):
            yield one
        elif isinstance(one, list | dict):
            left += one if isinstance(one, list) else one.values()
