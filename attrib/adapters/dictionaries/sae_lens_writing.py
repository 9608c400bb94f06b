"""A folder of sae-lens from any of attrib's dictionaries that sae-lens computes the same: cfg.json and sae_weights.safetensors."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from attrib.adapters.dictionaries.sae_lens import WEIGHTS
from attrib.adapters.dictionaries.tensors import trained_at
from attrib.core.files import OVERWRITE, whole
from attrib.core.types import AttribError, InputError, Site, UnsupportedError
from attrib.dictionaries.dictionary import Dictionary

_ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "abstopk": "abstopk"}
_TRANSCODERS = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder"}
CONFIG = "cfg.json"


def save_dictionary(dictionary: Dictionary, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a dictionary as sae-lens writes its own; `attrib.load_dictionary` and `SAE.load_from_disk` read the folder.

    Its numbers stay in their dtype. What was folded into the weights when it was read stays folded, and its metadata go with it.

    Args:
        folder: made if it is not there, in a folder that is.
        overwrite: whether a dictionary that stands there may be replaced.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else, or a dictionary without `overwrite`.
        UnsupportedError: sae-lens has no architecture that computes the same, and why.
    """
    config, state = _described(dictionary)
    path = Path(os.path.abspath(folder))
    _check_free(path, overwrite)
    path.mkdir(exist_ok=True)
    (path / CONFIG).unlink(missing_ok=True)  # without it the folder is none: whoever comes between reads no mixture of two
    with whole(path / WEIGHTS) as partial:
        save_file(state, partial)
    with whole(path / CONFIG) as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path


def _check_free(path: Path, overwrite: bool) -> None:
    """Raises InputError where something would be lost, or there is no folder to write into."""
    if not path.parent.is_dir():
        raise InputError(f"folder: the folder {path.parent} does not exist; make it first.")
    if not path.exists() and not path.is_symlink():
        return
    inside = {each.name for each in path.iterdir()} if path.is_dir() else {"a file"}
    if not inside <= {CONFIG, WEIGHTS}:
        raise InputError(f"folder: {path} holds {sorted(inside - {CONFIG, WEIGHTS})[0]}; expected a new name, or a folder of sae-lens.")
    if inside and not overwrite:
        raise InputError(f"folder: {path} holds a dictionary already; choose another name, or replace it with {OVERWRITE}.")


def _described(dictionary: Dictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of sae-lens."""
    config, params = dictionary.config, dictionary.params
    is_transcoder = bool(config.writes)
    architecture = _architecture(dictionary)
    d_in, d_sae = params.W_enc.shape
    dtype = params.b_enc.dtype  # a lazy dictionary has others in its file
    state = {key: getattr(params, key).detach().to(dtype) for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if config.rule == "jumprelu":
        state["threshold"] = params.threshold.detach()
    if dictionary.has_skip:
        state["W_skip"] = params.W_skip.detach().T
    said = config.metadata.table()
    said.pop("sae_lens_version", None)  # of whoever wrote the file that was read
    metadata = said | {"model_name": config.model_name, "hook_name": _hook(config.site, config.hook_name)}
    if is_transcoder:
        metadata["hook_name_out"] = _hook(config.writes[0], config.hook_name_out)
    table: dict[str, Any] = {
        "architecture": architecture, "d_in": d_in, "d_sae": d_sae, "dtype": str(dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input, "normalize_activations": config.normalisation,
        "reshape_activations": "none", "metadata": {key: value for key, value in metadata.items() if value is not None},
    }  # fmt: skip
    if is_transcoder:
        table["d_out"] = params.W_dec.shape[1]
    if config.k is not None:
        table |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    return table, {key: value.to("cpu", memory_format=torch.contiguous_format).contiguous() for key, value in state.items()}


def _architecture(dictionary: Dictionary) -> str:
    """sae-lens' word for what a dictionary computes. Raises UnsupportedError where it has none."""
    config = dictionary.config
    names = _TRANSCODERS if config.writes else _ARCHITECTURES
    refused = {
        f"writes {len(config.writes)} places, of which it knows one": len(config.writes) > 1,
        f"has the rule {config.rule}{' as a transcoder' if config.writes else ''}, which it has not": config.rule not in names,
        "puts back what normalisation took, and writes elsewhere": bool(config.writes) and config.puts_scale_back,
        "leaves out what normalisation took, and writes where it reads": not config.writes and not config.puts_scale_back
        and config.normalisation != "none",
        "subtracts what it adds elsewhere": bool(config.writes) and config.apply_b_dec_to_input,
        "has a skip connection and writes where it reads": not config.writes and dictionary.has_skip,
        "reads heads' outputs, which sae-lens lays out by head": config.site.kind == "z",
    }  # fmt: skip
    for why, is_so in refused.items():
        if is_so:
            raise UnsupportedError(f"dictionary {dictionary.name}: it {why}, so sae-lens could not compute it.")
    name = names[config.rule]
    return name.replace("transcoder", "skip_transcoder") if dictionary.has_skip else name


def _hook(site: Site, said: str | None) -> str:
    """The trainer's own word for a place, which may say more than the place itself, where it means this place."""
    try:
        return said if said is not None and trained_at(said) == site else str(site)
    except AttribError:  # of a library that names modules
        return str(site)
