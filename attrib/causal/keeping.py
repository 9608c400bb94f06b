"""Prompts of one length run together with some latents of some dictionaries taken out, and all else of the model in place.

A dictionary that reads x and writes at w has there

    y_w = model's own value + Σ_i (1 - kept_i) (r_i - a_i(x)) D_i,      a = encode(x),   r_i = 0, or the mean of a_i over prompts

so with everything kept the pass is the model's own, what a dictionary leaves over (its error) is never touched, and what comes later
sees what was taken out earlier: latents of later dictionaries are encoded anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.attribution.needs import constant, put_into
from attrib.causal.generators import Contrast
from attrib.core.types import InputError, Site
from attrib.dictionaries.dictionary import Dictionary, encode, normalise_input, split
from attrib.models.transformer import Model, embed, place, unembed, walk
from attrib.passes.capture import capture

Score = Callable[[Float[Tensor, "positions d_vocab"], Contrast], Float[Tensor, ""]]
"""A metric: of the logits of a prompt, and the prompt."""
Reference = Literal["zero", "mean"]


def logit_difference(logits: Float[Tensor, "positions d_vocab"], example: Contrast) -> Float[Tensor, ""]:
    """The logit of the answer less that of the distractor, at the last position."""
    return logits[-1, example.answer] - logits[-1, example.distractor]


@dataclass(frozen=True)
class Ablation:
    """A model with dictionaries in it whose latents can be taken out; made by `ablation`."""

    model: Model
    dictionaries: tuple[Dictionary, ...]
    reference: tuple[Float[Tensor, "positions _"], ...]
    """What stands in the place of a latent that is taken out."""

    def logits(
        self,
        x: Float[Tensor, "prompts positions d_model"],
        out: Sequence[Float[Tensor, "*prompts positions _"]],
        layer: int = 0,
    ) -> Float[Tensor, "prompts positions d_vocab"]:
        """Logits, with the share `out` of each latent taken out: 1 for what is ablated, 0 for what is kept.

        Args:
            x: what stands before a layer, below which nothing is taken out: see `streams`.
        """
        *_, (_, last) = walk(self.model, Site(layer, "resid_pre"), x, put=self._put(out, {}))
        return unembed(self.model, last)

    def streams(self, tokens: Int[Tensor, "prompts positions"], layer: int = 0) -> Float[Tensor, "prompts positions d_model"]:
        """What stands before a layer in the model's own pass."""
        at = Site(layer, "resid_pre")
        return capture(self.model, tokens, [at])[at]

    def latents(self, tokens: Int[Tensor, "prompts positions"]) -> list[Float[Tensor, "prompts positions _"]]:
        """What every dictionary encodes in the model's own pass."""
        seen: dict[int, Tensor] = {}
        nothing = [torch.zeros_like(reference) for reference in self.reference]
        for _ in walk(self.model, Site(0, "resid_pre"), embed(self.model, tokens), put=self._put(nothing, seen)):
            if len(seen) == len(self.dictionaries):
                break
        return [seen[number] for number in range(len(self.dictionaries))]

    def _put(self, out: Sequence[Tensor], seen: dict[int, Tensor]) -> Callable[[Site, Tensor], Tensor]:
        model, moved = self.model, dict[Site, Tensor]()
        reads = [place(model, one.site) for one in self.dictionaries]
        own = [at in {place(model, site) for site in one.writes} for one, at in zip(self.dictionaries, reads, strict=True)]

        def put(at: Site, value: Tensor) -> Tensor:
            for is_own in (True, False):
                for number, one in enumerate(self.dictionaries):
                    if reads[number] != at or own[number] is not is_own:
                        continue
                    seen[number] = latents = encode(one, value)
                    taken = (self.reference[number] - latents) * out[number]
                    written = (taken @ one.decoder().to(taken.dtype)) * normalise_input(one, value)[1].scale
                    for site, part in split(one, written).items():
                        to = place(model, site)
                        moved[to] = moved[to] + part if to in moved else part
                if is_own and at in moved:
                    value = value + moved[at]
            return value

        return put


def ablation(model: Model, dictionaries: Sequence[Dictionary], examples: Sequence[Contrast], reference: str = "zero") -> Ablation:
    """The model with dictionaries in it.

    Args:
        examples: prompts of one length, of whose latents the mean is taken.
        reference: what stands in the place of a latent that is taken out: nothing, or its mean at that position.

    Raises:
        InputError: for prompts of several lengths, no dictionaries, two that write one place, or another reference.
    """
    if reference not in ("zero", "mean"):
        raise InputError(f"ablate: {reference!r}; expected 'zero' or 'mean'.")
    tokens = aligned(examples, "examples")
    if not dictionaries:
        raise InputError("dictionaries: none; expected at least one, whose latents can be taken out.")
    model = constant(model)
    put_in = tuple(put_into(model, one, f"dictionaries[{number}]") for number, one in enumerate(dictionaries))
    places = [place(model, site) for one in put_in for site in one.writes]
    if twice := [at for number, at in enumerate(places) if at in places[:number]]:
        raise InputError(f"dictionaries: two of them write {twice[0]}; expected one. Leave one out.")
    nothing = tuple(model.params.W_E.new_zeros(tokens.shape[1], one.d_sae) for one in put_in)
    found = Ablation(model, put_in, nothing)
    if reference == "zero":
        return found
    return Ablation(model, put_in, tuple(latents.mean(0) for latents in found.latents(tokens)))


def aligned(examples: Sequence[Contrast], argument: str) -> Int[Tensor, "prompts positions"]:
    """Their tokens. Raises InputError where there are none, or they are of several lengths."""
    if not examples or any(not isinstance(one, Contrast) for one in examples):
        raise InputError(f"{argument}: {'none' if not examples else type(examples[0]).__name__}; expected attrib.causal.Contrast, several.")
    lengths = sorted({len(one.tokens) for one in examples})
    if len(lengths) > 1 or not lengths[0]:
        raise InputError(
            f"{argument}: prompts of {lengths[0]} to {lengths[-1]} tokens; expected one length, so that positions mean the same."
        )
    return torch.tensor([one.tokens for one in examples])


def scores(metric: Score, logits: Float[Tensor, "prompts positions d_vocab"], examples: Sequence[Contrast]) -> Float[Tensor, " prompts"]:
    """The metric of each prompt. Raises InputError where it gives no scalar."""
    found: list[Any] = [metric(each, example) for each, example in zip(logits, examples, strict=True)]
    wrong = next((one for one in found if not isinstance(one, Tensor) or one.shape != ()), None)
    if wrong is not None:
        got = list(wrong.shape) if isinstance(wrong, Tensor) else type(wrong).__name__
        raise InputError(f"metric: gave {got}; expected a scalar tensor of the logits [positions, d_vocab] and the example.")
    return torch.stack(found)
