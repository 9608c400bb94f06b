"""circuit-tracer's transcoders: a folder with config.yaml and one file per layer, or two for cross-layer transcoders.

    transcoder_set           layer_{i}.safetensors   W_enc [d_sae, d], W_dec [d_sae, d], b_enc, b_dec,
                                                     optional activation_function.threshold, W_skip [d, d]
        f_i = act(x_i W_enc^T + b_enc),  y_i = f_i W_dec + b_dec + x_i W_skip^T

    cross_layer_transcoder   W_enc_{i}.safetensors   W_enc_i [d_sae, d], b_enc_i, b_dec_i, optional threshold_i
                             W_dec_{i}.safetensors   W_dec_i [d_sae, n_layers - i, d]
        f_i = act(x_i W_enc_i^T + b_enc_i),  y_j = Σ_{i <= j} f_i W_dec_i[:, j - i] + b_dec_j

With thresholds act is x · [x > threshold], without a ReLU: a negative threshold lets negative latents pass.
x_i is the value at `feature_input_hook` of layer i, y_j at `feature_output_hook` of layer j.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

from attrib.dictionary import Dictionary
from attrib.sources.tensors import TensorFile, check_no_others, check_shapes, from_tensors, matrix, safetensors_file
from attrib.types import FormatError, InputError, Site, UnsupportedError

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"
LONGEST_CONFIG = 1 << 16
"""Bytes of config.yaml, at most."""
MOST_BRACKETS = 500

# circuit-tracer has this name only for models without a norm after the MLP, where it is what the MLP writes
_ALIASES = {"mlp.hook_out": "hook_mlp_out"}


def load_folder(folder: Path, *, lazy: bool = False) -> list[Dictionary]:
    """Every layer's dictionary, in float32.

    Args:
        lazy: see `load_layer`.

    Raises:
        InputError, UnsupportedError, FormatError: see `load_layer`.
    """
    config = _config(folder)
    return [_layer(folder, config, layer, lazy) for layer in _layers(folder, config)]


def load_layer(folder: Path, layer: int, *, lazy: bool = False) -> Dictionary:
    """One layer's dictionary, in float32; no other layer's tensors are read.

    Args:
        lazy: whether encoder and decoder stay in their file, in its dtype, and rows are read as they are used.

    Raises:
        InputError: where there is no such layer.
        UnsupportedError: for a model_kind or a hook that attrib does not know, by name.
        FormatError: where files are damaged, missing, or do not fit each other.
    """
    config = _config(folder)
    if layer not in (layers := _layers(folder, config)):
        raise InputError(f"layer: {layer}, but {folder} has layers 0 to {len(layers) - 1}.")
    return _layer(folder, config, layer, lazy)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if (size := path.stat().st_size) > LONGEST_CONFIG:
        raise FormatError(f"dictionary: {path} has {size:,} bytes; expected at most {LONGEST_CONFIG:,}.")
    try:
        text = path.read_text(encoding="utf-8")
        if sum(map(text.count, "[{")) > MOST_BRACKETS:  # yaml looks back at all that are open, at every token
            raise FormatError(f"dictionary: {path} has more than {MOST_BRACKETS} brackets, which no config of circuit-tracer needs.")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):  # of which a few lines make gigabytes
            raise FormatError(f"dictionary: {path} has aliases, which no config of circuit-tracer needs; write out what they stand for.")
        config = yaml.safe_load(text)
    except FormatError:
        raise
    except Exception as error:  # yaml hands on whatever its parts raise at a number or date that is none
        raise FormatError(f"dictionary: {path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise FormatError(f"dictionary: {path} is no mapping; expected model_kind, feature_input_hook and feature_output_hook.")
    if (kind := config.get("model_kind")) not in ("transcoder_set", "cross_layer_transcoder"):
        raise UnsupportedError(
            f"dictionary {folder.name}: model_kind={kind!r}; attrib reads circuit-tracer's transcoder_set and cross_layer_transcoder."
        )
    if config.get("transcoders"):
        raise UnsupportedError(
            f"dictionary {folder.name}: its config.yaml lists files of other repositories under `transcoders`; fetch them, and load each "
            "by its own format (params.npz of Gemma Scope, say), or have circuit-tracer save the set as layer_{i}.safetensors."
        )
    return config


def _layers(folder: Path, config: Mapping[str, Any]) -> range:
    """The layers of a folder, which must be 0 to the last without a gap."""
    is_set = config["model_kind"] == "transcoder_set"
    pattern = r"layer_(\d+)\.safetensors" if is_set else r"W_enc_(\d+)\.safetensors"
    found = sorted(int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(pattern, path.name)))
    if not found or found != list(range(len(found))):
        form = "layer_{i}.safetensors" if is_set else "W_enc_{i}.safetensors"
        raise FormatError(f"dictionary: {folder} has {form} for the layers {found}; expected 0 to the last without a gap.")
    return range(len(found))


def _hook(folder: Path, config: Mapping[str, Any], key: str, layer: int) -> tuple[Site, str]:
    """The site of a hook, and its own name."""
    if not isinstance(name := config.get(key), str):
        raise FormatError(f"dictionary {folder.name}: {key}={name!r} in its config.yaml; expected a hook's name such as 'hook_mlp_out'.")
    hook = f"blocks.{layer}.{name}"
    try:
        return Site.parse(f"blocks.{layer}.{_ALIASES.get(name, name)}"), hook
    except InputError as error:
        raise UnsupportedError(f"dictionary {folder.name}: {key}={name!r} is no site of attrib: {error}") from error


def _layer(folder: Path, config: Mapping[str, Any], layer: int, lazy: bool) -> Dictionary:
    name = f"{folder.name}/layer_{layer}"
    reads, hook_name = _hook(folder, config, "feature_input_hook", layer)
    model_name = config.get("model_name")
    options: dict[str, Any] = {
        "site": reads, "hook_name": hook_name, "name": name, "kind": config["model_kind"],
        "model_name": model_name if isinstance(model_name, str) else None, "puts_scale_back": False,
        "lazy": lazy,
    }  # fmt: skip
    if config["model_kind"] == "transcoder_set":
        options["writes"] = _hook(folder, config, "feature_output_hook", layer)[0]
        with safetensors_file(folder / f"layer_{layer}.safetensors") as file:
            return _single(file, name, options)
    n_layers = len(_layers(folder, config))
    options["writes"] = [_hook(folder, config, "feature_output_hook", later)[0] for later in range(layer, n_layers)]
    decoder = folder / f"W_dec_{layer}.safetensors"
    if not decoder.is_file():
        raise FormatError(f"dictionary: {folder} holds no {decoder.name} beside W_enc_{layer}.safetensors.")
    with safetensors_file(folder / f"W_enc_{layer}.safetensors") as file, safetensors_file(decoder) as written:
        return _cross(file, written, layer, n_layers - layer, name, options)


def _single(file: TensorFile, name: str, options: Mapping[str, Any]) -> Dictionary:
    d_sae, d_in = matrix(file.shapes, "W_enc", name, "[d_transcoder, d_model]")
    expected = {"W_dec": [d_sae, d_in], "b_enc": [d_sae], "b_dec": [d_in]}
    if "W_skip" in file.shapes:
        expected["W_skip"] = [d_in, d_in]
    check_shapes(file.shapes, expected, name, f" beside W_enc {[d_sae, d_in]}")
    check_no_others(file.shapes, ["W_enc", THRESHOLD, *expected], name)
    read = file.stored if options["lazy"] else file.read
    return from_tensors(
        W_enc=read("W_enc").T,
        W_dec=read("W_dec"),
        b_enc=file.read("b_enc"),
        b_dec=file.read("b_dec"),
        W_skip=file.read("W_skip").T if "W_skip" in file.shapes else None,
        **_threshold(file, THRESHOLD, d_sae, name),
        **options,
    )


def _cross(file: TensorFile, decoder: TensorFile, layer: int, n_writes: int, name: str, options: Mapping[str, Any]) -> Dictionary:
    W_enc, W_dec, b_enc, b_dec, threshold = (f"{key}_{layer}" for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"))
    d_sae, d_in = matrix(file.shapes, W_enc, name, "[d_transcoder, d_model]")
    check_shapes(file.shapes, {b_enc: [d_sae], b_dec: [d_in]}, name, f" beside {W_enc} {[d_sae, d_in]}")
    check_shapes(decoder.shapes, {W_dec: [d_sae, n_writes, d_in]}, name, f" beside {W_enc} {[d_sae, d_in]}")
    check_no_others(file.shapes, [W_enc, b_enc, b_dec, threshold], name)
    check_no_others(decoder.shapes, [W_dec], name)
    # every layer adds the bias of its own output: those of later layers are their own dictionaries'
    own = file.read(b_dec)
    return from_tensors(
        W_enc=(file.stored if options["lazy"] else file.read)(W_enc).T,
        W_dec=(decoder.stored if options["lazy"] else decoder.read)(W_dec).flatten(1),
        b_enc=file.read(b_enc),
        b_dec=torch.cat([own, own.new_zeros((n_writes - 1) * d_in)]),
        **_threshold(file, threshold, d_sae, name),
        **options,
    )


def _threshold(file: TensorFile, key: str, d_sae: int, name: str) -> dict[str, Any]:
    """The rule and its thresholds, of which there may be one for all latents; none without the tensor."""
    if key not in file.shapes:
        return {}
    if file.shapes[key] not in ([], [1], [d_sae], [1, d_sae]):
        raise FormatError(f"dictionary {name}: {key} is {file.shapes[key]}, expected [{d_sae}] or a single number.")
    threshold = file.read(key).flatten().expand(d_sae)
    return {"threshold": threshold, "rule": "jump" if bool((threshold < 0).any()) else "jumprelu"}
