"""How near reconstructions come to what they stand for, and how many latents they take: sums over tokens, which add up.

Of tokens y_t and their reconstructions r_t, at one site or at several (then over all of them):

    explained variance  1 - Σ_t |y_t - r_t|² / Σ_t |y_t - ȳ|²
    mse                 mean over t of |y_t - r_t|², summed over the vector, for each site
    l2 ratio, cosine    mean over t of |r_t| / |y_t| and of their cosine; where one of the two vectors is zero, 0
    L0, L1              mean over t of how many latents are active, and of Σ_i |a_i|
    density             share of the tokens at which a latent is active; dead where that is none

Sums are in float64. ȳ and Σ |y - ȳ|² of parts are put together as in Chan, Golub and LeVeque (1979), which takes no large number
from another.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.shown import in_one_line
from attrib.core.types import Site, SparseLatents


@in_one_line
class Spread(NamedTuple):
    """Of values at one site: how many, their mean, and the squares of their distances from it, summed."""

    tokens: int
    mean: Float[Tensor, " d"]
    squares: float

    def plus(self, other: "Spread") -> "Spread":
        """Of both together."""
        tokens, apart = self.tokens + other.tokens, other.mean - self.mean
        if not tokens:
            return self
        between = float(apart.square().sum()) * self.tokens * other.tokens / tokens
        return Spread(tokens, self.mean + apart * (other.tokens / tokens), self.squares + other.squares + between)


def spread_of(y: Float[Tensor, "tokens d"]) -> Spread:
    """Of the rows of y."""
    y = y.double()
    mean = y.mean(0) if len(y) else y.new_zeros(y.shape[1])
    return Spread(len(y), mean, float((y - mean).square().sum()))


@in_one_line
class Fidelity(NamedTuple):
    """Sums over tokens, of reconstructions at one or more sites."""

    spreads: dict[Site, Spread]
    residual: float
    ratio: float
    cosine: float

    @property
    def tokens(self) -> int:
        """How many tokens."""
        return next(iter(self.spreads.values())).tokens

    @property
    def means(self) -> dict[Site, Float[Tensor, " d"]]:
        """The mean value at each site."""
        return {site: spread.mean for site, spread in self.spreads.items()}

    @property
    def explained_variance(self) -> float:
        """NaN where all values are one."""
        squares = sum(spread.squares for spread in self.spreads.values())
        return 1 - self.residual / squares if squares else float("nan")

    def mean_of(self, total: float) -> float:
        """A sum as a mean over tokens and sites; NaN where there is no token."""
        count = sum(spread.tokens for spread in self.spreads.values())
        return total / count if count else float("nan")

    def plus(self, other: "Fidelity") -> "Fidelity":
        """Of both together."""
        spreads = {site: spread.plus(other.spreads[site]) for site, spread in self.spreads.items()}
        return Fidelity(spreads, self.residual + other.residual, self.ratio + other.ratio, self.cosine + other.cosine)


def fidelity_of(
    true: Mapping[Site, Float[Tensor, "tokens _"]],
    reconstructed: Mapping[Site, Float[Tensor, "tokens _"]],
    counted: Bool[Tensor, " tokens"],
) -> Fidelity:
    """Of the tokens that count."""
    spreads, residual, ratio, cosine = {}, 0.0, 0.0, 0.0
    for site, whole in true.items():
        y, r = whole[counted].double(), reconstructed[site][counted].double()
        sizes, norms = y.norm(dim=-1), r.norm(dim=-1)
        spreads[site] = spread_of(y)
        residual += float((y - r).square().sum())
        ratio += float((norms / sizes).where(sizes > 0, 0.0).sum())
        cosine += float(((y * r).sum(-1) / (sizes * norms)).where((sizes > 0) & (norms > 0), 0.0).sum())
    return Fidelity(spreads, residual, ratio, cosine)


@in_one_line
class Activity(NamedTuple):
    """Sums over tokens, of one dictionary's latents."""

    fired: Int[Tensor, " d_sae"]
    """At how many tokens each latent is active."""
    sizes: float
    """Sum of their absolute values."""

    def plus(self, other: "Activity") -> "Activity":
        """Of both together."""
        return Activity(self.fired + other.fired, self.sizes + other.sizes)


def activity_of(latents: SparseLatents, d_sae: int, counted: Bool[Tensor, " tokens"]) -> Activity:
    """Of the tokens that count."""
    on = counted[latents.position]
    return Activity(latents.latent[on].bincount(minlength=d_sae), float(latents.value[on].double().abs().sum()))
