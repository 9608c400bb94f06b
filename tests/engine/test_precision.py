"""Reduced precision and its measured error, and the sweep on Triton kernels under the interpreter."""

from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.types import EXACT, LINEAR, InputError, Policy
from attrib.engine.precision import error_of, precision_of, products
from tests.support.builders import FAMILIES, Family, build, dictionary, prompt
from tests.support.covering import each_pair
from tests.support.tolerances import ROUNDING, assert_close


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


families = pytest.mark.parametrize("family", FAMILIES)


def edges(family: Family, *lengths: int, **options: Any) -> attrib.Edges:
    source, target = (dictionary("topk", site=f"blocks.{layer}.hook_resid_pre") for layer in (0, 3))
    return attrib.latent_to_latent(build(family), source, target, [prompt(n, seed=n) for n in lengths], **options)


@families
def test_bfloat16_products_are_near_and_say_how_near(family: Family):
    exact, reduced = edges(family, 11, 4), edges(family, 11, 4, dtype="bfloat16")
    for number in range(2):
        assert 1e-4 < relative_error(reduced.dense(number), exact.dense(number)) < 0.05  # 8 bits: neither float32 nor nonsense
    error = reduced.call["precision_error"]
    assert error["rows"] == 16
    assert 1e-4 < error["relative_frobenius"] < 0.05
    assert 0.5 < error["top_1_percent_overlap"] <= 1
    assert reduced.gradient.dtype == torch.float32
    assert (reduced.call["dtype"], exact.call["dtype"], exact.call["precision_error"]) == ("bfloat16", "float32", None)


def test_the_active_latents_do_not_depend_on_the_precision():
    exact, reduced = edges("llama", 9), edges("llama", 9, dtype="bfloat16")
    for table in ("sources", "targets"):
        assert torch.equal(getattr(exact, table).latent, getattr(reduced, table).latent)
        assert torch.equal(getattr(exact, table).activation, getattr(reduced, table).activation)


@families
def test_the_error_of_float32_is_measured_where_it_is_asked_for(family: Family):
    found = edges(family, 11, precision_rows=20)
    error = found.call["precision_error"]
    assert (error["rows"], found.call["seed"]) == (20, 0)
    assert 1e-9 < error["relative_frobenius"] < 1e-5
    assert error["top_1_percent_overlap"] > 0.9
    assert torch.equal(found.gradient, edges(family, 11).gradient)
    assert edges(family, 11, dtype="bfloat16", precision_rows=0).call["precision_error"] is None
    few = edges(family, 4, positions=0, precision_rows=1000)
    assert few.call["precision_error"]["rows"] == len(few.targets)


def test_tf32_is_float32_where_there_is_no_cuda():
    if torch.cuda.is_available():
        pytest.skip("CUDA rounds to TF32")
    assert torch.equal(edges("gpt2", 7, dtype="tf32").gradient, edges("gpt2", 7).gradient)


def test_products_puts_the_settings_back():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with products(precision_of(build("gpt2"), "tf32")):
        assert matmul.fp32_precision == "tf32"
    assert matmul.fp32_precision == before
    with pytest.raises(ZeroDivisionError), products(precision_of(build("gpt2"), "tf32")):
        raise ZeroDivisionError
    assert matmul.fp32_precision == before


def test_error_of_counts_what_it_says():
    exact = torch.eye(3).repeat(1, 100)  # 300 columns: the top 1% are 3
    exact[:, ::7] += torch.arange(43)
    other = exact.clone()
    other[0] = other[0].flip(0)
    error = error_of(other, exact, torch.ones(300))
    assert error.rows == 3
    assert error.relative_frobenius == pytest.approx(float((other - exact).norm() / exact.norm()))
    overlap = len(set(other[0].topk(3).indices.tolist()) & set(exact[0].topk(3).indices.tolist())) / 3
    assert error.top_1_percent_overlap == pytest.approx((overlap + 2) / 3)
    assert error_of(exact, exact, torch.ones(300)) == (3, 0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "half"}, r"^dtype: 'half'; expected one of float32, float64, tf32, bfloat16"),
        ({"dtype": "bfloat16", "method": "torch.func"}, r"^dtype: bfloat16 is a precision of the adjoint sweep"),
        ({"precision_rows": -1}, r"^precision_rows: -1; expected a whole number, 0 or more"),
        ({"precision_rows": 4, "method": "torch.func"}, r"^precision_rows: it measures the adjoint sweep"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        edges("gpt2", 4, **options)


@pytest.mark.long
@each_pair(family=FAMILIES, policy=[EXACT, LINEAR], keep=[attrib.Dense(), attrib.TopK(3)])
def test_the_sweep_on_triton_kernels(family: Family, policy: Policy, keep: Any):
    pytest.importorskip("triton")
    ours, kernels = (edges(family, 6, 3, policy=policy, keep=keep, method=method) for method in ("adjoint", "adjoint-triton"))
    assert torch.equal(ours.indptr, kernels.indptr)
    assert torch.equal(ours.indices, kernels.indices)
    for column in ("gradient", "attribution", "total", "l1"):
        assert_close(getattr(kernels, column), getattr(ours, column), ROUNDING, column)
    assert kernels.call["method"] == "adjoint-triton"


@pytest.mark.parametrize(
    "family", ["gemma2", *(pytest.param(family, marks=pytest.mark.long) for family in ("mistral", "qwen3", "olmo2", "gptj"))]
)
def test_triton_kernels_in_other_families(family: Family):
    """Windows, norms of heads, caps (which the kernels leave to torch), norms of all heads, an MLP beside attention."""
    pytest.importorskip("triton")
    ours, kernels = (edges(family, 8, 3, policy=EXACT, method=method) for method in ("adjoint", "adjoint-triton"))
    assert ours.gradient.abs().max() > 0.05
    assert_close(kernels.gradient, ours.gradient, ROUNDING)


def test_without_cuda_or_the_interpreter_triton_is_refused(monkeypatch: pytest.MonkeyPatch):
    triton = pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(InputError, match="method: 'adjoint-triton' needs CUDA"):
        edges("gpt2", 3, method="adjoint-triton")
