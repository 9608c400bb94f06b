"""Gemma Scope's JumpReLU SAEs and transcoders: params.npz of the first (Gemma 2), params.safetensors of the second (Gemma 3).

    f = relu(pre) · [pre > threshold],  pre = x W_enc + b_enc,   y = f W_dec + b_dec (+ x affine_skip_connection)

No config lies beside params.npz (Lieberum et al. 2024, arXiv:2408.05147): the layer is in the path
("layer_20/width_16k/average_l0_71"), and the site in the release's name ("gemma-scope-2b-pt-res") where that
is part of the path, or given. Beside params.safetensors a config.json names modules of transformers.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrib.adapters.dictionaries.tensors import check_no_others, check_shapes, from_tensors, matrix, npz_file, read_json, safetensors_file
from attrib.adapters.keys import GEMMA_SCOPE_2, check_keys, flag
from attrib.core.types import SITE_KINDS, FormatError, InputError, Site, SiteKind, UnsupportedError
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.metadata import metadata_of

WEIGHTS, WEIGHTS_2 = "params.npz", "params.safetensors"
_UNDERSTOOD_2 = ("architecture", "model_name", "hf_hook_point_in", "hf_hook_point_out", "affine_connection")

# The last word of a release's name: where it reads, where it writes, and the hook that sae-lens and circuit-tracer read at.
_RELEASES = {
    "res": ("hook_resid_post", ""),
    "mlp": ("hook_mlp_out", ""),
    "att": ("attn.hook_z", ""),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}


def load_file(path: Path, *, site: Site | str | None = None, writes: Site | str | None = None) -> Dictionary:
    """A dictionary from params.npz, in float32.

    Args:
        site: where it reads: a site, a hook name, or a kind of site ("resid_post") of the path's layer. Left
            out, the release's name in the path says it.
        writes: where it writes, in the same words; left out, where it reads.

    Raises:
        InputError: where the site is not known.
        UnsupportedError: for the dictionaries of the embedding.
        FormatError: where the file is damaged or its tensors do not fit each other.
    """
    name = "/".join(path.parent.parts[-3:])
    reads, written = _sites(path, site, writes)
    with npz_file(path) as file:
        d_in, d_sae = matrix(file.shapes, "W_enc", name, "[d_in, d_sae]")
        d_out = matrix(file.shapes, "W_dec", name, "[d_sae, d_out]")[1]
        expected = {"W_dec": [d_sae, d_out], "b_enc": [d_sae], "b_dec": [d_out], "threshold": [d_sae]}
        check_shapes(file.shapes, expected, name, f" beside W_enc {[d_in, d_sae]}")
        check_no_others(file.shapes, ["W_enc", *expected], name)
        tensors: dict[str, Any] = {key: file.read(key) for key in ("W_enc", *expected)}
        tensors["files"] = [file.file]
    return from_tensors(
        **tensors, site=reads, writes=written, rule="jumprelu", name=name, kind=WEIGHTS, model_name=_model_name(path),
        puts_scale_back=not written, hook_name=str(reads),
    )  # fmt: skip


# What config.json of the second calls a site: a module of a layer, and which end of it.
_MODULES: dict[str, SiteKind] = {
    "output": "resid_post",
    "self_attn.o_proj.input": "z",
    "pre_feedforward_layernorm.output": "mlp_in",
    "post_feedforward_layernorm.output": "mlp_out",
}


def load_folder_2(folder: Path, *, site: Site | str | None = None, writes: Site | str | None = None, lazy: bool = False) -> Dictionary:
    """A dictionary from a folder of Gemma Scope 2, in float32.

    Args:
        site: where it reads, for a folder without config.json.
        writes: where it writes, the same; left out, where it reads.
        lazy: whether encoder and decoder stay in their file, in its dtype, and rows are read as they are used.

    Raises:
        InputError: where the site is not known.
        UnsupportedError: for an architecture or a module that attrib does not compute, by name.
        FormatError: where the files are damaged or do not fit each other.
    """
    name = folder.name
    config: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        if not isinstance(config, dict):
            raise FormatError(f"dictionary: {folder / 'config.json'} is no object, as Gemma Scope 2 has it.")
        architecture = config.get("architecture")
        if architecture != "jump_relu":
            raise UnsupportedError(
                f"dictionary {name}: architecture {architecture!r} in config.json; attrib computes Gemma Scope's jump_relu."
            )
        check_keys(config, _UNDERSTOOD_2, GEMMA_SCOPE_2, name)
    reads = site_of_module(name, config, "hf_hook_point_in") if site is None else Site.parse(site)
    written = site_of_module(name, config, "hf_hook_point_out") if site is None else Site.parse(writes) if writes else None
    if reads is None:
        raise InputError(f"site: missing, and {folder} has no config.json with hf_hook_point_in. Give site=, and writes= for a transcoder.")
    with safetensors_file(folder / WEIGHTS_2) as file:
        d_in, d_sae = matrix(file.shapes, "w_enc", name, "[d_in, d_sae]")
        d_out = matrix(file.shapes, "w_dec", name, "[d_sae, d_out]")[1]
        expected = {"w_dec": [d_sae, d_out], "b_enc": [d_sae], "b_dec": [d_out], "threshold": [d_sae]}
        if flag(config, "affine_connection", name) or "affine_skip_connection" in file.shapes:
            expected["affine_skip_connection"] = [d_in, d_out]
        check_shapes(file.shapes, expected, name, f" beside w_enc {[d_in, d_sae]}")
        check_no_others(file.shapes, ["w_enc", *expected], name)
        if config.get("affine_connection") is False and "affine_skip_connection" in expected:
            raise FormatError(f"dictionary {name}: affine_connection=False in its config, but it holds an affine_skip_connection.")
        model_name, hook_name = config.get("model_name"), config.get("hf_hook_point_in")
        return from_tensors(
            site=reads, writes=() if written is None else written, rule="jumprelu", name=name, kind=WEIGHTS_2,
            W_enc=file.take("w_enc", lazy), W_dec=file.take("w_dec", lazy), b_enc=file.read("b_enc"), b_dec=file.read("b_dec"),
            threshold=file.read("threshold"),
            W_skip=file.read("affine_skip_connection") if "affine_skip_connection" in expected else None,
            hook_name=hook_name if hook_name and isinstance(hook_name, str) else str(reads), lazy=lazy, files=[file.file],
            model_name=model_name if isinstance(model_name, str) else None,
            metadata=metadata_of({key: config[key] for key in sorted(GEMMA_SCOPE_2) if key in config}),
        )  # fmt: skip


def site_of_module(name: str, config: Mapping[str, Any], key: str) -> Site | None:
    """The site of a module of transformers, or None where the config names none."""
    if not (module := config.get(key)):
        return None
    match = re.fullmatch(r"(?:.+\.)?layers\.(\d{1,9})\.(.+)", module) if isinstance(module, str) else None
    if match is None or match[2] not in _MODULES:
        raise UnsupportedError(f"dictionary {name}: {key}={module!r} is no site of attrib; known are {', '.join(_MODULES)} of a layer.")
    return Site(int(match[1]), _MODULES[match[2]])


def _sites(path: Path, site: Site | str | None, writes: Site | str | None) -> tuple[Site | str, tuple[Site | str, ...]]:
    if any(part.startswith("embedding") for part in path.parts):
        raise UnsupportedError(f"dictionary {path}: of the embedding, which is no site of attrib.")
    if site is not None:
        reads = _site(path, site, "site")
        return reads, () if writes is None else (_site(path, writes, "writes"),)
    pattern = rf"gemma-scope-.*-({'|'.join(_RELEASES)})(?:-canonical)?"
    release = next((match[1] for part in path.parts if (match := re.fullmatch(pattern, part))), None)
    if release is None:
        raise InputError(
            f"site: missing, and no part of {path} names a release that ends in {', '.join(_RELEASES)} (gemma-scope-2b-pt-res, say). "
            "Give site=, such as 'resid_post'."
        )
    read_hook, write_hook = _RELEASES[release]
    return _site(path, read_hook, "site"), (_site(path, write_hook, "writes"),) if write_hook else ()


def _site(path: Path, site: Site | str, argument: str) -> Site | str:
    """A site or hook name as it is; a kind of site, or a hook of a block, with the path's layer before it."""
    if isinstance(site, Site) or site.startswith("blocks."):
        return site
    layer = next((match[1] for part in reversed(path.parts) if (match := re.fullmatch(r"layer_(\d+)", part))), None)
    if layer is None:
        raise InputError(
            f"{argument}: {site!r} without a layer, and none is in {path}; give a hook name such as 'blocks.20.hook_resid_post'."
        )
    return Site(int(layer), site) if site in SITE_KINDS else f"blocks.{layer}.{site}"  # type: ignore[arg-type]


def _model_name(path: Path) -> str | None:
    found = next((match for part in path.parts if (match := re.match(r"gemma-scope-(\d+b)-(pt|it)", part))), None)
    return None if found is None else f"gemma-2-{found[1]}" + ("-it" if found[2] == "it" else "")
