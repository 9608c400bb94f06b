"""What figures are made of: columns of numbers, bins, labels and names of axes, each refused by name where it is something else."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from attrib.core.plotted import text
from attrib.core.shown import harmless
from attrib.core.types import InputError

Numbers = Sequence[float] | np.ndarray | Tensor
LONGEST = 24
"""Characters of a label."""


def label(said: object) -> str:
    """A label as plotly shows it, cut where it is long."""
    shown = harmless(said)
    return text(shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…")


def texts(labels: Any) -> list[str]:
    """Labels of any kind. Raises InputError for what is no list of them."""
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        raise InputError(f"labels: a {type(labels).__name__}; expected a list of them.")
    return [label(each) for each in (labels.tolist() if isinstance(labels, Tensor) else labels)]


def both(argument: str, names: Any) -> tuple[str, str]:
    """The names of two axes. Raises InputError for other than two."""
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) != 2:
        raise InputError(f"{argument}: {names!r}; expected two, of the horizontal axis and of the vertical one.")
    return text(names[0]), text(names[1])


def and_left_out(count: int) -> str:
    """The end of a title: how many numbers are not drawn."""
    return f" ({count:,} left out)" if count else ""


def is_whole(number: object) -> bool:
    """Whether it is a whole number, and no truth value."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def counted(
    edges: Float[np.ndarray, " edges"], counts: Float[np.ndarray, " bins"]
) -> tuple[Float[np.ndarray, " edges"], Float[np.ndarray, " bins"]]:
    """Bins that can be drawn: an end that is infinite is as far off as the bin beside it is wide, or as its own other end is from zero."""
    if len(edges) != len(counts) + 1 and (len(edges) or len(counts)):
        raise InputError(f"values: {len(edges)} edges for {len(counts)} counts; expected one more than counts.")
    inner = edges[1:-1] if len(edges) > 1 else edges
    if np.isnan(edges).any() or not np.isfinite(inner).all() or not (edges[1:] > edges[:-1]).all():
        raise InputError("values: edges of bins that do not ascend, or are no numbers; expected ascending ones.")
    drawn, widths = edges.copy(), np.diff(inner)
    for end, beside, sign in ((0, 1, -1), (-1, -2, 1)):
        if len(edges) and not np.isfinite(edges[end]):
            drawn[end] = drawn[beside] + sign * (widths[end] if len(widths) else abs(edges[beside]) or 1.0)
    return drawn, counts


def divided(found: Float[np.ndarray, " values"], bins: int) -> tuple[np.ndarray, Float[np.ndarray, " edges"]]:
    """How many values each of some bins of equal width holds. What differs by less than its digits can say stands in one bin of many."""
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    if high - low == np.inf:
        raise InputError(f"values: from {low:g} to {high:g}; expected a span that float64 holds.")
    if (high - low) / bins <= 4 * np.spacing(max(abs(low), abs(high))):
        low, high = low - 0.5, high + 0.5
    return np.histogram(found, bins=bins, range=(low, high))


def column(argument: str, values: Any) -> Float[np.ndarray, " values"]:
    """Numbers of any kind as a column. Raises InputError, by the argument's name, where they are none."""
    try:
        if isinstance(values, Tensor):
            values = values.detach().to_dense().cpu()
            values = (values if values.is_complex() else values.double()).numpy()
        given = np.asarray(values)
        if np.iscomplexobj(given):
            raise InputError(f"{argument}: complex numbers; expected real ones, such as their sizes.")
        found = given.astype(float)
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # of what holds no data, too
        raise InputError(f"{argument}: a {type(values).__name__} that is no list of numbers ({error}); expected one.") from error
    if found.ndim != 1:
        raise InputError(f"{argument}: {found.ndim} dimensions; expected a list of numbers.")
    return found
