"""Numbers that are none: found when a model is taken over, for afterwards a NaN is only a latent that is not active."""

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.core.types import InputError
from attrib.models.transformer import Model


def check_finite(model: Model) -> Model:
    """The model itself. Raises InputError, naming the first parameter that is not finite and where in it, by attrib's names."""
    named, _ = pytree.tree_flatten_with_path(model.params)
    floating = [(path, leaf.detach()) for path, leaf in named if leaf.numel()]
    # a sum reads at the speed of memory, and what is not finite stays so in it; one of numbers too large is looked at again
    sums = torch.stack([leaf.sum(dtype=torch.float64 if leaf.dtype == torch.float64 else torch.float32) for _, leaf in floating])
    for (path, leaf), total in zip(floating, sums.isfinite().tolist(), strict=True):
        if not total and not (finite := leaf.isfinite()).all():
            raise InputError(f"model: {pytree.keystr(path).removeprefix('.')}{_first(leaf, finite)}")
    return model


def _first(leaf: Tensor, finite: Tensor) -> str:
    bad = (~finite).nonzero()
    at = tuple(bad[0].tolist())
    return (
        f"{list(at)} is {leaf[at].item()}, and {len(bad):,} of its {leaf.numel():,} numbers are not finite. These weights in {leaf.dtype} "
        "are damaged, or overflowed when they were converted: load the model anew, or in float32."
    )
