"""The scalings of a run as figures: `python -m bench.engine.plots figures.json [--out bench/results]`.

One figure for each axis (targets, positions, layers, d_sae), both scales logarithmic: seconds of attrib, of
the notebook recipe in chunks and of torch.func, and what attrib's FLOPs take at this machine's matrix-product
rate. HTML loads plotly.js from the web, so that a file stays small; PNG needs kaleido and a browser.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import plotly.graph_objects as go
import typer
from rich.console import Console

from bench.engine.cases import Axis

app = typer.Typer(add_completion=False)

TITLES: dict[Axis, str] = {
    "targets": "active targets per position",
    "positions": "positions",
    "layers": "layers between source and target",
    "d_sae": "latents in each dictionary",
}

Results = Mapping[str, Mapping[str, Any]]


def points(results: Results, axis: Axis) -> list[Mapping[str, Any]]:
    """The measured cases of one scaling, by size."""
    return sorted((r for r in results.values() if r["axis"] == axis and r["checked"]), key=lambda r: r["size"])


def seconds(way: Mapping[str, Any]) -> float:
    """GPU time where there is one, CPU time else."""
    return way["cpu_s"] if way["gpu_s"] is None else way["gpu_s"]


def figure(found: list[Mapping[str, Any]], axis: Axis) -> go.Figure:
    """Seconds over size."""
    sizes, device = [r["size"] for r in found], found[0]["device"]
    mine = f"attrib ({found[0]['method']}, {found[0].get('dtype', 'float32')})"  # older files name no dtype
    drawn = go.Figure()
    for name, label in (("attrib", mine), ("torch_func", "torch.func"), ("notebook_chunked", "notebook in chunks")):
        scaled = " (scaled from a sample of rows)" if any(r["alternatives"][name]["extrapolated"] for r in found) else ""
        drawn.add_scatter(x=sizes, y=[seconds(r["alternatives"][name]) for r in found], name=label + scaled, mode="lines+markers")
    ideal = [r["flops"] / r["rate_gflops"] / 1e9 for r in found]
    drawn.add_scatter(x=sizes, y=ideal, name="attrib's FLOPs at the matrix-product rate, wall", mode="lines", line={"dash": "dot"})
    kind = "CPU" if device.endswith("CPU") else "GPU"
    drawn.update_layout(
        title=f"GPT-2 shape, 0→3, T=32, 50 active, d_sae 24,576, EXACT; {TITLES[axis]} varied; {device}",
        xaxis={"title": TITLES[axis], "type": "log", "tickvals": sizes, "ticktext": [f"{size:,}" for size in sizes]},
        yaxis={"title": f"{kind} seconds", "type": "log"},
        template="plotly_white",
    )
    return drawn


def save(drawn: go.Figure, path: Path) -> str | None:
    """Write PATH.html, and PATH.png where that works; returns why it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.write_html(path.with_suffix(".html"), include_plotlyjs="cdn")
    try:
        drawn.write_image(path.with_suffix(".png"), width=900, height=500)
    except Exception as error:  # kaleido has its own errors, from itself, its browser and the two together
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


@app.command()
def main(
    figures: Annotated[Path, typer.Argument(help="JSON written by bench.run.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the figures.")] = Path("bench/results"),
) -> None:
    """Draw every scaling that the file holds."""
    results: Results = json.loads(figures.read_text())
    console, failed = Console(), None
    for axis in get_args(Axis):
        if found := points(results, axis):
            path = out / f"scaling-{axis}"
            failed = save(figure(found, axis), path) or failed
            console.print(f"{path}.html", soft_wrap=True)
    if failed:
        why = f"No PNG: {failed.rstrip('.,')}. It needs kaleido and a browser that it can start; the HTML is whole without them."
        console.print(why, soft_wrap=True, markup=False)


if __name__ == "__main__":
    app()
