"""The causal cone: which (row, position) pairs of a sweep can be other than zero, and how they lie in memory.

A cotangent seeded at position p lives on positions 0..p, a tangent seeded at q on q..T-1. Rows that were
seeded at the same position form a *band*, a full rectangle [positions, rows]; the bands of a sweep, of one
prompt or of many, lie one behind the other in a flat [cells, width]. So a product with a weight matrix is
one product over all prompts and positions, and no masked cell is ever computed. Attention alone goes band by
band, and small bands in *blocks*: neighbours as one rectangle, with zeros where a row does not live.

On a device that is asked for every product, and computes a few zeros in less time than that takes, rows of
neighbouring positions form one *wide* band (`Pieces.span`): a rectangle as well, whose cells outside the cone are zeros. They stay
zeros in every step, since all are linear and causal; what is asked for band by band, or position by position, is asked for less often.

Where attention is not causal every position sees all others, and a row lives on all of them once it has been spread.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, compress, groupby
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.devices import to_device
from attrib.core.rates import FREE, Asking, Products, asking


class Pieces(NamedTuple):
    """In what pieces a sweep goes, in cells: enough for products to be fast, few enough to take little memory."""

    band: int
    """Cells of one band at most, where it has more than one row: a longer one is cut by rows; and of a block of several bands."""
    chunk: int
    """Cells of one product that bands share, about."""
    mlp: int
    """In an MLP's hidden layer at once."""
    pack: int
    """Cells of a pack of prompts: beyond, its products are large enough, and more prompts would only take memory."""
    select: int
    """Numbers of a tile that are selected from at once, whole rows of it: ranking takes several times their memory."""
    span: int = 1
    """How many neighbouring positions share a wide band, and go through folds and meetings together; 1 where no zeros are multiplied."""
    asking: Asking = FREE
    """What plans weigh operations against, on a device that is asked for every one."""

    @property
    def smaller(self) -> "Pieces":
        """Those of a sweep, for where these leave too little memory to the rows themselves; the least are those of a CPU."""
        band, chunk, mlp = (max(size // 4, least) for size, least in zip(self[:3], ON_CPU[:3], strict=True))
        return self._replace(band=band, chunk=chunk, mlp=mlp, span=max(self.span // 4, 1))

    def within(self, budget: int) -> "Pieces":
        """The same where so many bytes are there to work with: what a tile is selected in takes a quarter of them, or the least."""
        return self._replace(select=min(self.select, max(budget // 128, 1 << 22)))

    @property
    def narrow(self) -> "Pieces":
        """The same without wide bands."""
        return self._replace(span=1)


ON_CPU = Pieces(1024, 512, 512, 1 << 14, 1 << 16)
"""Measured: larger ones are not faster there."""

ON_CUDA = Pieces(1 << 18, 1 << 18, 1 << 17, 1 << 18, 1 << 26, span=16)
"""Not measured: a product of a few hundred rows would leave most of a GPU idle, and asking for one takes it about 5 µs, in which an
H200 multiplies 2 GFLOP. Where they take too much memory a plan goes on to smaller ones."""


def even(total: int, size: int) -> int:
    """The size of equal parts of about `size`, at most half as much again: a small rest would be a slow product of its own."""
    return max(1, -(-total // max(1, round(total / size))))


def pieces_of(device: torch.device, products: Products = "float32") -> Pieces:
    """The largest pieces that are of use on a device, with what asking it costs beside products in a precision."""
    return ON_CPU if device.type == "cpu" else ON_CUDA._replace(asking=asking(device, products))


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
    seed: int
    """The position at which its rows were seeded: the last of a cotangent's, the first of a tangent's, where attention is causal."""
    runs: tuple[tuple[int, int], ...] = ()
    """Of a wide band: the positions at which its rows were seeded, ascending, and how many at each."""

    @property
    def is_wide(self) -> bool:
        """Whether its rows were seeded at several positions, or live on fewer positions than it has."""
        return bool(self.runs)

    @property
    def seeded(self) -> tuple[tuple[int, int], ...]:
        """The positions at which its rows were seeded, ascending, and how many at each."""
        return self.runs or ((self.seed, self.rows),)

    @property
    def cells(self) -> int:
        """How many (row, position) pairs it has."""
        return (self.end - self.begin) * self.rows

    def of(self, flat: Float[Tensor, "cells ..."]) -> Float[Tensor, "positions rows ..."]:
        """The band's part of a flat array, as a view."""
        return flat[self.offset : self.offset + self.cells].view(self.end - self.begin, self.rows, *flat.shape[1:])

    def moved(self, start: int) -> "Band":
        """Give the band's place in a flat array that begins at cell `start`."""
        return self._replace(offset=self.offset - start)


class Cone(NamedTuple):
    """The bands of one sweep."""

    bands: tuple[Band, ...]

    @property
    def cells(self) -> int:
        """Cells of all bands."""
        return sum(band.cells for band in self.bands)

    def chunks(self, size: int) -> Iterator[tuple[slice, list[Band]]]:
        """Runs of bands of about `size` cells, about equal: their part of the flat array, and the bands as they lie within it."""
        return map(_part, self.runs(size))

    def runs(self, size: int) -> Iterator[list[Band]]:
        """The same runs, with the bands as they lie in the whole."""
        size, number, run = even(self.cells, size), -1, list[Band]()
        for band in self.bands:
            at = (band.offset + band.cells // 2) // size
            if at != number and run:
                yield run
                run = []
            number = at
            run.append(band)
        if run:
            yield run

    def rows_at(self, prompt: int, positions: int) -> list[int]:
        """How many rows of a prompt live at each of its positions."""
        change = [0] * (positions + 1)
        for band in self.bands:
            if band.prompt == prompt:
                change[band.begin] += band.rows
                change[band.end] -= band.rows
        return list(accumulate(change[:-1]))


def seeded_cone(cone: Cone) -> Cone:
    """The cone of the rows at the positions where they are seeded, and nowhere else."""
    bands, offset = [], 0
    for band in cone.bands:
        row = band.row
        for position, rows in band.seeded:
            bands.append(Band(band.prompt, position, position + 1, row, rows, offset, position))
            row, offset = row + rows, offset + rows
    return Cone(tuple(bands))


def seed_cells(cone: Cone, device: torch.device) -> Int[Tensor, " rows"]:
    """The cell of every row at the position where it was seeded."""
    first, count, total = list[int](), list[int](), 0
    for band in cone.bands:
        row = 0
        for position, rows in band.seeded:
            first.append(band.offset + (position - band.begin) * band.rows + row - total)
            count.append(rows)
            row, total = row + rows, total + rows
    begins, times = to_device([first, count], device).unbind()
    return torch.arange(total, device=device) + begins.repeat_interleave(times, output_size=total)


class Cells(NamedTuple):
    """Where the cells of one prompt's rows lie in a flat array: those of row r at start[r] + step[r] · position."""

    start: Int[Tensor, " rows"]
    step: Int[Tensor, " rows"]
    alive: tuple[tuple[int, int], ...]
    """The rows `[first, end)` that live at each position: they are consecutive."""
    position: Int[Tensor, " positions"]
    """Every position."""

    def at(self, position: int, first: int | None = None, end: int | None = None) -> Int[Tensor, " alive"]:
        """The cells at a position, in order of rows: of all that live there, or of some rows by their place among those known here."""
        if first is None or end is None:
            first, end = self.alive[position]
        return torch.add(self.start[first:end], self.step[first:end], alpha=position)

    def over(self, begin: int, end: int, first: int | None = None, last: int | None = None) -> Int[Tensor, " cells"]:
        """The cells at several positions at which the same rows live, or of some of these rows, as `at` has them: position by position."""
        if end - begin == 1:
            return self.at(begin, first, last)
        if first is None or last is None:
            first, last = self.alive[begin]
        return torch.addcmul(self.start[first:last], self.step[first:last], self.position[begin:end, None]).flatten()

    def by_row(self, begin: int, end: int) -> Int[Tensor, " cells"]:
        """The same, row by row."""
        first, last = self.alive[begin]
        return torch.addcmul(self.start[first:last, None], self.step[first:last, None], self.position[begin:end]).flatten()


def together(most: int, *kinds: Sequence[object]) -> Iterator[tuple[int, int]]:
    """Runs of at most so many positions, `[begin, end)`, that are of one kind each."""
    for _, run in groupby(range(len(kinds[0])), key=lambda t: (t // most, *(kind[t] for kind in kinds))):
        positions = list(run)
        yield positions[0], positions[-1] + 1


def read_runs(most: int, alive: Sequence[object], begins: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of positions in which rows are read out against what is seeded there, and the most that is seeded at one of them.

    Each position is filled up to that with what is not looked at; where it is more than half of all, they go one by one.

    Args:
        most: positions of a run.
        alive: which rows live at each position.
        begins: where what is seeded at each position begins, and where the last ends.
    """
    for begin, end in together(most, alive):
        counts = [begins[t + 1] - begins[t] for t in range(begin, end)]
        if 0 < max(counts) * len(counts) <= 2 * sum(counts):
            yield begin, end, max(counts)
        else:
            yield from ((t, t + 1, count) for t, count in zip(range(begin, end), counts, strict=True) if count)


def cells_of(cone: Cone, prompt: int, positions: int, device: torch.device) -> Cells:
    """Where the cells of a prompt's rows lie."""
    bands = [band for band in cone.bands if band.prompt == prompt]
    start = [band.offset - band.begin * band.rows + row for band in bands for row in range(band.rows)]
    step = [band.rows for band in bands for _ in range(band.rows)]
    first_cells, steps = to_device([start, step], device).unbind()
    return Cells(first_cells, steps, alive_rows(bands, positions), torch.arange(positions, device=device))


def alive_rows(bands: Sequence[Band], positions: int) -> tuple[tuple[int, int], ...]:
    """The rows `[first, end)` of one prompt that live at each position."""
    alive = [(0, 0)] * positions
    for band in bands:
        for t in range(band.begin, band.end):
            first, end = alive[t]
            alive[t] = (first if end else band.row, band.row + band.rows)
    return tuple(alive)


def rows_over(
    bands: Sequence[Band], flat: Float[Tensor, "cells width"], begin: int, end: int, first: int, last: int
) -> Float[Tensor, "positions rows width"]:
    """Some rows of one prompt at several positions at which the same rows live: one band's as a view, several laid side by side."""
    parts = [
        band.of(flat)[begin - band.begin : end - band.begin, max(first - band.row, 0) : last - band.row]
        for band in bands
        if band.begin <= begin < band.end and band.row < last and first < band.row + band.rows
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _part(run: list[Band]) -> tuple[slice, list[Band]]:
    start = run[0].offset
    return slice(start, run[-1].offset + run[-1].cells), [band.moved(start) for band in run]


@dataclass(frozen=True)
class Rectangle:
    """Neighbouring bands of one prompt, moved through attention at once."""

    bands: tuple[Band, ...]

    @property
    def prompt(self) -> int:
        """The prompt of all its bands."""
        return self.bands[0].prompt

    @cached_property
    def begin(self) -> int:
        """The first position at which one of its rows lives."""
        return min(band.begin for band in self.bands)

    @cached_property
    def end(self) -> int:
        """One past the last position."""
        return max(band.end for band in self.bands)

    @cached_property
    def rows(self) -> int:
        """Rows of all its bands."""
        return sum(band.rows for band in self.bands)

    @property
    def part(self) -> slice:
        """Its cells in the flat array."""
        return slice(self.bands[0].offset, self.bands[-1].offset + self.bands[-1].cells)

    def moved(self, start: int) -> "Rectangle":
        """Give the block's place in a flat array that begins at cell `start`."""
        return Rectangle(tuple(band.moved(start) for band in self.bands))

    def gather(self, flat: Float[Tensor, "cells ..."], zeros: Float[Tensor, "positions rows ..."]) -> Float[Tensor, "positions rows ..."]:
        """Its part of a flat array as a rectangle, into zeros, which stay where a row does not live."""
        for band, part in self._parts(zeros):
            part.copy_(band.of(flat))
        return zeros

    def scatter(self, rectangle: Float[Tensor, "positions rows ..."], flat: Float[Tensor, "cells ..."]) -> None:
        """Write the rectangle's living cells to their places in a flat array."""
        for band, part in self._parts(rectangle):
            band.of(flat).copy_(part)

    def _parts(self, rectangle: Float[Tensor, "positions rows ..."]) -> Iterator[tuple[Band, Tensor]]:
        row = 0
        for band in self.bands:
            yield band, rectangle[band.begin - self.begin : band.end - self.begin, row : row + band.rows]
            row += band.rows


class Shape(NamedTuple):
    """The size of a rectangle, which is all that plans ask of it."""

    begin: int
    end: int
    rows: int
    is_gathered: bool
    """Whether it has several bands, which are put together first."""


def blocks(bands: Sequence[Band], most: int) -> Iterator[tuple[list[Band], Shape]]:
    """Bands that lie behind each other, in blocks of one prompt whose rectangles have at most `most` cells; a larger band is alone."""
    block, begin, end, rows = list[Band](), 0, 0, 0
    for band in bands:
        if block:
            low, high, more = min(begin, band.begin), max(end, band.end), rows + band.rows
            if band.prompt == block[0].prompt and (high - low) * more <= most:
                block.append(band)
                begin, end, rows = low, high, more
                continue
            yield block, Shape(begin, end, rows, len(block) > 1)
        block, begin, end, rows = [band], band.begin, band.end, band.rows
    if block:
        yield block, Shape(begin, end, rows, len(block) > 1)


def rectangles(bands: Sequence[Band], most: int) -> Iterator[Rectangle]:
    """The same as rectangles."""
    return (Rectangle(tuple(block)) for block, _ in blocks(bands, most))


Direction = Literal["down", "up"]


def cone(
    seeds: Sequence[Sequence[int]], lengths: Sequence[int], direction: Direction, most: int = ON_CPU.band, *, causal: bool = True
) -> Cone:
    """The cone of rows seeded at these positions, sorted, for each prompt; cotangents go down, tangents up.

    A band that would hold more than `most` cells is cut by rows, at least one to each.
    """
    counts = []
    for positions, length in zip(seeds, lengths, strict=True):
        rows = [0] * length
        for position in positions:
            rows[position] += 1
        counts.append(rows)
    return cone_of(counts, direction, most, causal=causal)


def cone_of(counts: Sequence[Sequence[int]], direction: Direction, most: int = ON_CPU.band, *, causal: bool = True, span: int = 1) -> Cone:
    """The cone by how many rows are seeded at each position of each prompt.

    Args:
        most: cells of one band.
        span: how many neighbouring positions share a band, where that has no more cells than `most`; where attention is not causal, one.
    """
    bands: list[Band] = []
    offset = 0
    for prompt, seeded in enumerate(counts):
        row, upto, is_wide = 0, 0, False
        for position in compress(range(len(seeded)), seeded):
            if causal and span > 1 and position >= upto:  # the first of a stretch of neighbours at which any row is seeded
                first = position - position % span
                upto = min(first + span, len(seeded))
                begin, end = (first, len(seeded)) if direction == "up" else (0, upto)
                rows = sum(seeded[first:upto])
                is_wide = rows * (end - begin) <= most
                if is_wide:
                    runs = tuple((at, seeded[at]) for at in range(position, upto) if seeded[at])
                    bands.append(Band(prompt, begin, end, row, rows, offset, runs[0 if direction == "up" else -1][0], runs))
                    row, offset = row + rows, offset + bands[-1].cells
            if is_wide:
                continue
            begin = position if causal and direction == "up" else 0
            end = position + 1 if causal and direction == "down" else len(seeded)
            for rows in _cut(seeded[position], max(1, most // (end - begin))):
                bands.append(Band(prompt, begin, end, row, rows, offset, position))
                row, offset = row + rows, offset + bands[-1].cells
    return Cone(tuple(bands))


def _cut(count: int, most: int) -> Iterable[int]:
    """Cut into as few parts as possible, of at most `most` each and about equal."""
    parts = -(-count // most)
    return [count * (i + 1) // parts - count * i // parts for i in range(parts)]
