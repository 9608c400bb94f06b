"""What stands between a source and a target: places that dictionaries write, and how derivatives pass them.

At a written place the model's own value is not looked at (see replacement.py), so what comes down to it goes no further by
itself. It goes on through the dictionaries that write there, to what each of them reads: direct effects through
skip connections alone, total effects through active latents too, and the scale of the input where decoding puts that back.
At position t a dictionary's Jacobian is a sum of few terms, one for each latent active there,

    ∂y / ∂x = Σ_i (∂pre_i / ∂x) (scale · D_i)^T + (∂scale / ∂x) (f W_dec + b_dec)^T + (∂shift / ∂x) 1^T + W_skip^T

of which the second and third are there for SAEs that normalise what they read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vjp

from attrib.core.types import Site, SparseLatents
from attrib.dictionaries.dictionary import Dictionary, encode_at, normalise_input, selected


def place_of(site: Site) -> Site:
    """One name for one place in the stream: `resid_post` is the next layer's `resid_pre`."""
    return Site(site.layer + 1, "resid_pre") if site.kind == "resid_post" else site


def part_of(dictionary: Dictionary, site: Site) -> slice:
    """The columns of a decoder that write one place, given by the name that `place_of` has for it."""
    share = dictionary.d_out // len(dictionary.writes)
    number = [place_of(written) for written in dictionary.writes].index(site)
    return slice(number * share, (number + 1) * share)


@dataclass(frozen=True)
class Passing:
    """A dictionary that derivatives pass: what it reads and its active latents at the primal, prompts side by side."""

    dictionary: Dictionary
    x: Float[Tensor, "tokens d_in"]
    latents: SparseLatents
    """Those that are passed; their positions are packed indices of tokens."""
    is_total: bool = True
    """Whether more than the skip connection is passed."""

    @property
    def scale_terms(self) -> int:
        """Terms of each position beside the latents': of the scale that decoding puts back, and of the shift."""
        config = self.dictionary.config
        if not config.puts_scale_back or not self.is_total:
            return 0
        return {"none": 0, "constant_norm_rescale": 1, "layer_norm": 2}[config.normalisation]

    @property
    def reads(self) -> Site:
        """Where what comes through it goes on."""
        return place_of(self.dictionary.site)

    @property
    def writes(self) -> tuple[Site, ...]:
        """Where it is entered from above."""
        return tuple(place_of(site) for site in self.dictionary.writes)

    @property
    def reads_before(self) -> bool:
        """Whether it reads what the model brings to a place, which it writes, and not what stands there."""
        return self.reads in self.writes

    @cached_property
    def token(self) -> Int[Tensor, " terms"]:
        """The packed index of each term's position, ascending."""
        return self._unsorted.sort(stable=True).values

    @property
    def _unsorted(self) -> Int[Tensor, " terms"]:
        tokens = torch.arange(len(self.x), device=self.x.device)
        return torch.cat([self.latents.position, *[tokens] * self.scale_terms])

    def reading(self) -> Float[Tensor, "terms d_in"]:
        """How each term moves with what is read."""
        position, latent, _ = self.latents
        chosen, rows = selected(self.dictionary), torch.arange(len(latent), device=latent.device)
        value, pull, *_ = vjp(lambda x: encode_at(chosen, x, rows, latent), self.x.index_select(0, position))
        terms = [pull(torch.ones_like(value))[0]]
        terms += [self._scale_gradient(number) for number in range(self.scale_terms)]
        return torch.cat(terms).index_select(0, self._unsorted.argsort(stable=True))

    def _scale_gradient(self, number: int) -> Float[Tensor, "tokens d_in"]:
        """The gradient of the scale (0) or the shift (1) by each position's input."""
        value, pull, *_ = vjp(lambda x: normalise_input(self.dictionary, x)[1][1 - number], self.x)
        return pull(torch.ones_like(value))[0]

    def writing(self, site: Site) -> Float[Tensor, "terms width"]:
        """How what is written at a place moves with each term."""
        p, columns = self.dictionary.params, part_of(self.dictionary, site)
        position, latent, value = self.latents
        rows = self.dictionary.decoder_rows(latent, columns).to(self.x.dtype)
        if not self.scale_terms:
            return rows  # sorted as the latents are; transcoders put no scale back
        scale = normalise_input(self.dictionary, self.x)[1].scale
        decoded = p.b_dec[columns].expand(len(self.x), -1).index_add(0, position, value[:, None] * rows)
        terms = [rows * scale.index_select(0, position), decoded, torch.ones_like(decoded)][: 1 + self.scale_terms]
        return torch.cat(terms).index_select(0, self._unsorted.argsort(stable=True))

    def skip(self, site: Site) -> Float[Tensor, "d_in width"] | None:
        """The linear map beside the latents."""
        return self.dictionary.params.W_skip[:, part_of(self.dictionary, site)] if self.dictionary.has_skip else None


@dataclass(frozen=True)
class Between:
    """The written places between two sites, by the names that `place_of` has for them, and the dictionaries that are passed."""

    held: frozenset[Site] = frozenset()
    passing: tuple[Passing, ...] = ()


NOTHING = Between()


def together(parts: Sequence[Between], lengths: Sequence[int]) -> Between:
    """What stands between in a pack of prompts, which have the same dictionaries."""
    if len(parts) == 1:
        return parts[0]
    firsts = [sum(lengths[:number]) for number in range(len(lengths))]
    passing = []
    for each in zip(*(part.passing for part in parts), strict=True):
        latents = (p.latents._replace(position=p.latents.position + first) for p, first in zip(each, firsts, strict=True))
        columns = (torch.cat(column) for column in zip(*latents, strict=True))
        passing.append(replace(each[0], x=torch.cat([p.x for p in each]), latents=SparseLatents(*columns)))
    return Between(parts[0].held, tuple(passing))


def in_float64(between: Between) -> Between:
    """What stands between, to be passed in float64."""
    double = torch.float64
    passing = [
        replace(p, dictionary=p.dictionary.to(dtype=double), x=p.x.to(double), latents=p.latents._replace(value=p.latents.value.to(double)))
        for p in between.passing
    ]
    return Between(between.held, tuple(passing))


class Passed(NamedTuple):
    """What passing a dictionary costs: its sites and width, and how many terms it has at each position of each prompt."""

    reads: Site
    writes: tuple[Site, ...]
    d_in: int
    has_skip: bool
    terms: tuple[tuple[int, ...], ...]
    scales: bool = False
    """Whether some of the terms are of the scale that decoding puts back."""

    @property
    def reads_before(self) -> bool:
        """Whether it reads what the model brings to a place, which it writes, and not what stands there."""
        return self.reads in self.writes


def passed_of(passing: Passing, lengths: Sequence[int]) -> Passed:
    """The counts of a dictionary that is passed in a pack of prompts."""
    terms = torch.bincount(passing.token, minlength=sum(lengths)).split(list(lengths))
    d = passing.dictionary
    return Passed(
        passing.reads, passing.writes, d.d_in, d.has_skip, tuple(tuple(prompt.tolist()) for prompt in terms), passing.scale_terms > 0
    )
