"""sae-lens dictionaries into attrib's pytree: from objects, from folders, from releases by name.

A folder is read without importing sae-lens: two files, JSON and safetensors, sizes checked against
each other. Only releases by name and folders in an older layout go through sae-lens itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from attrib.dictionary import Dictionary, DictionaryConfig, DictionaryParams, Normalisation, Rule
from attrib.types import FetchError, FormatError, InputError, Site, UnsupportedError

WEIGHTS = "sae_weights.safetensors"

_RULES: dict[str, Rule] = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk"}

# The two others are folded into the weights at the end of training; sae-lens's own forward then ignores the name.
_NORMALISATIONS: dict[str, Normalisation] = {
    "none": "none",
    "expected_average_only_in": "none",
    "covariance_whitening": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}


def from_sae_lens(sae: Any, *, name: str | None = None) -> Dictionary:
    """attrib's dictionary from a sae-lens SAE, which is left as it is.

    Raises:
        UnsupportedError: for an architecture or normalisation that attrib does not compute, by name.
    """
    if not hasattr(sae, "cfg") or not hasattr(sae, "state_dict"):
        raise InputError(f"sae: expected a sae-lens SAE, got {type(sae).__name__}.")
    config = sae.cfg.to_dict()
    state = {key: value.detach() for key, value in sae.state_dict().items()}
    return build(state, config, name or str(config["metadata"].get("hook_name")))


def build(state: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> Dictionary:
    """A dictionary from sae-lens's tensors and its cfg.json."""
    architecture = config.get("architecture")
    if architecture not in _RULES:
        raise UnsupportedError(f"dictionary {name}: architecture {architecture!r}; attrib computes {', '.join(_RULES)} so far.")
    if (normalisation := config.get("normalize_activations", "none")) not in _NORMALISATIONS:
        raise UnsupportedError(f"dictionary {name}: normalize_activations={normalisation!r}; attrib computes {', '.join(_NORMALISATIONS)}.")
    metadata = config.get("metadata") or {}
    if metadata.get("hook_head_index") is not None:
        raise UnsupportedError(f"dictionary {name}: hook_head_index={metadata['hook_head_index']}; attrib does not read single heads yet.")
    if not (hook_name := metadata.get("hook_name") or config.get("hook_name")):
        raise InputError(f"dictionary {name}: its metadata name no hook_name, so its site is unknown; set sae.cfg.metadata.hook_name.")
    site = Site.parse(hook_name)
    if "W_enc" not in state or state["W_enc"].ndim != 2:
        raise FormatError(
            f"dictionary {name}: W_enc is {list(state['W_enc'].shape) if 'W_enc' in state else 'missing'}, expected [d_in, d_sae]."
        )
    d_in, d_sae = state["W_enc"].shape
    expected = {"W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)} | (
        {"threshold": (d_sae,)} if architecture == "jumprelu" else {}
    )
    for key, shape in expected.items():
        found = list(state[key].shape) if key in state else "missing"
        if found != list(shape):
            raise FormatError(f"dictionary {name}: {key} is {found}, expected {list(shape)} beside W_enc {[d_in, d_sae]}.")
    W_enc, b_enc, W_dec = state["W_enc"], state["b_enc"], state["W_dec"]
    if config.get("rescale_acts_by_decoder_norm"):
        # ranking pre-activations by their decoder's norm is the same as folding that norm into the encoder
        norm = W_dec.norm(dim=-1)
        W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm[:, None]
    params = DictionaryParams(W_enc, b_enc, W_dec, state["b_dec"], state.get("threshold", torch.zeros_like(b_enc)))
    k = config.get("k") if architecture == "topk" else None
    if architecture == "topk" and not (isinstance(k, int) and 1 <= k <= d_sae):
        raise FormatError(f"dictionary {name}: k={k!r}, expected an integer from 1 to d_sae={d_sae}.")
    facts = DictionaryConfig(
        site=site, rule=_RULES[architecture], k=k, apply_b_dec_to_input=config.get("apply_b_dec_to_input", True),
        normalisation=_NORMALISATIONS[normalisation], model_name=metadata.get("model_name"),
    )  # fmt: skip
    return Dictionary(params, facts, name)


def load_folder(folder: Path, *, name: str | None = None) -> Dictionary:
    """A dictionary from a folder with cfg.json and sae_weights.safetensors, in float32.

    Raises:
        FormatError: where the files are damaged or do not fit each other.
    """
    name = name or folder.name
    for file in ("cfg.json", WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(f"dictionary: {folder} holds no {file}; expected a folder that sae-lens's save_model wrote.")
    try:
        config = json.loads((folder / "cfg.json").read_text())
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise FormatError(f"dictionary: {folder} is damaged: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("metadata", {}), dict):
        raise FormatError(f"dictionary: {folder / 'cfg.json'} is no object with an object `metadata`, as sae-lens writes it.")
    if "metadata" not in config:  # written before sae-lens 6
        from sae_lens import SAE

        try:
            sae = SAE.load_from_disk(folder, dtype="float32")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FormatError(
                f"dictionary: {folder} has no `metadata`, and sae-lens cannot read it as an older layout either: {error!r}"
            ) from error
        return from_sae_lens(sae, name=name)
    return build(state, config, name)


def load_release(release: str, sae_id: str) -> Dictionary:
    """A dictionary of a sae-lens release, by name, in float32. Needs a model hub.

    Raises:
        InputError: where the release or id is unknown to sae-lens, with its own list of what there is.
        FetchError: where the hub cannot be reached.
    """
    from sae_lens import SAE

    try:
        sae = SAE.from_pretrained(release, sae_id, dtype="float32")
    except ValueError as error:
        raise InputError(f"dictionary: sae-lens does not know {release!r}, {sae_id!r}: {error}") from error
    except OSError as error:
        raise FetchError(f"dictionary: {release}/{sae_id} could not be fetched; is a model hub reachable? {error}") from error
    return from_sae_lens(sae, name=f"{release}/{sae_id}")
