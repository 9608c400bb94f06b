"""sparsify's dictionaries: a folder with cfg.json and sae.safetensors, named after the module that it was trained on.

    SAE          pre = (x - b_dec) W^T + b,  f = topk(relu(pre)),  y = f W_dec + b_dec (+ x W_skip^T)
    transcoder   pre = x W^T + b, where x is the module's input and y its output

W is `encoder.weight` [d_sae, d], b is `encoder.bias`. "layers.5" is a whole block, "layers.5.mlp" its MLP.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from attrib.adapters.dictionaries.kinds import kind_of
from attrib.adapters.dictionaries.tensors import check_no_others, check_shapes, from_tensors, is_count, matrix, read_json, safetensors_file
from attrib.adapters.keys import SPARSIFY, check_keys, check_sizes, flag
from attrib.core.types import FormatError, InputError, Site, SiteKind, UnsupportedError
from attrib.dictionaries.dictionary import Dictionary

WEIGHTS = "sae.safetensors"
_UNDERSTOOD = ("activation", "signed", "k", "d_in", "num_latents", "skip_connection", "transcode")

# What a module computes from, and what it gives; None where what it computes from is no site.
_MODULES: dict[str | None, tuple[SiteKind | None, SiteKind]] = {
    None: ("resid_pre", "resid_post"),
    "mlp": ("mlp_in", "mlp_out"),
    **dict.fromkeys(("attn", "self_attn", "attention"), (None, "attn_out")),
}


def load_folder(folder: Path, *, site: Site | str | None = None, writes: Site | str | None = None, lazy: bool = False) -> Dictionary:
    """A dictionary from a folder that sparsify's `save_to_disk` wrote, in float32.

    Args:
        site: where it reads, for a folder that is not named after a module ("layers.5.mlp").
        writes: where it writes, the same, for a transcoder.
        lazy: whether encoder and decoder stay in their file, in its dtype, and rows are read as they are used.

    Raises:
        InputError: where the site is not known.
        UnsupportedError: for an activation or a module that attrib does not compute, by name.
        FormatError: where the files are damaged or do not fit each other.
    """
    name = folder.name
    if not (folder / "cfg.json").is_file():
        raise InputError(f"dictionary: {folder} holds {WEIGHTS} but no cfg.json; expected a folder that sparsify's save_to_disk wrote.")
    config = read_json(folder / "cfg.json")
    if not isinstance(config, dict):
        raise FormatError(f"dictionary: {folder / 'cfg.json'} is no object, as sparsify writes it.")
    for key, refused in (("activation", "groupmax"), ("signed", True)):
        if config.get(key) == refused:
            kind = kind_of("sparsify", "groupmax" if key == "activation" else "topk with signed")
            raise UnsupportedError(
                f"dictionary {name}: {key}={refused!r} ({kind.remark if kind else ''}); attrib computes sparsify's topk."
            )
    if (activation := config.get("activation", "topk")) != "topk":
        raise UnsupportedError(f"dictionary {name}: activation={activation!r}; attrib computes sparsify's topk.")
    check_keys(config, _UNDERSTOOD, SPARSIFY, name)
    transcodes = flag(config, "transcode", name)
    reads, written = sites(folder.name, transcodes, site, writes)
    with safetensors_file(folder / WEIGHTS) as file:
        d_sae, d_in = matrix(file.shapes, "encoder.weight", name, "[num_latents, d_in]")
        expected = {"encoder.bias": [d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}
        if flag(config, "skip_connection", name):
            expected["W_skip"] = [d_in, d_in]
        check_shapes(file.shapes, expected, name, f" beside encoder.weight {[d_sae, d_in]}")
        check_no_others(file.shapes, ["encoder.weight", *expected], name)
        k = _places(config, d_in, d_sae, name)
        return from_tensors(
            site=reads,
            writes=written if transcodes else (),
            W_enc=file.take("encoder.weight", lazy).T,
            W_dec=file.take("W_dec", lazy),
            b_enc=file.read("encoder.bias"),
            b_dec=file.read("b_dec"),
            W_skip=file.read("W_skip").T if "W_skip" in expected else None,
            k=k,
            apply_b_dec_to_input=not transcodes,
            puts_scale_back=not transcodes,
            name=name,
            kind="topk with transcode" if transcodes else "topk",
            hook_name=folder.name,
            hook_name_out=folder.name if site is None else None,
            lazy=lazy,
            files=[file.file],
        )


def _places(config: Mapping[str, Any], d_in: int, d_sae: int, name: str) -> int:
    """k, after holding the config's sizes against the tensors'."""
    sizes = {"d_in": d_in} | ({"num_latents": d_sae} if config.get("num_latents") else {})  # 0 is expansion_factor times d_in
    check_sizes(config, sizes, f"encoder.weight is {[d_sae, d_in]}", name)
    if not is_count(k := config.get("k"), d_sae):
        raise FormatError(f"dictionary {name}: k={k!r}, expected an integer from 1 to num_latents={d_sae}.")
    return cast(int, k)


def sites(hookpoint: str, transcodes: bool, site: Site | str | None, writes: Site | str | None) -> tuple[Site, Site]:
    """Where a dictionary on a module reads and writes, by the module's name or as given."""
    if site is not None:
        if transcodes and writes is None:
            raise InputError(f"writes: missing; the dictionary is a transcoder that reads {site}. Name the site that it writes, too.")
        return Site.parse(site), Site.parse(writes or site)
    match = re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(.+))?", hookpoint)
    if match is None or match[2] not in _MODULES:
        raise InputError(
            f"site: missing, and the folder's name {hookpoint!r} is no module of which attrib knows the site, such as 'layers.5', "
            "'layers.5.mlp' or 'h.5.attn'. Give site= (and writes= for a transcoder)."
        )
    takes, gives = _MODULES[match[2]]
    layer = int(match[1])
    if not transcodes:
        return Site(layer, gives), Site(layer, gives)
    if takes is None:
        raise UnsupportedError(f"dictionary {hookpoint}: a transcoder of attention; what attention computes from is no site of attrib.")
    return Site(layer, takes), Site(layer, gives)
