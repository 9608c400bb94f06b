"""circuit-tracer's transcoders: a folder with config.yaml and one file per layer, or two for cross-layer transcoders.

    transcoder_set           layer_{i}.safetensors   W_enc [d_sae, d], W_dec [d_sae, d], b_enc, b_dec,
                                                     optional activation_function.threshold, W_skip [d, d]
                                                     and, with activation topk, optionally k
        f_i = act(x_i W_enc^T + b_enc),  y_i = f_i W_dec + b_dec + x_i W_skip^T

    cross_layer_transcoder   W_enc_{i}.safetensors   W_enc_i [d_sae, d], b_enc_i, b_dec_i, optional threshold_i
                             W_dec_{i}.safetensors   W_dec_i [d_sae, n_layers - i, d]
        f_i = act(x_i W_enc_i^T + b_enc_i),  y_j = Σ_{i <= j} f_i W_dec_i[:, j - i] + b_dec_j

With thresholds act is x · [x > threshold], without a ReLU: a negative threshold lets negative latents pass. With
`activation: topk` it is x · [x among the k largest], without a ReLU too. Otherwise it is a ReLU. x_i is the value at
`feature_input_hook` of layer i, y_j at `feature_output_hook` of layer j.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

from attrib.adapters.dictionaries.tensors import (
    TensorFile,
    check_no_others,
    check_shapes,
    from_tensors,
    is_count,
    matrix,
    safetensors_file,
    trained_at,
)
from attrib.adapters.keys import CIRCUIT_TRACER, check_keys, check_sizes
from attrib.core.types import FormatError, InputError, Site, UnsupportedError
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.metadata import metadata_of

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"
PLACES = ("k", "activation_function.k")
"""Names of the one tensor that is a whole number: how many latents win."""

_SIZES = ("d_model", "d_transcoder", "n_layers")
_UNDERSTOOD = ("model_kind", "model_name", "feature_input_hook", "feature_output_hook", "activation", "k", "transcoders", *_SIZES)
_ORIGIN = ("scan", "repo_id", "revision", "subfolder")
_NEEDS_THRESHOLD = {"relu": False, "jump_relu": True, "jumprelu": True}
LONGEST_CONFIG = 1 << 16
"""Bytes of config.yaml, at most."""
MOST_BRACKETS = 500

# what the MLP gives, which is what it adds to the stream where no norm comes between: `fit` refuses it where one does
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
    check_keys(config, _UNDERSTOOD, CIRCUIT_TRACER, folder.name)
    if (activation := config.get("activation")) not in (None, "topk", *_NEEDS_THRESHOLD):
        raise UnsupportedError(
            f"dictionary {folder.name}: activation={activation!r} in its config; attrib computes topk, {', '.join(_NEEDS_THRESHOLD)}."
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
        return trained_at(f"blocks.{layer}.{_ALIASES.get(name, name)}"), hook
    except InputError as error:
        raise UnsupportedError(f"dictionary {folder.name}: {key}={name!r} is no site of attrib: {error}") from error


def _layer(folder: Path, config: Mapping[str, Any], layer: int, lazy: bool) -> Dictionary:
    name = f"{folder.name}/layer_{layer}"
    reads, hook_name = _hook(folder, config, "feature_input_hook", layer)
    model_name = config.get("model_name")
    options: dict[str, Any] = {
        "site": reads, "hook_name": hook_name, "name": name, "kind": config["model_kind"],
        "model_name": model_name if isinstance(model_name, str) else None, "puts_scale_back": False,
        "lazy": lazy, "metadata": metadata_of({key: config[key] for key in _ORIGIN if key in config}),
    }  # fmt: skip
    n_layers = len(_layers(folder, config))
    check_sizes(config, {"n_layers": n_layers}, f"its folder has layers 0 to {n_layers - 1}", name)
    if config["model_kind"] == "transcoder_set":
        options["writes"], options["hook_name_out"] = _hook(folder, config, "feature_output_hook", layer)
        with safetensors_file(folder / f"layer_{layer}.safetensors", integers=PLACES) as file:
            return _single(file, config, name, options)
    hooks = [_hook(folder, config, "feature_output_hook", later) for later in range(layer, n_layers)]
    options["writes"], options["hook_name_out"] = [site for site, _ in hooks], hooks[0][1]
    decoder = folder / f"W_dec_{layer}.safetensors"
    if not decoder.is_file():
        raise FormatError(f"dictionary: {folder} holds no {decoder.name} beside W_enc_{layer}.safetensors.")
    encoder, places = folder / f"W_enc_{layer}.safetensors", [f"{key}_{layer}" for key in PLACES]
    with safetensors_file(encoder, integers=places) as file, safetensors_file(decoder) as written:
        return _cross(file, written, config, layer, n_layers - layer, name, options)


def _matrix(file: TensorFile, config: Mapping[str, Any], key: str, name: str) -> tuple[int, int]:
    """The two sizes of an encoder, which are those that the config states."""
    d_sae, d_in = matrix(file.shapes, key, name, "[d_transcoder, d_model]")
    check_sizes(config, {"d_transcoder": d_sae, "d_model": d_in}, f"{key} is {[d_sae, d_in]}", name)
    return d_sae, d_in


def _single(file: TensorFile, config: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> Dictionary:
    d_sae, d_in = _matrix(file, config, "W_enc", name)
    expected = {"W_dec": [d_sae, d_in], "b_enc": [d_sae], "b_dec": [d_in]}
    if "W_skip" in file.shapes:
        expected["W_skip"] = [d_in, d_in]
    check_shapes(file.shapes, expected, name, f" beside W_enc {[d_sae, d_in]}")
    check_no_others(file.shapes, ["W_enc", THRESHOLD, *PLACES, *expected], name)
    lazy = options["lazy"]
    return from_tensors(
        W_enc=file.take("W_enc", lazy).T,
        W_dec=file.take("W_dec", lazy),
        b_enc=file.read("b_enc"),
        b_dec=file.read("b_dec"),
        W_skip=file.read("W_skip").T if "W_skip" in file.shapes else None,
        **_rule(file, config, THRESHOLD, PLACES, d_sae, name),
        files=[file.file],
        **options,
    )


def _cross(
    file: TensorFile, decoder: TensorFile, config: Mapping[str, Any], layer: int, n_writes: int, name: str, options: Mapping[str, Any]
) -> Dictionary:
    W_enc, W_dec, b_enc, b_dec, threshold, *places = (
        f"{key}_{layer}" for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", *PLACES)
    )
    d_sae, d_in = _matrix(file, config, W_enc, name)
    check_shapes(file.shapes, {b_enc: [d_sae], b_dec: [d_in]}, name, f" beside {W_enc} {[d_sae, d_in]}")
    check_shapes(decoder.shapes, {W_dec: [d_sae, n_writes, d_in]}, name, f" beside {W_enc} {[d_sae, d_in]}")
    check_no_others(file.shapes, [W_enc, b_enc, b_dec, threshold, *places], name)
    check_no_others(decoder.shapes, [W_dec], name)
    # every layer adds the bias of its own output: those of later layers are their own dictionaries'
    own = file.read(b_dec)
    return from_tensors(
        W_enc=file.take(W_enc, options["lazy"]).T,
        W_dec=decoder.take(W_dec, options["lazy"]).flatten(1),
        b_enc=file.read(b_enc),
        b_dec=torch.cat([own, own.new_zeros((n_writes - 1) * d_in)]),
        **_rule(file, config, threshold, places, d_sae, name),
        files=[file.file, decoder.file],
        **options,
    )


def _rule(file: TensorFile, config: Mapping[str, Any], key: str, places: Sequence[str], d_sae: int, name: str) -> dict[str, Any]:
    """The rule, with its k or its thresholds, of which there may be one for all latents.

    circuit-tracer itself goes by the tensors alone; `activation` and `k` are what releases write beside them.
    """
    activation, has_threshold = config.get("activation"), key in file.shapes
    said: dict[str, object] = {} if config.get("k") is None else {"k of its config": config["k"]}
    for place in places:
        if place in file.shapes:
            check_shapes(file.shapes, {place: file.shapes[place][:1] and [1]}, name)  # one number, before it is read
            said[place] = file.stored(place).item()
    if activation == "topk" or (said and activation is None and not has_threshold):
        k = next(iter(said.values()), None)
        if has_threshold or any(other != k for other in said.values()) or not is_count(k, d_sae):
            found = ", ".join(f"{place}={value!r}" for place, value in said.items()) or "no k"
            raise FormatError(
                f"dictionary {name}: topk with {found}{f' and {key}' if has_threshold else ''}; expected one k, an integer from 1 to "
                f"d_transcoder={d_sae}, and no thresholds."
            )
        return {"k": k, "rule": "rawtopk"}
    if said or (activation is not None and _NEEDS_THRESHOLD[activation] != has_threshold):
        found = ", ".join([*said, *([key] if has_threshold else [])]) or f"no {key}"
        raise FormatError(f"dictionary {name}: activation={activation!r} in its config, but it has {found}.")
    if not has_threshold:
        return {}
    if file.shapes[key] not in ([], [1], [d_sae], [1, d_sae]):
        raise FormatError(f"dictionary {name}: {key} is {file.shapes[key]}, expected [{d_sae}] or a single number.")
    threshold = file.read(key).flatten().expand(d_sae)
    return {"threshold": threshold, "rule": "jump" if bool((threshold < 0).any()) else "jumprelu"}
