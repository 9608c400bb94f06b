"""Rows that wait in a dictionary which is passed, on the way down (compute.py) or up (up.py)."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.engine.blocks.passing import Passing
from attrib.engine.sweep.cells import Cells, Cone, cells_of
from attrib.engine.sweep.primal import Primal


class Waiting:
    """Rows in a dictionary: by position, as so many rows of so many terms; and as its skip connection has them."""

    def __init__(self, passing: Passing, tokens: int) -> None:
        self.passing = passing
        edges = torch.arange(tokens + 1, device=passing.token.device)
        self.bounds: list[int] = torch.searchsorted(passing.token, edges).tolist()
        self.terms: dict[int, Tensor] = {}
        self.skip: Float[Tensor, "_ _"] | None = None

    def positions(self, primal: Primal, cells: Sequence[Cells]) -> Iterator[tuple[int, Int[Tensor, " rows"], slice]]:
        """Every position with rows and terms: its packed index, the cells of the rows, the terms.

        Args:
            cells: where the rows of each prompt lie.
        """
        for prompt, length in enumerate(primal.lengths):
            first = primal.first(prompt)
            for t in range(length):
                terms = slice(self.bounds[first + t], self.bounds[first + t + 1])
                if terms.start < terms.stop and len(here := cells[prompt].at(t)):
                    yield first + t, here, terms

    def spread(self, primal: Primal, seeded: Cone, whole: Cone) -> None:
        """Have numbers of terms be of all rows that live at their position once rows are spread, with zeros for those that have come since.

        Where attention is causal these are behind those that were there, or all before them, and whoever takes the numbers knows how many
        there are; where it is not, they are among them.
        """
        if primal.model.config.causal:
            return
        device = self.passing.x.device
        for prompt, length in enumerate(primal.lengths):
            alive, every = (cells_of(cone, prompt, length, device).alive for cone in (seeded, whole))
            for t in range(length):
                if (terms := self.terms.get(token := primal.first(prompt) + t)) is not None:
                    (first, end), (begin, stop) = alive[t], every[t]
                    wide = terms.new_zeros(stop - begin, terms.shape[1])
                    wide[first - begin : end - begin] = terms
                    self.terms[token] = wide
