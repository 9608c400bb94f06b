"""Gemma Scope's params.npz (Lieberum et al. 2024, arXiv:2408.05147): JumpReLU SAEs and transcoders of Gemma 2.

    f = relu(pre) · [pre > threshold],  pre = x W_enc + b_enc,   y = f W_dec + b_dec

No config lies beside the tensors: the layer is in the path ("layer_20/width_16k/average_l0_71"), and the site
in the release's name ("gemma-scope-2b-pt-res") where that is part of the path, or given.
"""

import re
from pathlib import Path
from typing import Any

from attrib.dictionary import Dictionary
from attrib.sources.tensors import check_no_others, check_shapes, from_tensors, matrix, npz_file
from attrib.types import SITE_KINDS, InputError, Site, UnsupportedError

WEIGHTS = "params.npz"

# The last word of a release's name: where it reads, where it writes, and the hook that sae-lens and circuit-tracer read at.
_RELEASES = {
    "res": ("hook_resid_post", ""),
    "mlp": ("hook_mlp_out", ""),
    "att": ("attn.hook_z", ""),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}


def load_file(path: Path, *, name: str | None = None, site: Site | str | None = None, writes: Site | str | None = None) -> Dictionary:
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
    name = name or "/".join(path.parent.parts[-3:])
    reads, written = _sites(path, site, writes)
    with npz_file(path) as file:
        d_in, d_sae = matrix(file.shapes, "W_enc", name, "[d_in, d_sae]")
        d_out = matrix(file.shapes, "W_dec", name, "[d_sae, d_out]")[1]
        expected = {"W_dec": [d_sae, d_out], "b_enc": [d_sae], "b_dec": [d_out], "threshold": [d_sae]}
        check_shapes(file.shapes, expected, name, f" beside W_enc {[d_in, d_sae]}")
        check_no_others(file.shapes, ["W_enc", *expected], name)
        tensors: dict[str, Any] = {key: file.read(key) for key in ("W_enc", *expected)}
    return from_tensors(
        **tensors, site=reads, writes=written, rule="jumprelu", name=name, kind=WEIGHTS, model_name=_model_name(path),
        puts_scale_back=not written, hook_name=str(reads),
    )  # fmt: skip


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
