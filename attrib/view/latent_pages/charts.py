"""Small charts as SVG within a page: a path for all bars, so that two hundred of them stay small, and words for who cannot see them."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float, Shaped

from attrib.view.highlighting import LEVELS, level_of

WIDTH, HEIGHT = 240, 60
"""Of a histogram, without the words under it."""


def histogram(
    edges: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray, said: str, *, mark: float | None = None, log: bool = False
) -> str:
    """Bars between edges, which may be of unequal widths.

    Args:
        edges: ascending and finite, one more than counts.
        said: what the chart is of, for who cannot see it.
        mark: where a line stands.
        log: whether heights go by log(1 + count).
    """
    edges, heights = np.asarray(edges, float), np.asarray(counts, float)
    heights = np.log1p(heights) if log else heights
    low, span = edges[0], (edges[-1] - edges[0]) or 1.0
    x, most = (edges - low) / span * WIDTH, heights.max(initial=0) or 1.0
    bars = "".join(
        f"M{_short(left)} {HEIGHT}V{_short(HEIGHT - HEIGHT * height / most)}H{_short(right)}V{HEIGHT}z"
        for left, right, height in zip(x, x[1:], heights, strict=False)
        if height
    )
    line = "" if mark is None else f'<path class="mark" d="M{_short((mark - low) / span * WIDTH)} 0V{HEIGHT}"/>'
    return f'<svg class="bars" role="img" aria-label="{escape(said)}" viewBox="0 0 {WIDTH} {HEIGHT}"><path d="{bars}"/>{line}</svg>'


def heat_map(values: Float[np.ndarray, "rows columns"], said: str) -> str:
    """A cell for each value, none of which is negative; the deepest colour is the largest. Cells of one depth are one path."""
    rows, columns = values.shape
    most, paths = float(values.max(initial=0)), [""] * (LEVELS + 1)
    for (row, column), value in np.ndenumerate(values):
        paths[level_of(float(value), most)] += f"M{column} {row}h1"
    drawn = "".join(f'<path class="h{level}" d="{path}"/>' for level, path in enumerate(paths) if level and path)
    return (
        f'<svg class="heat" role="img" aria-label="{escape(said)}" viewBox="0 -.5 {columns} {rows}" preserveAspectRatio="none" '
        f'width="{min(WIDTH, 14 * columns)}" height="{min(260, 7 * rows)}">{drawn}</svg>'
    )


def log_bins(values: Shaped[np.ndarray, " values"], count: int = 30) -> tuple[Float[np.ndarray, " edges"], np.ndarray]:
    """Edges and counts of the logarithms, to base ten, of values above zero."""
    found = np.log10(values[values > 0])
    counts, edges = np.histogram(found, bins=count) if len(found) else (np.zeros(1, int), np.array([0.0, 1.0]))
    return edges, counts


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if math.isfinite(value) else "0"
