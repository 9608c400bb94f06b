"""Cotangents through written places: the way down of route.py, taken by rows."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import Between, Passing
from attrib.engine.sweep.cells import Cone, cells_of, seeded_cone
from attrib.engine.sweep.meet import Jacobians, contract, contract_seeded, empty
from attrib.engine.sweep.primal import Primal, Seeds
from attrib.engine.sweep.route import Descent
from attrib.engine.sweep.steps import Flat, leaving_rows, pull_attention, pull_to_mlp_in, spread_down, through_mlp, through_norm_2


def through(
    primal: Primal, between: Between, stop: Site, targets: Seeds, down: Cone, start: Site, sources: Mapping[Site, Seeds]
) -> Jacobians:
    """The Jacobian by all sources together, down through what stands between.

    Args:
        down: the cone of the targets.
        start: the lowest place at which sources are, or the tokens' embeddings are read.
        sources: what they write at each place.
    """
    found = empty(primal, targets, next(iter(sources.values())))
    ends = _Ends(targets, down, sources, found)
    _Down(primal, between, start, stop, ends).run(targets.value.clone())
    return found


class _Waiting:
    """Rows in a dictionary: by position, as so many rows of so many terms; and as they come out of its skip connection."""

    def __init__(self, passing: Passing, tokens: int) -> None:
        self.passing = passing
        edges = torch.arange(tokens + 1, device=passing.token.device)
        self.bounds: list[int] = torch.searchsorted(passing.token, edges).tolist()
        self.terms: dict[int, Tensor] = {}
        self.skip: Flat | None = None


class _Ends(NamedTuple):
    """What a sweep begins with, and what it is read out to."""

    targets: Seeds
    down: Cone
    sources: Mapping[Site, Seeds]
    found: Jacobians


class _Down(Descent[Tensor]):
    """Rows over a cone. Until the first attention each lives at its own position, and the cone is one of points."""

    def __init__(self, primal: Primal, between: Between, start: Site, stop: Site, ends: _Ends) -> None:
        super().__init__(primal.model.config, primal.policy, start, stop, between.held, between.passing, ends.sources)
        self.primal = primal
        self.targets, self.down, self.sources, self.found = ends
        self.waits = [_Waiting(passing, sum(primal.lengths)) for passing in between.passing]
        self._lie(seeded_cone(self.down))

    def _lie(self, cone: Cone) -> None:
        self.cone = cone
        device = self.targets.value.device
        self.cells = [cells_of(cone, prompt, length, device) for prompt, length in enumerate(self.primal.lengths)]

    def _positions(self, waiting: _Waiting) -> Iterator[tuple[int, Int[Tensor, " rows"], slice]]:
        """Every position with rows and terms: its packed index, the cells of the rows, the terms."""
        for prompt, length in enumerate(self.primal.lengths):
            first = self.primal.first(prompt)
            for t in range(length):
                terms = slice(waiting.bounds[first + t], waiting.bounds[first + t + 1])
                if terms.start < terms.stop and len(here := self.cells[prompt].at(t)):
                    yield first + t, here, terms

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return b.add_(a)

    def through_mlp(self, layer: int, rows: Tensor) -> Tensor:
        through_mlp(self.primal, layer, self.cone, rows, up=False)
        return rows

    def through_mlp_alone(self, layer: int, rows: Tensor) -> Tensor:
        moved = rows.clone()
        through_mlp(self.primal, layer, self.cone, moved, up=False)
        return moved.sub_(rows)

    def through_matrices(self, layer: int, rows: Tensor) -> Tensor:
        return pull_to_mlp_in(self.primal, layer, self.cone, rows)

    def through_norm(self, layer: int, rows: Tensor) -> Tensor:
        return through_norm_2(self.primal, layer, self.cone, rows)

    def through_output(self, layer: int, rows: Tensor) -> Tensor:
        W_O = self.primal.weights.params.blocks[layer].attention.W_O
        return leaving_rows(self.primal, self.cone.bands, self.primal.leaving_1(layer), rows) @ W_O.T

    def through_attention(self, layer: int, below: Tensor | None, written: Tensor) -> Tensor:
        into = torch.zeros_like(written) if below is None else below
        pull_attention(self.primal, layer, self.cone, into, written=None if written is into else written)
        return into

    def through_heads(self, layer: int, below: Tensor | None, z: Tensor) -> Tensor:
        into = z.new_zeros(len(z), self.config.d_model) if below is None else below
        pull_attention(self.primal, layer, self.cone, into, z)
        return into

    def spread(self, layer: int, below: Tensor | None, z: Tensor) -> Tensor:
        out = spread_down(self.primal, layer, self.targets._replace(value=z), below, self.down)
        for waiting in self.waits:
            if waiting.skip is not None:
                waiting.skip = self._widened(waiting.skip)
        self._lie(self.down)
        return out

    def _widened(self, rows: Tensor) -> Tensor:
        """Rows at their own positions, as cells of the cone."""
        out, seeds = rows.new_zeros(self.down.cells, rows.shape[1]), self.targets._replace(value=rows)
        for band in self.down.bands:
            band.of(out)[-1] = seeds.rows(band)
        return out

    def enter(self, number: int, site: Site, rows: Tensor) -> None:
        waiting = self.waits[number]
        writing = waiting.passing.writing(site).to(rows.dtype)
        for token, here, terms in self._positions(waiting):
            reached = rows.index_select(0, here) @ writing[terms].T
            if (before := waiting.terms.get(token)) is not None:
                reached[: len(before)] += before  # rows that have come since are behind those that were there
            waiting.terms[token] = reached
        if (W_skip := waiting.passing.skip(site)) is not None:
            waiting.skip = self.sum(waiting.skip, rows @ W_skip.to(rows.dtype).T)

    def arrive(self, number: int) -> Tensor:
        waiting = self.waits[number]
        reading = waiting.passing.reading().to(self.targets.value.dtype)
        out = reading.new_zeros(self.cone.cells, reading.shape[1]) if waiting.skip is None else waiting.skip
        for token, here, terms in self._positions(waiting):
            if (reached := waiting.terms.get(token)) is not None:
                out.index_add_(0, here[: len(reached)], reached @ reading[terms])
        waiting.terms, waiting.skip = {}, None  # let go of: nothing comes to it below the place that it reads
        return out

    def read(self, site: Site, rows: Tensor) -> None:
        seeds = self.sources[site]
        if self.is_spread:
            contract(self.primal, self.cone, rows, seeds, self.found)
        else:
            contract_seeded(self.primal, self.targets._replace(value=rows), seeds, self.found)
