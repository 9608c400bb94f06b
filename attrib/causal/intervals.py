"""How far a mean over prompts may be off: the bootstrap of Efron 1979 over prompts.

As many prompts as there are are drawn from them with replacement, again and again, and what is told of their mean is told of each draw:

    mean_b = Σ_p w_bp x_p,    w_b ~ multinomial(prompts) / prompts,    interval = quantiles of of(mean_b) over b

What is told may be any function of several means (the share of one in the difference of two others), since all of them are of
the same draw. So it holds prompts for a sample of those that could have been asked; what was made from them before stands.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.types import InputError

DRAWS = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A number, and between what it lies in the middle part of all draws."""

    mean: float
    """What is told of all prompts."""
    low: float
    high: float
    n: int
    """How many prompts there are."""

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap(
    values: Float[Tensor, "prompts quantities"],
    of: Callable[[Float[Tensor, "*draws quantities"]], Float[Tensor, "*draws told"]] | None = None,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of what is told of some quantities' means over prompts; the same seed draws the same.

    Args:
        values: of each prompt, one or several quantities.
        of: what is told of the means, whose last dimension are the quantities; None tells the means themselves.
        level: the share of draws that lie within.
        draws: how many.

    Returns:
        One interval for each number that is told. Draws that tell NaN (0 of 0) are left out; where all do, it is NaN. So are the ends for
        one prompt, which says nothing of others.

    Raises:
        InputError: without prompts, or for a level, draws or a seed that cannot be.
    """
    if not len(values):
        raise InputError("values: of no prompts; expected at least one.")
    if isinstance(level, bool) or not 0 < level < 1:
        raise InputError(f"level: {level!r}; expected a number between 0 and 1.")
    for name, given, least in (("draws", draws, 1), ("seed", seed, 0)):
        if isinstance(given, bool) or not isinstance(given, int) or given < least:
            raise InputError(f"{name}: {given!r}; expected a whole number, {least} or more.")
    values, told = values.double(), of or (lambda means: means)
    count = len(values)
    if count == 1:  # every draw is that one
        return [Interval(mean, math.nan, math.nan, 1) for mean in told(values[0]).tolist()]
    drawn = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(seed))
    weights = values.new_zeros(draws, count).scatter_add_(1, drawn, values.new_full((draws, count), 1 / count))
    ends = told(weights @ values).nanquantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype), 0)
    whole = told(values.mean(0))
    return [Interval(mean, low, high, count) for mean, low, high in zip(whole.tolist(), *ends.tolist(), strict=True)]
