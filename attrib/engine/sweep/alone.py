"""Cotangents that pass no attention: what of a target's row stays at its own position, and what the heads of each layer would take.

A way from a source to a target passes attentions or none. Of those that it passes, the last before the target is the first that a cotangent
meets on its way down. So all ways through attentions are told by what a cotangent that has met none is at each layer's heads, and those
through none by where it is read out.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import Between
from attrib.engine.sweep.cells import cone_of
from attrib.engine.sweep.compute import Down
from attrib.engine.sweep.primal import Primal, Seeds
from attrib.engine.sweep.steps import Flat


class Alone(Down):
    """Rows of one prompt's targets on their way down, each at its own position to the end."""

    def __init__(
        self,
        primal: Primal,
        stop: Site,
        targets: Seeds,
        wanted: Collection[Site],
        brought: Collection[Site],
        between: Between,
        read: Callable[[Site, Flat, bool], None],
        take: Callable[[int, Flat], None],
        *,
        stops_below: bool = False,
    ) -> None:
        """Make one.

        Args:
            wanted, brought: where rows are read out of what is written there, and of what the model brings there.
            read: is given the place, the rows, and whether it is what the model brings there.
            take: is given each layer whose attention they meet, and the cotangents of its z.
        """
        down = cone_of(targets.at, "down", primal.pieces.band, causal=primal.model.config.causal)
        super().__init__(primal, stop, down, wanted, brought=brought, stops_below=stops_below, between=between)
        self.own, self.tell, self.take = targets, read, take

    def fall(self) -> None:
        """All the way."""
        self.seeded(self.own)

    def spread(self, layer: int, below: Tensor | None, z: Tensor) -> Tensor:
        """Attention takes what it takes, and what goes by beside it stays."""
        return self.through_heads(layer, below, z)

    def through_heads(self, layer: int, below: Tensor | None, z: Tensor) -> Tensor:
        """The same for rows that have met an attention before."""
        self.take(layer, z)
        return z.new_zeros(len(z), self.config.d_model) if below is None else below

    def through_attention(self, layer: int, below: Tensor | None, written: Tensor) -> Tensor:
        """The same from what attention adds to the stream."""
        self.take(layer, self.through_output(layer, written))
        return torch.zeros_like(written) if below is None else below

    def read(self, site: Site, rows: Tensor, is_brought: bool) -> None:
        """Handed on as they are."""
        self.tell(site, rows, is_brought)
