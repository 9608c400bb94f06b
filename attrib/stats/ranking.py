"""Pairs in order of their strength, with the columns that people read."""

from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float64

from attrib.core.types import InputError
from attrib.stats import fixed
from attrib.stats.heavy import Estimates
from attrib.stats.rows import Aggregates, pairs_of

BY = ("l1", "sum", "mean", "max", "count")
"""What pairs may be ranked by."""


def ranked(estimates: Estimates, k: int, by: str) -> dict[str, Any]:
    """The k strongest of these pairs, strongest first, as columns; docs/statistics.md names them.

    Raises InputError for a `k` below 1 or an unknown `by`.
    """
    if k < 1:
        raise InputError(f"k: {k}; expected at least 1.")
    order = np.argsort(-strength(estimates.rows, by), kind="stable")[:k]  # stable: ties stay in the order of the latents
    rows, exact = estimates.rows.take(order), estimates.is_exact[order]
    target, source = pairs_of(rows.key)
    total = fixed.floats(rows.sum)
    return {
        "target": target,
        "source": source,
        "count": rows.count,
        "prompts": rows.prompts,
        "l1": fixed.floats(rows.l1),
        "sum": total,
        # a cell's count is of all pairs that share it: what is divided by it is nobody's
        "mean": np.where(exact, total / rows.count, np.nan),
        "std": np.where(exact, _deviation(rows), np.nan),
        "sign_agreement": np.where(exact, np.maximum(rows.positive, rows.negative) / rows.count, np.nan),
        "positive": rows.positive,
        "negative": rows.negative,
        "maximum": rows.maximum,
        "maximum_prompt": rows.prompt,
        "maximum_target_position": rows.target_position,
        "maximum_source_position": rows.source_position,
        "exact": exact,
        "error": estimates.error[order],
        "maximum_is_bound": ~estimates.has_place[order],
    }


def strength(rows: Aggregates, by: str) -> Float64[np.ndarray, " rows"]:
    """What pairs are ranked by, never negative."""
    match by:
        case "l1":
            return fixed.floats(rows.l1)
        case "sum":
            return np.abs(fixed.floats(rows.sum))
        case "mean":
            return np.abs(fixed.floats(rows.sum)) / rows.count
        case "max":
            return np.abs(rows.maximum)
        case "count":
            return rows.count.astype(np.float64)
    raise InputError(f"by: {by!r}; expected {', '.join(map(repr, BY))}.")


def _deviation(rows: Aggregates) -> Float64[np.ndarray, " rows"]:
    """The standard deviation over a pair's edges: sqrt(n Σx² - (Σx)²) / n, in integers up to the root, so nothing cancels."""
    columns = zip(rows.count.tolist(), fixed.integers(rows.sum), fixed.integers(rows.squares), strict=True)
    unit = fixed.UNIT
    return np.array([sqrt(max(n * (xx << unit) - x * x, 0) / (n * n << 2 * unit)) for n, x, xx in columns], np.float64)
