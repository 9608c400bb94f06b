"""Compaction of a tile: what is kept and how it lies are those of attrib.core.keep, entry by entry, in both implementations."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from attrib_kernels.compact import Compacted, compact
from attrib_kernels.compact.rules import check_rule, check_tile
from attrib_kernels.impl import check_impl
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from attrib.core.keep import RULES as EVERY_RULE
from attrib.core.keep import kept
from attrib.core.sparse import to_csr
from attrib.core.types import Dense, Mass, Threshold, TopK
from tests.support.builders import normal
from tests.support.examples import examples
from tests.support.kernel_device import DEVICE
from tests.support.root import ROOT

triton = pytest.importorskip("triton")
assert DEVICE == "cuda" or type(triton.language.sum).__name__ == "InterpretedFunction", (
    "triton was imported before TRITON_INTERPRET=1 was set, so its functions cannot be interpreted: set it in the shell"
)

from attrib_kernels.compact import Rule  # noqa: E402
from attrib_kernels.compact.triton import SPAN, compact_triton  # noqa: E402

# numbers that are not finite are part of the tests; the interpreter computes with numpy, which warns of them
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

RULES = {"dense": Dense, "topk": TopK, "threshold": Threshold, "mass": Mass}


def test_the_kernels_have_every_keep_rule():
    assert {kind.__name__.lower(): kind for kind in EVERY_RULE.values()} == RULES
    assert set(RULES) == set(AMOUNTS) == set(get_args(Rule))


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMPLS = ("reference", "triton")
AMOUNTS = {
    "dense": [0],
    "topk": [1, 2, 3, 5, 100],
    "threshold": [0.0, 0.1, 0.5, 1.0, 3.25, 1e30, float("inf")],
    "mass": [1e-6, 0.1, 0.5, 0.75, 0.999, 1.0],
}

# few different numbers, so that zeros and ties are common, and whose sums no dtype rounds
FINITE = st.sampled_from([0.0, 0.0, 0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 3.25])
ANY = st.one_of(FINITE, st.sampled_from([float("nan"), float("inf"), -float("inf"), 2.0**-7]))


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> Tensor:
    return normal(*shape, dtype=dtype, seed=seed).to(DEVICE)


@st.composite
def tiles(draw: st.DrawFn, elements: Any = FINITE) -> tuple[Tensor, Tensor]:
    """A gradient [rows, columns] and an activation [columns] of one dtype, either of which may be empty."""
    rows, columns = draw(st.integers(0, 4)), draw(st.integers(0, 9))
    gradient, activation = (draw(arrays.arrays("float64", shape, elements=elements)) for shape in ((rows, columns), (columns,)))
    dtype = draw(st.sampled_from(DTYPES))
    return torch.from_numpy(gradient).to(DEVICE, dtype), torch.from_numpy(activation).to(DEVICE, dtype)


def wanted(gradient: Tensor, activation: Tensor, rule: str, amount: float) -> Compacted:
    """The same from attrib.core.keep, as attrib.attribution.rows puts a tile into Edges."""
    attribution = gradient * activation
    mask = kept(RULES[rule](*([] if rule == "dense" else [amount])), gradient, attribution)
    return Compacted(*to_csr(mask)[:2], gradient[mask], attribution[mask], attribution.sum(-1), attribution.abs().sum(-1))


def assert_same(got: Compacted, want: Compacted) -> None:
    """Bit by bit, but for the sign of zero and the payload of NaN."""
    for name in Compacted._fields:
        ours, theirs = getattr(got, name), getattr(want, name)
        assert ours.dtype == theirs.dtype, name
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(autouse=True, scope="module")
def poison() -> Iterator[None]:
    """Memory that is not written holds NaN, or an index far outside."""
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> Tensor:
        out = empty(*args, **options)
        return out.fill_(torch.nan if out.is_floating_point() else -1_000_000_007)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield


def test_unwritten_memory_is_poisoned():
    assert torch.empty(3).isnan().all()


# ------------------------------------------------------------------------------------- the four rules


@pytest.mark.few
@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=examples(60))
@given(tile=tiles(ANY), data=st.data())
def test_the_reference_is_attribs(rule: str, tile: tuple[Tensor, Tensor], data: st.DataObject):
    amount = data.draw(st.sampled_from(AMOUNTS[rule]))
    assert_same(compact(*tile, rule, amount, impl="reference"), wanted(*tile, rule, amount))


@pytest.mark.few
@pytest.mark.parametrize("numbers", [FINITE, ANY], ids=["finite", "any"])
@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=examples(20))
@given(data=st.data())
def test_the_kernel_is_attribs(rule: str, numbers: Any, data: st.DataObject):
    tile = data.draw(tiles(numbers))
    amount = data.draw(st.sampled_from(AMOUNTS[rule]))
    block, span = data.draw(st.sampled_from([(1024, 4096), (4, 4), (2, 4)]))
    assert_same(compact_triton(*tile, rule, amount, block=block, span=span), wanted(*tile, rule, amount))


@pytest.mark.few
@pytest.mark.parametrize("rule", RULES)
def test_the_kernel_in_its_own_blocks_on_rows_longer_than_a_program(rule: str):
    gradient, activation = numbers(2, SPAN + 37), numbers(SPAN + 37, seed=3)
    gradient[0, ::3] = 0
    gradient[:, 100:1500] = gradient[:, 100:101]  # a tie across blocks, whatever the cut
    activation[100:1500] = activation[100]
    size = (gradient * activation).abs()
    amount = {"dense": 0, "topk": int((size[0] > size[0, 100]).sum()) + 900, "threshold": 1.0, "mass": 0.9}[rule]
    got, want = (make(gradient, activation, rule, amount) for make in (compact_triton, wanted))
    assert_same(got._replace(total=want.total, l1=want.l1), want)
    for sums, exact in ((got.total, gradient * activation), (got.l1, size)):
        bound = torch.finfo(torch.float32).eps * size.double().sum(-1)
        assert ((sums.double() - exact.double().sum(-1)).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_rounded_once(dtype: torch.dtype):
    gradient, activation = numbers(3, 700, dtype=dtype), numbers(700, dtype=dtype, seed=3)
    got = compact(gradient, activation, "dense", impl="triton")
    attribution = (gradient * activation).double()
    half = torch.finfo(dtype).eps / 2
    slack = 64 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps * attribution.abs().sum(-1)
    for ours, exact in ((got.total, attribution.sum(-1)), (got.l1, attribution.abs().sum(-1))):
        assert ((ours.double() - exact).abs() <= half * exact.abs() + slack).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_attributions_are_rounded_to_the_tile_before_they_are_judged(dtype: torch.dtype):
    gradient, activation = numbers(4, 90, dtype=dtype), numbers(90, dtype=dtype, seed=3)
    bound = float((gradient * activation)[1, 7].abs())  # reached exactly by one entry
    got, want = compact(gradient, activation, "threshold", bound, impl="triton"), wanted(gradient, activation, "threshold", bound)
    assert_same(got._replace(total=want.total, l1=want.l1), want)
    assert 7 in got.indices[got.indptr[1] : got.indptr[2]]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (3, 1), (1, 17)])
def test_small_and_empty_tiles(impl: Any, rule: Any, shape: tuple[int, int]):
    gradient, activation = numbers(*shape, dtype=torch.float64), torch.ones(shape[1], dtype=torch.float64, device=DEVICE)
    gradient[-1:] = 0  # a row of zeros, the last
    amount = AMOUNTS[rule][0]
    got = compact(gradient, activation, rule, amount, impl=impl)
    assert_same(got, wanted(gradient, activation, rule, amount))
    assert got.indptr.shape == (shape[0] + 1,)
    assert got.indptr.dtype == got.indices.dtype == torch.int64


@pytest.mark.few
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_tile_with_strides(impl: Any, rule: Any):
    whole, activation = numbers(11, 10, dtype=torch.float64), numbers(22, dtype=torch.float64, seed=3)
    amount = AMOUNTS[rule][len(AMOUNTS[rule]) // 2]
    for tile in (whole.T, whole.T[:, ::2], whole.T.flip(0), whole[:1].T.expand(10, 11)):
        own = activation[: 2 * tile.shape[1] : 2]
        got, want = compact(tile, own, rule, amount, impl=impl), wanted(tile, own, rule, amount)
        torch.testing.assert_close(got.total, want.total)
        torch.testing.assert_close(got.l1, want.l1)
        assert_same(got._replace(total=want.total, l1=want.l1), want)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_result_carries_no_graph(impl: Any):
    gradient = numbers(2, 3).requires_grad_()
    assert not any(t.requires_grad for t in compact(gradient, numbers(3), "dense", impl=impl))


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("rule", "amount", "message"),
    [
        ("topk", 0, r"amount: 0 for rule 'topk'.*>= 1"),
        ("topk", 1.5, r"amount: 1.5 for rule 'topk'"),
        ("topk", float("inf"), r"amount: inf for rule 'topk'"),
        ("threshold", -0.1, r"amount: -0.1 for rule 'threshold'.*>= 0"),
        ("threshold", float("nan"), r"amount: nan for rule 'threshold'"),
        ("mass", 0, r"amount: 0 for rule 'mass'.*<= 1"),
        ("mass", 1.1, r"amount: 1.1 for rule 'mass'"),
    ],
)
def test_an_amount_that_makes_no_sense_is_refused_by_name(rule: Any, amount: float, message: str):
    for impl in IMPLS:
        with pytest.raises(ValueError, match=message):
            compact(torch.ones(2, 3), torch.ones(3), rule, amount, impl=impl)


def test_names_that_are_none_are_refused():
    """Annotations refuse them first in these tests, but not where people run."""
    with pytest.raises(ValueError, match=r"impl: 'cuda'; expected 'reference' or 'triton'"):
        check_impl("cuda")
    with pytest.raises(ValueError, match=r"rule: 'top'; expected one of dense, topk, threshold, mass"):
        check_rule("top", 1)


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (torch.ones(4), r"activation: shape \[4\]; expected \[3\]"),
        (torch.ones(3, dtype=torch.float64), r"activation: torch.float64.*expected torch.float32"),
        (torch.ones(3, device="meta"), r"activation: torch.float32 on meta; expected torch.float32 on cpu"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(activation: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        check_tile(torch.ones(2, 3), activation)


# --------------------------------------------------------------------- without triton, and for a device


@pytest.mark.long
def test_without_triton_without_a_device_and_compiled_for_one(tmp_path: Path):
    """In one process without the interpreter, which takes what the compiler would not. No device is needed to compile for one."""
    program = """
import sys, torch, attrib_kernels
from attrib_kernels.compact import compact
tile = torch.eye(3), torch.ones(3)
assert compact(*tile, "dense", impl="reference").indices.tolist() == [0, 1, 2]
assert "triton" not in sys.modules
try:
    compact(*tile, "dense", impl="triton")
except ValueError as error:
    print(error)

import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from attrib_kernels.compact import triton as tile

def build(kernel, tile_type, wide, **constants):
    constants["ACC"] = getattr(tl, {"fp32": "float32", "fp64": "float64"}[wide])
    kinds = dict.fromkeys("gradient activation bound kept_gradient kept_attribution".split(), "*" + tile_type)
    kinds |= dict.fromkeys("ties offsets indices".split(), "*i64") | dict.fromkeys("total l1".split(), "*" + wide) | {"counts": "*i32"}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    assert "ptx" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
    print("compiled", kernel.__name__, tile_type, constants["RULE"])

for kernel in (tile._count, tile._write):
    build(kernel, "bf16", "fp32", RULE="ranked", BLOCK=256)
    build(kernel, "fp64", "fp64", RULE="threshold", BLOCK=64)
"""
    said = run(program, TRITON_CACHE_DIR=str(tmp_path))
    assert said.startswith("gradient: on cpu")
    assert said.count("compiled ") == 4


def run(program: str, **environment: str) -> str:
    """What a fresh, uninterpreted Python prints."""
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = plain | {"PYTHONPATH": path} | environment
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
