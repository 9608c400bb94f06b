"""Plotly figures of results, with the labels that a reader needs: token strings with their positions, numbers of latents.

Axes are numbers with names beside them, since plotly draws two columns of one name as one. Names are text: plotly reads some markup in
labels, which a token must not bring.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.edges import Edges, Nodes
from attrib.core.plotted import add_points, plotly
from attrib.core.types import BIAS, ERROR, InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go

Numbers = Sequence[float] | np.ndarray | Tensor
LONGEST = 24
"""Characters of a token in a label."""
MOST = 2_000
"""Rows or columns of a heat map; for more there is `attrib.view.matrix`."""
_BLUE, _WHITE, _ORANGE = "#0072b2", "#f7f7f7", "#c74e00"
_SCALE = [[0.0, _ORANGE], [0.5, _WHITE], [1.0, _BLUE]]
_NAMED = {ERROR: "error", BIAS: "bias"}


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
        top: only so many sources, those of the largest sums of sizes; None is all that have an edge.
        sort_by: sources in the order of their value for the target at this place, largest first; None is by position.

    Raises:
        InputError: for a prompt or target that is not there, a result without edges, and more than 2,000 rows or columns. Where plotly
            is not installed.
    """
    go = plotly()
    if value not in ("attribution", "gradient"):
        raise InputError(f"value: {value!r}; expected 'attribution' or 'gradient'.")
    one = edges.prompt(prompt)
    table = torch.zeros(one.shape, dtype=torch.float64)
    table[one.row, one.indices] = getattr(one, value).double()
    sizes = table.abs().sum(0)
    columns = (sizes > 0).nonzero()[:, 0]
    if not len(columns):
        raise InputError(f"edges: prompt {prompt} has no edge of any size; expected some.")
    if top is not None:
        columns = columns[sizes[columns].argsort(descending=True, stable=True)[:top]].sort().values
    if sort_by is not None:
        if not 0 <= sort_by < len(table):
            raise InputError(f"sort_by: {sort_by}; expected a target's place, 0 to {len(table) - 1}.")
        columns = columns[table[sort_by, columns].argsort(descending=True, stable=True)]
    rows = (table.abs().sum(1) > 0).nonzero()[:, 0]
    if max(len(rows), len(columns)) > MOST:
        raise InputError(f"edges: {len(rows):,} x {len(columns):,}; expected at most {MOST:,}. Give `top`, or use attrib.view.matrix.")
    down, across = (_names(nodes, one.prompts.strings, at.tolist()) for nodes, at in ((one.targets, rows), (one.sources, columns)))
    shown = table[rows][:, columns].numpy()
    said = np.array([[f"{source} → {target}" for source in across] for target in down])
    figure = go.Figure(go.Heatmap(
        z=shown, colorscale=_SCALE, zmid=0, colorbar={"title": value}, customdata=said,
        hovertemplate="%{customdata}<br>%{z:.4g}<extra></extra>",
    ))  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(across))), ticktext=across, tickangle=-90, title=escape(one.sources.site))
    figure.update_yaxes(tickvals=list(range(len(down))), ticktext=down, autorange="reversed", title=escape(one.targets.site))
    return figure


def bars(values: Numbers, labels: Sequence[str], *, title: str = "", unit: str = "") -> "go.Figure":
    """A bar for each value, in the order given: an attribution for each token, say.

    Args:
        labels: one for each; two that are alike stay two.
        title, unit: of the figure, and of the values.

    Raises:
        InputError: where there are not as many labels as values; where plotly is not installed.
    """
    go = plotly()
    heights = column("values", values)
    if len(labels) != len(heights):
        raise InputError(f"labels: {len(labels)} of them for {len(heights)} values.")
    colours = [_BLUE if height >= 0 else _ORANGE for height in heights]
    figure = go.Figure(go.Bar(x=list(range(len(heights))), y=heights, marker_color=colours, hovertext=_texts(labels)))
    figure.update_xaxes(tickvals=list(range(len(heights))), ticktext=_texts(labels), tickangle=-90)
    figure.update_layout(title=escape(title), yaxis_title=escape(unit))
    return figure


def scatter(
    x: Numbers, y: Numbers, labels: Sequence[str] | None = None, *, names: tuple[str, str] = ("x", "y"), diagonal: bool = False
) -> "go.Figure":
    """A point for each pair of numbers.

    Args:
        labels: what is said where the pointer is on a point.
        names: of the axes.
        diagonal: whether the line on which both are one is drawn.

    Raises:
        InputError: where the lengths differ; where plotly is not installed.
    """
    go = plotly()
    across, up = column("x", x), column("y", y)
    if len(across) != len(up) or (labels is not None and len(labels) != len(up)):
        raise InputError(f"y: {len(up)} numbers for {len(across)} of x and {len(labels or across)} labels; expected as many.")
    figure = go.Figure()
    add_points(figure, across, up, texts=_texts(labels or []), diagonal=diagonal, marker={"color": _BLUE, "size": 5})
    figure.update_layout(xaxis_title=escape(names[0]), yaxis_title=escape(names[1]), showlegend=False)
    return figure


def histogram(
    values: Numbers | tuple[Numbers, Numbers], *, bins: int = 60, log: bool = False, title: str = "", unit: str = ""
) -> "go.Figure":
    """How often values come.

    Args:
        values: the values, of which those that are not finite are left out and counted in the title; or edges of bins and counts, as
            `LatentSurvey.histogram` gives them.
        bins: of equal width; by the logarithm of the values where `log`, which leaves out those that are not above zero, and says so.

    Raises:
        InputError: for counts that do not go with their edges; where plotly is not installed.
    """
    go = plotly()
    left_out, name = 0, escape(unit)
    if isinstance(values, tuple):
        edges, counts = column("values", values[0]), column("values", values[1])
        if len(edges) != len(counts) + 1 and len(counts):
            raise InputError(f"values: {len(edges)} edges for {len(counts)} counts; expected one more than counts.")
    else:
        found = column("values", values)
        kept = np.isfinite(found) & ((found > 0) if log else True)
        left_out, found = int((~kept).sum()), found[kept]
        counts, edges = np.histogram(np.log10(found) if log else found, bins=bins)
        name = f"log10 {name}" if log else name
    figure = go.Figure(go.Bar(x=(edges[1:] + edges[:-1]) / 2, y=counts, width=np.diff(edges), marker_color=_BLUE))
    said = f" ({left_out:,} left out)" if left_out else ""
    figure.update_layout(title=escape(title) + said, xaxis_title=name, yaxis_title="count", bargap=0)
    return figure


def curves(
    lines: Mapping[str, tuple[Numbers, Numbers]], *, names: tuple[str, str] = ("step", "value"), title: str = "", log: bool = False
) -> "go.Figure":
    """Lines through points, one for each name: a training's loss, a metric against how much is kept.

    Args:
        lines: by name, the places and the values.
        names: of the axes.
        log: whether places go by their logarithm.

    Raises:
        InputError: where a line has other numbers of places and of values; where plotly is not installed.
    """
    go = plotly()
    figure = go.Figure()
    for name, (x, y) in lines.items():
        across, up = column("lines", x), column("lines", y)
        if len(across) != len(up):
            raise InputError(f"lines: {name!r} has {len(across)} places and {len(up)} values; expected as many.")
        figure.add_trace(go.Scatter(x=across, y=up, mode="lines", name=escape(name)))
    figure.update_layout(title=escape(title), xaxis_title=escape(names[0]), yaxis_title=escape(names[1]))
    if log:
        figure.update_xaxes(type="log")
    return figure


def labels_of(edges: Edges, end: Literal["sources", "targets"], prompt: int = 0) -> list[str]:
    """A name for each source or target of a prompt, as the heat map has them: "355 ' city'@6", "' Paris' @8"."""
    one = edges.prompt(prompt)
    nodes: Nodes = getattr(one, end)
    return _names(nodes, one.prompts.strings, list(range(len(nodes))))


def _names(nodes: Nodes, strings: Sequence[str], chosen: Sequence[int]) -> list[str]:
    found = []
    for at in chosen:
        position, number = int(nodes.position[at]), int(nodes.latent[at])
        where = f"{_text(repr(strings[position]))}@{position}"
        if nodes.kind == "token":
            found.append(where)
        elif nodes.labels:
            found.append(f"{_text(repr(nodes.labels[at]))} @{position}")
        else:
            found.append(f"{_NAMED.get(number, number)} {where}")
    return found


def _text(text: str) -> str:
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return escape(cut, quote=False)


def _texts(labels: Sequence[str]) -> list[str]:
    return [_text(label) for label in labels]


def column(argument: str, values: Numbers) -> Float[np.ndarray, " values"]:
    """Numbers of any kind as a column. Raises InputError, by the argument's name, where they are none."""
    found = (values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values)).astype(float)
    if found.ndim != 1:
        raise InputError(f"{argument}: {found.ndim} dimensions; expected a list of numbers.")
    return found
