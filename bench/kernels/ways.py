"""The ways to the result of one operation, made and held against float64, by ‖got - want‖ / ‖want‖ of each tensor.

    torch            the operation with impl="reference"
    torch.compile    the same function compiled
    triton           the operation with impl="triton"
    descriptors      the same with tiles by tensor descriptors, where the kernel knows them
    cuda_graph       the call of "triton" captured and replayed

A way that cannot be made is no fault, unless it is the kernel or its reference.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.kernels.cases import Attention, Case, Results, Tensors

BOUNDS = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
"""Relative Frobenius errors that pass: two to three times what rounding the result and every operand of a product costs."""

TF32 = 3e-3
"""The same where the operands of float32 products are rounded to 11 bits."""

WAYS = ("torch", "torch.compile", "triton", "descriptors", "cuda_graph")
KERNELS = ("triton", "descriptors")
"""The ways whose kernels are interpreted where there is no GPU."""

Run = Callable[[], Any]


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


def check(case: Case, device: torch.device, graphs: bool) -> Checked:
    """Make every way of a case, run it once and compare what it gives; `graphs`: with CUDA graphs."""
    try:
        tensors = case.tensors(device)
        want = named(case.function("reference")(*(x.double() if x.is_floating_point() else x for x in tensors)))
    except Exception as error:
        return Checked({}, {}, {}, [f"float64 reference: {first_line(error)}"])
    ways: dict[str, Run] = {}
    errors, failed, faults = dict[str, float](), dict[str, str](), list[str]()
    least_bytes, before = None, compiled_graphs()
    for name, make in makers(case, tensors, graphs).items():
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
        bound = TF32 if case.precision == "tf32" else BOUNDS[case.dtype]
        faults += [f"{name}: {part} is {x:.1e} from float64; the bound is {bound:.0e}" for part, x in distances.items() if not x <= bound]
        if name == "torch":
            least_bytes = case.least_bytes(tensors, got)
    return Checked(ways, errors, failed, faults, least_bytes, compiled_graphs() - before)


# -------------------------------------------------------------------------------------------------- ways


def makers(case: Case, tensors: Tensors, graphs: bool) -> dict[str, Callable[[], Run]]:
    """How each way of a case is made; making one may fail."""
    plain, fast = (partial(case.function(impl), *tensors) for impl in ("reference", "triton"))
    made: dict[str, Callable[[], Run]] = {
        "torch": lambda: plain,
        "torch.compile": lambda: compiled(case, tensors),
        "triton": lambda: fast,
    }
    if (other := case.by_descriptors()) is not None:
        made["descriptors"] = lambda: described(other, tensors)
    if graphs and not case.waits_for_host:
        made["cuda_graph"] = lambda: captured(fast)
    return {name: partial(rounding, make) for name, make in made.items()} if case.precision == "tf32" else made


def described(case: Attention, tensors: Tensors) -> Run:
    """The kernel with tiles by descriptors.

    Raises:
        RuntimeError: where there are none, so that its time would be that of pointers.
    """
    from attrib_kernels.descriptors import describable  # imports triton

    if not describable(*case.tiled(tensors)):
        raise RuntimeError("no tensor descriptors of these tensors here")
    return partial(case.function("triton"), *tensors)


def rounding(make: Callable[[], Run]) -> Run:
    """A way that is made, and then called, while torch rounds the operands of its own float32 products to TF32."""

    def rounded(run: Run) -> Any:
        matmul = torch.backends.cuda.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            return run()
        finally:
            matmul.fp32_precision = before

    return partial(rounded, rounded(make))


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
