"""Weights that are taken over: into memory of their own, all of them numbers, and without the progress bars of other libraries."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.core.types import InputError
from attrib.models.transformer import Model


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors into memory of their own."""
    return {name: tensor.clone() for name, tensor in state.items()}


def make_private(model: Any) -> None:
    """Give every parameter and buffer of a model that was just loaded memory of its own; tied ones stay tied.

    What is hashed and checked afterwards is then what is computed with, whatever happens to the file: overwritten in
    place, it would be other numbers under the old hash; truncated, the end of the process.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the bars of transformers and of the hub's client, which are afterwards as they were."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    has_bars, has_hub_bars = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # the hub's with them
    try:
        yield
    finally:
        if has_bars:
            logging.enable_progress_bar()  # the hub's with them
        if has_hub_bars and not has_bars:
            enable_progress_bars()
        if has_bars and not has_hub_bars:
            disable_progress_bars()


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
