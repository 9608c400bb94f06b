"""Where the decoder's bias begins: at zero, at the mean or at the geometric median of what is to be written."""

from jaxtyping import Float
from torch import Tensor

from attrib.core.types import InputError

SAMPLE = 8192
"""Rows that a bias and a scale are estimated from: a mean over so many is within 1 % of the spread."""


def initial_bias(how: str, written: Float[Tensor, "samples d_out"]) -> Float[Tensor, " d_out"]:
    """b_dec for rows of what is to be written. Raises InputError for another way than "zeros", "mean" and "geometric-median"."""
    match how:
        case "zeros":
            return written.new_zeros(written.shape[1])
        case "mean":
            return written.mean(0)
        case "geometric-median":
            return geometric_median(written)
    raise InputError(f"bias: {how!r}; expected zeros, mean or geometric-median.")


def geometric_median(points: Float[Tensor, "samples d"], *, tolerance: float = 1e-7, rounds: int = 1000) -> Float[Tensor, " d"]:
    """The m of least Σ_i |x_i - m| for points x, by Weiszfeld's iteration (1937) from the mean.

        m ← Σ_i w_i x_i / Σ_i w_i,    w_i = 1 / |x_i - m|

    It stops where a step is under `tolerance` of the points' mean distance. Few outliers move it little, where
    they move a mean as far as they like: SAE papers begin b_dec here for that reason.
    """
    x = points.double()
    m = x.mean(0)
    spread = (x - m).norm(dim=1).mean()
    if spread == 0:
        return points[0].clone()
    for _ in range(rounds):
        distance = (x - m).norm(dim=1, keepdim=True).clamp(min=1e-12 * float(spread))  # m may lie on a point
        new = (x / distance).sum(0) / (1 / distance).sum()
        step, m = (new - m).norm(), new
        if step <= tolerance * spread:
            break
    return m.to(points.dtype)
