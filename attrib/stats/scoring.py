"""How strongly latents answer to the tokens of a corpus: every score with its place, how often they fire, and examples of all strengths."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.adapters.given import as_dictionary, as_model, takes
from attrib.attribution.needs import constant
from attrib.core.room import memory_named
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary, encode_sparse, normalise_input
from attrib.dictionaries.fit import fitted
from attrib.graph.corpus import counted
from attrib.graph.stream import LatentsLike, chosen_latents, place_of_latent
from attrib.models.tokens import TokensLike
from attrib.models.transformer import Model
from attrib.passes.capture import capture

Score = Literal["activation", "pre_activation", "decoder"]
"""What a score is: the latent's activation; what its encoder reads, before the activation rule; or what its decoder row reads there."""


class Example(NamedTuple):
    """A score, and where it is."""

    value: float
    prompt: int
    position: int


class Band(NamedTuple):
    """Scores above `low` and up to `high`."""

    low: float
    high: float
    share: float
    """Of all places."""
    examples: tuple[Example, ...]


@dataclass(frozen=True, repr=False)
class LatentScores:
    """The scores of some latents at all places of a corpus that count."""

    latent: Int[Tensor, " latents"]
    value: Float[Tensor, "places latents"]
    prompt: Int[Tensor, " places"]
    position: Int[Tensor, " places"]
    token: Int[Tensor, " places"]

    def __repr__(self) -> str:
        return f"LatentScores({len(self.value):,} places x {len(self.latent)} latents)"

    @property
    def frequency(self) -> Float[Tensor, " latents"]:
        """The share of places at which each latent's score is above zero."""
        return (self.value > 0).double().mean(0)

    def percentiles(self, latent: int, count: int) -> list[Example]:
        """So many examples from the least score to the largest, at percentiles that are evenly apart; of equal ones the first."""
        value, order = self._column(latent).sort(stable=True)
        rank = torch.linspace(0, len(value) - 1, _several(count)).round().long()
        return self._examples(latent, order[torch.searchsorted(value, value[rank])])

    def evenly(self, latent: int, count: int) -> list[Example]:
        """Examples nearest to so many scores that are evenly apart, from the least to the largest; each once, so there may be fewer."""
        value, order = self._column(latent).sort(stable=True)
        wanted = torch.linspace(float(value[0]), float(value[-1]), _several(count), dtype=value.dtype)
        above = torch.searchsorted(value, wanted).clamp(1, max(1, len(value) - 1))
        if len(value) > 1:
            nearest = torch.where(wanted - value[above - 1] <= value[above] - wanted, above - 1, above)
            nearest = torch.searchsorted(value, value[nearest])  # of equal ones the first
        else:
            nearest = torch.zeros_like(above)
        return self._examples(latent, order[nearest.unique()])

    def bands(self, latent: int, count: int = 5, examples: int = 10) -> list[Band]:
        """The range of scores in bands of equal width, the lowest first, each with its share and with examples from all over it.

        The least score is in no band: of a latent that is seldom active that is zero, and so are most.
        """
        value = self._column(latent)
        edges = torch.linspace(float(value.min()), float(value.max()), _several(count + 1), dtype=value.dtype)
        found = []
        for low, high in pairwise(edges):
            inside = ((value > low) & (value <= high)).nonzero()[:, 0]
            chosen = inside[value[inside].argsort(stable=True)]
            some = chosen[torch.linspace(0, max(0, len(chosen) - 1), min(examples, len(chosen))).round().long()]
            found.append(Band(float(low), float(high), len(inside) / len(value), tuple(self._examples(latent, some))))
        return found

    def _column(self, latent: int) -> Float[Tensor, " places"]:
        return self.value[:, place_of_latent(latent, self.latent)]

    def _examples(self, latent: int, places: Int[Tensor, " chosen"]) -> list[Example]:
        columns = self._column(latent), self.prompt, self.position
        return [Example(*row) for row in zip(*(column[places].tolist() for column in columns), strict=True)]


def _several(count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise InputError(f"count: {count!r}; expected a whole number that leaves a least and a largest.")
    return count


@takes(model=as_model, dictionary=as_dictionary)
@memory_named("scoring latents", "Choose fewer latents, or give fewer prompts.")
@torch.no_grad()
def scores(
    model: Model,
    dictionary: Dictionary,
    latents: LatentsLike,
    tokens: TokensLike | Iterable[Any],
    *,
    score: Score = "activation",
    ignore: int | str | Sequence[int | str] | None = None,
) -> LatentScores:
    """The scores of some latents at every position of every prompt.

    Args:
        latents: numbers, a slice, or a mask.
        tokens: prompts, as everywhere; or an iterator of them, which is gone through once. What is held is one number for each position and
            latent.
        score: "activation"; "pre_activation", before the activation rule; or "decoder", the input less b_dec along the latent's decoder
            row, of dictionaries that write what they read.
        ignore: tokens whose positions do not count, by id or string, such as the one at which every text ends.

    Raises:
        InputError: where the dictionary does not fit the model, an argument makes no sense, or no position is left.
    """
    if score not in get_args(Score):
        raise InputError(f"score: {score!r}; expected one of {', '.join(get_args(Score))}.")
    d = constant(fitted(model, dictionary, "dictionary"))
    if score == "decoder" and d.writes != (d.site,):
        raise InputError(f"score: 'decoder', but {d.name} reads {d.site} and writes {', '.join(map(str, d.writes))}; expected one place.")
    latent = chosen_latents(latents, d.d_sae, "latents").unique()
    parts: list[tuple[Tensor, ...]] = []
    for number, (ids, counts) in enumerate(counted(model, tokens, ignore)):
        at = counts.nonzero()[:, 0]
        value = scored(d, capture(model, ids, [d.site])[d.site], latent, score)[at].cpu()
        parts.append((value, torch.full((len(at),), number), at.cpu(), ids[at].cpu()))
    return LatentScores(latent, *(torch.cat(column) for column in zip(*parts, strict=True)))


def scored(
    d: Dictionary, x: Float[Tensor, "positions d_in"], latent: Int[Tensor, " latents"], score: Score
) -> Float[Tensor, "positions latents"]:
    """The scores of one prompt."""
    chosen = latent.to(x.device)
    match score:
        case "activation":
            active, place = encode_sparse(d, x), torch.full((d.d_sae,), -1, device=x.device)
            place[chosen] = torch.arange(len(chosen), device=x.device)
            meant: Bool[Tensor, " active"] = place[active.latent] >= 0
            found = x.new_zeros(len(x), len(chosen))
            return found.index_put_((active.position[meant], place[active.latent[meant]]), active.value[meant])
        case "pre_activation":
            x, _ = normalise_input(d, x)
            x = x - d.params.b_dec if d.config.apply_b_dec_to_input else x
            return x @ d.encoder_columns(chosen).T.to(x) + d.params.b_enc[chosen]
        case "decoder":
            x, _ = normalise_input(d, x)
            return (x - d.params.b_dec) @ d.decoder_rows(chosen).T.to(x)
