"""What graphs have in common, whole or merged: rows that say what they are made of, with their edges as CSR."""

from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Rowed:
    """The facts that follow from the columns of rows."""

    targets: Int[Tensor, " targets"]
    indptr: Int[Tensor, " targets_plus_1"]
    indices: Int[Tensor, " edges"]
    value: Float[Tensor, " targets"]
    own: Float[Tensor, " targets"]
    total: Float[Tensor, " targets"]

    def __len__(self) -> int:
        return int(self.indptr[-1])

    @cached_property
    def row(self) -> Int[Tensor, " edges"]:
        """The number of the row of each edge."""
        return torch.arange(len(self.targets)).repeat_interleave(self.indptr.diff())

    @property
    def target(self) -> Int[Tensor, " edges"]:
        """The number of the node that each edge goes to; of merged ones, of the supernode."""
        return self.targets[self.row]

    @property
    def remainder(self) -> Float[Tensor, " targets"]:
        """What each row's nodes do not account for: zero up to rounding where everything between them is linear."""
        return self.value - self.own - self.total
