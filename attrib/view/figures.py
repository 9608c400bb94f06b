"""Plotly figures of results, with the labels that a reader needs: token strings with their positions, numbers of latents.

Axes are numbers with names beside them, since plotly draws two columns of one name as one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from attrib.adapters.given import only, takes
from attrib.core.edges import Edges, Nodes
from attrib.core.plotted import add_points, plotly, text
from attrib.core.types import BIAS, ERROR, InputError
from attrib.view.columns import Numbers, and_left_out, both, column, counted, divided, is_whole, label, texts

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST = 2_000
"""Rows or columns of a heat map; for more there is `attrib.view.matrix`."""
CELLS = 1_000_000
"""Cells of a heat map, each of which has a name: so many are 60 MB in a notebook, and 1 GB while they are made."""
_BLUE, _WHITE, _ORANGE = "#0072b2", "#f7f7f7", "#c74e00"
_SCALE = [[0.0, _ORANGE], [0.5, _WHITE], [1.0, _BLUE]]
_NAMED = {ERROR: "error", BIAS: "bias"}

BINS = 100_000
"""Bars of a histogram."""
AS_EDGES = only(Edges, "edges, as `attrib.latent_to_latent` gives them, or `attrib.open(path).edges(kind)` of a file")


@takes(edges=AS_EDGES)
def heatmap(
    edges: Edges,
    *,
    prompt: int = 0,
    value: Literal["attribution", "gradient"] = "attribution",
    top: int | None = None,
    sort_by: int | None = None,
) -> "go.Figure":
    """One prompt's edges as a heat map: targets are rows, sources columns; blue raises, orange lowers.

    Args:
        prompt: its place in the result; negative ones count from the end.
        value: what colours say.
        top: only so many sources, at least one, those of the largest sums of sizes; None is all that have an edge.
        sort_by: sources in the order of their value for the target at this place, largest first; None is by position.

    Raises:
        InputError: for what is no result, a prompt or target that is not there, a result without edges or with numbers that are not
            finite, and more than 2,000 rows or columns or a million cells. Where plotly is not installed.
    """
    go = plotly()
    if value not in ("attribution", "gradient"):
        raise InputError(f"value: {value!r}; expected 'attribution' or 'gradient'.")
    if top is not None and not (is_whole(top) and top > 0):
        raise InputError(f"top: {top!r}; expected a whole number of sources, at least 1, or None for all.")
    if not is_whole(prompt):
        raise InputError(f"prompt: {prompt!r}; expected a prompt's place, 0 to {len(edges.prompts) - 1}.")
    one = edges.prompt(prompt)
    if (wrong := (~getattr(one, value).isfinite()).sum()) > 0:
        raise InputError(f"edges: prompt {prompt} has {wrong:,} {value}s that are not finite; expected numbers to draw.")
    table = torch.zeros(one.shape, dtype=torch.float64)
    table[one.row, one.indices] = getattr(one, value).double()
    sizes = table.abs().sum(0)
    columns = (sizes > 0).nonzero()[:, 0]
    if not len(columns):
        raise InputError(f"edges: prompt {prompt} has no edge of any size; expected some.")
    if top is not None:
        columns = columns[sizes[columns].argsort(descending=True, stable=True)[:top]].sort().values
    if sort_by is not None:
        if not (is_whole(sort_by) and 0 <= sort_by < len(table)):
            raise InputError(f"sort_by: {sort_by!r}; expected a target's place, 0 to {len(table) - 1}.")
        columns = columns[table[sort_by, columns].argsort(descending=True, stable=True)]
    rows = (table.abs().sum(1) > 0).nonzero()[:, 0]
    if max(len(rows), len(columns)) > MOST or len(rows) * len(columns) > CELLS:
        most = f"at most {MOST:,} rows and columns, and {CELLS:,} cells"
        raise InputError(f"edges: {len(rows):,} x {len(columns):,}; expected {most}. Give `top`, or use attrib.view.matrix.")
    down, across = (_names(nodes, one.prompts.strings, at.tolist()) for nodes, at in ((one.targets, rows), (one.sources, columns)))
    shown = table[rows][:, columns].numpy()
    said = np.array([[f"{source} → {target}" for source in across] for target in down])
    figure = go.Figure(go.Heatmap(
        z=shown, colorscale=_SCALE, zmid=0, colorbar={"title": value}, customdata=said,
        hovertemplate="%{customdata}<br>%{z:.4g}<extra></extra>",
    ))  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(across))), ticktext=across, tickangle=-90, title=text(one.sources.site))
    figure.update_yaxes(tickvals=list(range(len(down))), ticktext=down, autorange="reversed", title=text(one.targets.site))
    return figure


def bars(values: Numbers, labels: Iterable[Any], *, title: str = "", unit: str = "") -> "go.Figure":
    """A bar for each value, in the order given: an attribution for each token, say.

    Args:
        labels: one for each, text or numbers of latents; two that are alike stay two.
        title, unit: of the figure, and of the values.

    Raises:
        InputError: for values that are not finite, and where there are not as many labels as values; where plotly is not installed.
    """
    go = plotly()
    heights = column("values", values)
    names = texts(labels)
    if len(names) != len(heights):
        raise InputError(f"labels: {len(names)} of them for {len(heights)} values; expected one for each.")
    if wrong := np.flatnonzero(~np.isfinite(heights)).tolist():
        raise InputError(f"values: {heights[wrong[0]]} at place {wrong[0]}; expected finite numbers.")
    colours = [_BLUE if height >= 0 else _ORANGE for height in heights]
    figure = go.Figure(go.Bar(x=list(range(len(heights))), y=heights, marker_color=colours, hovertext=names))
    figure.update_xaxes(tickvals=list(range(len(heights))), ticktext=names, tickangle=-90)
    figure.update_layout(title=text(title), yaxis_title=text(unit))
    return figure


def scatter(
    x: Numbers, y: Numbers, labels: Iterable[Any] | None = None, *, names: tuple[str, str] = ("x", "y"), diagonal: bool = False
) -> "go.Figure":
    """A point for each pair of numbers. Those of which a number is not finite are left out, and counted in the title.

    Args:
        labels: what is said where the pointer is on a point.
        names: of the axes.
        diagonal: whether the line on which both are one is drawn.

    Raises:
        InputError: where the lengths differ; where plotly is not installed.
    """
    go = plotly()
    across, up = column("x", x), column("y", y)
    if len(across) != len(up):
        raise InputError(f"y: {len(up)} numbers for {len(across)} of x; expected as many.")
    said = [] if labels is None else texts(labels)
    if labels is not None and len(said) != len(up):
        raise InputError(f"labels: {len(said)} of them for {len(up)} points; expected one for each.")
    horizontal, vertical = both("names", names)
    left_out = int((~(np.isfinite(across) & np.isfinite(up))).sum())
    figure = go.Figure()
    add_points(figure, across, up, texts=said, diagonal=diagonal, marker={"color": _BLUE, "size": 5})
    figure.update_layout(title=and_left_out(left_out).strip(), xaxis_title=horizontal, yaxis_title=vertical, showlegend=False)
    return figure


def histogram(
    values: Numbers | tuple[Numbers, Numbers], *, bins: int = 60, log: bool = False, title: str = "", unit: str = ""
) -> "go.Figure":
    """How often values come.

    Args:
        values: the values, of which those that are not finite are left out and counted in the title; or edges of bins and counts, as
            `LatentSurvey.histogram` gives them. An outermost bin without an end is drawn as wide as the one beside it.
        bins: of values: how many, of equal width.
        log: of values: whether bins are of equal width by the logarithm, which leaves out what is not above zero, and says so.

    Raises:
        InputError: for counts that do not go with their edges, edges that do not ascend, a logarithm of counts, and numbers of bins that
            are none; where plotly is not installed.
    """
    go = plotly()
    if not (is_whole(bins) and 0 < bins <= BINS):
        raise InputError(f"bins: {bins!r}; expected a whole number, 1 to {BINS:,}.")
    left_out, name = 0, text(unit)
    if isinstance(values, tuple) and len(values) == 2 and not all(isinstance(each, int | float) for each in values):
        if log:
            raise InputError("log: True of counts, whose bins are as they are; expected values, or log=False.")
        edges, counts = counted(column("values", values[0]), column("values", values[1]))
    else:
        found = column("values", values)
        kept = np.isfinite(found) & ((found > 0) if log else True)
        left_out, found = int((~kept).sum()), found[kept]
        counts, edges = divided(np.log10(found) if log else found, int(bins))
        name = f"log10 {name}" if log else name
    figure = go.Figure(go.Bar(x=(edges[1:] + edges[:-1]) / 2, y=counts, width=np.diff(edges), marker_color=_BLUE))
    figure.update_layout(title=text(title) + and_left_out(left_out), xaxis_title=name, yaxis_title="count", bargap=0)
    return figure


def curves(
    lines: Mapping[str, tuple[Numbers, Numbers]], *, names: tuple[str, str] = ("step", "value"), title: str = "", log: bool = False
) -> "go.Figure":
    """Lines through points, one for each name: a training's loss, a metric against how much is kept.

    Points of which a number is not finite, or the place has no logarithm where that is asked for, are left out and counted in the title.

    Args:
        lines: by name, the places and the values.
        names: of the axes.
        log: whether places go by their logarithm.

    Raises:
        InputError: where a line has other numbers of places and of values; where plotly is not installed.
    """
    go = plotly()
    if not isinstance(lines, Mapping):
        raise InputError(f"lines: a {type(lines).__name__}; expected a dict of (places, values) by name.")
    horizontal, vertical = both("names", names)
    figure, left_out = go.Figure(), 0
    for name, line in lines.items():
        if isinstance(line, Tensor | np.ndarray) or not isinstance(line, Sequence) or len(line) != 2:
            raise InputError(f"lines: {name!r} is a {type(line).__name__}; expected a pair (places, values).")
        across, up = (column("lines", each) for each in line)
        if len(across) != len(up):
            raise InputError(f"lines: {name!r} has {len(across)} places and {len(up)} values; expected as many.")
        left_out += int((~(np.isfinite(across) & np.isfinite(up) & ((across > 0) if log else True))).sum())
        figure.add_trace(go.Scatter(x=across, y=up, mode="lines", name=text(name)))
    figure.update_layout(title=(text(title) + and_left_out(left_out)).strip(), xaxis_title=horizontal, yaxis_title=vertical)
    if log:
        figure.update_xaxes(type="log")
    return figure


@takes(edges=AS_EDGES)
def labels_of(edges: Edges, end: Literal["sources", "targets"], prompt: int = 0) -> list[str]:
    """A name for each source or target of a prompt, as the heat map has them: "355 ' city'@6", "' Paris' @8"."""
    if end not in ("sources", "targets"):
        raise InputError(f"end: {end!r}; expected 'sources' or 'targets'.")
    one = edges.prompt(prompt)
    nodes: Nodes = getattr(one, end)
    return _names(nodes, one.prompts.strings, list(range(len(nodes))))


def _names(nodes: Nodes, strings: Sequence[str], chosen: Sequence[int]) -> list[str]:
    found = []
    for at in chosen:
        position, number = int(nodes.position[at]), int(nodes.latent[at])
        where = f"{label(repr(strings[position]))}@{position}"
        if nodes.kind == "token":
            found.append(where)
        elif nodes.labels:
            found.append(f"{label(repr(nodes.labels[at]))} @{position}")
        else:
            found.append(f"{_NAMED.get(number, number)} {where}")
    return found
