"""Figures of a run's effects, with plotly: one operation against another, and each latent's effect, over all samples or batch by batch."""

from typing import TYPE_CHECKING, Any

from attrib.causal.tasks.frames import LATENTS, check_frame
from attrib.causal.tasks.tables import one_against_another
from attrib.core.plotted import add_points, panels, plotly, text
from attrib.core.types import InputError

if TYPE_CHECKING:
    import pandas as pd


def parity_figure(latents: "pd.DataFrame", one: str = "ablation", other: str = "gradient") -> Any:
    """Each latent's total by one operation against that by another, a panel for each dictionary, with the line of equality and r.

    Returns:
        A plotly Figure.

    Raises:
        InputError: as `one_against_another`, and where plotly is not installed.
    """
    table = one_against_another(latents, one, other)
    r = table.attrs["r"]
    figure = panels([f"{name}, r = {value:.3f}" for name, value in r.items()])
    for column, name in enumerate(r, 1):
        part = table[table["dictionary"] == name]
        add_points(figure, part[other], part[one], texts=[f"latent {latent}" for latent in part["latent"]], row=1, col=column)
        figure.update_xaxes(title_text=text(f"total by {other}, in logits"), row=1, col=column)
        figure.update_yaxes(title_text=text(f"total by {one}, in logits"), row=1, col=column)
    return figure


def effects_figure(latents: "pd.DataFrame", operation: str = "ablation", *, batch: int | None = None) -> Any:
    """Each latent's total effect by its number, a panel for each dictionary.

    Args:
        batch: so many examples have points of their own; None is all examples together.

    Returns:
        A plotly Figure.

    Raises:
        InputError: for what is no frame of latents, or has no rows of this operation; a batch below 1; where plotly is not installed.
    """
    go = plotly()
    check_frame(latents, LATENTS, "latents")
    if batch is not None and batch < 1:
        raise InputError(f"batch: {batch}; expected at least 1.")
    rows = latents[latents["operation"] == operation]
    if not len(rows):
        raise InputError(f"latents: no rows of {operation!r}.")
    of_batch = rows["example"] * 0 if batch is None else rows["example"] // batch
    totals = rows.assign(batch=of_batch).groupby(["dictionary", "batch", "latent"], sort=False)["effect"].sum().reset_index()
    names = list(rows["dictionary"].unique())
    figure = panels(names, down=True)
    for (name, number), part in totals.groupby(["dictionary", "batch"], sort=False):
        label = "all examples" if batch is None else f"examples {number * batch} to {number * batch + batch - 1}"
        trace = go.Scatter(x=part["latent"], y=part["effect"], mode="markers", name=label, legendgroup=label, showlegend=name == names[0])
        figure.add_trace(trace, row=names.index(name) + 1, col=1)
    figure.update_yaxes(title_text=text(f"by {operation}, in logits"))
    figure.update_xaxes(title_text="latent", row=len(names), col=1)
    return figure
