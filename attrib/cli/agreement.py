"""`attrib verify`: a file's edges against interventions on their sources."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.core.types import InputError
from attrib.view.sparks import in_cells
from attrib.view.terminal import plain
from attrib.view.terminal import show as print_table
from attrib.view.terminal import table as table_of

if TYPE_CHECKING:
    from attrib.causal.agreement import Agreement

SMALL = 0.01
"""Steps up to here are held to the tolerance: larger ones tell how far a derivative reaches, which is no fault."""
TOLERANCES = {"float64": 1e-3, "float32": 0.05}
LEAST = -8
"""Errors of up to 10 to this power are drawn as one bar."""
PROMPTS = 4
"""Prompts that are drawn where none is named."""


def verify(
    file: Annotated[Path, typer.Argument(help="HDF5 file that attrib wrote, edges or graphs, or a folder of them, such as a job's")],
    prompt: Annotated[
        list[int] | None, typer.Option(help=f"Its number in the data set; may be repeated. Else {PROMPTS} are drawn", min=0)
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only blocks of this kind; may be repeated")] = None,
    sources: Annotated[
        int | None,
        typer.Option(
            help="How many sources of each block are intervened on; all of their edges are measured. 32 where none is said", min=1
        ),
    ] = None,
    edges: Annotated[
        int | None, typer.Option(help="In the place of --sources, how many edges of each block are measured, drawn among all", min=1)
    ] = None,
    step: Annotated[
        list[float] | None, typer.Option(help="By how much of its activation a source is changed; 1 leaves it out. May be repeated")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws", min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="Of the passes: float64 or float32")] = "float64",
    top: Annotated[int, typer.Option(help="How many of the worst edges to show of each block and step", min=0)] = 3,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help=f"Exit with status 1 where the median relative error at a step up to {SMALL} is above this; 0.001 where nothing is "
            "said, and 0.05 in float32, whose passes round",
            min=0,
        ),
    ] = None,
    at: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER, where a model or dictionary lies; may be repeated")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
) -> None:
    """Intervene on sources of stored edges, and compare what their targets do with what the edges predict.

    `attrib verify-file` asks something else: whether a file is whole, without a model.
    """
    from attrib.causal.agreement import plain_records
    from attrib.causal.stored import verify_stored
    from attrib.cli.bars import counted
    from attrib.jobs.folder import places_of

    given = dict(each.partition("=")[::2] for each in at or [])
    if wrong := [name for name, folder in given.items() if not folder]:
        raise InputError(f"at: {wrong[0]!r}; expected NAME=FOLDER.")
    with counted("intervening") as progress:
        found = verify_stored(
            file, prompts=prompt or PROMPTS, kinds=kind or (), n=sources, n_edges=edges, steps=step or (1e-3, 1.0), seed=seed, dtype=dtype,
            places=places_of(file.resolve()) | given, progress=progress,
        )  # fmt: skip
    if as_json:
        both = found.summary()[["pair", "step"]].to_dict("records") if top else []
        worst = [line for one in both for line in plain_records(found.worst(top, **one))]
        print(json.dumps(found.records() | {"worst": worst}, indent=1))
    else:
        _print(found, top)
    if not len(found):
        raise InputError(f"{file}: no edge to measure in the prompts that were looked at. Name others with --prompt.")
    summary = found.summary()
    most = tolerance if tolerance is not None else TOLERANCES[dtype]
    small = summary[summary.step <= SMALL]
    if len(without := small[small.no_number > 0]):
        first = without.iloc[0]
        raise InputError(f"{first.pair}: {first.no_number:,} of {first.edges:,} edges have no number at a step of {first.step:g}.")
    wrong_ones = small[~(small["median"] <= most)]
    if len(wrong_ones):
        first = wrong_ones.iloc[0]
        raise InputError(
            f"{first.pair}: the median relative error at a step of {first.step:g} is {first['median']:.2g}, and not up to {most:g}: "
            "these edges do not predict what their model does."
        )


def _print(found: "Agreement", top: int) -> None:
    summary = found.summary()
    numbers = ["step", "sources", "edges", "slope", "correlation", "median", "q99", "largest", "silent", "activated"]
    numbers += ["no_number"] if summary.no_number.any() else []
    rows = [[plain(one["pair"]), *(_number(one[name]) for name in numbers)] for one in summary.to_dict("records")]
    heads = [name.replace("_", " ") for name in numbers]
    print_table(table_of("measured against predicted; median to largest are of the relative error", ("edges from and to",), heads, rows))
    if len(found):
        drawn = [(plain(pair), f"{step:g}", in_cells(counts)) for pair, step, counts in _decades(found)]
        title = f"edges by their relative error: a bar a decade, from up to {10.0**LEAST:.0e} to above 1"
        print_table(table_of(title, ("edges from and to",), ("step", "edges"), drawn))
    for step in found.call["steps"] if top and len(found) else ():
        lines = [
            [
                plain(one["source"]),
                plain(one["target"]),
                str(one["prompt"]),
                f"{one['predicted']:+.4g}",
                f"{one['measured']:+.4g}",
                "silent" if one["silent"] else "",
            ]
            for pair in found.summary().pair.unique()
            for one in found.worst(top, step=step, pair=pair).to_dict("records")
        ]
        print_table(table_of(f"furthest apart at step {step:g}", ("source", "target"), ("prompt", "predicted", "measured", ""), lines))


def _decades(found: "Agreement") -> Iterator[tuple[str, float, list[int]]]:
    """Of each pair and step, how many edges have an error of each decade; those of no number have none."""
    import numpy as np

    for (pair, step), part in found.table.groupby(["pair", "step"], sort=False):
        errors = part.relative.to_numpy(float)
        decade = np.ceil(np.log10(np.maximum(errors[np.isfinite(errors)], 10.0**LEAST))).astype(int) - LEAST
        yield pair, step, np.bincount(decade, minlength=2 - LEAST).tolist()


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
