"""The columns of a prompt's rows: which source of which set is which node, and which of them a row can see.

A sweep has its sources set by set, each set in order of position; a graph's rows have them in order of nodes. Sets hold nodes of several
kinds at one place, so neither order is part of the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import place_of
from attrib.graph.ends import Opened


class Seen(NamedTuple):
    """The sources that rows can see."""

    counts: tuple[int, ...]
    """How many of each set: its first."""
    order: Int[Tensor, " seen"]
    """Where each of them, in order of nodes, stands where those of all sets lie side by side."""
    node: Int[Tensor, " seen"]
    """The node of each, ascending."""
    activation: Float[Tensor, " seen"]

    def on(self, device: torch.device | None) -> "Seen":
        """The same for rows that lie on a device; None is where these do."""
        if device in (None, self.activation.device):
            return self
        return self._replace(order=self.order.to(device, non_blocking=True), activation=self.activation.to(device, non_blocking=True))


class Columns:
    """The sources of one prompt, in order of nodes."""

    def __init__(self, opened: Opened) -> None:
        ends = opened.bundle.sources
        node, sizes = torch.cat(opened.columns), [len(columns) for columns in opened.columns]
        order = node.argsort()
        self.node = node[order]
        self.of_set = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[order]
        self.place = torch.cat([torch.arange(size) for size in sizes])[order]
        self.positions = [end.sources.position.cpu() for end in ends]
        self.position = torch.cat(self.positions)[order]
        values = torch.cat([end.sources.value for end in ends])
        self.activation = values[order.to(values.device)]
        self.every = None if opened.bundle.model.config.causal else opened.bundle.length
        self.is_before = torch.tensor([
            [number not in target.barred and _lowest(end.writes) <= place_of(target.stop).depth for number, end in enumerate(ends)]
            for target in opened.bundle.targets
        ]).view(len(opened.bundle.targets), len(ends))  # fmt: skip

    def seen(self, target: int, last: int) -> Seen:
        """By rows of one set of targets, up to a position; all of them, where attention is not causal.

        Args:
            last: the highest position of a row; others see fewer.
        """
        last = self.every or last
        is_before = self.is_before[target]
        counts = [
            int(torch.searchsorted(position, last, right=True)) if before else 0
            for position, before in zip(self.positions, is_before.tolist(), strict=True)
        ]
        chosen = (is_before[self.of_set] & (self.position <= last)).nonzero()[:, 0]
        begins = torch.tensor([0, *counts]).cumsum(0)
        order = begins[self.of_set[chosen]] + self.place[chosen]
        device = self.activation.device
        there = self.activation[chosen.to(device, non_blocking=True)]
        return Seen(tuple(counts), order.to(device, non_blocking=True), self.node[chosen], there)


def _lowest(writes: Sequence[Site]) -> tuple[int, int]:
    return min(place_of(site).depth for site in writes)
