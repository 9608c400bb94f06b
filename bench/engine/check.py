"""Values before speed: every way to a Jacobian must give the same rows, to a tolerance, or nothing is timed.

The distance of two ways is the relative Frobenius norm ‖J - J'‖ / ‖J'‖ over the rows that both computed;
their nodes must be the same ones. attrib may compute in fewer digits than float32; the others never do.
"""

from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bench.engine.ours import Dtype
from bench.engine.recipes import Rows

TOLERANCES: dict[Dtype, float] = {"float32": 1e-4, "tf32": 3e-3, "bfloat16": 3e-2}
"""Relative, by what attrib multiplies in. Every pair without attrib has float32's."""


class Check(NamedTuple):
    """Distances of every pair of ways, and what is wrong, in words."""

    errors: dict[str, float]
    faults: list[str]

    @property
    def passed(self) -> bool:
        """Whether speed may be spoken of."""
        return not self.faults


def distance(got: Float[Tensor, "*any"], want: Float[Tensor, "*any"]) -> float:
    """Relative Frobenius error in float64; infinite where either has a NaN or all of `want` is zero."""
    got, want = got.double(), want.double()
    error = ((got - want).norm() / want.norm()).item()
    return error if error == error else float("inf")


def common(a: Rows, b: Rows) -> tuple[Rows, Rows]:
    """The rows that both have, in the same order."""
    shared = a.place[torch.isin(a.place, b.place)]

    def only(rows: Rows) -> Rows:
        order = rows.place.argsort()
        at = order[torch.searchsorted(rows.place[order], shared)]
        return Rows(shared, rows.gradient.cpu()[at], rows.targets.cpu()[at], rows.sources.cpu())

    return only(a), only(b)


def agree(found: dict[str, Rows], dtype: Dtype = "float32") -> Check:
    """Compare every pair of ways, by name; `dtype` is that of the way called attrib."""
    errors, faults = {}, []
    for (name, rows), (other, others) in combinations(found.items(), 2):
        pair = f"{name} / {other}"
        tolerance = TOLERANCES[dtype if "attrib" in (name, other) else "float32"]
        a, b = common(rows, others)
        if not len(a.place):
            faults.append(f"{pair}: no row in common, so nothing is compared")
        elif not torch.equal(a.sources, b.sources) or not torch.equal(a.targets, b.targets):
            faults.append(f"{pair}: not the same nodes ({len(a.sources)} and {len(b.sources)} sources)")
        else:
            errors[pair] = distance(b.gradient, a.gradient)
            if not errors[pair] <= tolerance:
                faults.append(f"{pair}: {errors[pair]:.1e} apart over {len(a.place)} rows, tolerance {tolerance:.0e}")
    return Check(errors, faults)
