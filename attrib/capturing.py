"""One forward pass: tokens to the values at chosen sites, and through a dictionary to its leaves."""

from collections.abc import Iterable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from attrib.dictionary import Dictionary, InputScale, decode_at, encode_sparse, normalise_input, skip
from attrib.model import Model, check_site, embed, walk
from attrib.model import logits as logits_of
from attrib.shown import record
from attrib.sources.given import as_model, takes
from attrib.tokens import TokensLike, to_batch
from attrib.types import InputError, Site, SparseLatents


@takes(model=as_model)
def logits(model: Model, tokens: TokensLike) -> Float[Tensor, "*batch positions d_vocab"]:
    """The whole model.

    Args:
        tokens: as `capture` takes them.

    Raises:
        InputError: for what is no prompt of this model.
    """
    return logits_of(model, to_batch(model, tokens))


@takes(model=as_model)
def capture(model: Model, tokens: TokensLike, sites: Site | str | Iterable[Site | str]) -> dict[Site, Float[Tensor, "*batch positions _"]]:
    """Values at `sites`, computed no further than the last of them.

    Args:
        tokens: a tensor of ids with any batch dimensions; or what the attributions take: one prompt gives [positions, _], a list
            of prompts of one length [batch, positions, _]. They are brought to the model's device.

    Raises:
        InputError: for a site that the model does not have, or what is no prompt of it.
    """
    wanted = {check_site(model, site, "sites") for site in ([sites] if isinstance(sites, Site | str) else sites)}
    last = max((site.depth for site in wanted), default=(0, 0))
    found: dict[Site, Tensor] = {}
    for site, value in walk(model, Site(0, "resid_pre"), embed(model, to_batch(model, tokens))):
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

    def __repr__(self) -> str:
        return record(self)


def cut(dictionary: Dictionary, x: Float[Tensor, "positions d_in"], written: Float[Tensor, "positions d_out"] | None = None) -> Leaves:
    """The leaves of a dictionary that reads the value `x`: decode(latents) + skip(x) + error = written.

    Args:
        written: the true values at `dictionary.writes`, side by side; None for a dictionary that writes where
            it reads, where they are `x`.

    Raises:
        InputError: where a dictionary writes elsewhere and `written` is missing.
    """
    if written is None and dictionary.writes != (dictionary.site,):
        sites = ", ".join(map(str, dictionary.writes))
        raise InputError(
            f"written: missing, but {dictionary.name} reads {dictionary.site} and writes {sites}; give the values there, side by side."
        )
    latents = encode_sparse(dictionary, x)
    _, scale = normalise_input(dictionary, x)
    decoded = decode_at(dictionary, latents.value, latents.position, latents.latent, scale)
    error = (x if written is None else written) - decoded
    return Leaves(latents, error - skip(dictionary, x) if dictionary.has_skip else error, scale)
