"""How much each latent matters for a metric, by several means, as one ranking over (dictionary, position, latent).

The prompts of a task stand in line, so a score is a mean over them at each position. With a the activation, r what takes its place when it
is ablated, and m the metric:

    attribution            (a - r) ∂m/∂a                                 one backward pass
    integrated gradients   (a - r) ∫₀¹ ∂m/∂a (r + t (a - r)) dt          `points` of them (Sundararajan et al. 2017), all latents
                                                                         of a dictionary together on the straight way from r to a
    ablation               m(a) - m(r)                                   a pass for each active latent
    random                 drawn                                         what a ranking has to be better than
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.causal.generators import Contrast
from attrib.causal.keeping import Ablation, Score, ablation, aligned, logit_difference, scores
from attrib.core.room import memory_named
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model

Rule = Literal["attribution", "integrated gradients", "ablation", "random"]

PASSES = 512
"""Rows of a pass at most, in positions."""


class Ranking(NamedTuple):
    """A score for each position and latent of each dictionary: the larger, the sooner it is kept."""

    name: str
    scores: tuple[Float[Tensor, "positions _"], ...]

    @property
    def flat(self) -> Float[Tensor, " units"]:
        """All of them, dictionary by dictionary."""
        return torch.cat([each.flatten() for each in self.scores])


@memory_named("ranking latents")
@takes(model=as_model, dictionaries=as_dictionaries)
def rank(
    model: Model,
    dictionaries: Sequence[Dictionary],
    examples: Sequence[Contrast],
    rule: str = "attribution",
    *,
    metric: Score = logit_difference,
    ablate: str = "zero",
    points: int = 8,
    seed: int = 0,
) -> Ranking:
    """Rank the latents of dictionaries by the size of their mean score over prompts.

    Args:
        examples: prompts of one length, as a task has them.
        rule: "attribution", "integrated gradients", "ablation" or "random"; see the module.
        metric: of a prompt's logits [positions, d_vocab] and the prompt.
        ablate: what stands for a latent that is taken out, which is where the integral begins too.
        points: of the integral, in the middles of as many equal parts.
        seed: of a random ranking.

    Raises:
        InputError: as `ablation`, and for an unknown rule.
    """
    if rule not in get_args(Rule):
        raise InputError(f"rule: {rule!r}; expected one of {', '.join(get_args(Rule))}.")
    if isinstance(points, bool) or not isinstance(points, int) or points < 1:
        raise InputError(f"points: {points!r}; expected a whole number, 1 or more.")
    there = ablation(model, dictionaries, examples, ablate)
    match rule:
        case "random":
            generator = torch.Generator().manual_seed(seed)
            return Ranking(rule, tuple(torch.rand(each.shape, generator=generator) for each in there.reference))
        case "ablation":
            found = _by_ablation(there, examples, metric)
        case "attribution":
            found = _by_gradient(there, examples, metric, [0.0])
        case _:
            found = _by_gradient(there, examples, metric, [(number + 0.5) / points for number in range(points)])
    return Ranking(rule, tuple(each.abs() for each in found))


def _by_gradient(there: Ablation, examples: Sequence[Contrast], metric: Score, shares: Sequence[float]) -> list[Tensor]:
    """Mean of (a - r) ∂m/∂a where the share of each latent that is taken out is one of `shares`, dictionary by dictionary.

    The derivative by that share is minus the score, and all latents' come from one backward pass.
    """
    tokens, found = aligned(examples, "examples"), [torch.zeros_like(each) for each in there.reference]
    for number, one in enumerate(there.dictionaries):
        for some in torch.arange(len(tokens)).split(max(1, PASSES // tokens.shape[1])):
            chosen, layer = [examples[place] for place in some.tolist()], one.site.layer
            x = there.streams(tokens[some], layer)
            for share in shares:
                out = [each.new_zeros(len(some), *each.shape) for each in there.reference]
                out[number] = torch.full_like(out[number], share).requires_grad_()
                with torch.enable_grad():
                    total = scores(metric, there.logits(x, out, layer), chosen).sum()
                    (gradient,) = torch.autograd.grad(total, out[number])
                found[number] -= gradient.sum(0) / (len(shares) * len(tokens))
    return found


@torch.no_grad()
def _by_ablation(there: Ablation, examples: Sequence[Contrast], metric: Score) -> list[Tensor]:
    """Mean of m(a) - m(r), latent by latent."""
    tokens, found = aligned(examples, "examples"), [torch.zeros_like(each) for each in there.reference]
    latents = there.latents(tokens)
    for prompt, example in enumerate(examples):
        ids = tokens[prompt : prompt + 1]
        nothing = [torch.zeros_like(each) for each in there.reference]
        whole = scores(metric, there.logits(there.streams(ids), nothing), [example])[0]
        for number, each in enumerate(latents):
            layer = there.dictionaries[number].site.layer
            x = there.streams(ids, layer)
            position, latent = (each[prompt] != there.reference[number]).nonzero(as_tuple=True)
            for some in torch.arange(len(position)).split(max(1, PASSES // tokens.shape[1])):
                out = list(nothing)
                out[number] = each.new_zeros(len(some), *each.shape[1:])
                out[number][torch.arange(len(some)), position[some], latent[some]] = 1
                left = scores(metric, there.logits(x.expand(len(some), -1, -1), out, layer), [example] * len(some))
                found[number][position[some], latent[some]] += (whole - left) / len(tokens)
    return found
