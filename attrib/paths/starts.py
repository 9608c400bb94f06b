"""Where a path starts: its leaves, and the function that puts them into the stream. Tokens, latents, and what a dictionary misses."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.sparse import union
from attrib.core.types import ERROR, Site, SparseLatents
from attrib.dictionaries.dictionary import Dictionary, decode_at, normalise_input, skip
from attrib.engine.blocks.passing import part_of, place_of
from attrib.engine.path import Sources
from attrib.passes.capture import cut


class Start(NamedTuple):
    """The leaves at a path's beginning and the function that puts them into the stream."""

    sources: Sources
    enter: Callable[[Float[Tensor, " sources"]], Float[Tensor, "positions width_a"]]


def start_at_tokens(
    embedded: Float[Tensor, "positions d_model"], tokens: Int[Tensor, " positions"], other: Float[Tensor, "positions d_model"] | None = None
) -> Start:
    """Token scales: one factor for each position's embedding sum, 1 at the primal.

    Args:
        other: what stands where a scale is 0; None is nothing.
    """
    ones = torch.ones_like(embedded[:, 0])
    direction = embedded if other is None else embedded - other
    sources = Sources(torch.arange(len(tokens), device=tokens.device), tokens, ones, direction)
    if other is None:
        return Start(sources, lambda scales: embedded * scales[:, None])
    return Start(sources, lambda scales: other + direction * scales[:, None])


def start_at_latents(
    source: Dictionary,
    x: Float[Tensor, "positions width_read"],
    written: Float[Tensor, "positions width_a"],
    error: bool,
    also: SparseLatents | None = None,
    is_error_source: bool = False,
) -> Start:
    """The source dictionary's active latents; its error, its skip connection and the scale of its input are constants.

    Args:
        x: what it reads.
        written: the true value where it writes.
        also: latents that are sources too, active or not.
        is_error_source: whether the error of each position is a source too, whose scale is 1.
    """
    leaves = cut(source, x, written)
    latents = leaves.latents if also is None else union(leaves.latents, also)[0]
    position, latent, _ = latents
    beside = skip(source, x) if source.has_skip else None
    sources = latent_sources(source, x, source.writes, latents)
    if is_error_source:
        sources = with_errors(sources, leaves.error)

    def enter(values: Float[Tensor, " sources"]) -> Float[Tensor, "positions width_a"]:
        values, scales = apart(values, sources.latent) if is_error_source else (values, None)
        out = decode_at(source, values, position, latent, leaves.scale)
        out = out if beside is None else out + beside
        if scales is not None:
            return out + leaves.error * scales[:, None]
        return out + leaves.error if error else out

    return Start(sources, enter)


def with_errors(sources: Sources, error: Float[Tensor, "positions width_a"]) -> Sources:
    """Sources with the error of each position among them: a latent of number ERROR, whose scale is 1, before the others of its position."""
    every = torch.arange(len(error), device=error.device)
    errors = Sources(every, torch.full_like(every, ERROR), torch.ones_like(error[:, 0]), error)
    order = torch.cat([errors.position, sources.position]).argsort(stable=True)
    return Sources(*(torch.cat([own, others])[order] for own, others in zip(errors, sources, strict=True)))


def apart(
    values: Float[Tensor, " sources"], latent: Int[Tensor, " sources"]
) -> tuple[Float[Tensor, " latents"], Float[Tensor, " positions"]]:
    """The values of latents, and those of errors among them."""
    return tuple(values.index_select(0, chosen.nonzero().squeeze(1)) for chosen in (latent >= 0, latent < 0))  # type: ignore[return-value]


def latent_sources(source: Dictionary, x: Float[Tensor, "positions width_read"], writes: Sequence[Site], latents: SparseLatents) -> Sources:
    """The active latents of a dictionary that reads `x`, and the directions that they write at some of its sites, side by side."""

    def written(site: Site) -> Float[Tensor, "sources width"]:
        return source.decoder_rows(latents.latent, part_of(source, place_of(site)))

    direction = written(writes[0]) if len(writes) == 1 else torch.cat([written(site) for site in writes], dim=1)
    scale = normalise_input(source, x)[1].scale.index_select(0, latents.position)
    return Sources(*latents, direction.to(x.dtype).mul_(scale))  # in place: these rows are the largest part of many a path
