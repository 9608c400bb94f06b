"""Prompts of one length run together with some latents of some dictionaries taken out, and all else of the model in place.

With r_i = 0, or the mean of a_i over prompts, every dictionary's latents become

    a'_i = a_i + (1 - kept_i) (r_i - a_i)

under live errors (splicing.py): with everything kept the pass is the model's own, what a dictionary leaves over is never touched, and
what comes later sees what was taken out earlier: latents of later dictionaries are encoded anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.attribution.needs import constant
from attrib.causal.changes import Change
from attrib.causal.generators import Contrast
from attrib.causal.splicing import NOTHING, Pass, Splice, splice
from attrib.core.types import InputError, Site
from attrib.dictionaries.dictionary import Dictionary, encode
from attrib.models.transformer import Model, unembed
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

    made: Splice
    reference: tuple[Float[Tensor, "positions _"], ...]
    """What stands in the place of a latent that is taken out, of each dictionary."""

    @property
    def model(self) -> Model:
        """The model."""
        return self.made.model

    @property
    def dictionaries(self) -> tuple[Dictionary, ...]:
        """The dictionaries, as they read and write the model."""
        return self.made.dictionaries

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
        under_way = Pass(NOTHING, {number: [self._taken(number, share)] for number, share in enumerate(out)})
        *_, (_, last) = self.made.walk(under_way, x, layer)
        return unembed(self.model, last)

    def streams(self, tokens: Int[Tensor, "prompts positions"], layer: int = 0) -> Float[Tensor, "prompts positions d_model"]:
        """What stands before a layer in the model's own pass."""
        at = Site(layer, "resid_pre")
        return capture(self.model, tokens, [at])[at]

    def latents(self, tokens: Int[Tensor, "prompts positions"]) -> list[Float[Tensor, "prompts positions _"]]:
        """What every dictionary encodes in the model's own pass."""
        values = capture(self.model, tokens, {one.site for one in self.dictionaries})
        return [encode(one, values[one.site]) for one in self.dictionaries]

    def _taken(self, number: int, out: Float[Tensor, "*prompts positions d_sae"]) -> Change:
        """The share of each latent of a dictionary taken out, at all positions."""
        reference, one = self.reference[number], self.dictionaries[number]
        every = tuple(range(len(reference)))
        return Change(number, None, (one.d_sae,), every, lambda a: a + (reference - a) * out, f"latents of {one.name} taken out")


def ablation(model: Model, dictionaries: Sequence[Dictionary], examples: Sequence[Contrast], reference: str = "zero") -> Ablation:
    """The model with dictionaries in it.

    Args:
        examples: prompts of one length, of whose latents the mean is taken.
        reference: what stands in the place of a latent that is taken out: nothing, or its mean at that position.

    Raises:
        InputError: for prompts of several lengths, no dictionaries, another reference, and dictionaries that do not go together
            (see `attrib.replace`).
    """
    if reference not in ("zero", "mean"):
        raise InputError(f"ablate: {reference!r}; expected 'zero' or 'mean'.")
    tokens = aligned(examples, "examples")
    if not dictionaries:
        raise InputError("dictionaries: none; expected at least one, whose latents can be taken out.")
    made = splice(constant(model), [constant(one) for one in dictionaries], errors="live")
    found = Ablation(made, tuple(model.params.W_E.new_zeros(tokens.shape[1], one.d_sae) for one in made.dictionaries))
    if reference == "zero":
        return found
    return Ablation(made, tuple(latents.mean(0) for latents in found.latents(tokens)))


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
