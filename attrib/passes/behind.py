"""Many passes that differ from a known one in a few places: what comes of changes at a position, at that position and behind it.

A change of what stands at position p of a site moves nothing before the site, and nothing at the positions before p. So changes that
begin at one position go on together from the site, [changes, T - p, d_model], with the known pass's keys and values of the
positions before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Effect, Site
from attrib.models.transformer import Model, Put, base_site, place, width
from attrib.passes.beside import UNRECORDED, Recorded, walk_beside
from attrib.passes.packed import ROWS
from attrib.passes.replacement import Cut, CutLeaves, Replacement


class Met(NamedTuple):
    """The dictionaries of a known pass, and what of them is as it was there in the passes beside it."""

    replaced: Replacement
    held: Mapping[int, Cut]
    """Those whose latents do not move."""
    errors: Mapping[Site, Float[Tensor, "positions _"]]
    before: Mapping[int, Mapping[Site, Float[Tensor, "positions _"]]]
    """What those write that have read before anything moves, by place."""
    moves: tuple[Site, ...]
    """The places at which the source writes, which is the first dictionary; none where tokens are the source."""

    def put(self, moved: Float[Tensor, "changes rows widths"], first: int) -> Put:
        """What stands at each place where this is added to what the source writes."""
        written = {number: {at: part[first:] for at, part in parts.items()} for number, parts in self.before.items()}
        widths = [width(self.replaced.model.config, at) for at in self.moves]
        for at, part in zip(self.moves, moved.split(widths, -1) if widths else (), strict=True):
            written[0][at] = written[0][at] + part
        held = {number: cut.rows(first) for number, cut in self.held.items()}
        errors = {at: error[first:] for at, error in self.errors.items()}
        return self.replaced.putting(held, errors, written, self.moves[0] if self.moves else None)


@dataclass(frozen=True)
class Known:
    """A pass of one prompt from one place to another, and what others need of it."""

    model: Model
    recorded: Recorded
    start: Site
    stop: Site
    x: Float[Tensor, "positions width"]
    base: Float[Tensor, "positions d_model"] | None
    """The stream that what stands at `start` is added to, where that is not itself the stream."""
    reached: Float[Tensor, "positions _"]
    """What stands at `stop`."""
    met: Met | None = None
    """The dictionaries that are in it; None where there are none."""

    def behind(self, moved: Float[Tensor, "changes rows widths"], first: int) -> Float[Tensor, "changes rows _"]:
        """What stands at the last place, at the positions from `first` on, where this is added to what stands at the first place.

        Args:
            moved: of a source that writes at several places, what is added at each of them, side by side.
        """
        x = self.x[first:] + moved[..., : self.x.shape[-1]]
        put = None if self.met is None else self.met.put(moved, first)
        base = None if self.base is None else self.base[first:].expand(*x.shape[:-1], -1)
        walked = walk_beside(self.model, self.recorded, self.start, x, base, first=first, put=put)
        return next(value for site, value in walked if site.depth == self.stop.depth)


def known_pass(
    model: Model, start: Site, stop: Site, x: Float[Tensor, "positions width"], base: Float[Tensor, "positions d_model"] | None
) -> Known:
    """The model's pass from x at `start` to `stop`, with the keys and values of the layers between."""
    kept: list[tuple[Tensor, Tensor]] = []
    reached = next(value for site, value in walk_beside(model, UNRECORDED, start, x, base, kept=kept) if site.depth == stop.depth)
    lowest = start.layer if start.kind == "resid_pre" else start.layer + 1
    return Known(model, _recorded(kept, lowest), start, stop, x, base, reached)


def known_replaced(
    replaced: Replacement, leaves: CutLeaves, effect: Effect, leaves_of: Sequence[int], writes: Sequence[Site], stop: Site
) -> Known:
    """The pass with dictionaries in it, as `Replacement.values` has it, from the first place of a source to `stop`.

    Args:
        leaves_of: with total effects, the dictionaries whose latents are leaves all the same.
        writes: where the source writes, up to `stop`; none where tokens are the source.
    """
    model, held = replaced.model, replaced.held(leaves, effect, leaves_of)
    moves = tuple(place(model, at) for at in writes)
    start = moves[0] if moves else Site(0, "resid_pre")
    base = base_site(start)
    errors, kept = dict(zip(replaced.written, leaves.errors, strict=True)), list[tuple[Tensor, Tensor]]()
    written, values = dict[int, dict[Site, Tensor]](), dict[Site, Tensor]()
    put = replaced.putting(held, errors, written)
    for site, value in walk_beside(model, UNRECORDED, Site(0, "resid_pre"), leaves.embedded, put=put, kept=kept):
        if site in (start, base):
            values[site] = value
        if site.depth == stop.depth:
            break
    reads = [place(model, d.site) for d in replaced.dictionaries]
    is_own = [at in places for at, places in zip(reads, replaced.places, strict=True)]
    before = {n: written[n] for n, at in enumerate(reads) if moves and (at.depth < start.depth or (at == start and is_own[n]))}
    x = values[start] if moves else leaves.embedded  # and not what a dictionary makes of the embedded tokens
    met = Met(replaced, held, errors, before, moves)
    return Known(model, _recorded(kept, 0), start, stop, x, None if base is None else values[base], value, met)


def _recorded(kept: Sequence[tuple[Tensor, Tensor]], lowest: int) -> Recorded:
    """Keys and values by layer, of the layers from the lowest on."""
    keys, heads = ({lowest + at: pair[which] for at, pair in enumerate(kept)} for which in (0, 1))
    return UNRECORDED._replace(keys=keys, heads=heads)


def batches(
    begins: Int[Tensor, " changes"], length: int, fit: Callable[[int], int], beside: int = 0
) -> Iterator[tuple[int, Int[Tensor, " batch"]]]:
    """Changes that go on together: the position at which they begin, and their numbers.

    Args:
        begins: the first position that each changes.
        length: of the prompt.
        fit: how many changes of so many rows may go together, at least one.
        beside: how many more go with every batch.
    """
    order = begins.argsort(stable=True)
    for first, group in groupby(order.tolist(), key=lambda n: int(begins[n])):
        members = torch.tensor(list(group), device=begins.device)
        rows = length - first
        yield from ((first, part) for part in members.split(max(1, min(fit(rows), ROWS // rows - beside))))
