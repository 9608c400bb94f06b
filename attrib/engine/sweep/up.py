"""Tangents on the way up of ascent.py, whatever stands between."""

from collections.abc import Collection, Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import NOTHING, Between, place_of
from attrib.engine.sweep.ascent import Ascent
from attrib.engine.sweep.cells import Cells, Cone, cells_of, seed_cells, seeded_cone
from attrib.engine.sweep.primal import Primal, Seeds
from attrib.engine.sweep.seeded import with_mlp
from attrib.engine.sweep.steps import (
    Flat,
    push_attention,
    push_heads,
    push_norm_2,
    push_output,
    push_to_mlp_out,
    spread_heads,
    spread_up,
    through_mlp,
)
from attrib.engine.sweep.waiting import Waiting


class Up(Ascent[Tensor]):
    """Rows over a cone. Until the first attention each lives at its own position, and the cone is one of points."""

    def __init__(
        self,
        primal: Primal,
        start: Site,
        sources: Mapping[Site, Seeds],
        up: Cone,
        to: Site,
        between: Between = NOTHING,
        *,
        meets: Collection[Site] = (),
        is_written: bool = False,
    ) -> None:
        """Make one.

        Args:
            start: where it begins.
            sources: what they write, by the place as `place_of` names it; `start` is one of them, and those beyond `to` are left out.
            up: what they move.
            to: where it ends.
            between: what stands on the way.
            meets, is_written: as of `Ascent`.
        """
        below = [site for site in sources if site.depth < place_of(to).depth]
        super().__init__(
            primal.model.config, primal.policy, start, to, between.held, between.passing, below, meets=meets, is_written=is_written
        )  # fmt: skip
        self.primal, self.sources, self.up = primal, sources, up
        self.waits = [Waiting(passing, sum(primal.lengths)) for passing in between.passing]
        self.first = sources[self.start]
        self.lie(seeded_cone(up))

    def climb(self) -> Flat | None:
        """What stands at `to`: on the cone where they have been spread, else each at its own position; None is zeros."""
        return self.run(self.first.value)

    def lie(self, cone: Cone) -> None:
        """Have rows on a cone from here on."""
        self.cone, self.cells = cone, list[Cells]()

    def _seeds(self, rows: Flat) -> Seeds:
        return self.first._replace(value=rows)

    def places(self) -> list[Cells]:
        """Where the rows of each prompt lie."""
        device = self.first.token.device
        self.cells = self.cells or [cells_of(self.cone, prompt, length, device) for prompt, length in enumerate(self.primal.lengths)]
        return self.cells

    def _positions(self, carried: Waiting) -> Iterator[tuple[int, Int[Tensor, " rows"], slice]]:
        return carried.positions(self.primal, self.places())

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum, in the memory of `b`."""
        return b.add_(a)

    def through_attention(self, layer: int, stream: Tensor, read: Tensor, keeps: bool) -> Tensor:
        """Seeded rows by the rank of heads; those of a cone in place."""
        if not self.is_spread:
            return spread_up(self.primal, layer, self._seeds(read), self.up, self._seeds(stream))
        into = stream.clone() if keeps else stream
        push_attention(self.primal, layer, self.cone, into, None if read is into else read)
        return into

    def through_attention_alone(self, layer: int, read: Tensor) -> Tensor:
        """The same, added to nothing."""
        if not self.is_spread:
            return spread_up(self.primal, layer, self._seeds(read), self.up, None)
        into = torch.zeros_like(read)
        push_attention(self.primal, layer, self.cone, into, read)
        return into

    def through_heads(self, layer: int, read: Tensor) -> Tensor:
        """No further than what all heads give, side by side."""
        if not self.is_spread:
            return spread_heads(self.primal, layer, self._seeds(read), self.up)
        return push_heads(self.primal, layer, self.cone, read)

    def through_output(self, layer: int, rows: Tensor) -> Tensor:
        """Through W_O, and the norm behind attention where there is one."""
        return push_output(self.primal, layer, self.cone.bands, rows)

    def through_mlp(self, layer: int, stream: Tensor, keeps: bool) -> Tensor:
        """In place, folded where many rows share a position; seeded rows, which are few, by its factors."""
        if not self.is_spread:
            return with_mlp(self.primal, layer, self._seeds(stream)).value
        rows = stream.clone() if keeps else stream
        through_mlp(self.primal, layer, self.cone, rows, up=True)
        return rows

    def through_mlp_alone(self, layer: int, read: Tensor) -> Tensor:
        """Without the residual."""
        rows = read.clone()
        through_mlp(self.primal, layer, self.cone, rows, up=True, is_alone=True)
        return rows

    def through_norm(self, layer: int, read: Tensor) -> Tensor:
        """Through the norm before the MLP."""
        return push_norm_2(self.primal, layer, self.cone, read)

    def through_matrices(self, layer: int, rows: Tensor) -> Tensor:
        """Through the factors of the MLP, which is never folded here: a fold has the norm in it."""
        return push_to_mlp_out(self.primal, layer, self.cone, rows)

    def widen(self, rows: Tensor) -> Tensor:
        """Zeros but at the position where each row was seeded."""
        out = rows.new_zeros(self.up.cells, rows.shape[1])
        return out.index_copy_(0, seed_cells(self.up, rows.device), rows)

    def widen_waiting(self) -> None:
        """What skip connections read; what is held by position as it is has nothing to be widened, where attention is causal."""
        for carried in self.waits:
            if carried.skip is not None:
                carried.skip = self.widen(carried.skip)
            carried.spread(self.primal, self.cone, self.up)
        self.lie(self.up)

    def enter(self, number: int, rows: Tensor) -> None:
        """Rows become numbers of the terms that are active at their position; what the skip connection reads is kept as it is."""
        carried = self.waits[number]
        reading = carried.passing.reading().to(rows.dtype)
        for token, here, terms in self._positions(carried):
            carried.terms[token] = rows.index_select(0, here) @ reading[terms].T
        if carried.passing.dictionary.has_skip:
            carried.skip = rows.clone()  # the rows themselves are overwritten as they go on

    def arrive(self, number: int, site: Site, is_last: bool) -> Tensor:
        """The terms become rows of what is written."""
        carried = self.waits[number]
        writing = carried.passing.writing(site).to(self.primal.weights.dtype)
        W_skip = carried.passing.skip(site)
        if W_skip is None or carried.skip is None:
            out = writing.new_zeros(self.cone.cells, writing.shape[1])
        else:
            out = carried.skip @ W_skip.to(writing.dtype)
        for token, here, terms in self._positions(carried):
            if (entered := carried.terms.get(token)) is not None:
                # rows that have come since, from positions before this one, are before those that entered here
                out.index_add_(0, here[len(here) - len(entered) :], entered @ writing[terms])
        if is_last:
            carried.terms, carried.skip = {}, None
        return out

    def seeded(self, site: Site) -> Tensor:
        """As cells where the others are."""
        rows = self.sources[site].value
        return self.widen(rows) if self.is_spread else rows.clone()
