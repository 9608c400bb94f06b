"""All nodes that are not told apart, as one: what they bring anywhere is a sum, and so it goes up as one row for each position.

A row of the rest writes wherever one of its nodes does. So a few rows take the place of thousands, and what the rest is to a query or a
key is computed and no difference: whether everything adds up can still be seen to fail.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.passing import place_of
from attrib.engine.bundle import Bundle, SourceEnd
from attrib.engine.path import Sources
from attrib.models.transformer import width

REST = -2
"""The number of all nodes together that are not told apart."""


def rest_of(
    bundle: Bundle, columns: Sequence[Int[Tensor, " _"]], nodes: Int[Tensor, " chosen"], first: int
) -> tuple[list[SourceEnd], list[Int[Tensor, " _"]]]:
    """Sources at each position that write all that the nodes there do which are not among the chosen ones.

    Args:
        columns: the node of each column of each set of sources.
        first: what the first of them is called; the others are called the next numbers.
    """
    written, lost = dict[Site, Tensor](), dict[Site, Tensor]()
    for end, node in zip(bundle.sources, columns, strict=True):
        others = ~torch.isin(node, nodes).to(end.sources.position.device)
        if not bool(others.any()):
            continue
        widths = [width(bundle.model.config, site) for site in end.writes]
        for at, rows in zip(end.writes, _summed(end.sources, others, bundle.length).split(widths, dim=1), strict=True):
            # what the model brings to a place that others write is no part of what stands there, and so it is kept apart
            into, place = (lost if end.is_brought and place_of(at) in bundle.between.held else written), place_of(at)
            place = _next(bundle, place) if end.is_brought and into is written else place
            into[place] = into[place] + rows if place in into else rows
    written = {at: rows for at, rows in written.items() if bool(rows.any())}
    ends = [_end(bundle, {at: rows}, is_brought=True) for at, rows in lost.items()]
    ends += [_end(bundle, written, is_brought=False)] if written else []
    names = torch.arange(first, first + bundle.length * len(ends)).split(bundle.length) if ends else ()
    return ends, list(names)


def _summed(sources: Sources, chosen: Bool[Tensor, " sources"], length: int) -> Float[Tensor, "positions width"]:
    """What some sources write at each position, as large as they are there."""
    rows = sources.direction[chosen] * sources.value[chosen, None]
    return rows.new_zeros(length, rows.shape[1]).index_add_(0, sources.position[chosen], rows)


def _next(bundle: Bundle, place: Site) -> Site:
    """Where what an MLP writes may come in as well: where the block ends, if nothing looks at it before. There no step is split for it."""
    behind = place_of(Site(place.layer, "resid_post"))
    looks = {passing.reads for passing in bundle.between.passing}
    return behind if place.kind == "mlp_out" and place not in looks and behind not in bundle.between.held else place


def _end(bundle: Bundle, written: dict[Site, Tensor], is_brought: bool) -> SourceEnd:
    places = tuple(sorted(written, key=lambda site: site.depth))
    direction = torch.cat([written[at] for at in places], dim=1)
    position = torch.arange(bundle.length, device=direction.device)
    return SourceEnd(Sources(position, torch.full_like(position, -1), torch.ones_like(direction[:, 0]), direction), places, is_brought)
