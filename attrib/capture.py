"""One forward pass: tokens to the values at chosen sites, and through a dictionary to its leaves."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.dictionary import Dictionary, InputScale, active, decode_at, normalise_input, pre_activations
from attrib.model import Model, check_site, embed, walk
from attrib.sparse import from_dense
from attrib.types import Site, SparseLatents


def capture(
    model: Model, tokens: Int[Tensor, "*batch positions"], sites: Iterable[Site | str]
) -> dict[Site, Float[Tensor, "*batch positions _"]]:
    """Values at `sites`, computed no further than the last of them.

    Raises:
        InputError: for a site that the model does not have.
    """
    wanted = {check_site(model, site, "sites") for site in sites}
    last = max((site.depth for site in wanted), default=(0, 0))
    found: dict[Site, Tensor] = {}
    for site, value in walk(model, Site(0, "resid_pre"), embed(model, tokens)):
        if site in wanted:
            found[site] = value
        if site.depth >= last and wanted == found.keys():
            break
    return found


class Leaves(NamedTuple):
    """What a cut holds constant: the dictionary's active latents, its error and the scale of its input."""

    latents: SparseLatents
    error: Float[Tensor, "positions d_out"]
    scale: InputScale


def cut(dictionary: Dictionary, x: Float[Tensor, "positions d_in"]) -> Leaves:
    """The leaves of a dictionary that reads and writes the value `x`: decode(latents) + error = x."""
    pre = pre_activations(dictionary, x)
    dense = pre.where(active(dictionary, pre), torch.zeros_like(pre))
    _, scale = normalise_input(dictionary, x)
    latents = from_dense(dense)
    return Leaves(latents, x - decode_at(dictionary, latents.value, latents.position, latents.latent, scale), scale)
