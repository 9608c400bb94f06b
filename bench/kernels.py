"""`python -m bench.kernels`: the Triton kernels beside plain torch and torch.compile. See bench/README.md, "Kernels".

Values come first: every way to a result is held against float64, by ‖got - want‖ / ‖want‖ of each tensor. Then all
ways are timed in turns. The time of a way is that of enough calls in a row, divided by their number.
"""

import fnmatch
import gc
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
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

from bench.kernel_cases import Case, Results, Tensors, all_cases, dtype_name
from bench.measure import Time, medians, peak, timed

BOUNDS = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
"""Relative Frobenius errors that pass: two to three times what rounding the result and every operand of a product costs."""

FLUSHED = 256 * 2**20
"""Bytes written before each timing, more than a last-level cache holds: a timing does not begin with its tensors there."""

COPIED = 2**30
"""Bytes of the copy that bandwidth is measured by."""

MOST_CALLS = 1000
"""In one timing."""

WAYS = ("torch", "torch.compile", "triton", "cuda_graph")

Run = Callable[[], Any]
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


def first_line(error: Exception) -> str:
    """The kind of an exception and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


# ------------------------------------------------------------------------------------------------ values


def named(result: Any) -> Results:
    """The tensors of a result by name."""
    if isinstance(result, Tensor):
        return {"result": result}
    return {name: x for name, x in result._asdict().items() if x is not None}


def apart(got: Tensor, want: Tensor, dtype: torch.dtype) -> float:
    """Relative Frobenius error against float64; infinite for another shape or dtype, NaN, other integers, or zeros alone."""
    if got.shape != want.shape or got.dtype != (dtype if want.is_floating_point() else want.dtype):
        return torch.inf
    if not want.is_floating_point():
        return 0.0 if torch.equal(got, want) else torch.inf
    error = ((got.double() - want).norm() / want.norm()).item()
    return error if error == error else torch.inf


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory is full of NaN: what a kernel leaves out must not be the right result of a way that ran before it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of operations that have no deterministic form
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@dataclass(frozen=True)
class Checked:
    """The ways of a case that run, how far each is from float64, and what went wrong, in words."""

    ways: Mapping[str, Run]
    errors: Mapping[str, float]
    failed: Mapping[str, str]
    faults: list[str]
    least_bytes: int | None = None
    compiled_graphs: int = 0


def check(case: Case, bench: Bench) -> Checked:
    """Make every way of a case, run it once and compare what it gives."""
    try:
        tensors = case.tensors(bench.device)
        want = named(case.function("reference")(*(x.double() if x.is_floating_point() else x for x in tensors)))
    except Exception as error:
        return Checked({}, {}, {}, [f"float64 reference: {first_line(error)}"])
    ways: dict[str, Run] = {}
    errors, failed, faults = dict[str, float](), dict[str, str](), list[str]()
    least_bytes, graphs = None, compiled_graphs()
    for name, make in makers(case, tensors, bench).items():
        try:
            run = make()
            with poisoned() if name == "triton" else nullcontext():
                got = named(run())
            distances = {part: apart(got[part], x, case.dtype) for part, x in want.items()}
        except Exception as error:
            failed[name] = first_line(error)
            if name in ("torch", "triton"):
                faults.append(f"{name} failed: {failed[name]}")
            continue
        ways[name], errors[name] = run, max(distances.values())
        bound = BOUNDS[case.dtype]
        faults += [f"{name}: {part} is {x:.1e} from float64; the bound is {bound:.0e}" for part, x in distances.items() if not x <= bound]
        if name == "torch":
            least_bytes = case.least_bytes(tensors, got)
    return Checked(ways, errors, failed, faults, least_bytes, compiled_graphs() - graphs)


# -------------------------------------------------------------------------------------------------- ways


def makers(case: Case, tensors: Tensors, bench: Bench) -> dict[str, Callable[[], Run]]:
    """How each way of a case is made; making one may fail."""
    plain, fast = (partial(case.function(impl), *tensors) for impl in ("reference", "triton"))
    made: dict[str, Callable[[], Run]] = {
        "torch": lambda: plain,
        "torch.compile": lambda: compiled(case, tensors),
        "triton": lambda: fast,
    }
    if bench.times_kernels and not case.waits_for_host:
        made["cuda_graph"] = lambda: captured(fast)
    return made


def compiled(case: Case, tensors: Tensors) -> Run:
    """The reference through torch.compile, compiled here.

    What was compiled before is forgotten first: all cases have their code in common, and after eight shapes of one
    code torch.compile runs the next as it is, with a warning.

    Raises:
        RuntimeError: where nothing was compiled, so that its time would be plain torch's.
    """
    torch.compiler.reset()
    before = compiled_graphs()
    run = partial(torch.compile(case.function("reference"), dynamic=False), *tensors)
    run()
    if compiled_graphs() == before:
        raise RuntimeError("torch.compile made no graph of the reference")
    return run


def compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters  # seconds to import

    return int(counters["stats"]["unique_graphs"])


def captured(run: Run) -> Run:
    """A call as a CUDA graph: the launches of its kernels are recorded once, and replayed by one call.

    Its results lie in the graph's own memory; they are filled with NaN, and are right after a replay.
    """
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):  # a capture must not be the first to launch a kernel
        for _ in range(3):
            run()
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    for x in named(result).values():
        x.fill_(torch.nan)

    def replay() -> Any:
        graph.replay()
        return result

    return replay


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
    checked = check(case, bench)
    device = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else f"{os.cpu_count()}-core CPU"
    figures = measured(checked, bench) if not checked.faults else dict.fromkeys(FIGURES)
    return {
        "what": case.what,
        "device": device,
        "dtype": dtype_name(case.dtype),
        "versions": f"torch {torch.__version__}, triton {triton.__version__}",
        "checked": not checked.faults,
        **({"faults": checked.faults} if checked.faults else {"errors": dict(checked.errors)}),
        "failed": dict(checked.failed),
        "compiled_graphs": checked.compiled_graphs,
        **figures,
    }


FIGURES = (
    *("seconds", "spread", "torch_over_triton", "compile_over_triton", "default", "peak_mb"),
    *("least_bytes", "bytes_per_s", "copy_bytes_per_s", "fraction_of_copy"),
)
"""What a case whose values differ does not have."""


def measured(checked: Checked, bench: Bench) -> Result:
    """The figures of a case; None where something was not measured."""
    ways = {name: run for name, run in checked.ways.items() if bench.times_kernels or name != "triton"}
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


def number(value: float | None, form: str, nothing: str = "-") -> str:
    """A figure, or what stands for none."""
    return nothing if value is None else format(value, form)


def table_of(results: Mapping[str, Result], bench: Bench) -> Table:
    """One line per case."""
    end = "sizes are tiny: values only" if bench.copy_rate is None else f"a copy moves {bench.copy_rate / 1e12:.2f} TB/s"
    table = Table(title=f"Triton kernels and plain torch, microseconds a call; {end}")
    table.add_column("case")
    for column in ("from float64", *WAYS, "torch/triton", "compile/triton", "peak MB", "torch's", "of copy"):
        table.add_column(column, justify="right")
    table.add_column("default")
    for name, result in results.items():
        table.add_row(name, *cells(result))
    return table


def cells(result: Result) -> list[str]:
    """A line of the table after the case's name."""
    if not result["checked"]:
        return ["DIFFER"] + ["-"] * 10
    microseconds = {name: None if x is None else 1e6 * x for name, x in result["seconds"].items()}
    return [
        f"{max(result['errors'].values()):.0e}",
        *(number(x, ".1f", "not measured" if name == "triton" else "-") for name, x in microseconds.items()),
        number(result["torch_over_triton"], ".2f"),
        number(result["compile_over_triton"], ".2f"),
        number(result["peak_mb"]["triton"], ".4g"),
        number(result["peak_mb"]["torch"], ".4g"),
        number(result["fraction_of_copy"], ".0%"),
        result["default"],
    ]


def write(path: Path, results: Mapping[str, Result]) -> None:
    """Write JSON so that a reader sees the whole of it or what was there before."""
    text = json.dumps(results, indent=1, allow_nan=False)  # before anything is touched
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    beside.replace(path)


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
    console = Console(width=None if Console().is_terminal else 200)
    cases, bench = chosen(case or [], quick), prepared(device)
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
    if wrong := [name for name, result in results.items() if not result["checked"]]:
        console.print(f"[bold red]Values differ: {', '.join(wrong)}.[/] These cases have no figures.")
        raise typer.Exit(1)


def tell(console: Console, name: str, result: Result) -> None:
    """A few lines on a case as soon as it is done: what failed, what was wrong."""
    console.print(f"[bold]{name}[/]: {result['what']}")
    for fault in result.get("faults", []):
        console.print(f"  [red]{fault}[/]", highlight=False)
    for way, why in result["failed"].items():
        console.print(f"  {way} failed: {why}", markup=False)


if __name__ == "__main__":
    app()
