"""`python -m bench.kernels`: the Triton kernels beside plain torch and torch.compile. See bench/README.md, "Kernels".

Values come first (ways.py). Then all ways are timed in turns. The time of a way is that of enough calls in a
row, divided by their number.
"""

import fnmatch
import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import triton
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.kernels.cases import Case, all_cases, dtype_name
from bench.kernels.ways import KERNELS, WAYS, Checked, Run, check
from bench.measure import Time, device_name, medians, peak, timed
from bench.output import end, number, wide_console, write

FLUSHED = 256 * 2**20
"""Bytes written before each timing, more than a last-level cache holds: a timing does not begin with its tensors there."""

COPIED = 2**30
"""Bytes of the copy that bandwidth is measured by."""

MOST_CALLS = 1000
"""In one timing."""

Result = dict[str, Any]
"""What is written as JSON; docs in bench/README.md."""

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Bench:
    """Where and how cases are measured."""

    device: torch.device
    times_kernels: bool
    """Not where Triton is interpreted, which says nothing of a kernel's speed."""
    rounds: int = 11
    enough_s: float = 5e-3
    """Of one timing: the first call of a row waits for its launch, which is then a few parts in a hundred at the most."""
    flush: Tensor | None = None
    copy_rate: float | None = None
    """Bytes read and written in a second by a large copy."""


# ------------------------------------------------------------------------------------------------- times


def again(run: Run, calls: int) -> None:
    """Call so many times; what a call gives is dropped before the next, so that all use the same memory."""
    for _ in range(calls):
        run()


def enough_calls(run: Run, bench: Bench) -> int:
    """How many calls in a row take as long as a timing should. Finding out warms up as well."""
    calls = 1
    again(run, 2)
    while True:
        seconds = timed(partial(again, run, calls), bench.device)[1].seconds
        if seconds >= bench.enough_s or calls == MOST_CALLS:
            return calls
        wanted = int(calls * bench.enough_s / max(seconds, 1e-9)) + 1
        calls = min(max(2 * calls, wanted), MOST_CALLS)


def take_turns(ways: Mapping[str, Run], bench: Bench) -> dict[str, list[Time]]:
    """The time of one call of every way, round by round."""
    calls = {name: enough_calls(run, bench) for name, run in ways.items()}
    times: dict[str, list[Time]] = {name: [] for name in ways}
    for _ in range(bench.rounds):
        for name, run in ways.items():
            if bench.flush is not None:
                bench.flush.zero_()
            _, spent = timed(partial(again, run, calls[name]), bench.device)  # waits for the flush before it begins
            times[name].append(spent.scaled(1 / calls[name]))
    return times


def copy_rate(bench: Bench) -> float:
    """Bytes read and written in a second by a copy much larger than any cache."""
    source = torch.randn(COPIED // 4, device=bench.device)
    return 2 * COPIED / medians(take_turns({"copy": source.clone}, bench)["copy"]).seconds


# ------------------------------------------------------------------------------------------------ a case


def run_case(case: Case, bench: Bench) -> Result:
    """Check a case and, where its values are right, measure it."""
    checked = check(case, bench.device, graphs=bench.times_kernels)
    figures = measured(checked, bench) if not checked.faults else dict.fromkeys(FIGURES)
    return {
        "what": case.what,
        "device": device_name(bench.device),
        "dtype": dtype_name(case.dtype),
        "versions": f"torch {torch.__version__}, triton {triton.__version__}",
        "checked": not checked.faults,
        **({"faults": checked.faults} if checked.faults else {"errors": dict(checked.errors)}),
        "failed": dict(checked.failed),
        "compiled_graphs": checked.compiled_graphs,
        **figures,
    }


FIGURES = (
    *("seconds", "spread", "torch_over_triton", "compile_over_triton", "pointers_over_descriptors", "default", "peak_mb"),
    *("least_bytes", "bytes_per_s", "copy_bytes_per_s", "fraction_of_copy"),
)
"""What a case whose values differ does not have."""


def measured(checked: Checked, bench: Bench) -> Result:
    """The figures of a case; None where something was not measured."""
    ways = {name: run for name, run in checked.ways.items() if bench.times_kernels or name not in KERNELS}
    # a graph holds its memory from its capture on, so that a replay has no peak
    peaks = {name: peak(run, bench.device)[1] / 1e6 for name, run in ways.items() if name != "cuda_graph"}
    times = take_turns(ways, bench)
    seconds: dict[str, float | None] = dict.fromkeys(WAYS)
    seconds |= {name: medians(found).seconds for name, found in times.items()}
    kernel, least = seconds["triton"], checked.least_bytes
    rate = None if kernel is None or least is None else least / kernel
    return {
        "seconds": seconds,
        "spread": {name: spread([found.seconds for found in every]) for name, every in times.items()},
        "torch_over_triton": over(seconds["torch"], kernel),
        "compile_over_triton": over(seconds["torch.compile"], kernel),
        "pointers_over_descriptors": over(kernel, seconds["descriptors"]),
        "default": verdict(over(seconds["torch"], kernel), over(seconds["torch.compile"], kernel)),
        "peak_mb": {name: peaks.get(name) for name in WAYS if name != "cuda_graph"},
        "least_bytes": least,
        "bytes_per_s": rate,
        "copy_bytes_per_s": bench.copy_rate,
        "fraction_of_copy": over(rate, bench.copy_rate),
    }


def over(a: float | None, b: float | None) -> float | None:
    """A ratio, where both were measured."""
    return None if a is None or b is None else a / b


def spread(seconds: list[float]) -> float:
    """How far the rounds lie apart, relative to the one in the middle: a ratio nearer to 1 than this says nothing."""
    ordered = sorted(seconds)
    return (ordered[-1] - ordered[0]) / max(ordered[len(ordered) // 2], 1e-12)


def verdict(torch_over_triton: float | None, compile_over_triton: float | None) -> str:
    """Whether the kernel may be a default: only one that beats both may."""
    if torch_over_triton is None:
        return "not measured"
    if torch_over_triton <= 1:
        return "not"
    if compile_over_triton is None:
        return "faster than torch; torch.compile failed"
    return "faster than both" if compile_over_triton > 1 else "not"


# ------------------------------------------------------------------------------------------------ output


def table_of(results: Mapping[str, Result], bench: Bench) -> Table:
    """One line per case."""
    beside = "sizes are tiny: values only" if bench.copy_rate is None else f"a copy moves {bench.copy_rate / 1e12:.2f} TB/s"
    table = Table(title=f"Triton kernels and plain torch, microseconds a call; {beside}")
    table.add_column("case")
    for column in ("from float64", *WAYS, "torch/triton", "compile/triton", "pointers/descriptors", "peak MB", "torch's", "of copy"):
        table.add_column(column, justify="right")
    table.add_column("default")
    for name, result in results.items():
        table.add_row(name, *cells(result))
    return table


def cells(result: Result) -> list[str]:
    """A line of the table after the case's name."""
    if not result["checked"]:
        return ["DIFFER"] + ["-"] * 12
    microseconds = {name: None if x is None else 1e6 * x for name, x in result["seconds"].items()}
    return [
        f"{max(result['errors'].values()):.0e}",
        *(number(x, ".1f", "not measured" if name == "triton" else "-") for name, x in microseconds.items()),
        number(result["torch_over_triton"], ".2f"),
        number(result["compile_over_triton"], ".2f"),
        number(result["pointers_over_descriptors"], ".2f"),
        number(result["peak_mb"]["triton"], ".4g"),
        number(result["peak_mb"]["torch"], ".4g"),
        number(result["fraction_of_copy"], ".0%"),
        result["default"],
    ]


# --------------------------------------------------------------------------------------------- the run


def chosen(patterns: list[str], quick: bool) -> list[Case]:
    """The cases of a run: those named, or the quick ones, or all."""
    known = all_cases()
    found = {pattern: fnmatch.filter(known, pattern) for pattern in patterns}
    if unknown := [pattern for pattern, names in found.items() if not names]:
        raise typer.BadParameter(f"{unknown[0]!r} is no case; the cases are {', '.join(known)}.", param_hint="--case")
    if patterns:
        return [case for name, case in known.items() if any(name in names for names in found.values())]
    return [case for case in known.values() if case.quick or not quick]


def prepared(name: str) -> Bench:
    """A bench on a device where the kernels can run."""
    if name not in ("cuda", "cpu"):
        raise typer.BadParameter(f"{name!r}; expected cuda or cpu.", param_hint="--device")
    interpreted = triton.knobs.runtime.interpret
    if name == "cpu":
        if not interpreted:
            raise typer.BadParameter("on a CPU the kernels are interpreted: set TRITON_INTERPRET=1.", param_hint="--device")
        return Bench(torch.device("cpu"), times_kernels=False, rounds=3)
    if not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device here; `--device cpu` checks values at tiny sizes.", param_hint="--device")
    if interpreted:
        raise typer.BadParameter("cuda, and TRITON_INTERPRET is set: unset it, or the kernels are interpreted.", param_hint="--device")
    device = torch.device("cuda")
    bench = Bench(device, times_kernels=True, flush=torch.empty(FLUSHED, dtype=torch.uint8, device=device))
    return replace(bench, copy_rate=copy_rate(bench))


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="One size of every operation.")] = False,
    out: Annotated[Path | None, typer.Option("--json", help="Write the figures here, after every case.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu checks values at tiny sizes.")] = "cuda",
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case, or a pattern of *; may be given again.")] = None,
) -> None:
    """Check every kernel, then time it against plain torch and torch.compile. Exits 1 where values differ."""
    console, cases, bench = wide_console(), chosen(case or [], quick), prepared(device)
    results: dict[str, Result] = {}
    for one in cases:
        results[one.name] = run_case(one if bench.times_kernels else one.tiny(), bench)
        tell(console, one.name, results[one.name])
        if out is not None:
            write(out, results)
        gc.collect()  # compiled code has cycles, which hold tensors
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    console.print(table_of(results, bench))
    end(console, results)


def tell(console: Console, name: str, result: Result) -> None:
    """A few lines on a case as soon as it is done: what failed, what was wrong."""
    console.print(f"[bold]{name}[/]: {result['what']}")
    for fault in result.get("faults", []):
        console.print(f"  [red]{fault}[/]", highlight=False)
    for way, why in result["failed"].items():
        console.print(f"  {way} failed: {why}", markup=False)
