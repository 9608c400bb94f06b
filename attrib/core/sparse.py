"""Canonical sparse containers: sparse latents of a prompt and CSR rows of edges.

Canonical means: latents sorted by (position, latent), CSR columns ascending within a row, no
duplicates, int64 pointers. Two equal results are then equal byte by byte.
"""

from numbers import Integral, Real

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.types import Dense, InputError, Keep, Mass, SparseLatents, Threshold, TopK


def select(latents: SparseLatents, mask: Bool[Tensor, " active"]) -> SparseLatents:
    """The latents where `mask` is true."""
    return SparseLatents(*(column[mask] for column in latents))


def canonical(latents: SparseLatents) -> SparseLatents:
    """Put latents, each (position, latent) given once, into canonical order."""
    by_latent = latents.latent.argsort(stable=True)
    order = by_latent[latents.position[by_latent].argsort(stable=True)]
    return SparseLatents(*(column[order] for column in latents))


def holds(latents: SparseLatents, position: Int[Tensor, " pairs"], latent: Int[Tensor, " pairs"]) -> Bool[Tensor, " pairs"]:
    """Which of the given (position, latent) pairs are among the latents."""
    width = 1 + int(torch.cat([latents.latent, latent]).max()) if len(latent) + len(latents.latent) else 1
    return torch.isin(position * width + latent, latents.position * width + latents.latent)


def check_keep(keep: Keep) -> Keep:
    """Raises InputError for a rule whose number makes no sense."""
    match keep:
        case TopK(k) if isinstance(k, bool) or not isinstance(k, Integral):
            raise InputError(f"keep: TopK({k!r}); expected a whole number.")
        case TopK(k) if k < 1:
            raise InputError(f"keep: TopK({k}) keeps nothing; expected k >= 1.")
        case Threshold(number) | Mass(number) if isinstance(number, bool) or not isinstance(number, Real):
            raise InputError(f"keep: {keep!r}; expected a number.")
        case Threshold(t) if not t >= 0:
            raise InputError(f"keep: Threshold({t}) is not a bound on |attribution|; expected t >= 0.")
        case Mass(fraction) if not 0 < fraction <= 1:
            raise InputError(f"keep: Mass({fraction}) is not a fraction of a sum; expected 0 < fraction <= 1.")
        case Dense() | TopK() | Threshold() | Mass():
            return keep
        case _:
            raise InputError(f"keep: expected Dense(), TopK(k), Threshold(t) or Mass(fraction), got {keep!r}.")


def kept(
    keep: Keep, gradient: Float[Tensor, "targets sources"], attribution: Float[Tensor, "targets sources"]
) -> Bool[Tensor, "targets sources"]:
    """Which entries of a tile of the Jacobian the rule keeps. Ties go to the earlier source.

    An entry whose gradient is exactly zero (a source after its target, say) is never kept.
    """
    there = gradient != 0
    size = attribution.abs()
    match keep:
        case Threshold(t):
            return there & (size >= t)
        case TopK(k):
            order = size.argsort(dim=-1, descending=True, stable=True)[..., :k]
            return there & torch.zeros_like(there).scatter(-1, order, True)
        case Mass(fraction):
            order = size.argsort(dim=-1, descending=True, stable=True)
            running = size.gather(-1, order).cumsum(-1)
            # an entry is needed while the sum before it falls short of the fraction
            needed = running - size.gather(-1, order) < fraction * running[..., -1:]
            return there & torch.zeros_like(there).scatter(-1, order, needed)
    return there


def to_csr(
    mask: Bool[Tensor, "targets sources"],
) -> tuple[Int[Tensor, " targets_plus_1"], Int[Tensor, " kept"], Int[Tensor, " kept"]]:
    """Row pointers, ascending column indices and places in the flattened mask of its true entries."""
    counts = mask.sum(-1)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    place = mask.flatten().nonzero()[:, 0]
    return indptr, place % max(1, mask.shape[1]), place


def columns_of(W: Float[Tensor, "width columns"], index: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen width"]:
    """Chosen columns of a matrix, as rows. One whose columns lie together, as of a tied unembedding, is read along them."""
    if W.stride(0) == 1:
        return W.T.index_select(0, index)
    return W.index_select(1, index).T.contiguous()  # four times as fast as taking rows of the transpose
