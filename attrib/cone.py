"""The causal cone: which (row, position) pairs of a sweep can be other than zero, and how they lie in memory.

A cotangent seeded at position p lives on positions 0..p, a tangent seeded at q on q..T-1. Rows that were
seeded at the same position form a *band*, a full rectangle [positions, rows]; the bands of a sweep, of one
prompt or of many, lie one behind the other in a flat [cells, width]. So a product with a weight matrix is
one product over all prompts and positions, and no masked cell is ever computed.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Pieces(NamedTuple):
    """In what pieces a sweep goes, in cells: enough for products to be fast, few enough to take little memory."""

    band: int
    """Of one band at most, where it has more than one row: a longer one is cut by rows."""
    chunk: int
    """Of one product where bands share it, about."""
    mlp: int
    """In an MLP's hidden layer at once."""
    pack: int
    """Of a pack of prompts: beyond, its products are large enough, and more prompts would only take memory."""
    select: int
    """Numbers of a tile that are selected from at once, whole rows of it: ranking takes several times their memory."""

    @property
    def smaller(self) -> "Pieces":
        """Those of a sweep, for where these leave too little memory to the rows themselves; the least are those of a CPU."""
        band, chunk, mlp = (max(size // 4, least) for size, least in zip(self[:3], ON_CPU[:3], strict=True))
        return self._replace(band=band, chunk=chunk, mlp=mlp)


ON_CPU = Pieces(1024, 512, 512, 1 << 14, 1 << 16)
"""Measured: larger ones are not faster there."""

ON_CUDA = Pieces(1 << 16, 1 << 16, 1 << 15, 1 << 18, 1 << 22)
"""Not measured: a product of a few hundred rows would leave most of a GPU idle."""


def pieces_of(device: torch.device) -> Pieces:
    """The largest pieces that are of use on a device."""
    return ON_CUDA if device.type == "cuda" else ON_CPU


class Band(NamedTuple):
    """Rows of one prompt on positions `begin:end`."""

    prompt: int
    begin: int
    end: int
    row: int
    """The first of its rows, counted within the prompt."""
    rows: int
    offset: int
    """Where its cells begin in the flat array."""

    @property
    def cells(self) -> int:
        """How many (row, position) pairs it has."""
        return (self.end - self.begin) * self.rows

    def of(self, flat: Float[Tensor, "cells width"]) -> Float[Tensor, "positions rows width"]:
        """The band's part of a flat array, as a view."""
        return flat[self.offset : self.offset + self.cells].view(self.end - self.begin, self.rows, -1)

    def moved(self, start: int) -> "Band":
        """The same band where the flat array begins at cell `start`."""
        return self._replace(offset=self.offset - start)


class Cone(NamedTuple):
    """The bands of one sweep."""

    bands: tuple[Band, ...]

    @property
    def cells(self) -> int:
        """Cells of all bands."""
        return sum(band.cells for band in self.bands)

    def chunks(self, size: int) -> Iterator[tuple[slice, list[Band]]]:
        """Runs of bands of about `size` cells: their part of the flat array, and the bands as they lie within that part."""
        run: list[Band] = []
        for band in self.bands:
            if run and band.offset + band.cells - run[0].offset > size:
                yield _part(run)
                run = []
            run.append(band)
        if run:
            yield _part(run)

    def rows_at(self, prompt: int, positions: int) -> list[int]:
        """How many rows of a prompt live at each of its positions."""
        change = [0] * (positions + 1)
        for band in self.bands:
            if band.prompt == prompt:
                change[band.begin] += band.rows
                change[band.end] -= band.rows
        total, counts = 0, []
        for step in change[:-1]:
            total += step
            counts.append(total)
        return counts


def _part(run: list[Band]) -> tuple[slice, list[Band]]:
    start = run[0].offset
    return slice(start, run[-1].offset + run[-1].cells), [band.moved(start) for band in run]


Direction = Literal["down", "up"]


def cone(seeds: Sequence[Sequence[int]], lengths: Sequence[int], direction: Direction, most: int = ON_CPU.band) -> Cone:
    """The cone of rows seeded at these positions, sorted, for each prompt; cotangents go down, tangents up.

    A band that would hold more than `most` cells is cut by rows, at least one to each.
    """
    bands: list[Band] = []
    offset = 0
    for prompt, (positions, length) in enumerate(zip(seeds, lengths, strict=True)):
        row = 0
        for position, group in groupby(positions):
            begin, end = (0, position + 1) if direction == "down" else (position, length)
            count = sum(1 for _ in group)
            for rows in _cut(count, max(1, most // (end - begin))):
                bands.append(Band(prompt, begin, end, row, rows, offset))
                row, offset = row + rows, offset + bands[-1].cells
    return Cone(tuple(bands))


def _cut(count: int, most: int) -> Iterable[int]:
    """As few parts as possible of at most `most`, about equal."""
    parts = -(-count // most)
    return [count * (i + 1) // parts - count * i // parts for i in range(parts)]
