"""What dictionaries read, make active, decode and leave out on one pass with them in it, all at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.causal.splicing import NOTHING, Pass, Splice, splice
from attrib.core.room import memory_named
from attrib.core.shown import in_one_line
from attrib.core.types import InputError, Site
from attrib.dictionaries.dictionary import Dictionary, encode, pre_activations, reconstruct
from attrib.models.tokens import TokensLike, prompts_in, to_prompts
from attrib.models.transformer import Model, embed, place, walk


@in_one_line
class DictionaryValues(NamedTuple):
    """One dictionary on one prompt's pass. Of one that writes several sites, what it writes stands side by side."""

    input: Float[Tensor, "positions d_in"]
    """What it reads: SAELens' `hook_sae_input`."""
    pre_activations: Float[Tensor, "positions d_sae"]
    """Before the activation rule: `hook_sae_acts_pre`."""
    latents: Float[Tensor, "positions d_sae"]
    """`hook_sae_acts_post`."""
    reconstruction: Float[Tensor, "positions d_out"]
    """What it writes, skip connections and all: `hook_sae_recons`."""
    error: Float[Tensor, "positions d_out"]
    """What the model computes there on this pass beyond what dictionaries write: `hook_sae_error`. It is the place's: where the layers of
    a cross-layer transcoder write together, less what all of them write."""


@memory_named("looking at dictionaries")
@takes(model=as_model, dictionaries=as_dictionaries)
def dictionary_values(model: Model, dictionaries: Sequence[Dictionary], tokens: TokensLike, *, errors: Any = False) -> Any:
    """Each dictionary's input, pre-activations, latents, reconstruction and error on one pass, dense.

    A pure function for torch.func. `attrib.encode_sparse` gives active latents alone, and `attrib.replace(...).leaves` those of many
    dictionaries, without tensors of [positions, d_sae].

    Args:
        dictionaries: one or several, put in together as `attrib.replace` does it.
        tokens: prompts of any lengths, as the attributions take them.
        errors: False, dictionaries stand alone, and later ones read what the earlier ones leave, as in SAELens' passes; True, errors are
            added, and the pass is the model's own.

    Returns:
        For one prompt a tuple with a `DictionaryValues` for each dictionary, in their order; for several prompts a list of these.

    Raises:
        InputError: for no dictionary, what is no prompt, and as `attrib.replace`.
        NotFiniteError: where a pre-activation is NaN or infinite.
    """
    if not dictionaries:
        raise InputError("dictionaries: none given; expected at least one. For the model's own values there is attrib.capture.")
    if not isinstance(errors, bool):
        raise InputError(f"errors: {errors!r}; expected True or False.")
    made = splice(model, dictionaries, errors="live" if errors else False)
    items, is_batch = prompts_in(tokens)
    found = [_values(made, embed(model, ids)) for ids in to_prompts(model, items)]
    return found if is_batch else found[0]


def _values(made: Splice, embedded: Float[Tensor, "positions d_model"]) -> tuple[DictionaryValues, ...]:
    brought: dict[Site, Tensor] = {}
    under_way = Pass(NOTHING, {})

    def put(at: Site, value: Tensor) -> Tensor:
        brought[at] = value
        return made.stands(under_way, at, value)

    depth = max(at.depth for at in made.replaced.sites)
    for site, _ in walk(made.model, Site(0, "resid_pre"), embedded, put=put):
        if place(made.model, site).depth >= depth:
            break
    read = [under_way.read[number] for number in range(len(made.dictionaries))]
    written = [reconstruct(dictionary, x) for dictionary, x in zip(made.dictionaries, read, strict=True)]
    left = {at: brought[at] for at in made.replaced.written}
    for number, decoded in enumerate(written):
        for at, part in made.at_places(number, decoded).items():
            left[at] = left[at] - part
    return tuple(
        DictionaryValues(x, pre_activations(d, x), encode(d, x), decoded, torch.cat([left[at] for at in places], dim=-1))
        for d, x, decoded, places in zip(made.dictionaries, read, written, made.replaced.places, strict=True)
    )
