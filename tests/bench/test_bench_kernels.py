"""The bench of the kernels: values that differ or fail stop a case, and its figures are what they are called.

Kernels are interpreted here, so nothing says how fast they are; what only a GPU does is done by stand-ins.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook
from torch import Tensor
from typer.testing import CliRunner

from tests.support.kernel_device import DEVICE
from tests.support.root import ROOT

if DEVICE == "cuda":
    pytest.skip("kernels are interpreted in these tests; on a GPU run `python -m bench.kernels`", allow_module_level=True)
pytest.importorskip("triton")

from attrib_kernels.attention_adjoint import triton as attention_kernel

with install_import_hook("bench", "tests.support.checked.first_calls"):
    from bench.kernels import cases as kernel_cases
    from bench.kernels import run as kernels
    from bench.kernels import ways as kernel_ways
    from bench.kernels.cases import Attention, Case, Compact, ReadOut
    from bench.kernels.run import Bench
    from bench.measure import Time

CPU = torch.device("cpu")
ONCE = Bench(CPU, times_kernels=False, rounds=1, enough_s=0.0)

F32, BF16 = torch.float32, torch.bfloat16
TANGENT = Attention(name="a", dtype=F32, kind="tangent", positions=3, rows=2, heads=2, kv_heads=1, d_head=5)
DESCRIBED = Attention(name="a", dtype=BF16, kind="tangent", positions=3, rows=2, heads=2, kv_heads=1, d_head=8)
CASES: dict[str, Case] = {
    "adjoint": Attention(name="a", dtype=F32, kind="adjoint", positions=7, rows=3, heads=3, kv_heads=1, d_head=10),
    "tangent": Attention(name="a", dtype=BF16, kind="tangent", positions=7, rows=3, heads=4, kv_heads=2, d_head=10),
    "frozen": Attention(name="a", dtype=F32, kind="frozen", positions=3, rows=2, heads=2, kv_heads=2, d_head=5),
    "small": TANGENT,
    "compact": Compact(name="c", dtype=BF16, rule="threshold", rows=5, columns=33, positions=3),
    "mass": Compact(name="c", dtype=F32, rule="mass", rows=5, columns=33, positions=3),
    "dense": Compact(name="c", dtype=BF16, rule="dense", rows=5, columns=7, positions=3),
    "topk": Compact(name="c", dtype=F32, rule="topk", rows=5, columns=70, positions=3),
    "read out": ReadOut(name="r", dtype=BF16, positions=4, each=2, width=20),
    "read out, in float32": ReadOut(name="r", dtype=F32, positions=2, each=70, width=33),
}
Call = Callable[..., tuple[Any, dict[str, Any]]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run the bench's command on a CPU; torch.compile would take seconds a case, and fails."""

    def compiled(case: Case, tensors: Any) -> Any:
        raise RuntimeError("no compiler here\nand more of it")

    monkeypatch.setattr(kernel_ways, "compiled", compiled)

    def run(*arguments: str) -> tuple[Any, dict[str, Any]]:
        path = tmp_path / "figures.json"
        result = CliRunner().invoke(kernels.app, ["--device", "cpu", *arguments, "--json", str(path)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result, json.loads(path.read_text()) if path.exists() else {}

    return run


# ------------------------------------------------------------------------------------------- the command


@pytest.mark.long
def test_the_quick_cases_are_right_and_plain_torch_is_timed(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    """Attention's at the smallest of its sizes, since the interpreter takes its time."""
    monkeypatch.setattr(kernel_cases, "ATTENTION", [min(kernel_cases.ATTENTION, key=lambda sizes: sizes[1:])])
    result, found = call("--quick")
    assert result.exit_code == 0, result.output
    assert list(found) == [name for name, case in kernel_cases.all_cases().items() if case.quick]
    for name, figures in found.items():
        assert figures["checked"] is True, name
        by_descriptors = "attention" in name and not name.endswith("-float32")
        assert set(figures["errors"]) == {"torch", "triton"} | ({"descriptors"} if by_descriptors else set())
        assert figures["failed"] == {"torch.compile": "RuntimeError: no compiler here"}
        assert figures["seconds"].pop("torch") > 0
        assert figures["seconds"] == {"torch.compile": None, "triton": None, "descriptors": None, "cuda_graph": None}
        assert figures["default"] == "not measured"
        assert figures["peak_mb"].pop("torch") > 0
        assert figures["peak_mb"] == {"torch.compile": None, "triton": None, "descriptors": None}
        assert figures["least_bytes"] > 0
        nothing = (
            "torch_over_triton",
            "compile_over_triton",
            "pointers_over_descriptors",
            "bytes_per_s",
            "copy_bytes_per_s",
            "fraction_of_copy",
        )
        assert all(figures[key] is None for key in nothing)
        assert figures["dtype"] in name
        assert figures["device"].endswith("-core CPU")
    assert "not measured" in result.output
    assert "torch.compile failed: RuntimeError: no compiler here" in result.output


def wrong(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **options: right(*args, **options) * 1.001


def test_a_wrong_kernel_stops_the_figures_of_its_case(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.setattr(attention_kernel, "tangent", wrong(attention_kernel.tangent))
    result, found = call("--case", "attention-[at]*-gpt2-T32-rows64-float32")
    assert result.exit_code == 1
    assert "Values differ: attention-tangent-gpt2-T32-rows64-float32." in result.output
    figures = found["attention-tangent-gpt2-T32-rows64-float32"]
    assert figures["checked"] is False
    assert figures["faults"] == ["triton: result is 1.0e-03 from float64; the bound is 5e-06"]
    assert all(figures[key] is None for key in kernels.FIGURES)
    assert found["attention-adjoint-gpt2-T32-rows64-float32"]["checked"] is True


@pytest.mark.long
def test_cases_by_pattern(call: Call) -> None:
    sizes = "gpt2-T32-rows64"
    dtypes = ("float32", "bfloat16", "float32-tf32")
    names = [*(f"attention-tangent-{sizes}-{dtype}" for dtype in dtypes), "compact-dense-1600-float32"]
    assert list(call("--case", f"attention-tangent-{sizes}-*", "--case", names[-1])[1]) == names
    result, _ = call("--case", "nothing-*")
    assert result.exit_code == 2
    assert "'nothing-*' is no case" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("device", "cuda", "interpreted", "says"),
    [
        ("cpu", True, False, "set TRITON_INTERPRET=1"),
        ("cuda", False, True, "there is no CUDA device here"),
        ("cuda", True, True, "TRITON_INTERPRET is set: unset it"),
        ("tpu", True, True, "'tpu'; expected cuda or cpu"),
    ],
)
def test_where_kernels_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch, device: str, cuda: bool, interpreted: bool, says: str) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpreted)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    with pytest.raises(kernels.typer.BadParameter, match=says):
        kernels.prepared(device)


@pytest.mark.long
def test_it_runs_without_attrib_and_torch_compile_is_measured_or_said_to_fail(tmp_path: Path) -> None:
    """In a process of its own: here the hook wraps every function, and all of attrib is imported.

    What torch.compile captures is run as it is: to have a C++ compiler make it faster takes longer than all else in this file.
    """
    program = """
import sys
from functools import partial
import torch
from bench.kernels.run import app
torch.compile = partial(torch.compile, backend="eager")
print(sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[2].split())), file=sys.stderr)
app(["--device", "cpu", "--case", "attention-tangent-gpt2-T32-rows64-float32", "--json", sys.argv[1]], standalone_mode=False)
"""
    path, absent = tmp_path / "figures.json", "attrib transformers transformer_lens sae_lens einops h5py scipy pandas beartype pydantic"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(path), absent]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.startswith("[]\n")
    (figures,) = json.loads(path.read_text()).values()
    if "torch.compile" not in figures["failed"]:
        assert figures["seconds"]["torch.compile"] > 0
        assert figures["errors"]["torch.compile"] < kernel_ways.BOUNDS[F32]
        assert figures["compiled_graphs"] == 1


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.few
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_operation_is_checked_at_any_size(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(kernel_ways, "compiled", lambda case, tensors: lambda: case.function("reference")(*tensors))
    checked = kernel_ways.check(case, CPU, graphs=False)
    assert checked.faults == []
    assert set(checked.errors) == {"torch", "torch.compile", "triton"}
    if case.dtype == F32:
        assert max(checked.errors.values()) < 1e-6


def unwritten(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def kernel(*args: Any, **options: Any) -> Tensor:
        result = right(*args, **options)
        return torch.cat([result[:-1], torch.empty_like(result[-1:])])

    return kernel


def failing(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def kernel(*args: Any, **options: Any) -> Tensor:
        raise ValueError("out of registers\nby far")

    return kernel


@pytest.mark.few
@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (wrong, "triton: result is 1.0e-03 from float64; the bound is 5e-06"),
        (unwritten, "triton: result is inf from float64; the bound is 5e-06"),
        (lambda right: lambda *args, **options: right(*args, **options).double(), "triton: result is inf from float64; the bound is 5e-06"),
        (failing, "triton failed: ValueError: out of registers"),
    ],
    ids=["wrong", "unwritten", "dtype", "failing"],
)
def test_what_is_wrong_with_a_kernel_is_said(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Callable[..., Tensor]], fault: str
) -> None:
    monkeypatch.setattr(kernel_ways, "compiled", failing(lambda: torch.ones(1)))
    monkeypatch.setattr(attention_kernel, "tangent", broken(attention_kernel.tangent))
    found = kernels.run_case(TANGENT, ONCE)
    assert found["checked"] is False
    assert found["faults"] == [fault]
    assert not torch.are_deterministic_algorithms_enabled()


def test_descriptors_are_a_way_of_their_own_where_they_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be timed as descriptors is by descriptors, and is held against float64 as well."""
    from attrib_kernels import descriptors

    monkeypatch.setattr(kernel_ways, "compiled", failing(lambda: torch.ones(1)))
    asked: list[str] = []
    right = attention_kernel.tangent

    def tangent(*args: Any, loads: str, **options: Any) -> Tensor:
        asked.append(loads)
        return right(*args, loads=loads, **options) * (2.0 if loads == "descriptors" else 1.0)

    monkeypatch.setattr(attention_kernel, "tangent", tangent)
    assert kernel_ways.check(DESCRIBED, CPU, graphs=False).faults == ["descriptors: result is 1.0e+00 from float64; the bound is 6e-03"]
    assert asked == ["pointers", "descriptors"]
    monkeypatch.setattr(descriptors, "TensorDescriptor", None)
    found = kernel_ways.check(DESCRIBED, CPU, graphs=False)
    assert found.failed["descriptors"] == "RuntimeError: no tensor descriptors of these tensors here"
    assert (found.faults, set(found.ways)) == ([], {"torch", "triton"})
    assert DESCRIBED.by_descriptors() is not None
    assert all(case.by_descriptors() is None for case in (TANGENT, CASES["compact"]))  # three products; no attention


def test_a_wrong_torch_compile_stops_the_figures_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_ways, "compiled", lambda case, tensors: lambda: 1.1 * case.function("reference")(*tensors))
    assert kernel_ways.check(TANGENT, CPU, graphs=False).faults == ["torch.compile: result is 1.0e-01 from float64; the bound is 5e-06"]


def test_a_reference_that_fails_is_a_fault() -> None:
    """Of fewer than 32 columns the case would keep none, which the operation refuses."""
    found = kernels.run_case(Compact(name="c", dtype=F32, rule="topk", rows=5, columns=31, positions=3), ONCE)
    assert found["checked"] is False
    assert found["faults"][0].startswith("float64 reference: ValueError: amount: 0 for rule 'topk'")


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        (torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]).double(), 0.1),
        (torch.tensor([3.0]), torch.tensor([3.0, 4.0]).double(), torch.inf),
        (torch.tensor([3.0, torch.nan]), torch.tensor([3.0, 4.0]).double(), torch.inf),
        (torch.zeros(2), torch.zeros(2).double(), torch.inf),
        (torch.zeros(0), torch.zeros(0).double(), torch.inf),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), 0.0),
        (torch.tensor([1, 3]), torch.tensor([1, 2]), torch.inf),
        (torch.tensor([1, 2]).int(), torch.tensor([1, 2]), torch.inf),
    ],
)
def test_distances(got: Tensor, want: Tensor, error: float) -> None:
    assert kernel_ways.apart(got, want, F32) == pytest.approx(error)


# --------------------------------------------------------------------------------------------- the cases


def test_the_cases_hold_every_operation_at_real_sizes() -> None:
    cases = kernel_cases.all_cases()
    for kind in (Attention, Compact):
        of_kind = [case for case in cases.values() if isinstance(case, kind)]
        assert {F32, BF16} <= {case.dtype for case in of_kind}
        assert any(case.quick for case in of_kind)
        assert all(case.tiny().name == case.name and case.tiny().dtype == case.dtype for case in of_kind)
    assert {case.rule for case in cases.values() if isinstance(case, Compact)} == {"dense", "threshold", "topk", "mass"}
    grouped = [case for case in cases.values() if isinstance(case, Attention) and case.heads != case.kv_heads]
    assert grouped
    assert all(case.tiny().heads == 2 * case.tiny().kv_heads for case in grouped)


def test_no_tile_holds_a_number_that_its_dtype_rounds() -> None:
    for case in kernel_cases.all_cases().values():
        exact = 2 / torch.finfo(case.dtype).eps  # whole numbers up to here
        if isinstance(case, Compact):
            gradient, activation = case.largest
            assert gradient * activation <= exact
            assert case.columns * gradient * activation <= 2**24  # any sum of a row, in float32
            assert torch.tensor(float(case.amount)).to(case.dtype) == case.amount


@pytest.mark.parametrize("rule", ["dense", "threshold", "topk", "mass"])
def test_a_rule_keeps_some_entries_and_not_others(rule: Any) -> None:
    case = Compact(name="c", dtype=F32, rule=rule, rows=200, columns=400, positions=8)
    tile, activation = case.tensors(CPU)
    kept = len(case.function("reference")(tile, activation).indices)
    assert 0.02 < kept / tile.numel() < 0.6
    assert not tile[:25, 50:].any()  # the first position sees itself alone
    assert tile[175:, -50:].count_nonzero() > 1000


def test_least_bytes_are_those_of_the_readmes() -> None:
    def least(case: Case) -> int:
        tensors = case.tensors(CPU)
        return case.least_bytes(tensors, kernel_ways.named(case.function("reference")(*tensors)))

    adjoint = CASES["adjoint"]
    assert isinstance(adjoint, Attention)
    S = 4 * 3 * 3 * 7 * 10
    assert least(adjoint) == 2 * S + 2 * S // 3
    tile, activation = CASES["mass"].tensors(CPU)
    kept = CASES["mass"].function("reference")(tile, activation)
    assert least(CASES["mass"]) == 4 * 5 * 33 + 4 * 33 + 8 * 6 + 2 * 4 * 5 + 16 * len(kept.indices)


# --------------------------------------------------------------------------------------------- the times


def test_figures_are_ratios_of_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds by way and round, as a GPU would give them; the kernel's calls are counted in one timing."""
    rounds = {
        "torch": [9.0, 3.0, 6.0], "torch.compile": [4.0, 4.0, 4.0], "triton": [1.0, 2.0, 5.0],
        "descriptors": [8.0, 1.6, 1.6], "cuda_graph": [1.0, 1.0, 1.0],
    }  # fmt: skip
    monkeypatch.setattr(kernel_ways, "compiled", lambda case, tensors: lambda: case.function("reference")(*tensors))
    monkeypatch.setattr(kernel_ways, "captured", lambda run: run)
    monkeypatch.setattr(kernels, "take_turns", lambda ways, bench: {name: [Time(0.0, 0.0, gpu=s) for s in rounds[name]] for name in ways})
    found = kernels.run_case(DESCRIBED, Bench(CPU, times_kernels=True, copy_rate=1000.0))
    assert found["checked"] is True
    assert found["seconds"] == {"torch": 6.0, "torch.compile": 4.0, "triton": 2.0, "descriptors": 1.6, "cuda_graph": 1.0}
    assert (found["torch_over_triton"], found["compile_over_triton"], found["pointers_over_descriptors"]) == (3.0, 2.0, 1.25)
    assert found["default"] == "faster than both"
    assert found["spread"] == {"torch": 1.0, "torch.compile": 0.0, "triton": 2.0, "descriptors": 4.0, "cuda_graph": 0.0}
    assert found["bytes_per_s"] == found["least_bytes"] / 2
    assert found["fraction_of_copy"] == found["least_bytes"] / 2 / 1000
    assert set(found["errors"]) == set(found["seconds"])
    assert set(found["peak_mb"]) == {"torch", "torch.compile", "triton", "descriptors"}
    assert kernels.cells(found)[-1] == "faster than both"


def test_a_call_that_waits_for_the_host_is_not_captured() -> None:
    for case in CASES.values():
        captured = "cuda_graph" in kernel_ways.makers(case, case.tensors(CPU), graphs=True)
        assert captured == isinstance(case, Attention), case.what


@pytest.mark.parametrize(
    ("of_torch", "of_compile", "says"),
    [
        (None, None, "not measured"),
        (1.5, 1.2, "faster than both"),
        (1.5, 0.9, "not"),
        (0.9, 1.5, "not"),
        (1.5, None, "faster than torch; torch.compile failed"),
        (0.9, None, "not"),
    ],
)
def test_verdicts(of_torch: float | None, of_compile: float | None, says: str) -> None:
    assert kernels.verdict(of_torch, of_compile) == says


def test_what_was_not_compiled_is_not_timed_as_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: made.append("reset"))
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: made.append(dynamic) or function)
    found = kernel_ways.check(TANGENT, CPU, graphs=False)
    assert made == ["reset", False]
    assert found.failed == {"torch.compile": "RuntimeError: torch.compile made no graph of the reference"}
    assert (found.faults, found.compiled_graphs) == ([], 0)


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 1), (2.6e-3, 2), (1e-3, 6), (1e-9, kernels.MOST_CALLS), (0.0, kernels.MOST_CALLS)])
def test_short_calls_are_timed_many_at_a_time(monkeypatch: pytest.MonkeyPatch, seconds: float, calls: int) -> None:
    made: list[int] = []

    def timed(run: Callable[[], None], device: torch.device) -> tuple[None, Time]:
        made.clear()
        run()
        return None, Time(len(made) * seconds, 0.0)

    monkeypatch.setattr(kernels, "timed", timed)
    assert kernels.enough_calls(lambda: made.append(1), Bench(CPU, times_kernels=True, enough_s=5e-3)) == calls


def test_ways_take_turns_and_each_timing_follows_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def timed(run: Callable[[], None], device: torch.device) -> tuple[None, Time]:
        run()
        order.append("timed")
        return None, Time(6.0, 6.0, gpu=3.0)

    class Buffer(Tensor):
        def zero_(self) -> "Buffer":
            order.append("flush")
            return self

    monkeypatch.setattr(kernels, "timed", timed)
    monkeypatch.setattr(kernels, "enough_calls", lambda run, bench: 2)
    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = kernels.take_turns(ways, Bench(CPU, times_kernels=True, rounds=2, flush=torch.ones(3).as_subclass(Buffer)))
    assert order == ["flush", "a", "a", "timed", "flush", "b", "b", "timed"] * 2
    assert times == {"a": [Time(3.0, 3.0, 1.5)] * 2, "b": [Time(3.0, 3.0, 1.5)] * 2}


def test_a_copy_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "COPIED", 4000)
    monkeypatch.setattr(kernels, "take_turns", lambda ways, bench: {"copy": [Time(0.0, 0.0, ways["copy"]().numel() / 1000)]})
    assert kernels.copy_rate(ONCE) == 8000


def test_a_graph_is_captured_after_a_warm_up_and_its_results_come_from_its_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for CUDA's streams and graphs: a replay writes where the capture's result lies."""
    calls: list[str] = []
    state = {"stream": "main", "capturing": False}

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            calls.append("wait")

    class Graph:
        def replay(self) -> None:
            calls.append("replay")
            result.copy_(torch.arange(3.0))

    @contextmanager
    def entered(key: str, value: Any) -> Iterator[None]:
        before, state[key] = state[key], value
        yield
        state[key] = before

    result = torch.empty(3)

    def run() -> Tensor:
        calls.append("captured" if state["capturing"] else f"on {state['stream']}")
        return result

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda side: entered("stream", "side"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: entered("capturing", True))
    replay = kernel_ways.captured(run)
    assert calls == ["wait", "on side", "on side", "on side", "wait", "captured"]
    assert result.isnan().all()
    assert torch.equal(replay(), torch.arange(3.0))
    assert calls[-1] == "replay"
