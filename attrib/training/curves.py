"""The curves of a training: a line of JSON for each row, written as it goes, and a page of figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from attrib.core.files import check_free, whole
from attrib.core.plotted import panels, plotly, text, write_figure
from attrib.core.types import FormatError, InputError

Row = dict[str, int | float]
"""step, samples, loss and what it is made of, l0, explained_variance, dead, learning_rate, coefficients, resampled."""

FIGURES = {
    "loss": ("loss", "log"), "l0": ("L0", "linear"), "explained_variance": ("explained variance", "linear"),
    "dead": ("dead latents", "linear"), "learning_rate": ("learning rate", "linear"),
}  # fmt: skip
"""What the page shows of a row, its title and the scale of its axis."""


@torch.no_grad()
def row_of(trainer: Any, output: Any, learning_rate: float, resampled: int) -> Row:
    """What one step came to, over its batch, from sae-lens' output of it.

    Args:
        learning_rate: that the step was taken with.
        resampled: latents that were begun again after it.
    """
    written = _written(trainer.sae, output.sae_in).double()
    spread = float((written - written.mean(0)).square().sum(1).mean())
    return {
        "step": trainer.n_training_steps, "samples": trainer.n_training_samples, "loss": float(output.loss),
        **{name: float(loss) for name, loss in output.losses.items()},
        "l0": float((output.feature_acts != 0).sum() / len(written)),
        "explained_variance": 1 - float(output.losses["mse_loss"]) / spread if spread else 0.0,
        "dead": int(trainer.dead_neurons.sum()), "learning_rate": learning_rate,
        **{f"{name}_coefficient": value for name, value in trainer.get_coefficients().items()}, "resampled": resampled,
    }  # fmt: skip


def _written(sae: Any, batch: torch.Tensor) -> torch.Tensor:
    """What stands where a module writes, with what a skip connection brings."""
    return batch[:, sae.cfg.d_in :] if hasattr(sae, "wanted") else batch


def append_row(file: Path, row: Row) -> None:
    """One more line, which is handed to the system at once."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def rows_until(file: Path, step: int) -> list[Row]:
    """The rows of steps until `step`, which alone are left in the file: what was written after a checkpoint will be written again."""
    if not file.exists():
        return []
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # a line that a killed process did not end
        if row["step"] > step:
            break
        kept.append(row)
    with whole(file) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return kept


def read_curves(file: str | Path) -> list[Row]:
    """All rows of a curves.jsonl. Raises InputError where there is none, and FormatError where a line is none."""
    path = Path(file)
    if not path.is_file():
        raise InputError(f"curves: there is no file {path}; expected a curves.jsonl.")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(isinstance(value, int | float) for value in row.values()) or "step" not in row:
            raise FormatError(f"curves: line {number} of {path} is no row of a training.")
        found.append(row)
    return found


def curves_page(path: str | Path, curves: Mapping[str, Sequence[Row]]) -> None:
    """One HTML page with the curves of every dictionary, which needs nothing but a browser: plotly.js is in it (5 MB).

    Args:
        curves: rows by the dictionary's name.

    Raises:
        InputError: where plotly is not installed, there is no curve, or the page's folder is not there.
    """
    graph_objects = plotly("curves")
    if not curves:
        raise InputError("curves: none; expected those of one dictionary at least.")
    check_free("curves", Path(path), overwrite=True)
    colours = graph_objects.Figure().layout.template.layout.colorway or ("#636efa",)
    figure = panels([title for title, _ in FIGURES.values()], down=True, shared_xaxes=True)
    for number, (name, rows) in enumerate(curves.items()):
        for place, key in enumerate(FIGURES, 1):
            line = graph_objects.Scatter(
                x=[row["samples"] for row in rows], y=[row[key] for row in rows], name=text(name), legendgroup=name,
                showlegend=place == 1, line={"color": colours[number % len(colours)]},
            )  # fmt: skip
            figure.add_trace(line, row=place, col=1)
    for place, (_, axis) in enumerate(FIGURES.values(), 1):
        figure.update_yaxes(type=axis, row=place, col=1)
    figure.update_xaxes(title_text="samples", row=len(FIGURES), col=1)
    figure.update_layout(height=260 * len(FIGURES), hovermode="x unified")
    write_figure(path, figure, title="curves", overwrite=True, argument="curves")
