"""`python -m bench.run`: check values, time, print tables, write JSON. See bench/README.md."""

import fnmatch
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import torch
import typer
from rich.console import Console
from rich.table import Table

from attrib.core.types import InputError
from bench.engine.cases import GIB, Case, all_cases
from bench.engine.compare import Options, Result, run_case
from bench.engine.goals import GOALS, judge
from bench.engine.ours import METHOD, Dtype, Engine, check_engine
from bench.measure import device_name
from bench.output import end, number, wide_console, write

Name = TypeVar("Name", bound=str)

app = typer.Typer(add_completion=False)


def chosen(names: list[str], quick: bool) -> list[Case]:
    """The cases of a run: those named, by patterns too, or the quick ones, or all."""
    known = all_cases()
    if unknown := [name for name in names if not fnmatch.filter(known, name)]:
        raise typer.BadParameter(f"{unknown[0]!r} is not a case; the cases are {', '.join(known)}.", param_hint="--case")
    named = dict.fromkeys(one for name in names for one in fnmatch.filter(known, name))
    return [known[name] for name in named] or [case for case in known.values() if case.quick or not quick]


def one_of(known: tuple[Name, ...], given: str, option: str) -> Name:
    """The known name that was given. Raises typer.BadParameter for any other."""
    for name in known:
        if name == given:
            return name
    raise typer.BadParameter(f"{given!r}; expected {', '.join(known[:-1])} or {known[-1]}.", param_hint=option)


def prepared(device: str, method: str, dtype: str) -> Options:
    """Where and in what attrib is measured. Raises typer.BadParameter for what cannot be: every case would fail."""
    where = torch.device(one_of(("cpu", "cuda"), device, "--device"))
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device here; expected cpu.", param_hint="--device")
    engine: Engine = one_of(get_args(Engine), method, "--method")
    precision: Dtype = one_of(get_args(Dtype), dtype, "--dtype")
    try:
        check_engine(engine, precision, where)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return Options(where, engine, precision)


# ------------------------------------------------------------------------------------------- tables


def measured_as(options: Options) -> str:
    """What the tables are of."""
    return f"method {options.method}, dtype {options.dtype}"


def case_table(results: Mapping[str, Result], options: Options) -> Table:
    """One line per case. A star marks a time that is scaled from a sample of rows."""
    seconds = "CPU s" if options.device.type == "cpu" else "GPU s"
    where = device_name(options.device)
    table = Table(title=f"attrib ({measured_as(options)}) and its alternatives on a {where}; * scaled from a sample of rows")
    for column in ("case", "values", f"attrib {seconds}", "notebook", "as written", "autograd", "torch.func"):
        table.add_column(column, justify="left" if column in ("case", "values") else "right")
    for column in ("ratio", "to torch.func", "peak MB", "notebook", "FLOPs/floor", "wall/ideal"):
        table.add_column(column, justify="right")
    for name, result in results.items():
        table.add_row(name, *cells(result))
    return table


def cells(result: Result) -> list[str]:
    """A line of the table after the case's name."""
    if not result["checked"]:
        return ["DIFFER"] + ["-"] * 11
    ways: dict[str, dict[str, Any]] = result["alternatives"]

    def seconds(name: str) -> str:
        if name not in ways:
            return "skipped"
        way = ways[name]
        return number(way["cpu_s"] if way["gpu_s"] is None else way["gpu_s"], ".3g") + "*" * way["extrapolated"]

    return [
        f"{max(result['errors'].values()):.0e} apart",
        *(seconds(name) for name in ("attrib", "notebook_chunked", "notebook_as_written", "autograd_batched", "torch_func")),
        number(result["ratio_vs_notebook"], ".1f"),
        number(result["ratio_vs_torch_func"], ".1f"),
        number(result["peak_mb"], ".0f"),
        number(result["notebook_peak_mb"], ".0f"),
        number(result["flops_over_floor"]),
        number(result["wall_over_ideal"]),
    ]


def goal_table(results: Mapping[str, Result], options: Options) -> Table:
    """Every ratio to reach in the cases that were run, what was found, and whether it is reached."""
    table = Table(title=f"Ratios to reach on a 2-core CPU, against the notebook recipe in chunks; {measured_as(options)}")
    for column in ("ratio", "goal", "found", "reached", "worst case"):
        table.add_column(column, justify="right" if column in ("goal", "found") else "left")
    for goal in (goal for goal in GOALS if not goal.cases or any(name in results for name in goal.cases)):
        verdict = judge(goal, results)
        bound = f"{'≥' if goal.at_least else '≤'} {goal.bound:g}"
        said = "not measured" if verdict.value is None else "yes" if verdict.reached else "no"
        table.add_row(goal.label, bound, number(verdict.value), said, verdict.case or "")
    return table


# --------------------------------------------------------------------------------------------- the run


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="Only the cases of the table of ratios; under 5 minutes on 2 cores.")] = False,
    out: Annotated[Path | None, typer.Option("--json", help="Write the figures here, after every case.")] = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", help="Only this case, or those of a pattern such as 'cuts-*'; may be given again.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    method: Annotated[str, typer.Option("--method", help=f"{' or '.join(get_args(Engine))}.")] = METHOD,
    dtype: Annotated[str, typer.Option("--dtype", help="What attrib multiplies in: float32, tf32 (CUDA) or bfloat16.")] = "float32",
) -> None:
    """Check that every way to the Jacobian gives the same values, then time them. Exits 1 where values differ."""
    console, cases, options = wide_console(), chosen(case or [], quick), prepared(device, method, dtype)
    if quick:
        options = replace(options, as_written_limit=GIB)
    results: dict[str, Result] = {}
    for one in cases:
        begin = time.perf_counter()
        results[one.name] = result = run_case(one, options)
        result["bench_s"] = time.perf_counter() - begin
        tell(console, one, result)
        if out is not None:
            write(out, results)
    console.print(case_table(results, options))
    console.print(goal_table(results, options))
    end(console, results)


def tell(console: Console, case: Case, result: Result) -> None:
    """A few lines on a case as soon as it is done: what was left out, what was scaled, what was wrong."""
    console.print(f"[bold]{case.name}[/]: {case.what} ({result['bench_s']:.0f} s)")
    for fault in result.get("faults", []):
        console.print(f"  [red]{fault}[/]")
    for name, why in result.get("skipped", {}).items():
        console.print(f"  {name} skipped: {why}")
    sampled = {name: way for name, way in result.get("alternatives", {}).items() if way["extrapolated"]}
    for name, way in sampled.items():
        console.print(f"  {name}: time scaled from {way['rows']} of {way['of']} rows")


if __name__ == "__main__":
    app()
