"""Passes with dictionaries in them, many prompts at a time, and their latents as what they are on those passes.

Without errors a later dictionary reads what the earlier ones decode, so its latents are not those of the model's own pass: they are
taken from this one, which `leaves` then describes exactly. With errors, held as they are in the model's own pass, both passes are the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Site, SparseLatents
from attrib.dictionaries.dictionary import InputScale, encode_sparse, normalise_input
from attrib.models.transformer import Model, walk
from attrib.passes.beside import record
from attrib.passes.packed import Packed, side_by_side, widest
from attrib.passes.replacement import Cut, CutLeaves, Replacement

BUDGET = 1 << 28
"""Bytes of working memory for passes side by side, where nobody says otherwise."""


class Spliced(NamedTuple):
    """One prompt's pass with dictionaries in it."""

    leaves: CutLeaves
    """The latents of each dictionary are those of this pass."""
    errors: bool
    last: Float[Tensor, " d_model"]
    """The last stream at the last position."""


@torch.no_grad()
def ends_of(model: Model, prompts: Sequence[Int[Tensor, " _"]]) -> Float[Tensor, "prompts d_model"]:
    """The last stream at the end of each prompt, of the model's own passes."""
    found = []
    for _, packed, embedded in side_by_side(model, prompts, lambda keys: widest(model.config, keys), BUDGET):
        *_, (_, last) = walk(model, Site(0, "resid_pre"), embedded, attention=packed.attend)
        found.append(last[packed.ends])
    return torch.cat(found)


@torch.no_grad()
def spliced(replaced: Replacement, prompts: Sequence[Int[Tensor, " _"]], *, errors: bool) -> list[Spliced]:
    """The pass of each prompt, as many of them together as fit.

    Args:
        errors: whether each place's error is added, as it is in the model's own pass.

    Raises:
        NotFiniteError: where a pre-activation is NaN or infinite.
    """
    model, end = replaced.model, replaced.model.config.last
    encoded = max(dictionary.d_sae for dictionary in replaced.dictionaries)
    found: list[Spliced] = []
    for some, packed, embedded in side_by_side(model, prompts, lambda keys: widest(model.config, keys, encoded), BUDGET):
        with packed.named(some.start):
            true = replaced.leaves_of(embedded, record(model, embedded, replaced.sites, packed=packed).values)
            values, read = replace(replaced, packed=packed).values_and_reads(true, [end], effect="total", errors=errors)
            pairs = [(dictionary, read[number]) for number, dictionary in enumerate(replaced.dictionaries)]
            cuts = true.cuts if errors else tuple(Cut(encode_sparse(d, x), normalise_input(d, x)[1]) for d, x in pairs)
        for start, length in zip(packed.starts, packed.lengths, strict=True):
            rows = slice(start, start + length)
            mine = tuple(cut.rows(rows.start, rows.stop) for cut in cuts)
            leaves = CutLeaves(embedded[rows], mine, tuple(error[rows] for error in true.errors))
            found.append(Spliced(leaves, errors, values[end][rows.stop - 1]))
    return found


def together(replaced: Replacement, passes: Sequence[Spliced]) -> tuple[Replacement, CutLeaves]:
    """The leaves of several prompts as those of one pass, and what takes them."""
    packed = Packed(tuple(len(each.leaves.embedded) for each in passes), passes[0].last.device)
    embedded, cuts, errors = zip(*(each.leaves for each in passes), strict=True)

    def joined(several: Sequence[Cut]) -> Cut:
        moved = [cut.latents._replace(position=cut.latents.position + start) for start, cut in zip(packed.starts, several, strict=True)]
        latents = SparseLatents(*map(torch.cat, zip(*moved, strict=True)))
        return Cut(latents, InputScale(*map(torch.cat, zip(*(cut.scale for cut in several), strict=True))))

    leaves = CutLeaves(torch.cat(embedded), tuple(map(joined, zip(*cuts, strict=True))), tuple(map(torch.cat, zip(*errors, strict=True))))
    return replace(replaced, packed=packed), leaves


def moved(
    replaced: Replacement, leaves: CutLeaves, number: int, value: Float[Tensor, " active"], *, errors: bool
) -> Float[Tensor, "rows d_model"]:
    """The last stream where one dictionary's active latents have other values, and later ones follow.

    A pure function of `value`, for every transform of torch.func.
    """
    activations = list(leaves.activations)
    activations[number] = value
    end = replaced.model.config.last
    return replaced.values(leaves.with_activations(activations), [end], effect="total", sources=[number], errors=errors)[end]
