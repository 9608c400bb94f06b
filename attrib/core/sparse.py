"""Canonical sparse containers: sparse latents of a prompt and CSR rows of edges.

Canonical means: latents sorted by (position, latent), CSR columns ascending within a row, no
duplicates, int64 pointers. Two equal results are then equal byte by byte.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.types import SparseLatents


def select(latents: SparseLatents, mask: Bool[Tensor, " active"]) -> SparseLatents:
    """The latents where `mask` is true."""
    place = mask.nonzero()[:, 0]  # which each column would look for anew
    return SparseLatents(*(column[place] for column in latents))


def canonical(latents: SparseLatents) -> SparseLatents:
    """Put latents, each (position, latent) given once, into canonical order."""
    by_latent = latents.latent.argsort(stable=True)
    order = by_latent[latents.position[by_latent].argsort(stable=True)]
    return SparseLatents(*(column[order] for column in latents))


def union(latents: SparseLatents, others: SparseLatents) -> tuple[SparseLatents, Float[Tensor, " union"]]:
    """All latents that are active in one of two, in canonical order with the values of the first, and those of the second; else 0."""
    width = 1 + int(torch.cat([latents.latent, others.latent]).max()) if len(latents.latent) + len(others.latent) else 1
    key, other = (each.position * width + each.latent for each in (latents, others))
    both = torch.cat([key, other]).unique()
    values = [each.value.new_zeros(len(both)).index_put((torch.searchsorted(both, at),), each.value) for each, at in
              ((latents, key), (others, other))]  # fmt: skip
    return SparseLatents(both // width, both % width, values[0]), values[1]


def holds(latents: SparseLatents, position: Int[Tensor, " pairs"], latent: Int[Tensor, " pairs"]) -> Bool[Tensor, " pairs"]:
    """Which of the given (position, latent) pairs are among the latents."""
    width = 1 + int(torch.cat([latents.latent, latent]).max()) if len(latent) + len(latents.latent) else 1
    return torch.isin(position * width + latent, latents.position * width + latents.latent)


def to_csr(
    mask: Bool[Tensor, "targets sources"], most: int | None = None, in_all: int | None = None
) -> tuple[Int[Tensor, " targets_plus_1"], Int[Tensor, " kept"], Int[Tensor, " kept"]]:
    """Row pointers, ascending column indices and places in the flattened mask of its true entries.

    Args:
        most: how many each row has at most, where that is known. Then an accelerator, which would have to be waited for to know how many
            there are, gives as many places as there may be; those behind the last entry mean nothing.
        in_all: the same of all rows together.
    """
    if most is not None and in_all is None:
        in_all = len(mask) * min(most, mask.shape[1])
    counts = mask.sum(-1)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    place = places(mask.flatten(), in_all)
    if in_all is not None and mask.device.type != "cpu":
        return indptr, place % max(1, mask.shape[1]), place
    begins = torch.arange(len(mask), device=mask.device) * mask.shape[1]  # a subtraction takes half as long as a remainder
    return indptr, place - begins.repeat_interleave(counts, output_size=len(place)), place


def places(mask: Bool[Tensor, " entries"], most: int | None) -> Int[Tensor, " true"]:
    """Where it is true, ascending.

    Args:
        most: in how many places at most, where that is known: so many an accelerator gives, and is not waited for. The last are 0.
    """
    if most is None or mask.device.type == "cpu":
        return mask.nonzero()[:, 0]
    return torch.nonzero_static(mask, size=most, fill_value=0)[:, 0]


def columns_of(W: Float[Tensor, "width columns"], index: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen width"]:
    """Chosen columns of a matrix, as rows. One whose columns lie together, as of a tied unembedding, is read along them."""
    if W.stride(0) == 1:
        return W.T.index_select(0, index)
    return W.index_select(1, index).T.contiguous()  # four times as fast as taking rows of the transpose
