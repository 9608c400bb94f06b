"""What figures with plotly have in common: text, panels, points beside the line on which both numbers are one, pages without a network."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attrib.core.files import check_free, whole
from attrib.core.optional import needed
from attrib.core.sealed import sealed
from attrib.core.shown import harmless

if TYPE_CHECKING:
    import plotly.graph_objects as go

LINE = {"dash": "dot", "color": "#888888"}
"""Of the line on which both are one."""


def plotly(argument: str = "figure") -> Any:
    """plotly's graph objects. Raises InputError where it is not installed, which begins with the argument."""
    return needed("plotly.graph_objects", argument, "view")


def text(said: object) -> str:
    """A title or a label as it is.

    plotly reads some markup in these, and between two dollar signs a formula, where a notebook has MathJax: a dictionary's name or a token
    must bring neither. Control characters become escapes.
    """
    return escape(harmless(said), quote=False).replace("$", "&#36;")


def panels(titles: Sequence[str], *, down: bool = False, argument: str = "figure", **options: Any) -> "go.Figure":
    """A figure with a panel for each title, side by side or one below the other. Raises InputError where plotly is not installed."""
    subplots = needed("plotly.subplots", argument, "view")
    rows, columns = (len(titles), 1) if down else (1, len(titles))
    return subplots.make_subplots(rows=rows, cols=columns, subplot_titles=list(map(text, titles)), **options)


def add_points(
    figure: "go.Figure",
    x: Any,
    y: Any,
    *,
    texts: Sequence[str] = (),
    diagonal: bool = True,
    marker: dict[str, Any] | None = None,
    **at: int,
) -> None:
    """Points of a figure, or of a panel of it, one for each pair of numbers. Those of which a number is not finite are not drawn.

    Args:
        texts: what is said of each where the pointer is on it, as `text` has it.
        diagonal: whether the line on which both numbers are one is drawn, over all that is.
        at: the row and column of the panel.
    """
    go = plotly()
    across, up = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    figure.add_trace(go.Scatter(x=across, y=up, mode="markers", text=list(texts), marker=marker, showlegend=False), **at)
    drawn = np.isfinite(across) & np.isfinite(up)
    if diagonal and drawn.any():
        both = np.concatenate([across[drawn], up[drawn]])
        ends = [float(both.min()), float(both.max())]
        figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", line=LINE, hoverinfo="skip", showlegend=False), **at)


def write_figure(path: str | Path, figure: "go.Figure", *, title: str = "", overwrite: bool = False, argument: str = "path") -> Path:
    """One HTML page of a figure, which needs nothing but a browser: plotly.js is in it (5 MB), and its policy lets it ask no address.

    Args:
        title: of the page.
        argument: what errors call the path.

    Raises:
        InputError: where the folder is not there, or something stands at the path that is not to be replaced.
    """
    path = Path(path)
    check_free(argument, path, overwrite=overwrite)
    offline, io = needed("plotly.offline", "figure", "view"), needed("plotly.io", "figure", "view")
    drawn = io.to_json(figure).replace("<", "\\u003c")
    config = '{"responsive":true,"displaylogo":false}'
    scripts = [offline.get_plotlyjs(), f'const f={drawn};Plotly.newPlot("figure",f.data,f.layout,{config})']
    with whole(path) as partial:
        partial.write_text(sealed(title or "figure", '<div id="figure"></div>', scripts=scripts, styles_itself=True), encoding="utf-8")
    return path
