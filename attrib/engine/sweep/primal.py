"""The primal of a pack of prompts, side by side, and rows seeded on it.

A pack's prompts lie behind each other: position t of prompt b is token `first(b) + t`. Norms and MLPs see
tokens alone, so one call serves all prompts; attention is the only part that sees where a prompt begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.core.types import Policy, Site, SiteKind
from attrib.engine.blocks.attention import AttentionPoint, attention_point
from attrib.engine.blocks.kernels import Impl
from attrib.engine.blocks.norm_mlp import Leaving, MLPPoint, NormPoint, mlp_point, norm_point
from attrib.engine.sweep.cells import Band, Pieces, pieces_of
from attrib.models.transformer import Model, ModelConfig, Norm, mlp_raw, walk

Point = TypeVar("Point")


@dataclass(frozen=True)
class Primal:
    """The primal streams between two sites, for a pack of prompts side by side: [tokens of all prompts, width]."""

    model: Model
    """From which points are computed."""
    weights: Model
    """The model in the dtype of the sweep's products."""
    policy: Policy
    impl: Impl
    pieces: Pieces
    lengths: tuple[int, ...]
    streams: Mapping[Site, Float[Tensor, "tokens _"]]
    shut_mlps: frozenset[int] = frozenset()
    """Layers through whose MLP nothing moves, since what it writes is taken from elsewhere."""
    remembered: dict[int, list[AttentionPoint]] | None = field(default=None, compare=False, repr=False)
    """The points of layers that were asked for, where they are kept: for many sweeps that are short; see `remembering`."""

    def remembering(self) -> "Primal":
        """The same, which computes the points of each layer's attention once, where those of all layers take little memory."""
        return replace(self, remembered={}) if remembered_bytes(self.model.config, self.lengths, self.weights.dtype.itemsize) else self

    def passes_mlp(self, layer: int) -> bool:
        """Whether anything moves through a layer's MLP."""
        return self.policy.mlp != "frozen" and self.model.config.has_mlps and layer not in self.shut_mlps

    def first(self, prompt: int) -> int:
        """The packed index of a prompt's first token."""
        return sum(self.lengths[:prompt])

    def tokens(self, band: Band) -> slice:
        """The packed indices of a band's positions."""
        first = self.first(band.prompt)
        return slice(first + band.begin, first + band.end)

    def norm_1(self, layer: int) -> NormPoint:
        """The point of the norm before a layer's attention."""
        return self._entering(self.streams[Site(layer, "resid_pre")])

    def norm_2(self, layer: int) -> NormPoint:
        """The point of the norm before a layer's MLP."""
        return self._entering(self.streams[Site(layer, "resid_pre" if self.model.config.parallel else "resid_mid")])

    def _entering(self, x: Float[Tensor, "tokens d_model"]) -> NormPoint:
        if self.model.config.pre_norm:
            return self._cast(norm_point(self.model.config, x))
        return self._cast(NormPoint(torch.zeros_like(x), torch.ones_like(x[:, :1])))  # at which the norm's maps are the identity

    def leaving_1(self, layer: int, points: Sequence[AttentionPoint] | None = None) -> Leaving | None:
        """The norm behind a layer's attention, whose points may be at hand; None where there is none."""
        if not self.model.config.post_norm:
            return None
        p, z = self.model.params.blocks[layer].attention, self.streams.get(Site(layer, "z"))
        if z is None:
            z = torch.cat([rearrange(point.z, "kv g t d -> t (kv g d)") for point in points or self.attentions(layer)])
        return self._leaving(self.weights.params.blocks[layer].post_1, z.to(p.W_O) @ p.W_O + p.b_O)

    def leaving_2(self, layer: int) -> Leaving | None:
        """The norm behind a layer's MLP; None where there is none."""
        if not self.model.config.post_norm:
            return None
        return self._leaving(self.weights.params.blocks[layer].post_2, mlp_raw(self.model, layer, self.streams[Site(layer, "mlp_in")]))

    def _leaving(self, norm: Norm, written: Float[Tensor, "tokens d_model"]) -> Leaving:
        return Leaving(norm, self._cast(norm_point(self.model.config, written)))

    def mlp(self, layer: int) -> MLPPoint:
        """The point of a layer's MLP."""
        return self._cast(mlp_point(self.model, layer, self.streams[Site(layer, "mlp_in")], self.policy))

    def attentions(self, layer: int) -> list[AttentionPoint]:
        """The point of a layer's attention in each prompt."""
        if self.remembered is not None and layer in self.remembered:
            return self.remembered[layer]
        found = [self._cast(attention_point(self.model, layer, x)) for x in self.streams[Site(layer, "resid_pre")].split(self.lengths)]
        if self.remembered is not None:
            self.remembered[layer] = found
        return found

    def _cast(self, point: Point) -> Point:
        """A point in the dtype of the products."""
        dtype = self.weights.dtype
        return point if dtype == self.model.dtype else pytree.tree_map(lambda part: part.to(dtype), point)


REMEMBERED = 1 << 26
"""Bytes that the points of all layers' attention may take to be kept."""


def remembered_bytes(config: ModelConfig, lengths: Sequence[int], itemsize: int) -> int:
    """Bytes of the points of all layers' attention; 0 where that is too much, and they are computed again in every sweep."""
    widths = config.d_head * (4 * config.n_heads + 2 * config.n_kv_heads)
    numbers = config.n_layers * sum(length * (widths + 3 * config.n_heads * length) for length in lengths)
    return itemsize * numbers if itemsize * numbers <= REMEMBERED else 0


def attentions_between(start: Site, stop: Site) -> range:
    """The layers whose attention lies between two sites."""
    return range(start.layer + (start.kind != "resid_pre"), stop.layer + (stop.kind != "resid_pre"))


def is_spread_above(config: ModelConfig, low: Site, stop: Site) -> bool:
    """Whether rows on their way down from `stop` have been spread before they come to the layer of `low`, which begins there."""
    top = Site(stop.layer, "resid_pre") if config.parallel and stop.kind in BESIDE else stop
    return len(attentions_between(low, top)) > 1


STREAMS: tuple[SiteKind, ...] = ("resid_pre", "resid_mid", "mlp_in")
"""The kinds of sites from which every point is computed; and `z` where a path starts there."""

BESIDE: tuple[SiteKind, ...] = ("mlp_in", "mlp_out")
"""The kinds of sites that in a parallel block stand beside attention, and see nothing of it."""

Streams = Mapping[Site, Float[Tensor, "_ _"]]
"""One prompt's values at the sites of STREAMS between two sites, both ends included."""


def stream_sites(config: ModelConfig, start: Site, stop: Site) -> list[Site]:
    """The sites whose values the sweeps between two sites need."""
    kinds = STREAMS if config.has_mlps else STREAMS[:2]
    sites = [Site(layer, kind) for layer in range(start.layer, stop.layer + 1) for kind in kinds]
    found = [site for site in sites if start.depth <= site.depth <= stop.depth]
    return [start, *found] if start.kind == "z" else found


def walked(
    model: Model, start: Site, stop: Site, x: Float[Tensor, "positions _"], base: Float[Tensor, "positions d_model"] | None
) -> Streams:
    """Walk a prompt from its value at `start` as far as the sweeps to `stop` need it, and through no block that is not between them."""
    wanted, found = {start, *stream_sites(model.config, start, stop)}, dict[Site, Tensor]()
    for site, value in walk(model, start, x, base):
        if site in wanted:
            found[site] = value
        if found.keys() == wanted:
            break
    return found


def primal(
    model: Model,
    policy: Policy,
    start: Site,
    stop: Site,
    streams: Sequence[Streams],
    lengths: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    impl: Impl = "torch",
    pieces: Pieces | None = None,
    shut_mlps: frozenset[int] = frozenset(),
) -> Primal:
    """The primal between two sites of a pack of prompts.

    Args:
        streams: of each prompt; see `stream_sites` and `walked`.
        lengths: of each prompt, in tokens.
        dtype: of the sweep's products; None is the model's.
        impl: of the attention maps and of reading out.
        pieces: in which sweeps go; None is the device's own.
        shut_mlps: layers through whose MLP nothing moves.
    """
    if len(streams) == 1:
        (packed,) = streams
    else:
        packed = {site: torch.cat([prompt[site] for prompt in streams]) for site in streams[0]}
    pieces = pieces or pieces_of(model.device)
    return Primal(model, cast_blocks(model, start, stop, dtype), policy, impl, pieces, tuple(lengths), packed, shut_mlps)


def cast_blocks(model: Model, start: Site, stop: Site, dtype: torch.dtype | None) -> Model:
    """The model with the blocks between two sites, and no others, in another dtype."""
    if dtype in (None, model.dtype):
        return model
    blocks = [
        pytree.tree_map(lambda p: p.to(dtype), block) if start.layer <= layer <= stop.layer else block
        for layer, block in enumerate(model.params.blocks)
    ]
    # W_E tells the model's dtype: an empty one does
    return replace(model, params=model.params._replace(blocks=tuple(blocks), W_E=model.params.W_E[:0].to(dtype)))


class Seeds(NamedTuple):
    """Rows that live at one position each, of all prompts of a pack, sorted by prompt and position."""

    token: Int[Tensor, " rows"]
    """Packed index of the position."""
    value: Float[Tensor, "rows width"]
    begins: tuple[tuple[int, ...], ...]
    """For each prompt, where the rows of each of its positions begin, counted within the prompt; and where the last ends."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each prompt."""
        return tuple(begins[-1] for begins in self.begins)

    @property
    def at(self) -> list[list[int]]:
        """How many rows each position of each prompt has."""
        return [[end - begin for begin, end in pairwise(begins)] for begins in self.begins]

    def first(self, prompt: int) -> int:
        """The first row of a prompt."""
        return sum(self.counts[:prompt])

    def rows(self, band: Band) -> Float[Tensor, "rows width"]:
        """The seeds of a band."""
        first = self.first(band.prompt) + band.row
        return self.value[first : first + band.rows]


def seeds(
    pack: Primal,
    position: Sequence[Int[Tensor, " _"]],
    value: Sequence[Float[Tensor, "_ width"]],
    counts: Sequence[Sequence[int]] | None = None,
) -> Seeds:
    """Put the rows of a pack's prompts, each sorted by position, behind each other.

    Args:
        counts: how many there are at each position of each prompt; None asks their device, once.
    """
    token = torch.cat([at + pack.first(prompt) for prompt, at in enumerate(position)])
    rows = value[0] if len(value) == 1 else torch.cat(list(value))
    if counts is not None:
        return Seeds(token, rows.to(pack.weights.dtype), tuple((0, *accumulate(each)) for each in counts))
    at = torch.searchsorted(token, torch.arange(sum(pack.lengths) + 1, device=token.device)).tolist()
    begins = []
    for prompt, length in enumerate(pack.lengths):
        first = pack.first(prompt)
        begins.append(tuple(begin - at[first] for begin in at[first : first + length + 1]))
    return Seeds(token, rows.to(pack.weights.dtype), tuple(begins))
