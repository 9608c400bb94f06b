"""Weights in memory of their own: loaders map files, and what is written into a mapped file later is seen in its tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


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
