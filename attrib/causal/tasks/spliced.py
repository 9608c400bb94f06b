"""A model's pass with dictionaries in it, and its latents as what they are on that pass.

Without errors a later dictionary reads what the earlier ones decode, so its latents are not those of the model's own pass: they are
taken from this one, which `leaves` then describes exactly. With errors, held as they are in the model's own pass, both passes are the same.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import SparseLatents
from attrib.dictionaries.dictionary import encode_sparse, normalise_input
from attrib.passes.replacement import Cut, CutLeaves, Replacement


class Spliced(NamedTuple):
    """One prompt's pass with dictionaries in it."""

    leaves: CutLeaves
    """The latents of each dictionary are those of this pass."""
    errors: bool
    last: Float[Tensor, " d_model"]
    """The last stream at the last position."""


@torch.no_grad()
def spliced(replaced: Replacement, ids: Int[Tensor, " positions"], *, errors: bool) -> Spliced:
    """The pass of one prompt.

    Args:
        errors: whether each place's error is added, as it is in the model's own pass.
    """
    end = replaced.model.config.last
    true = replaced.leaves(ids)
    values, read = replaced.values_and_reads(true, [end], effect="total", errors=errors)
    leaves = true
    if not errors:
        pairs = ((dictionary, read[number]) for number, dictionary in enumerate(replaced.dictionaries))
        leaves = true._replace(cuts=tuple(Cut(encode_sparse(d, x), normalise_input(d, x)[1]) for d, x in pairs))
    return Spliced(leaves, errors, values[end][-1])


def moved(replaced: Replacement, at: Spliced, number: int, value: Float[Tensor, " active"]) -> Float[Tensor, " d_model"]:
    """The last stream at the last position where one dictionary's active latents have other values, and later ones follow.

    A pure function of `value`, for every transform of torch.func.
    """
    cuts = list(at.leaves.cuts)
    position, latent, _ = cuts[number].latents
    cuts[number] = cuts[number]._replace(latents=SparseLatents(position, latent, value))
    end = replaced.model.config.last
    leaves = at.leaves._replace(cuts=tuple(cuts))
    return replaced.values(leaves, [end], effect="total", sources=[number], errors=at.errors)[end][-1]
