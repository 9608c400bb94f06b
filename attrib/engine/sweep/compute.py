"""Cotangents on the way down of route.py, whatever stands between."""

from collections.abc import Callable, Collection, Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import NOTHING, Between
from attrib.engine.blocks.product import product
from attrib.engine.sweep.cells import Cells, Cone, cells_of, seed_cells, seeded_cone
from attrib.engine.sweep.primal import Primal, Seeds
from attrib.engine.sweep.route import Descent
from attrib.engine.sweep.steps import Flat, leaving_rows, pull_attention, pull_to_mlp_in, spread_down, through_mlp, through_norm_2
from attrib.engine.sweep.waiting import Waiting


class Down(Descent[Tensor]):
    """Rows over a cone. Until the first attention each lives at its own position, and the cone is one of points."""

    def __init__(
        self,
        primal: Primal,
        stop: Site,
        down: Cone,
        wanted: Collection[Site],
        read: Callable[[Site, Flat, bool], None] | None = None,
        *,
        brought: Collection[Site] = (),
        stops_below: bool = False,
        between: Between = NOTHING,
        read_heads: Callable[[int, Flat, Flat | None], None] | None = None,
    ) -> None:
        """Make one.

        Args:
            down: what the rows see.
            wanted, brought: where they are read out; the lowest of them is the end.
            read: is given the place, the rows, and whether they lie on `down` or each at its own position. They are overwritten later.
            stops_below: whether they begin at what the model brings to `stop`.
            between: what stands on the way.
            read_heads: is given the lowest attention's layer, the stream behind it, and z where rows have come there; None: no head space.
        """
        super().__init__(
            primal.model.config, primal.policy, stop, between.held, between.passing, wanted, brought=brought, stops_below=stops_below,
            in_heads=read_heads is not None,
        )  # fmt: skip
        self.primal, self.down, self.reader, self.heads_reader = primal, down, read, read_heads
        self.waits = [Waiting(passing, sum(primal.lengths)) for passing in between.passing]

    def seeded(self, targets: Seeds) -> None:
        """Bring down rows that are each at their own position."""
        self.run(self.seed(targets))

    def seed(self, targets: Seeds) -> Flat:
        """Be given rows that are each at their own position; what is returned is theirs to be overwritten."""
        self.targets = targets
        self.lie(seeded_cone(self.down))
        return targets.value.clone()

    def everywhere(self, rows: Flat) -> None:
        """Bring down rows that lie on all that they see already; they are overwritten."""
        self.is_spread = True
        self.lie(self.down)
        self.run(rows)

    def lie(self, cone: Cone) -> None:
        """Have rows on a cone from here on."""
        self.cone, self.cells = cone, list[Cells]()

    def _positions(self, waiting: Waiting) -> Iterator[tuple[int, Int[Tensor, " rows"], slice]]:
        device = waiting.passing.x.device
        self.cells = self.cells or [cells_of(self.cone, prompt, length, device) for prompt, length in enumerate(self.primal.lengths)]
        return waiting.positions(self.primal, self.cells)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum, in the memory of `b`."""
        return b.add_(a)

    def through_mlp(self, layer: int, stream: Tensor, keeps: bool) -> Tensor:
        """In place, folded where many rows share a position; on a copy where the stream goes by beside a parallel MLP."""
        rows = stream.clone() if keeps else stream
        through_mlp(self.primal, layer, self.cone, rows, up=False)
        return rows

    def through_mlp_alone(self, layer: int, rows: Tensor) -> Tensor:
        """In place, and without the residual."""
        through_mlp(self.primal, layer, self.cone, rows, up=False, is_alone=True)
        return rows

    def through_matrices(self, layer: int, rows: Tensor) -> Tensor:
        """Through the factors of the MLP, which is never folded here: a fold has the norm in it."""
        return pull_to_mlp_in(self.primal, layer, self.cone, rows)

    def through_norm(self, layer: int, rows: Tensor) -> Tensor:
        """Through the norm before the MLP."""
        return through_norm_2(self.primal, layer, self.cone, rows)

    def through_output(self, layer: int, rows: Tensor) -> Tensor:
        """Through the norm behind attention, where there is one, and W_O."""
        W_O = self.primal.weights.params.blocks[layer].attention.W_O
        return product(leaving_rows(self.primal, self.cone.bands, self.primal.leaving_1(layer), rows), W_O.T)

    def through_attention(self, layer: int, below: Tensor | None, written: Tensor) -> Tensor:
        """Added to what goes by beside attention, in its memory."""
        into = torch.zeros_like(written) if below is None else below
        pull_attention(self.primal, layer, self.cone, into, written=None if written is into else written)
        return into

    def through_heads(self, layer: int, below: Tensor | None, z: Tensor) -> Tensor:
        """Added to what goes by beside attention, in its memory."""
        into = z.new_zeros(len(z), self.config.d_model) if below is None else below
        pull_attention(self.primal, layer, self.cone, into, z)
        return into

    def spread(self, layer: int, below: Tensor | None, z: Tensor) -> Tensor:
        """To the cone of what each row sees, with what waits in dictionaries: nothing lives at one position alone from here on."""
        out = spread_down(self.primal, layer, self.targets._replace(value=z), below, self.down)
        for waiting in self.waits:
            if waiting.skip is not None:
                waiting.skip = self._widened(waiting.skip)
            waiting.spread(self.primal, self.cone, self.down)
        self.lie(self.down)
        return out

    def _widened(self, rows: Tensor) -> Tensor:
        """Rows at their own positions, as cells of the cone."""
        out = rows.new_zeros(self.down.cells, rows.shape[1])
        return out.index_copy_(0, seed_cells(self.down, rows.device), rows)

    def enter(self, number: int, site: Site, rows: Tensor) -> None:
        """Rows become numbers of the terms that are active at their position, and what the skip connection reads."""
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
        """The terms that have waited become rows again."""
        waiting = self.waits[number]
        reading = waiting.passing.reading().to(self.primal.weights.dtype)
        out = reading.new_zeros(self.cone.cells, reading.shape[1]) if waiting.skip is None else waiting.skip
        for token, here, terms in self._positions(waiting):
            if (reached := waiting.terms.get(token)) is not None:
                out.index_add_(0, here[: len(reached)], reached @ reading[terms])
        waiting.terms, waiting.skip = {}, None  # let go of: nothing comes to it below the place that it reads
        return out

    def read_heads(self, layer: int, stream: Tensor, z: Tensor | None) -> None:
        """Handed to the reader in head space."""
        assert self.heads_reader is not None
        self.heads_reader(layer, stream, z)

    def read(self, site: Site, rows: Tensor, is_brought: bool) -> None:
        """Handed to the reader, with the knowledge of where rows lie."""
        assert self.reader is not None
        self.reader(site, rows, self.is_spread)
