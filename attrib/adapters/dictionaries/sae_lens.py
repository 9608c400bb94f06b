"""sae-lens dictionaries into attrib's pytree: from objects, from folders, from releases by name.

A folder is read without importing sae-lens: two files, JSON and safetensors, sizes checked against
each other before tensors are read. Only releases by name go through sae-lens itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from attrib.adapters.dictionaries.gemma_scope import site_of_module
from attrib.adapters.dictionaries.kinds import NORMALISATIONS, DictionaryKind, kind_of, supported
from attrib.adapters.dictionaries.scaling import SCALED, factor_beside, not_folded, scaled, whitened, whitening_beside
from attrib.adapters.dictionaries.tensors import (
    Shapes,
    check_no_others,
    check_shapes,
    from_tensors,
    is_count,
    matrix,
    read_json,
    safetensors_file,
    trained_at,
)
from attrib.adapters.keys import SAE_LENS, check_keys, check_sizes
from attrib.core.optional import needed
from attrib.core.types import BEFORE_NORM, FetchError, FormatError, InputError, Site, UnsupportedError
from attrib.core.weights import OpenedFile
from attrib.dictionaries.dictionary import COMPETING, Dictionary, Normalisation
from attrib.dictionaries.metadata import Metadata, metadata_of

WEIGHTS = "sae_weights.safetensors"

_GATES = ("b_gate", "r_mag", "b_mag")
_FACTORS = ("scaling_factor", "finetuning_scaling_factor")
_UNDERSTOOD = (
    "architecture", "d_in", "d_sae", "apply_b_dec_to_input", "normalize_activations", "reshape_activations", "finetuning_scaling_factor",
    "metadata", "hook_name",
)  # fmt: skip


def from_sae_lens(sae: Any, *, name: str | None = None) -> Dictionary:
    """attrib's dictionary from a sae-lens SAE or transcoder, which is left as it is. Its weights are copied: it may be trained on.

    Raises:
        UnsupportedError: for an architecture or normalisation that attrib does not compute, by name.
    """
    if not hasattr(sae, "cfg") or not hasattr(sae, "state_dict"):
        raise InputError(f"sae: expected a sae-lens SAE, got {type(sae).__name__}.")
    config = sae.cfg.to_dict()
    state = {key: value.detach().clone() for key, value in sae.state_dict().items()}
    name = name or str(config["metadata"].get("hook_name"))
    facts = _read(config, {key: list(value.shape) for key, value in state.items()}, name, None)
    if facts.scaled_by:
        raise not_folded(facts.scaled_by, name, "an object does not say by how much")
    return _assemble(state, facts)


_TYPES: tuple[tuple[str, str, type], ...] = (
    *(("metadata.", key, str) for key in ("hook_name", "hook_name_out", "model_name")),
    ("", "hook_name", str),
    *(("", key, bool) for key in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor")),
)
"""What a config's values must be, where they are there: a null is as if it were not."""


class _Facts(NamedTuple):
    """What a config and the shapes beside it say, checked."""

    options: dict[str, Any]
    is_gated: bool
    has_threshold: bool
    has_skip: bool
    finetuned: bool
    scaled_by: str | None
    d_in: int
    name: str


def _read(config: Mapping[str, Any], shapes: Shapes, name: str, site: Site | str | None) -> _Facts:
    """Everything about a dictionary but its numbers. Raises UnsupportedError, InputError or FormatError, in this order of causes."""
    architecture, kind, normalisation = _kind(config, name)
    is_transcoder, competes, is_gated = "transcoder" in kind.name, kind.rule in COMPETING, architecture == "gated"
    more = (("k", "rescale_acts_by_decoder_norm") if competes else ()) + (("d_out",) if is_transcoder else ())
    metadata = _metadata(config, more, name)
    hook_name = metadata.get("hook_name") or config.get("hook_name")
    if not (hook_name or site):
        raise InputError(
            f"dictionary {name}: its metadata name no hook_name, so its site is unknown; set sae.cfg.metadata.hook_name, or give site=."
        )
    reads, hook_name = _reads(hook_name, metadata, name, site)
    reshape = config.get("reshape_activations", "none")
    if reshape not in ("none", "hook_z") or (reshape == "hook_z" and is_transcoder):
        raise UnsupportedError(
            f"dictionary {name}: reshape_activations={reshape!r} of a {architecture}; attrib computes none, and hook_z of SAEs."
        )
    d_in, d_sae = matrix(shapes, "W_enc", name, "[d_in, d_sae]")
    check_sizes(config, {"d_in": d_in, "d_sae": d_sae}, f"W_enc is {[d_in, d_sae]}", name)
    scaled_by = normalisation if normalisation in SCALED else None
    if scaled_by and is_transcoder:
        raise UnsupportedError(
            f"dictionary {name}: normalize_activations={scaled_by!r} of a {architecture}, of which nothing says whether what it writes is "
            "scaled too. Fold it in with sae-lens, and save it with normalize_activations 'none'."
        )
    writes = _writes(config, metadata, name) if is_transcoder else ()
    expected = _output_shapes(config, shapes, kind, name) if is_transcoder else {"W_dec": [d_sae, d_in], "b_dec": [d_in]}
    has_threshold = kind.rule == "jumprelu" and not is_gated
    vectors = (_GATES if is_gated else ("b_enc",)) + (("threshold",) if has_threshold else ())
    expected |= {key: [d_sae] for key in (*vectors, *(key for key in _FACTORS if key in shapes))}
    check_shapes(shapes, expected, name, f" beside W_enc {[d_in, d_sae]}")
    check_no_others(shapes, ["W_enc", *expected], name)
    k = config.get("k")
    if competes and not is_count(k, d_sae):
        raise FormatError(f"dictionary {name}: k={k!r}, expected an integer from 1 to d_sae={d_sae}.")
    computed = cast(Normalisation, normalisation if normalisation in ("layer_norm", "constant_norm_rescale") else "none")
    options = {
        "site": reads, "writes": writes, "rule": "gated" if is_gated else kind.rule, "k": k, "normalisation": computed,
        "apply_b_dec_to_input": not is_transcoder and config.get("apply_b_dec_to_input") is not False, "puts_scale_back": not is_transcoder,
        "rescale_acts_by_decoder_norm": k is not None and config.get("rescale_acts_by_decoder_norm") is True,
        "kind": architecture, "hook_name": hook_name, "model_name": metadata.get("model_name"), "name": name,
        "metadata": _training(config, metadata),
    }  # fmt: skip
    finetuned = bool(config.get("finetuning_scaling_factor"))
    return _Facts(options, is_gated, has_threshold, "W_skip" in expected, finetuned, scaled_by, d_in, name)


_TRAINED = ("context_size", "dataset_path", "prepend_bos", "neuronpedia_id", "sae_lens_version", "sae_lens_training_version")
"""What sae-lens 2 to 5 have beside everything else."""


def _training(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> Metadata:
    """What is said of a dictionary's training, but for what attrib goes by."""
    flat = {key: config[key] for key in _TRAINED if key in config}
    return metadata_of(flat | {key: value for key, value in metadata.items() if key not in _METADATA})


def _kind(config: Mapping[str, Any], name: str) -> tuple[str, DictionaryKind, str]:
    """The architecture, what attrib knows of it, and the normalisation. Raises UnsupportedError for one that it does not compute."""
    architecture, normalisation = config.get("architecture"), config.get("normalize_activations", "none")
    kind = kind_of("sae-lens", str(architecture))
    if kind is None or kind.rule is None:
        why = f" ({kind.remark})" if kind else ""
        raise UnsupportedError(
            f"dictionary {name}: architecture {architecture!r}{why}; attrib computes {', '.join(supported('sae-lens'))}."
        )
    if not isinstance(normalisation, str) or normalisation not in NORMALISATIONS:
        raise UnsupportedError(f"dictionary {name}: normalize_activations={normalisation!r}; attrib computes {', '.join(NORMALISATIONS)}.")
    return str(architecture), kind, normalisation


def _metadata(config: Mapping[str, Any], more: Sequence[str], name: str) -> Mapping[str, Any]:
    """The metadata, after every key and the types of values were looked at; `more` are keys that this kind has."""
    check_keys(config, (*_UNDERSTOOD, *more), SAE_LENS, name)
    metadata = config.get("metadata") or {}
    for where, key, wanted in _TYPES:
        if (value := (metadata if where else config).get(key)) is not None and not isinstance(value, wanted):
            raise FormatError(f"dictionary {name}: {where}{key}={value!r}; expected a {'text' if wanted is str else 'true or false'}.")
    for key in ("hook_head_index", "hook_head_index_out"):
        if metadata.get(key) is not None:
            raise UnsupportedError(f"dictionary {name}: {key}={metadata[key]}; attrib does not read single heads yet.")
    return metadata


def _writes(config: Mapping[str, Any], metadata: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Where a transcoder writes."""
    if not metadata.get("hook_name_out"):
        raise InputError(f"dictionary {name}: its metadata name no hook_name_out, so where it writes is unknown; set it there.")
    if config.get("apply_b_dec_to_input"):
        architecture = config["architecture"]
        raise FormatError(f"dictionary {name}: apply_b_dec_to_input=True of a {architecture}, whose b_dec belongs to what it writes.")
    return (metadata["hook_name_out"],)


def _output_shapes(config: Mapping[str, Any], shapes: Shapes, kind: DictionaryKind, name: str) -> dict[str, list[int]]:
    """The shapes that the decoder of a transcoder must have, by its own width."""
    d_in, d_sae = shapes["W_enc"]
    d_out = matrix(shapes, "W_dec", name, "[d_sae, d_out]")[1]
    check_sizes(config, {"d_out": d_out}, f"W_dec is {[d_sae, d_out]}", name)
    skip = {"W_skip": [d_out, d_in]} if "skip" in kind.name else {}
    return {"W_dec": [d_sae, d_out], "b_dec": [d_out]} | skip


def _reads(hook_name: Any, metadata: Mapping[str, Any], name: str, site: Site | str | None) -> tuple[Site, str]:
    """Where a dictionary reads, and its trainer's word for it.

    sae-lens calls what Gemma Scope 2's transcoders read `hook_mlp_in`, and writes beside it the module of transformers that is meant.
    """
    if not hook_name:
        return Site.parse(str(site)), str(site)
    before_norm, module = str(hook_name).endswith(f".{BEFORE_NORM}"), metadata.get("hf_hook_name")
    reads = site_of_module(name, metadata, "hf_hook_name") if before_norm and module else trained_at(hook_name)
    assert reads is not None  # the module is there
    if site is None:
        return reads, str(module) if before_norm and module else hook_name
    given, possible = Site.parse(site), {reads} | ({Site(reads.layer, "resid_pre")} if reads.kind == "resid_mid" and before_norm else set())
    if given not in possible:
        raise InputError(f"site: {site}, but dictionary {name} was made for {hook_name}; leave site= out.")
    return given, str(given) if before_norm else hook_name


def _assemble(state: Mapping[str, Tensor], facts: _Facts, files: Sequence[OpenedFile] = ()) -> Dictionary:
    tensors: dict[str, Any] = {key: state[key] for key in ("W_enc", "W_dec", "b_dec")}
    tensors |= {key: state[key] for key in (_GATES if facts.is_gated else ("b_enc",))}
    if facts.has_threshold:
        tensors["threshold"] = state["threshold"]
    if facts.has_skip:
        tensors["W_skip"] = state["W_skip"].T  # sae-lens: x @ W_skip.T
    for factor in (state[key] for key in _FACTORS if key in state):
        if torch.allclose(factor, torch.ones_like(factor)):
            continue  # once written by default
        if not facts.finetuned:
            raise FormatError(f"dictionary {facts.name}: it has a scaling_factor, but finetuning_scaling_factor of its config is False.")
        if facts.options.get("lazy"):
            raise InputError(f"lazy: the scaling_factor has to be folded into all of W_dec of {facts.name}; leave lazy= out.")
        # sae-lens 3 to 5 multiplied the latents by it on their way into the decoder
        tensors["W_dec"] = tensors["W_dec"] * factor[:, None]
    return from_tensors(**tensors, **facts.options, files=files)


def load_folder(folder: Path, *, name: str | None = None, site: Site | str | None = None, lazy: bool = False) -> Dictionary:
    """A dictionary from a folder with cfg.json and sae_weights.safetensors, in float32.

    Args:
        site: where it reads, for a config that does not say; of `hook_mlp_in`, resid_pre for a model with parallel blocks.
        lazy: whether encoder and decoder stay in their file, in its dtype, and rows are read as they are used.

    Raises:
        UnsupportedError: for a kind, a key or a scaling that attrib does not know, by name.
        FormatError: where the files are damaged or do not fit each other.
    """
    name = name or folder.name
    for file in ("cfg.json", WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(f"dictionary: {folder} holds no {file}; expected a folder that sae-lens's save_model wrote.")
    config = read_json(folder / "cfg.json")
    if not isinstance(config, dict) or not isinstance(config.get("metadata", {}), dict):
        raise FormatError(f"dictionary: {folder / 'cfg.json'} is no object with an object `metadata`, as sae-lens writes it.")
    if "metadata" not in config:
        config = _before_6(config, name)
    with safetensors_file(folder / WEIGHTS) as weights:
        facts = _read(config, weights.shapes, name, site)
        facts = facts._replace(options=facts.options | {"lazy": lazy})
        state = {key: weights.take(key, lazy and key in ("W_enc", "W_dec")) for key in weights.shapes}
        if facts.scaled_by and lazy:
            raise InputError(f"lazy: {facts.scaled_by} has to be folded into all weights of {name}; leave lazy= out.")
        if facts.scaled_by == "expected_average_only_in":
            state = scaled(state, factor_beside(folder, name))
        made = _assemble(state, facts, [weights.file])
    return whitened(made, whitening_beside(folder, facts.d_in, name)) if facts.scaled_by == "covariance_whitening" else made


_METADATA = ("hook_name", "hook_name_out", "hook_head_index", "hook_head_index_out", "model_name")


def _before_6(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The flat config of sae-lens 2 to 5 in the words of 6: other names, TopK as an activation function, a bool for a normalisation."""
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
    new = {renamed.get(key, key): value for key, value in config.items()}
    new["metadata"] = {key: new.pop(key) for key in _METADATA if key in new}
    new.setdefault("architecture", "standard")
    activation, arguments = new.pop("activation_fn", "relu"), new.pop("activation_fn_kwargs", None) or {}
    if activation not in ("relu", "topk"):
        raise UnsupportedError(f"dictionary {name}: activation_fn={activation!r} of an older layout; attrib computes relu and topk.")
    if not isinstance(arguments, dict) or arguments.keys() - ({"k"} if activation == "topk" else set()):
        raise UnsupportedError(
            f"dictionary {name}: activation_fn_kwargs={arguments!r} of activation_fn={activation!r}; attrib knows k, of topk."
        )
    if activation == "topk":
        new |= {"architecture": "topk", "k": arguments.get("k")}
    if (normalisation := new.get("normalize_activations")) in (None, True, False):
        new["normalize_activations"] = "expected_average_only_in" if normalisation else "none"
    return new


def load_release(release: str, sae_id: str) -> Dictionary:
    """A dictionary of a sae-lens release, by name, in float32. Needs a model hub.

    Raises:
        InputError: where sae-lens is not installed, or the release or id is unknown to it, with its own list of what there is.
        FetchError: where the hub cannot be reached.
    """
    sae_lens = needed("sae_lens", f"dictionary: {release}/{sae_id} is no folder, and as a release of sae-lens", "lens")
    try:
        sae = sae_lens.SAE.from_pretrained(release, sae_id, dtype="float32")
    except ValueError as error:
        raise InputError(f"dictionary: sae-lens does not know {release!r}, {sae_id!r}: {error}") from error
    except OSError as error:
        raise FetchError(f"dictionary: {release}/{sae_id} could not be fetched; is a model hub reachable? {error}") from error
    return from_sae_lens(sae, name=f"{release}/{sae_id}")
