"""Where the decoder's bias begins: at zero, at the mean or at the geometric median of what is to be written."""

from enum import StrEnum

import torch
from torch import Tensor

SAMPLE = 8192  # rows that a bias is estimated from; a mean over so many is within 1 % of the spread


class Bias(StrEnum):
    """How b_dec begins."""

    ZEROS = "zeros"
    MEAN = "mean"
    GEOMETRIC_MEDIAN = "geometric-median"


def initial_bias(how: Bias, written: Tensor) -> Tensor:
    """b_dec [d_out] for rows [samples, d_out] of what is to be written."""
    match how:
        case Bias.ZEROS:
            return torch.zeros_like(written[0])
        case Bias.MEAN:
            return written.mean(0)
        case Bias.GEOMETRIC_MEDIAN:
            return geometric_median(written)


def geometric_median(points: Tensor, *, tolerance: float = 1e-7, rounds: int = 1000) -> Tensor:
    """The m [d] of least Σ_i |x_i − m| for points x [n, d], by Weiszfeld's iteration (1937) from the mean.

        m ← Σ_i w_i x_i / Σ_i w_i,    w_i = 1 / |x_i − m|

    It stops where a step is under `tolerance` of the points' mean distance. Few outliers move it little, where
    they move a mean as far as they like: SAE papers begin b_dec here for that reason.
    """
    x = points.double()
    m = x.mean(0)
    scale = (x - m).norm(dim=1).mean()
    if scale == 0:
        return points[0].clone()
    for _ in range(rounds):
        distance = (x - m).norm(dim=1, keepdim=True).clamp(min=1e-12 * float(scale))  # m may lie on a point
        new = (x / distance).sum(0) / (1 / distance).sum()
        step, m = (new - m).norm(), new
        if step <= tolerance * scale:
            break
    return m.to(points.dtype)
