"""Predicted against measured, as a table that says how far they agree: the result of `verify`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attrib.core.shown import frame_in_html
from attrib.core.types import InputError

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = (0.5, 0.9, 0.99)
"""Of the relative error, that a summary tells; with the largest."""

GROUPS = ("pair", "step")
SUMMARY = (
    *GROUPS, "edges", "slope", "correlation", "slope_all", "correlation_all", "median", "q90", "q99", "largest", "mass_error", "silent",
    "no_number",
)  # fmt: skip
IN_NOTEBOOKS = (*GROUPS, "edges", "sources", "slope", "correlation", "median", "largest", "silent", "no_number")
"""Of these, what a notebook shows."""


def relative(predicted: "np.ndarray", measured: "np.ndarray") -> "np.ndarray":
    """|measured - predicted| of the larger of the two sizes: 0 where both are 0, and never above 2."""
    largest = np.maximum(np.abs(predicted), np.abs(measured))
    return np.abs(measured - predicted) / np.where(largest > 0, largest, 1)


@dataclass(frozen=True, repr=False)
class Agreement:
    """Edges that were measured by interventions on their sources.

    `table` has a line for each edge and step: `pair` (the sites), `step`, `prompt`, `edge` (its number in the result or graph that was
    measured), `source` and `target` (by name), `predicted` (the edge's attribution), `measured` (the change of the target for the whole
    of the source; NaN where a pass leaves what its dtype holds, see docs/agreement.md), `error` (measured less predicted), `relative`
    (its size, of the larger of the two), `silent` (whether the target, a latent, was inactive in a pass) and `lost` (where `measured` is
    NaN, the site at which the pass first has what is no number; "" where that is in reading the target alone, and where all is well).
    `passes` has a line for each pair and step: how many `sources` were intervened on, and how many latents of the
    target's dictionary were `activated` by that, in all.
    """

    table: "pd.DataFrame"
    passes: "pd.DataFrame"
    call: Mapping[str, Any]
    """What was asked for: seed, steps, dtype and policies."""

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        lines = [f"Agreement of {len(self):,} measurements, in {self.call['dtype']}:"]
        for one in self.summary().itertuples():
            lines.append(
                f"  {one.pair}, step {one.step:g}: {one.edges:,} edges of {one.sources:,} sources, slope {one.slope:.4g}, correlation "
                f"{one.correlation:.4g}, relative error {one.median:.2g} (median), {one.largest:.2g} (largest), {one.silent} silent"
                + (f", {one.no_number} without a number" if one.no_number else "")
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A row for each pair and step, for notebooks."""
        return frame_in_html(repr(self).splitlines()[0], self.summary()[list(IN_NOTEBOOKS)])

    def summary(self) -> "pd.DataFrame":
        """A line for each pair and step.

        `slope` is that of measured on predicted through the origin; `median`, `q90`, `q99` and `largest` are of the relative error;
        `mass_error` is Σ|measured - predicted| / Σ|predicted|, in which strong edges count for more. Slope and correlation are of the
        edges whose target stays active, which is what a derivative speaks of; `slope_all` and `correlation_all` are of all, and
        `silent` says how many the others are. What cannot be told, since nothing is predicted or varies, is NaN. `no_number` counts
        measurements that gave none, as `measured` of the table says; the figures beside it are of the others.
        """
        import pandas as pd

        found = []
        for (pair, step), part in self.table.groupby(list(GROUPS), sort=False):
            known = part[np.isfinite(part.measured)]
            predicted, measured = known.predicted.to_numpy(), known.measured.to_numpy()
            stays, size = ~known.silent.to_numpy(bool), float(np.abs(predicted).sum())
            quantiles = np.quantile(known.relative, QUANTILES) if len(known) else [np.nan] * len(QUANTILES)
            found.append(
                {"pair": pair, "step": step, "edges": len(part), "slope": slope(predicted[stays], measured[stays])}
                | {"correlation": correlation(predicted[stays], measured[stays])}
                | {"slope_all": slope(predicted, measured), "correlation_all": correlation(predicted, measured)}
                | {"median": quantiles[0], "q90": quantiles[1], "q99": quantiles[2], "largest": known.relative.max()}
                | {"mass_error": float(np.abs(measured - predicted).sum()) / size if size else np.nan, "silent": int(known.silent.sum())}
                | {"no_number": len(part) - len(known)}
            )
        return pd.DataFrame(found, columns=list(SUMMARY)).merge(self.passes, on=list(GROUPS), how="left")

    def worst(self, k: int = 10, *, step: float | None = None, pair: str | None = None, by: str = "error") -> "pd.DataFrame":
        """The k lines of largest disagreement, worst first.

        Args:
            step, pair: of one step, or one pair of sites, alone.
            by: "error", its size, or "relative".

        Raises:
            InputError: for k below 1, another `by`, or a step or a pair that is not there.
        """
        if k < 1:
            raise InputError(f"k: {k}; expected at least 1.")
        if by not in ("error", "relative"):
            raise InputError(f"by: {by!r}; expected 'error' or 'relative'.")
        part = self.table if step is None else self.table[self.table.step == step]
        if step is not None and not len(part):
            raise InputError(f"step: {step:g} was not taken; there are {', '.join(f'{s:g}' for s in self.call['steps'])}.")
        if pair is not None:
            part = part[part.pair == pair]
            if not len(part):
                raise InputError(f"pair: {pair!r} is not among {', '.join(map(repr, self.table.pair.unique()))}.")
        return part.loc[part[by].abs().sort_values(ascending=False, kind="stable").index[:k]]

    def median(self, step: float) -> float:
        """The median relative error of all edges at a step."""
        return float(self.worst(len(self) or 1, step=step).relative.median())

    def records(self) -> dict[str, Any]:
        """All of it but the table, as JSON can hold it."""
        return {"call": dict(self.call), "summary": plain_records(self.summary())}


def plain_records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """A table's lines with plain Python numbers; None where one is none."""
    return [
        {name: None if isinstance(value, float) and value != value else value for name, value in line.items()}
        for line in table.astype(object).to_dict("records")
    ]


def slope(predicted: "np.ndarray", measured: "np.ndarray") -> float:
    """Of measured on predicted, through the origin; NaN where nothing is predicted."""
    (x, x_size), (y, y_size) = _scaled(predicted), _scaled(measured)
    squares = float(x @ x)
    return float(x @ y) / squares * (y_size / x_size) if squares > 0 else float("nan")


def correlation(a: "np.ndarray", b: "np.ndarray") -> float:
    """Pearson's, NaN where one of the two does not vary."""
    if len(a) < 2:
        return float("nan")
    (a, _), (b, _) = _scaled(a), _scaled(b)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")


def _scaled(values: "np.ndarray") -> tuple["np.ndarray", float]:
    """Numbers over a power of two near the largest, which loses nothing, and that power: the squares of what a pass gives may be too
    large for a number."""
    size = 2.0 ** np.frexp(np.abs(values).max(initial=0))[1]
    return values / size, float(size)


def checked_steps(steps: Any) -> tuple[float, ...]:
    """Steps as they can be taken. Raises InputError for none, or one outside (0, 1]."""
    several = (steps,) if isinstance(steps, int | float) else tuple(steps)
    if not several or any(isinstance(s, bool) or not isinstance(s, int | float) or not 0 < s <= 1 for s in several):
        raise InputError(f"steps: {steps!r}; expected numbers above 0 and up to 1, which is the source left out.")
    return tuple(dict.fromkeys(float(s) for s in several))
