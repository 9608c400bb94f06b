"""The steps of the first day. Each gives its figures, and what is wrong in words; `bench/gpu.sh` runs each in a process of its own."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import attrib
from attrib.core.rates import RATES
from attrib.core.types import LINEAR, Dense, Policy, Site, TopK, TopLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.sweep import cells
from attrib.graph.building import build as build_graphs
from attrib.graph.building import plan as plan_graphs
from attrib.models.transformer import Model
from bench.engine.cases import GIB, Problem, across_layers, latents_to_logits, prompt, tokens_to_latents
from bench.engine.check import TOLERANCES, distance
from bench.engine.launches import CASES, SMALL, counted, of_k
from bench.engine.ours import Dtype, Engine, attribute
from bench.engine.weights import GPT2, Shape, random_model, random_transcoder
from bench.gpu.place import NOT_MEASURED, POLICIES, Place
from bench.gpu.rates import floor_seconds
from bench.measure import peak, timed
from tests.support.pretend import Count

Figures = dict[str, Any]


@dataclass
class Found:
    """What a step finds."""

    figures: Figures = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """Empty where all is right."""

    def compare(self, name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
        """Note how far values are from others, relative to these."""
        if got.shape != want.shape:
            self.faults.append(f"{name}: {list(got.shape)} values, and {list(want.shape)} on the CPU")
            return
        self.figures[name] = apart = distance(got, want)
        if not apart <= tolerance:
            self.faults.append(f"{name}: {apart:.1e} from the CPU's float64, tolerance {tolerance:.0e}")


# ------------------------------------------------------------------------------------- values


def _graph_of(shape: Shape, n_layers: int, positions: int, d_sae: int, active: int) -> tuple[Model, list[Dictionary], Tensor]:
    """A model whose MLPs are all replaced by transcoders, and a prompt."""
    model, ids = random_model(shape, n_layers), prompt(shape.d_vocab, positions)
    sites = [Site(layer, "mlp_in") for layer in range(n_layers)]
    seen = attrib.capture(model, ids, sites)
    return model, [random_transcoder(at, (Site(at.layer, "mlp_out"),), d_sae, active, seen[at], at.layer) for at in sites], ids


Call = Callable[[torch.device, str, Engine], Tensor]
"""All numbers of a result, from a device, a dtype and a method."""


def _calls(place: Place) -> Iterator[tuple[str, Call]]:
    """Every kind of question, small."""
    positions, d_sae = (32, 1024) if place.is_real else (4, 48)
    many = dict[str, Any](d_sae=d_sae, active=4)
    problems: dict[str, Problem] = {f"latents, {name}": place.small(policy) for name, policy in POLICIES.items()}
    problems["tokens"] = tokens_to_latents(SMALL, 2, positions, **many)
    problems["logits"] = latents_to_logits(SMALL, 1, 3, positions, k=5, **many)
    problems["cuts"] = across_layers(SMALL, 3, positions, **many)
    for name, problem in problems.items():
        yield name, partial(_of_problem, problem)
    graph = _graph_of(SMALL, 3, positions, d_sae, 3)
    yield "a graph", partial(_of_graph, *graph)


def _of_problem(problem: Problem, device: torch.device, dtype: Any, method: Engine) -> Tensor:
    return attribute(problem.to(device), method, dtype).dense()


def _of_graph(model: Model, cuts: list[Dictionary], ids: Tensor, device: torch.device, dtype: str, method: Engine) -> Tensor:
    options: dict[str, Any] = {"targets": TopLogits(2), "keep": Dense(), "dtype": dtype, "method": method, "device": device}
    (found,) = build_graphs(model, cuts, ids, **options)
    whole = torch.zeros(len(found.targets), len(found.nodes), dtype=torch.float64)
    row = torch.arange(len(found.targets)).repeat_interleave(found.indptr.diff())
    return whole.index_put((row, found.indices), found.weight.double())


def parity(place: Place) -> Found:
    """Every kind of question in every precision with every method, beside the CPU in float64."""
    found = Found()
    for name, call in _calls(place):
        want = call(torch.device("cpu"), "float64", "adjoint")
        for dtype in place.dtypes:
            for method in place.methods:
                with _guarded(found, f"{name}, {dtype}, {method}"):
                    found.compare(f"{name}, {dtype}, {method}", call(place.device, dtype, method), want, TOLERANCES[dtype])
        if "adjoint-triton" not in place.methods:
            found.figures[f"{name}, adjoint-triton"] = NOT_MEASURED
    return found


@contextmanager
def _guarded(found: Found, name: str) -> Iterator[None]:
    """Have what fails named as a fault, and the others done."""
    try:
        yield
    except Exception as error:
        found.faults.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


# ------------------------------------------------------------------------------------- budgets


def budgets(place: Place) -> Found:
    """The named case in several budgets: the same values, and what it takes of memory and time."""
    found = Found()
    for policy_name, policy in POLICIES.items():
        problem, first = place.latents(policy).to(place.device), None
        for budget in place.budgets:
            name = f"{policy_name}, " + (f"{budget >> 30} GiB" if budget >= GIB else f"{budget >> 20} MiB")
            with _guarded(found, name):
                run = partial(_kept, replace(problem, budget=budget), {})
                edges = run()  # which is also the warm-up
                first = edges.total if first is None else first
                found.compare(f"{name}: from the first", edges.total, first, TOLERANCES["float32"])
                found.figures[f"{name}: plan"] = str(_planned(problem, budget))
                if not place.is_real:
                    found.figures[name] = NOT_MEASURED
                    continue
                _, held = peak(run, place.device)
                seconds = median(timed(run, place.device)[1].seconds for _ in range(3))
                found.figures[name] = {"seconds": seconds, "peak_bytes": held}
                if held > 1.05 * budget:
                    found.faults.append(f"{name}: it took {held / GIB:.2f} GiB")
    return found


def _kept(problem: Problem, options: Mapping[str, Any]) -> attrib.Edges:
    """Edges of a problem between latents of which few are kept."""
    assert problem.source is not None
    assert isinstance(problem.target, attrib.Dictionary)
    return attrib.latent_to_latent(
        problem.model, problem.source, problem.target, problem.tokens, policy=problem.policy, keep=TopK(20), budget=problem.budget,
        precision_rows=0, **options,
    )  # fmt: skip


def _planned(problem: Problem, budget: int) -> attrib.Plan:
    assert problem.source is not None
    return attrib.plan(problem.model, problem.source, problem.target, problem.tokens, policy=problem.policy, keep=TopK(20), budget=budget)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- launches


def launches(place: Place) -> Found:
    """What the profiler counts of small calls, beside what the device that is not there predicts."""
    from torch.profiler import ProfilerActivity, profile

    found = Found()
    for name in [name for name in CASES if name.startswith("small")]:
        if not place.is_real:
            found.figures[name] = {"predicted": NOT_MEASURED, "counted": NOT_MEASURED}
            found.figures[f"{name}, tiny"] = _asked(place, POLICIES[name.partition("-")[2]])
            continue
        problem = CASES[name].build()
        _, counts = counted(problem, 16 * GIB)
        there = replace(problem.to(place.device), budget=16 * GIB)
        _kept(there, {})
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as events:
            _kept(there, {})
            place.synchronize()
        called = {event.key: event.count for event in events.key_averages()}
        total, asked = counts.total, ("cudaLaunchKernel", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpyAsync")
        found.figures[name] = _predicted(total) | {
            key: sum(count for event, count in called.items() if event.startswith(key)) for key in asked
        }
        if not found.figures[name]["cudaLaunchKernel"]:
            found.faults.append(f"{name}: the profiler saw no launch, so nothing is compared")
    return found


def _asked(place: Place, policy: Policy) -> Figures:
    problem = place.latents(policy).to(place.device)
    place.pretended.begin()
    _kept(problem, {})
    return _predicted(place.pretended.counts.total)


def _predicted(total: Count) -> Figures:
    return {"predicted_launches": total.launches, "predicted_waits": total.waits, "predicted_events": total.events}


# ------------------------------------------------------------------------------------- replays


def replays(place: Place) -> Found:
    """Prompts of one shape, whose sweeps are captured and replayed: the values of sweeps that are asked for, and the time of both."""
    found = Found()
    for name, given, k in (("small", place.small(LINEAR), 8), ("the named case", place.latents(LINEAR), 50)):
        problem = replace(of_k(given, k if place.is_real else 3).to(place.device), budget=place.budgets[-1] if place.is_real else GIB)
        tokens = [problem.tokens.roll(number) for number in range(24 if place.is_real else 4)]
        both = {what: partial(_of_prompts, problem, tokens, what == "replayed") for what in ("asked", "replayed")}
        # each prompt by itself, as those of a large model are: small ones share packs, which saves the same
        with (
            _guarded(found, name),
            patch.object(cells, "ON_CUDA", cells.ON_CUDA._replace(pack=1)),
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            found.compare(f"{name}: from those asked for", both["replayed"]().total, both["asked"]().total, TOLERANCES["float32"])
            found.faults += [f"{name}: {each.message}" for each in said if "replay" in str(each.message)]
            if place.is_real:
                times = {what: median(timed(run, place.device)[1].seconds for _ in range(5)) for what, run in both.items()}
                found.figures[name] = times | {"replayed_over_asked": times["replayed"] / times["asked"]}
            else:
                found.figures[name] = NOT_MEASURED
    return found


def _of_prompts(problem: Problem, tokens: list[Tensor], replay: bool) -> attrib.Edges:
    assert problem.source is not None
    assert isinstance(problem.target, attrib.Dictionary)
    return attrib.latent_to_latent(
        problem.model, problem.source, problem.target, tokens, policy=problem.policy, keep=TopK(20), budget=problem.budget, replay=replay
    )


# ------------------------------------------------------------------------------------- asking

ASKED, ROUNDS = 500, 21
"""Operations of one sample, fewer than a queue holds, so that the host is not held up; and samples."""


def asking(place: Place) -> Found:
    """Seconds that the host takes to ask for an operation, and to wait for a number: what `attrib.core.rates` has for this GPU."""
    found = Found()
    if not place.is_real:
        found.figures |= {"launch": NOT_MEASURED, "wait": NOT_MEASURED}
        return found
    number = torch.zeros(1, device=place.device)

    def seconds(ask: Callable[[], object]) -> float:
        samples = []
        for _ in range(ROUNDS):
            place.synchronize()
            begun = time.perf_counter()
            for _ in range(ASKED):
                ask()
            samples.append((time.perf_counter() - begun) / ASKED)
        return median(samples[1:])

    launch = seconds(lambda: number.add_(1))
    found.figures |= {"launch": launch, "wait": seconds(lambda: number.add_(1).item()) - launch}
    rates = RATES.get(place.name)
    found.figures["in the table"] = "not this GPU" if rates is None else {"launch": rates.launch, "wait": rates.wait}
    return found


# ------------------------------------------------------------------------------------- kernels


def kernels(place: Place) -> Found:
    """The Triton kernels beside plain torch: `bench.kernels --quick`."""
    found = Found()
    if not place.is_real:
        found.figures["kernels"] = NOT_MEASURED
        return found
    from bench.kernels import run

    bench = run.prepared("cuda")
    for case in run.chosen([], quick=True):
        with _guarded(found, case.name):
            found.figures[case.name] = result = run.run_case(case, bench)
            found.faults += [f"{case.name}: {fault}" for fault in result.get("faults", [])]
        torch.cuda.empty_cache()
    return found


# ------------------------------------------------------------------------------------- too little memory


def memory(place: Place) -> Found:
    """Prompts on a device that is made too small: the same values in halves, or an error that says so; and all is well afterwards."""
    found, problem = Found(), place.latents(LINEAR).to(place.device)
    want, taken = _taken(place, problem, None)
    ended = 0
    for share in (0.8, 0.5, 0.1):
        with _guarded(found, f"{share:g} of the memory"), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                edges, _ = _taken(place, problem, int(share * taken))
            except attrib.OutOfMemoryError as error:
                found.figures[f"{share:g} of the memory"] = f"refused: {str(error)[:120]}"
                ended += 1
                continue
            found.figures[f"{share:g} of the memory"] = "; ".join(str(each.message) for each in said) or "went on"
            found.compare(f"{share:g} of the memory: from the first", edges.total, want.total, TOLERANCES["float32"])
    if not ended:
        found.faults.append("a tenth of the memory was enough, so nothing was forced")
    with _guarded(found, "afterwards"):
        found.compare("afterwards", _taken(place, problem, None)[0].total, want.total, TOLERANCES["float32"])
    return found


def _taken(place: Place, problem: Problem, limit: int | None) -> tuple[attrib.Edges, int]:
    """Edges where so many bytes are there beside what is held, and the bytes that were taken."""
    run = partial(_kept, replace(problem, budget=place.budgets[-1]), {})
    if not place.is_real:
        device = place.pretended
        before = device.held
        device.begin()
        device.limit = None if limit is None else before + limit
        try:
            return run(), device.counts.peak - before
        finally:
            device.limit = None
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(place.device).total_memory
    share = 1.0 if limit is None else (torch.cuda.memory_reserved(place.device) + limit) / whole
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), place.device)
    try:
        return peak(run, place.device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, place.device)


# ------------------------------------------------------------------------------------- the floor


def floor(place: Place) -> Found:
    """Times of the named cases, and of a graph, beside the least that the GPU could take."""
    found = Found()
    for name, policy in POLICIES.items():
        given = place.latents(policy)
        plan = _planned(given, place.budgets[1])
        problem = replace(given.to(place.device), budget=place.budgets[1])
        for dtype in place.dtypes:
            for method in place.methods:
                with _guarded(found, f"{name}, {dtype}, {method}"):
                    run = partial(_kept, problem, {"dtype": dtype, "method": method})
                    found.figures[f"{name}, {dtype}, {method}"] = _beside(place, run, dtype, plan)
    shape, n_layers, positions, d_sae, active = (GPT2, 12, 32, 4096, 20) if place.is_real else (SMALL, 2, 4, 48, 3)
    model, cuts, ids = _graph_of(shape, n_layers, positions, d_sae, active)
    plan = plan_graphs(model, cuts, ids, keep=TopK(100), budget=place.budgets[1])
    there, those = model.to(device=place.device), [cut.to(device=place.device) for cut in cuts]
    for dtype in place.dtypes:
        with _guarded(found, f"a graph, {dtype}"):
            run_graph = partial(build_graphs, there, those, ids, keep=TopK(100), budget=place.budgets[1], dtype=dtype)
            found.figures[f"a graph, {dtype}"] = _beside(place, run_graph, dtype, plan)
    return found


def _beside(place: Place, run: Callable[[], Any], dtype: Dtype, plan: attrib.Plan) -> Figures:
    """The time of a call and the least; the plan's operations, and bytes of operands and results."""
    size = sum(plan.bytes_by_part.values())
    least = floor_seconds(place.name, dtype, plan.flops, size)
    figures: Figures = {"flops": plan.flops, "bytes": size, "floor_seconds": "no floor known" if least is None else least}
    run()
    if not place.is_real:
        return figures | {"seconds": NOT_MEASURED, "over_floor": NOT_MEASURED}
    run()
    seconds = median(timed(run, place.device)[1].seconds for _ in range(5))
    return figures | {"seconds": seconds, "over_floor": "no floor known" if least is None else seconds / least}


STEPS: dict[str, Callable[[Place], Found]] = {
    "parity": parity, "budgets": budgets, "launches": launches, "replays": replays, "asking": asking, "kernels": kernels, "memory": memory,
    "floor": floor,
}  # fmt: skip
