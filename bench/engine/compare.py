"""One case from beginning to end: every way computed once and compared, then timed in turns, then written down.

The ways that are too slow to compute whole are computed on a random sample of rows of one chunk's size, and
the time of those rows is scaled to all of them; what is done once is not scaled. Plain torch.func over
attrib's path takes the rows of the middle positions in place of random ones: its cost grows with the position.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.edges import Edges
from attrib.core.types import AttribError
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.precision import precision_of, products
from bench.engine import ours, recipes
from bench.engine.cases import GIB, Case, Problem
from bench.engine.check import Check, agree
from bench.engine.ours import Dtype, Engine, Plan, read_plan
from bench.engine.recipes import Way
from bench.measure import ProductRate, Time, device_name, flops, medians, peak, timed

MOST_ROUNDS = 10

Result = dict[str, Any]
"""What is written as JSON; docs in bench/README.md."""

SHARED_ROWS = 8
"""Rows of the random sample that lie at the sampled positions, so that every two ways can be compared."""

WHOLE = 4096
"""Rows times layers up to which torch.func computes all rows through cuts."""

NOTEBOOKS = ("notebook_as_written", "notebook_chunked", "autograd_batched")
"""The ways that differentiate the notebook's function."""


@dataclass(frozen=True)
class Options:
    """How a case is measured."""

    device: torch.device
    method: Engine = ours.METHOD
    dtype: Dtype = "float32"
    """What attrib's sweeps multiply in. The alternatives are float32."""
    rounds: int = 3
    slow_rounds: int = 2
    """Rounds of the notebook recipe in chunks, which ratios are against."""
    other_rounds: int = 1
    """Rounds of the other alternatives."""
    enough_s: float = 2.0
    """attrib or the notebook goes on to MOST_ROUNDS while its runs took less than this together: short runs vary more."""
    other_enough_s: float = 1.0
    """The same for the other alternatives."""
    as_written_limit: int = 4 * GIB
    """Bytes of dense tensors up to which the notebook recipe is run as written."""
    seed: int = 0


# ------------------------------------------------------------------------------------------- samples


def middle_positions(positions: int, count: int) -> list[int]:
    """About `count` positions in the middle: their prefixes are of mean length, and they share sweeps as neighbours do."""
    first = max((positions - count) // 2, 0)
    return list(range(first, positions - first))


def sample_rows(of: int, count: int, shared: Int[Tensor, " candidates"], generator: torch.Generator) -> Int[Tensor, " rows"]:
    """`count` random rows, a few of them among `shared`; all of them where there are no more."""
    if count >= of:
        return torch.arange(of)
    first = shared[torch.randperm(len(shared), generator=generator)[: min(SHARED_ROWS, count)]]
    rest = torch.randperm(of, generator=generator)
    rest = rest[~torch.isin(rest, first)]
    return torch.cat([first, rest[: count - len(first)]]).sort().values


# -------------------------------------------------------------------------------------------- the ways


def other_ways(problem: Problem, targets: Int[Tensor, "targets 2"], options: Options) -> tuple[dict[str, Way], dict[str, str]]:
    """The alternatives by name, and why any is left out."""
    of = len(targets)
    generator = torch.Generator().manual_seed(options.seed)
    between_latents = problem.source is not None and isinstance(problem.target, Dictionary)
    # the ends with few sources or few targets are cheap enough to compute whole
    is_sampled = of * problem.layers > WHOLE if problem.is_cut else between_latents
    positions = middle_positions(len(problem.tokens), 4) if is_sampled else None
    plain = recipes.through_attrib(problem, "torch.func", "float32", targets, positions)
    if problem.is_cut:
        return {"torch_func": plain}, dict.fromkeys(NOTEBOOKS, "the notebook's function has nothing put in on the way")
    chunk = recipes.chunk_of(problem, GIB)
    rows = sample_rows(of, chunk, plain.place, generator)
    ways = {
        "notebook_chunked": recipes.chunked(problem, rows, of, chunk),
        "autograd_batched": recipes.autograd_batched(problem, rows, of, chunk),
        "torch_func": plain,
    }
    needs = of * recipes.row_bytes(problem)
    if needs <= options.as_written_limit:
        return ways | {"notebook_as_written": recipes.as_written(problem, of)}, {}
    why = f"dense tensors of {needs / GIB:.1f} GiB for {of} targets at once; the limit is {options.as_written_limit / GIB:.1f} GiB"
    return ways, {"notebook_as_written": why}


# -------------------------------------------------------------------------------------------- one case


def run_case(case: Case, options: Options) -> Result:
    """Build, compare, and time a case whose values agree. One whose values do not has no figures."""
    problem = case.build().to(options.device)
    for hashed in (problem.model.fingerprint, *(d.fingerprint for d in problem.dictionaries)):
        assert hashed  # hashed once per object and call: not part of what is measured
    about: Result = {
        "what": case.what,
        "axis": case.axis,
        "size": case.size,
        "device": device_name(options.device),
        "method": options.method,
        "dtype": options.dtype,
    }
    try:  # counting holds no tensor, and calls no other operation: the peak is that of a plain run
        (edges, counted), mine_peak = peak(lambda: flops(lambda: ours.attribute(problem, options.method, options.dtype)), options.device)
    except AttribError as error:
        return about | unmeasured(Check({}, [f"attrib: {error}"]))
    mine = recipes.through_attrib(problem, options.method, options.dtype, recipes.nodes(edges.targets))
    found, peaks = {"attrib": mine.read(None, edges)}, {"attrib": mine_peak}
    result_bytes = size_of(edges)
    del edges
    ways, skipped = other_ways(problem, found["attrib"].targets, options)
    skipped |= {name: f"timed in {other}" for name, other in case.elsewhere.items()}
    ways = {name: way for name, way in ways.items() if name not in skipped}
    for name, way in ways.items():
        computed, peaks[name] = peak(way.compute, options.device)
        found[name] = way.read(*computed)
        del computed
    check = agree(found, options.dtype)
    about |= {"sources": len(found["attrib"].sources), "targets": mine.of, "active": problem.active(), "skipped": skipped}
    del found
    if not check.passed:
        return about | unmeasured(check)
    if options.method == "adjoint-triton":  # torch does not see into its kernels: the same sweeps are counted without them
        _, counted = flops(lambda: ours.attribute(problem, "adjoint", options.dtype))
    precision = precision_of(problem.model, options.dtype)
    product = ProductRate(options.device, precision.sweep, partial(products, precision))
    times = take_turns({"attrib": mine} | ways, product, options)
    figures = alternatives({"attrib": mine} | ways, times, peaks)
    plan = read_plan(problem, options.dtype)
    return about | summary(figures, counted, product.rate, plan, result_bytes) | {"checked": True, "errors": check.errors}


def size_of(edges: Edges) -> int:
    """Bytes of a result."""
    parts = (edges.indptr, edges.indices, edges.gradient, edges.attribution, edges.total, edges.l1)
    return sum(part.numel() * part.itemsize for part in parts)


def take_turns(ways: dict[str, Way], product: ProductRate, options: Options) -> dict[str, Time]:
    """Median time of every way for all rows, with samples of the rate of matrix products between them.

    In each round every way that still has one runs once. All have run before, for their values.
    """
    device = options.device
    rounds = {"attrib": (options.rounds, options.enough_s), "notebook_chunked": (options.slow_rounds, options.enough_s)}
    others = options.other_rounds, options.other_enough_s
    times: dict[str, list[Time]] = {name: [] for name in ways}
    spent = dict.fromkeys(ways, 0.0)
    for number in range(MOST_ROUNDS):
        for name, way in ways.items():
            least, enough_s = rounds.get(name, others)
            if number < least or spent[name] < enough_s:
                product.sample()
                found, once = timed(partial(time_of, way, device), device)
                times[name].append(found)
                spent[name] += once.wall
    return {name: medians(found) for name, found in times.items()}


def time_of(way: Way, device: torch.device) -> Time:
    """The time of all rows: what is done once, and the rows computed, scaled."""
    opened, once = timed(way.open, device)
    _, rows = timed(lambda: way.run(opened), device)
    if way.repeats:
        rows = rows.plus(once.scaled(-1.0))
    return once.plus(rows.scaled((way.of - way.opened) / (len(way.place) - way.opened)))


# ------------------------------------------------------------------------------------- what is written


def unmeasured(check: Check) -> Result:
    """The keys of a case without figures. A distance that is no number is null in JSON; the faults say more."""
    nothing = dict.fromkeys(("ratio_vs_notebook", "flops_over_floor", "cpu_s", "peak_mb", "peak_ratio", "wall_over_ideal"))
    errors = {pair: error if math.isfinite(error) else None for pair, error in check.errors.items()}
    return nothing | {"checked": False, "faults": check.faults, "errors": errors}


def alternatives(ways: dict[str, Way], times: dict[str, Time], peaks: dict[str, int]) -> dict[str, Result]:
    """Figures of every way by itself."""
    return {
        name: {
            "cpu_s": times[name].cpu,
            "wall_s": times[name].wall,
            "gpu_s": times[name].gpu,
            "over_attrib": times[name].seconds / times["attrib"].seconds,
            "peak_mb": peaks[name] / 1e6,
            "rows": len(way.place),
            "of": way.of,
            "extrapolated": way.is_sample,
        }
        for name, way in ways.items()
    }


def summary(figures: dict[str, Result], counted: int, rate: float, plan: Plan, result_bytes: int) -> Result:
    """The figures of a case, attrib's at the top and everyone's under `alternatives`."""
    mine, notebook = figures["attrib"], figures.get("notebook_chunked")
    ideal = counted / rate

    def of(name: str, figure: str) -> Any:
        return figures[name][figure] if name in figures else None

    sampled = figures["torch_func"] if notebook is None else notebook

    spent = mine["wall_s"] if mine["gpu_s"] is None else mine["gpu_s"]
    return {
        "ratio_vs_notebook": of("notebook_chunked", "over_attrib"),
        "ratio_vs_torch_func": of("torch_func", "over_attrib"),
        "flops_over_floor": counted / plan.floor,
        "cpu_s": mine["cpu_s"],
        "wall_s": mine["wall_s"],
        "gpu_s": mine["gpu_s"],
        "peak_mb": mine["peak_mb"],
        "result_mb": result_bytes / 1e6,
        "flops": counted,
        "rate_gflops": rate / 1e9,
        "wall_over_ideal": spent / ideal,
        "notebook_cpu_s": of("notebook_chunked", "cpu_s"),
        "notebook_peak_mb": of("notebook_chunked", "peak_mb"),
        "peak_ratio": None if notebook is None else notebook["peak_mb"] / mine["peak_mb"],
        "torch_func_cpu_s": of("torch_func", "cpu_s"),
        "autograd_batched_cpu_s": of("autograd_batched", "cpu_s"),
        "rows": sampled["rows"],
        "of": sampled["of"],
        "extrapolated": sampled["extrapolated"],
        "alternatives": figures,
        "direction": plan.direction,
        "floor": plan.floor,
        "plan_flops": plan.flops,
        "flops_over_plan": counted / plan.flops,
        "plan_peak_mb": plan.peak / 1e6,
        "peak_over_plan": mine["peak_mb"] * 1e6 / plan.peak,
    }
