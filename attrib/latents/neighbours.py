"""Which latents are like a given one: by what they write, by what they read, or by where they are active."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_dictionary
from attrib.core.shown import in_one_line
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import TILE, Dictionary
from attrib.latents.surveyed import LatentSurvey

By = Literal["decoder", "encoder", "coactivation"]


@in_one_line
class Nearest(NamedTuple):
    """Latents by how like they are, the most first."""

    latent: Int[Tensor, " k"]
    similarity: Float[Tensor, " k"]
    """The cosine of the two directions; of coactivation, n_ij / sqrt(n_i n_j) of the places at which they are active."""


@torch.no_grad()
def nearest(of: Any, latent: int, *, by: By = "decoder", k: int = 10, among: Any = None) -> Nearest:
    """The latents that are most like one.

    Args:
        of: a dictionary; for coactivation, the survey of one that counted which latents are active together.
        by: "decoder", the direction that is written; "encoder", the one that is read; or "coactivation".
        k: how many.
        among: another dictionary, whose latents are compared with this one; None is the same, without the latent itself.

    Raises:
        InputError: for a latent that is not there, directions of different spaces, or a survey that did not count.
    """
    if by not in get_args(By):
        raise InputError(f"by: {by!r}; expected one of {', '.join(get_args(By))}.")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k: {k!r}; expected a whole number from 1 on.")
    if by == "coactivation":
        return _by_coactivation(of, latent, k, among)
    if isinstance(of, LatentSurvey):
        raise InputError(f"of: a survey, which holds no {by}s; expected a dictionary.")
    source: Dictionary = as_dictionary(of, "of")
    other: Dictionary = source if among is None else as_dictionary(among, "among")
    if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < source.d_sae:
        raise InputError(f"latent: {latent!r}; expected a whole number from 0 to {source.d_sae - 1}.")
    own = _directions(source, by, torch.tensor([latent]))[0]
    width = other.d_out if by == "decoder" else other.d_in
    if len(own) != width:
        raise InputError(f"among: {other.name} has {by} directions of {width} numbers, and {source.name} of {len(own)}; expected as many.")
    similarity = torch.cat([_cosines(_directions(other, by, part), own) for part in torch.arange(other.d_sae).split(TILE)])
    if other is source:
        similarity[latent] = -torch.inf
    return _largest(torch.arange(other.d_sae), similarity, min(k, other.d_sae - (other is source)))


def _directions(dictionary: Dictionary, by: By, latents: Int[Tensor, " latents"]) -> Float[Tensor, "latents width"]:
    at = latents.to(dictionary.params.b_enc.device)
    found = dictionary.decoder_rows(at) if by == "decoder" else dictionary.encoder_columns(at)
    return found.cpu().double()


def _cosines(directions: Float[Tensor, "latents width"], own: Float[Tensor, " width"]) -> Float[Tensor, " latents"]:
    """0 of a direction that is zero."""
    return (directions @ own) / (directions.norm(dim=1) * own.norm()).clamp(min=torch.finfo(torch.float64).tiny)


def _by_coactivation(of: Any, latent: int, k: int, among: Any) -> Nearest:
    if not isinstance(of, LatentSurvey) or among is not None:
        what = "among: given" if among is not None else f"of: a {type(of).__name__}"
        raise InputError(f"{what}, and coactivation is counted within one survey; expected one that was made with together=.")
    if not len(of.chosen):
        raise InputError("of: this survey did not count which latents are active together; make it with together=True, or some latents.")
    chosen = torch.from_numpy(of.chosen)
    at = (chosen == latent).nonzero()[:, 0]
    if not len(at):
        few = ", ".join(map(str, of.chosen[:8]))
        raise InputError(f"latent: {latent!r}; expected one of the {len(chosen):,} that were counted together: {few}, ...")
    counts = torch.from_numpy(of.tally.together).double()
    own = counts.diagonal()
    similarity = counts[at[0]] / (own * own[at[0]]).sqrt().clamp(min=1)
    similarity[at[0]] = -torch.inf
    return _largest(chosen, similarity, min(k, len(chosen) - 1))


def _largest(latents: Int[Tensor, " latents"], similarity: Float[Tensor, " latents"], k: int) -> Nearest:
    """Of equal ones the first."""
    order = similarity.sort(descending=True, stable=True).indices[:k]
    return Nearest(latents[order], similarity[order])
