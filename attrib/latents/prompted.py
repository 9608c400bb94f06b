"""Which latents a prompt makes active: found by computing it, where `search` goes by what a corpus showed."""

from typing import NamedTuple

import torch

from attrib.adapters.given import as_dictionary, as_model, takes
from attrib.attribution.needs import constant
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary, encode_sparse
from attrib.dictionaries.fit import fitted
from attrib.models.tokens import TokensLike, one_prompt, token_strings
from attrib.models.transformer import Model
from attrib.passes.capture import capture


class Strongest(NamedTuple):
    """A latent, its largest activation over a prompt, and where that is."""

    latent: int
    value: float
    position: int
    token: str
    places: int
    """At how many of the positions asked about it is active."""


@takes(model=as_model, dictionary=as_dictionary)
@torch.no_grad()
def strongest(
    model: Model, dictionary: Dictionary, tokens: TokensLike, *, position: int | None = None, skip: int = 0, k: int = 10
) -> list[Strongest]:
    """The latents of largest activation over one prompt; of equal ones the first latent, at its first position.

    Args:
        position: where to look, negative from the end; None is everywhere.
        skip: how many first positions are left out.
        k: how many.

    Raises:
        InputError: where the dictionary does not fit the model, there is more than one prompt, or no such position.
    """
    d = constant(fitted(model, dictionary, "dictionary"))
    ids = one_prompt(model, tokens)
    for name, given, least in (("k", k, 1), ("skip", skip, 0)):
        if isinstance(given, bool) or not isinstance(given, int) or given < least:
            raise InputError(f"{name}: {given!r}; expected a whole number from {least} on.")
    whole = isinstance(position, int) and not isinstance(position, bool)
    if position is not None and not (whole and -len(ids) <= position < len(ids)):
        raise InputError(f"position: {position!r}; expected a whole number from {-len(ids)} to {len(ids) - 1}, in {len(ids)} tokens.")
    found = encode_sparse(d, capture(model, ids, [d.site])[d.site])
    at, latent, value = found.position.cpu(), found.latent.cpu(), found.value.cpu().double()
    asked = at >= skip if position is None else at == position % len(ids)
    at, latent, value = at[asked], latent[asked], value[asked]
    order = value.sort(descending=True, stable=True).indices  # which are by position before
    order = order[latent[order].sort(stable=True).indices]
    first = torch.cat([torch.ones_like(order[:1], dtype=torch.bool), latent[order].diff() != 0])
    count = latent.bincount(minlength=d.d_sae)
    best = order[first]
    best = best[value[best].sort(descending=True, stable=True).indices][:k]
    strings = token_strings(model, ids)
    return [
        Strongest(int(latent[row]), float(value[row]), int(at[row]), strings[int(at[row])], int(count[latent[row]]))
        for row in best.tolist()
    ]
