"""The MLP's pointwise adjoint: slopes against torch's own activations, Triton against the reference, the rule under torch.func."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, jvp, vjp, vmap
from torch.nn import functional as F

from tests.support.root import ROOT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which no line above does

from attrib_kernels.mlp_pointwise import ACTIVATIONS, check_arguments, mlp_pointwise, mlp_pointwise_tangent, slopes  # noqa: E402

from tests.support.builders import normal  # noqa: E402
from tests.support.kernel_compiler import SHARED  # noqa: E402
from tests.support.tolerances import assert_close  # noqa: E402

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
IMPLS = ["reference", pytest.param("triton", marks=needs_triton)]
GATED = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
EVERY = pytest.mark.parametrize("activation", ACTIVATIONS)

EXACT = 1e-12
"""The same few operations in another order, in float64."""
TRITON = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Triton's kernel in a dtype against the reference in float64 on the same numbers."""

TORCH = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}

SHAPES = {
    "one": (1, 1, 1),
    "odd": (3, 5, 33),
    "two blocks of units": (2, 3, 300),
    "two blocks of rows": (1, 133, 10),
    "no rows": (3, 0, 10),
}
"""positions, rows, d_mlp."""


def middle(pre: Tensor, gate_pre: Tensor | None, activation: str) -> Tensor:
    """What the MLP does between its matrices, by torch's activations."""
    return TORCH[activation](pre) if gate_pre is None else TORCH[activation](gate_pre) * pre


def primal(positions: int, width: int, gated: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None]:
    """Pre-activations out to where every activation has flattened, and 0 among them."""
    pre, gate_pre = (3 * numbers(positions, width, dtype=dtype, seed=seed) for seed in (1, 2))
    for x in (pre, gate_pre):
        x[:, 0] = 0
    return pre, gate_pre if gated else None


def numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return normal(*shape, dtype=dtype, seed=seed).to(DEVICE)


def double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


@pytest.fixture
def nan_filled() -> Iterator[None]:
    """Every new tensor without values is full of NaN, so that what a kernel leaves out is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    some = torch.ones(3, dtype=torch.bfloat16)
    assert all(x.isnan().all() for x in (torch.empty(3), some.new_empty(2, 2), torch.empty_like(some)))
    yield
    torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------------- by value


@EVERY
@GATED
def test_slopes_are_the_derivatives_of_torchs_activations(activation: Any, gated: bool):
    """At 0, near it, and far out on both sides, where a careless formula loses its digits or overflows."""
    x = torch.cat([torch.linspace(-40, 40, 4001), torch.tensor([0.0, -0.0, 1e-8, -1e-8, 300.0, -300.0])]).double().to(DEVICE)[None]
    up = numbers(*x.shape)
    if gated:
        got = slopes(up, x, activation)
        want = (jvp(lambda gate: middle(up, gate, activation), (x,), (torch.ones_like(x),))[1], TORCH[activation](x))
    else:
        got, want = slopes(x, None, activation), (jvp(TORCH[activation], (x,), (torch.ones_like(x),))[1],)
    assert len(got) == len(want)
    for name, slope, derivative in zip(("gate", "up"), got, want, strict=False):
        assert_close(slope, derivative, EXACT, name)


def test_the_slope_of_relu_at_zero_is_zero():
    assert slopes(torch.zeros(1, 1), None, "relu")[0].item() == 0
    assert slopes(torch.ones(1, 1), torch.zeros(1, 1), "relu")[0].item() == 0


@EVERY
@GATED
def test_the_reference_is_the_vjp_and_its_transpose_the_jvp(activation: Any, gated: bool):
    pre, gate_pre = primal(3, 7, gated)
    arguments = (pre,) if gate_pre is None else (gate_pre, pre)  # the order of the cotangents: gate, then up

    def function(*x: Tensor) -> Tensor:
        return middle(x[-1], x[0] if gated else None, activation)

    g = numbers(3, 5, 7)
    pull = vjp(function, *arguments)[1]
    got = mlp_pointwise(g, pre, gate_pre, activation, impl="reference")
    assert_close(got, torch.cat(vmap(pull, in_dims=1, out_dims=1)(g), -1), EXACT)

    dots = [numbers(3, 5, 7, seed=4 + i) for i in range(len(arguments))]
    want = vmap(lambda *x_dot: jvp(function, arguments, x_dot)[1], in_dims=1, out_dims=1)(*dots)
    assert_close(mlp_pointwise_tangent(torch.cat(dots, -1), pre, gate_pre, activation, impl="reference"), want, EXACT)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", list(TRITON), ids=lambda dtype: str(dtype).removeprefix("torch."))
@EVERY
@GATED
def test_every_dtype(gated: bool, activation: Any, dtype: torch.dtype, impl: Any):
    """16-bit numbers are computed in float32 and rounded once."""
    _check(SHAPES["odd"], gated, activation, dtype, impl)


@needs_triton
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@GATED
def test_every_shape(shape: tuple[int, int, int], gated: bool):
    _check(shape, gated, "gelu_tanh", torch.float32, "triton")


def _check(shape: tuple[int, int, int], gated: bool, activation: Any, dtype: torch.dtype, impl: Any) -> None:
    positions, rows, width = shape
    pre, gate_pre = primal(positions, width, gated, dtype)
    exact = (double(pre), double(gate_pre), activation)
    g, x_dot = numbers(positions, rows, width, dtype=dtype), numbers(positions, rows, (1 + gated) * width, dtype=dtype)
    want = mlp_pointwise(g.double(), *exact, impl="reference")
    assert_close(mlp_pointwise(g, pre, gate_pre, activation, impl=impl), want.to(dtype), TRITON)
    want = mlp_pointwise_tangent(x_dot.double(), *exact, impl="reference")
    assert_close(mlp_pointwise_tangent(x_dot, pre, gate_pre, activation, impl=impl), want.to(dtype), TRITON)


@needs_triton
@EVERY
def test_triton_stays_finite_far_out(activation: Any):
    pre = torch.tensor([[-1e4, -200.0, -90.0, 90.0, 200.0, 1e4]], device=DEVICE)
    got = mlp_pointwise(torch.ones(1, 1, 6, device=DEVICE), pre, None, activation, impl="triton")
    assert_close(got, torch.tensor([[[0.0, 0, 0, 1, 1, 1]]], device=DEVICE), TRITON)


@needs_triton
def test_triton_takes_arguments_that_are_not_contiguous():
    pre, gate_pre = primal(4, 6, True, torch.float32)
    g = numbers(4, 3, 6, dtype=torch.float32)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (g, pre, gate_pre)]
    assert not any(x.is_contiguous() for x in turned)
    assert_close(mlp_pointwise(*turned, "silu", impl="triton"), mlp_pointwise(g, pre, gate_pre, "silu", impl="triton"), 0.0)


# ------------------------------------------------------------------------------------- derivatives


@EVERY
@GATED
def test_gradients_of_the_rules(activation: Any, gated: bool):
    """First and second derivatives, with respect to what is carried and to the pre-activations."""
    pre, gate_pre = (None if x is None else x[:, 1:].clone().requires_grad_() for x in primal(2, 4, gated))  # relu has no derivative at 0
    inputs = [x for x in (pre, gate_pre) if x is not None]

    def rule(function: Any) -> Any:
        return lambda x, pre, gate=None: function(x, pre, gate, activation, impl="reference")

    for function, width in ((mlp_pointwise, 3), (mlp_pointwise_tangent, 3 * (1 + gated))):
        carried = numbers(2, 2, width).requires_grad_()
        torch.autograd.gradcheck(rule(function), (carried, *inputs))
        torch.autograd.gradgradcheck(rule(function), (carried, *inputs))


@needs_triton
@pytest.mark.usefixtures("nan_filled")
@GATED
def test_gradients_of_triton_are_those_of_the_reference(gated: bool):
    pre, gate_pre = primal(3, 7, gated, torch.float32)
    for function, width, out_width in ((mlp_pointwise, 7, 7 * (1 + gated)), (mlp_pointwise_tangent, 7 * (1 + gated), 7)):

        def gradients(impl: Any, function: Any = function, width: int = width, out_width: int = out_width) -> tuple[Tensor, ...]:
            inputs = [x.detach().clone().requires_grad_() for x in (numbers(3, 5, width, dtype=pre.dtype), pre, gate_pre) if x is not None]
            out = function(*inputs, *((None,) if gate_pre is None else ()), "gelu", impl=impl)
            return torch.autograd.grad((out * numbers(3, 5, out_width, dtype=pre.dtype, seed=9)).sum(), inputs)

        for name, got, want in zip(("carried", "pre", "gate_pre"), gradients("triton"), gradients("reference"), strict=False):
            assert_close(got, want, TRITON, f"{function.__name__}, {name}")


class Middle(torch.autograd.Function):
    """The MLP's middle with the kernel as its backward, as a differentiated segment uses it."""

    @staticmethod
    def forward(pre: Tensor, gate_pre: Tensor | None, activation: Any, impl: Any) -> Tensor:
        return middle(pre, gate_pre, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pre, gate_pre, ctx.activation, ctx.impl = inputs
        ctx.save_for_backward(pre, gate_pre)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        pre, gate_pre = ctx.saved_tensors
        out = mlp_pointwise(g[:, None], pre, gate_pre, ctx.activation, impl=ctx.impl)[:, 0]
        return (out, None, None, None) if gate_pre is None else (*out.chunk(2, -1)[::-1], None, None)

    generate_vmap_rule = True


@pytest.mark.parametrize("impl", IMPLS)
@GATED
def test_jacrev_and_vmap_run_through_the_rule(impl: Any, gated: bool):
    """jacrev makes the cotangent batched, vmap around it the primal as well."""
    dtype = torch.float64 if impl == "reference" else torch.float32
    pre, gate_pre = primal(2, 3, gated, dtype)
    scales = torch.tensor([1.0, 0.5, -2.0], dtype=dtype, device=DEVICE)
    tolerance = {torch.float64: EXACT} | TRITON

    def ours(factor: Tensor, pre: Tensor) -> Tensor:
        return Middle.apply(factor * pre, None if gate_pre is None else gate_pre + pre, "silu", impl)

    def plain(factor: Tensor, pre: Tensor) -> Tensor:
        return middle(factor * pre, None if gate_pre is None else gate_pre + pre, "silu")

    assert_close(jacrev(ours, 1)(scales[0], pre), jacrev(plain, 1)(scales[0], pre), tolerance)
    got, want = (vmap(jacrev(f, 1), in_dims=(0, None))(scales, pre) for f in (ours, plain))
    assert_close(got, want, tolerance, "batched primal")


@pytest.mark.parametrize("impl", IMPLS)
@GATED
def test_every_batched_argument(impl: Any, gated: bool):
    """vmap over each argument alone, at different dimensions, is a loop over it; so for the transpose."""
    pre, gate_pre = primal(3, 4, gated, torch.float32)
    for function, width in ((mlp_pointwise, 4), (mlp_pointwise_tangent, 4 * (1 + gated))):
        args = [x for x in (numbers(3, 2, width, dtype=torch.float32), pre, gate_pre) if x is not None]

        def call(*args: Tensor, function: Any = function) -> Tensor:
            return function(*args, *(() if gated else (None,)), "gelu_tanh", impl=impl)

        for batched, x in enumerate(args):
            dim = (batched + 1) % x.ndim
            many = torch.stack([x, 0.5 * x], dim)
            in_dims = tuple(dim if i == batched else None for i in range(len(args)))
            got = vmap(call, in_dims=in_dims)(*args[:batched], many, *args[batched + 1 :])
            want = torch.stack([call(*args[:batched], one, *args[batched + 1 :]) for one in many.unbind(dim)])
            assert_close(got, want, TRITON, f"{function.__name__}, argument {batched}")


# ------------------------------------------------------------------------------------- errors and compilation


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"activation": "tanh"}, "activation: 'tanh' came; expected one of relu, gelu, gelu_tanh, silu"),
        ({"pre": torch.zeros(7)}, r"pre: shape \(7,\) came, expected \[positions, d_mlp\]"),
        ({"gate_pre": torch.zeros(3, 8)}, r"gate_pre: shape \(3, 8\) came, expected that of pre, \(3, 7\)"),
        ({"carried": torch.zeros(5, 3, 7)}, r"g: shape \(5, 3, 7\) came, expected \[positions=3, rows, 7\] to fit pre"),
        ({"carried": torch.zeros(3, 5, 7), "parts": 2}, r"g: .* expected \[positions=3, rows, 14\]"),
        ({"carried": torch.zeros(3, 5, 7).double()}, r"g: torch\.float64 on cpu came, and pre is torch\.float32 on cpu"),
        ({"gate_pre": torch.zeros(3, 7).half()}, r"gate_pre: torch\.float16 on cpu came"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], message: str):
    fitting = {"name": "g", "carried": torch.zeros(3, 5, 7), "pre": torch.zeros(3, 7), "gate_pre": None, "activation": "relu", "parts": 1}
    check_arguments(**fitting)
    with pytest.raises(ValueError, match=message):
        check_arguments(**fitting | given)


def test_errors_of_the_public_functions():
    g, pre = torch.zeros(3, 5, 7), torch.zeros(3, 7)
    with pytest.raises(ValueError, match=r"g: torch\.float32 on cpu came, and pre is torch\.float64"):
        mlp_pointwise(g, pre.double(), None, "relu", impl="reference")
    with pytest.raises(ValueError, match=r"x_dot: shape \(3, 5, 7\) came, expected \[positions=3, rows, 14\]"):
        mlp_pointwise_tangent(g, pre, pre, "relu", impl="reference")
    with pytest.raises(ValueError, match=r"gate_pre: torch\.float64"):
        slopes(pre, pre.double(), "relu")


@needs_triton
def test_what_triton_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch):
    g, pre = numbers(3, 5, 7), numbers(3, 7)
    with pytest.raises(ValueError, match=r'impl: "triton" computes in float32, and float64 came\. Use impl="reference"'):
        mlp_pointwise(g, pre, None, "relu", impl="triton")
    from attrib_kernels.mlp_pointwise import triton as fast

    if DEVICE == "cpu":
        monkeypatch.setattr(fast.triton, "JITFunction", type(fast._kernel))  # as if nothing were interpreted
        with pytest.raises(ValueError, match=r'impl: "triton" needs CUDA tensors, and CPU tensors came'):
            mlp_pointwise(g.float(), pre.float(), None, "relu", impl="triton")


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    import attrib_kernels.mlp_pointwise as package

    monkeypatch.setitem(sys.modules, "triton", None)  # an import of it fails
    monkeypatch.delitem(sys.modules, "attrib_kernels.mlp_pointwise.triton", raising=False)
    monkeypatch.delattr(package, "triton", raising=False)
    with pytest.raises(ImportError, match=r"needs the triton package\. Install attrib\[gpu\], or use impl='reference'"):
        mlp_pointwise(torch.zeros(1, 1, 1), torch.zeros(1, 1), None, "relu", impl="triton")


@needs_triton
def test_the_kernels_compile_for_hopper(tmp_path: Path):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.support.kernel_compiler", "mlp_pointwise"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 3
    assert all(0 <= shared <= SHARED for shared in found.values()), found
