"""What a few latents write together over a corpus, in the directions in which it varies most.

Of the places at which any of them is active, the part of the reconstruction that is theirs is X = F D, with activations F [places,
latents] and decoder rows D. Its principal components are those of a matrix with as many columns as latents: with D^T = Q R,

    X - mean = (F - mean F) D = (F - mean F) R^T Q^T,        svd((F - mean F) R^T) = U S V^T,        components (Q V)^T.

Engels et al., "Not all language model features are one-dimensionally linear" (2024, arXiv:2405.14860, section 4) find circles so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_dictionary, as_model, takes
from attrib.attribution.needs import constant
from attrib.core.room import memory_named
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import fitted
from attrib.graph.corpus import counted
from attrib.graph.stream import LatentsLike, chosen_latents
from attrib.models.tokens import TokensLike, token_strings
from attrib.models.transformer import Model
from attrib.passes.capture import capture
from attrib.stats.scoring import scored

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Components:
    """Principal components of what some latents write together, and where each place lies in them."""

    latents: Int[Tensor, " latents"]
    mean: Float[Tensor, " d_out"]
    """Of what they write, over the places at which any of them is active."""
    directions: Float[Tensor, "components d_out"]
    """Orthonormal; of each the number of largest size is positive."""
    share: Float[Tensor, " components"]
    """Of all variance."""
    coordinates: Float[Tensor, "places components"]
    activations: Float[Tensor, "places latents"]
    prompt: Int[Tensor, " places"]
    position: Int[Tensor, " places"]
    token: Int[Tensor, " places"]
    strings: tuple[str, ...]
    """The token at each place, as it reads."""
    contexts: tuple[str, ...]
    """The text up to each place."""

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.0%}" for share in self.share.tolist())
        return f"Components({len(self.coordinates):,} places, {len(self.latents)} latents, {shares} of the variance)"

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each place."""
        import pandas as pd

        where = {"prompt": self.prompt.numpy(), "position": self.position.numpy(), "token": self.strings, "context": self.contexts}
        return pd.DataFrame(where | {f"pc{number + 1}": column.numpy() for number, column in enumerate(self.coordinates.T)})


@takes(model=as_model, dictionary=as_dictionary)
@memory_named("finding components", "Choose fewer latents, or give fewer prompts.")
@torch.no_grad()
def pca(
    model: Model,
    dictionary: Dictionary,
    latents: LatentsLike,
    tokens: TokensLike | Iterable[Any],
    *,
    components: int = 3,
    ignore: int | str | Sequence[int | str] | None = None,
    skip: int = 0,
    context: int = 10,
) -> Components:
    """The principal components of what some latents write together, over the places at which any of them is active.

    Args:
        latents: numbers, a slice, or a mask.
        tokens: prompts, as everywhere; or an iterator of them, which is gone through once. What is held is one number for each such
            place and latent.
        components: how many, at most one for each latent, and for each place but one.
        ignore: tokens whose positions do not count, by id or string.
        skip: how many first positions of each prompt do not count: there attention sinks are far from all else.
        context: tokens of text that are kept before each place.

    Raises:
        InputError: where the dictionary does not fit the model, an argument makes no sense, or fewer than two places are left.
    """
    for name, given, least in (("components", components, 1), ("skip", skip, 0), ("context", context, 0)):
        if isinstance(given, bool) or not isinstance(given, int) or given < least:
            raise InputError(f"{name}: {given!r}; expected a whole number from {least} on.")
    d = constant(fitted(model, dictionary, "dictionary"))
    chosen = chosen_latents(latents, d.d_sae, "latents").unique()
    parts: list[tuple[Tensor, ...]] = []
    contexts: list[str] = []
    for number, (ids, counts) in enumerate(counted(model, tokens, ignore)):
        value = scored(d, capture(model, ids, [d.site])[d.site], chosen, "activation")
        counts[:skip] = False
        at = (counts.to(value.device) & (value != 0).any(1)).nonzero()[:, 0]
        parts.append((value[at].cpu().double(), torch.full((len(at),), number), at.cpu(), ids[at].cpu()))
        strings = token_strings(model, ids) if len(at) else ()
        contexts += ["".join(strings[max(0, place - context) : place + 1]) for place in at.tolist()]
    F, prompt, position, token = (torch.cat(column) for column in zip(*parts, strict=True))
    if len(F) < 2:
        raise InputError(f"latents: they are active at {len(F)} places of these prompts; expected two at least. Give more prompts.")
    D = d.decoder_rows(chosen.to(d.params.b_enc.device)).cpu().double()
    Q, R = torch.linalg.qr(D.T)
    U, S, Vh = torch.linalg.svd((F - F.mean(0)) @ R.T, full_matrices=False)
    some = min(components, len(chosen), len(F) - 1, len(S))
    directions = (Q @ Vh.T[:, :some]).T
    sign = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    variance = S**2
    share = variance[:some] / variance.sum().clamp(min=torch.finfo(torch.float64).tiny)
    coordinates = U[:, :some] * S[:some] * sign.T
    strings = token_strings(model, token)
    return Components(chosen, F.mean(0) @ D, directions * sign, share, coordinates, F, prompt, position, token, strings, tuple(contexts))
