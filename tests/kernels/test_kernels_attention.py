"""The attention adjoint: its reference against torch.func.vjp, its Triton kernels against the reference, its rule under torch.func."""

import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import attrib_kernels.attention_adjoint as kernels
import pytest
import torch
from attrib_kernels.attention_adjoint import AttentionCotangents, FrozenCotangents, check_arguments
from torch import Tensor
from torch.func import jacrev, vjp, vmap

from tests.support.builders import normal
from tests.support.kernel_device import DEVICE
from tests.support.tolerances import assert_close

# Products as exact as the reference's. The interpreter rounds no operand, so there the default has its values and its tiles tried.
EXACTLY = "ieee" if DEVICE == "cuda" else "tf32"
attention_adjoint = partial(kernels.attention_adjoint, precision=EXACTLY)
attention_tangent = partial(kernels.attention_tangent, precision=EXACTLY)

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
IMPLS = ["reference", pytest.param("triton", marks=needs_triton)]

EXACT = 1e-10
"""Two orders of the same sums in float64."""
TRITON = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Triton's kernels in a dtype against the reference in float64 on the same numbers."""

SHAPES = {
    "one position": (1, 1, 1, 1, 10),
    "grouped": (7, 5, 4, 2, 10),
    "a group of three": (5, 3, 3, 1, 8),
    "two blocks of positions": (33, 5, 2, 1, 64),
    "many rows, each program some": (5, 70, 1, 1, 16),
    "many rows, a loop in each program": (20, 70, 1, 1, 10),
    "columns of C in blocks": (17, 2, 1, 1, 80),
    "no rows": (7, 0, 2, 1, 64),
}
"""positions, rows, heads, kv_heads, d_head."""


class Case(NamedTuple):
    cotangent: Tensor
    primal: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]  # pattern, q, k, v, z, scale
    tangents: AttentionCotangents

    def to(self, dtype: torch.dtype) -> "Case":
        *tensors, scale = self.primal
        primal = (*(x.to(dtype) for x in tensors), scale)
        return Case(self.cotangent.to(dtype), primal, AttentionCotangents(*(x.to(dtype) for x in self.tangents)))


def pattern_of(q: Tensor, k: Tensor, scale: float) -> Tensor:
    scores = q @ k.repeat_interleave(len(q) // len(k), 0).mT * scale
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Plain causal attention: z [heads, positions, d_head]."""
    return pattern_of(q, k, scale) @ v.repeat_interleave(len(q) // len(v), 0)


def case(positions: int, rows: int, heads: int, kv_heads: int, d_head: int, dtype: torch.dtype = torch.float64) -> Case:
    z_like, k_like = (positions, rows, heads, d_head), (positions, rows, kv_heads, d_head)
    q, k, v = (numbers(n, positions, d_head, seed=seed) for n, seed in ((heads, 1), (kv_heads, 2), (kv_heads, 3)))
    scale = 1.3 * d_head**-0.5
    primal = (pattern_of(q, k, scale), q, k, v, attention(q, k, v, scale), scale)
    tangents = AttentionCotangents(numbers(*z_like, seed=5), numbers(*k_like, seed=6), numbers(*k_like, seed=7))
    return Case(numbers(*z_like, seed=4), primal, tangents).to(dtype)


def numbers(*shape: int, seed: int) -> Tensor:
    return normal(*shape, dtype=torch.float64, seed=seed).to(DEVICE)


def double(case_: Case) -> Case:
    return case_.to(torch.float64)


@pytest.fixture
def nan_filled() -> Iterator[None]:
    """Every new tensor without values is full of NaN, so that what a kernel leaves out is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    some = torch.ones(3, dtype=torch.bfloat16)
    assert all(x.isnan().all() for x in (torch.empty(3), some.new_empty(2, 2), torch.empty_like(some)))
    yield
    torch.use_deterministic_algorithms(False)


def assert_all_close(got: Any, want: Any, tolerance: Any) -> None:
    assert type(got) is type(want)
    for name, x, y in zip(type(want)._fields, got, want, strict=True):
        assert (x is None) == (y is None), name
        if x is not None:
            assert_close(x, y, tolerance, name)


# ------------------------------------------------------------------------------------- by value


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_reference_is_the_vjp_of_attention(shape: tuple[int, ...]):
    cotangent, (_, q, k, v, _, scale), _ = c = case(*shape)
    _, pull = vjp(lambda q, k, v: attention(q, k, v, scale), q, k, v)
    want = (
        vmap(pull)(cotangent.permute(1, 2, 0, 3)) if shape[1] else [x.new_empty(0, *x.shape) for x in (q, k, v)]
    )  # [rows, heads, positions, d_head]
    got = attention_adjoint(cotangent, *c.primal, impl="reference")
    for name, x, y in zip("qkv", got, want, strict=True):
        assert_close(x.permute(1, 2, 0, 3), y, EXACT, name)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_frozen_reference_is_the_vjp_through_values_alone(shape: tuple[int, ...]):
    cotangent, (a, _, _, v, _, _), _ = c = case(*shape)
    _, pull = vjp(lambda v: a @ v.repeat_interleave(len(a) // len(v), 0), v)
    got = attention_adjoint(cotangent, *c.primal, impl="reference", frozen=True)
    assert isinstance(got, FrozenCotangents)
    assert got.q is None
    assert got.k is None
    want = vmap(pull)(cotangent.permute(1, 2, 0, 3))[0] if shape[1] else v.new_empty(0, *v.shape)
    assert_close(got.v.permute(1, 2, 0, 3), want, EXACT)


@pytest.mark.parametrize("frozen", [False, True], ids=["exact", "frozen"])
def test_the_tangent_reference_is_the_jvp_of_attention(frozen: bool):
    _, (a, q, k, v, _, scale), tangents = c = case(7, 5, 4, 2, 10)
    by_row = [x.permute(1, 2, 0, 3) for x in tangents]
    if frozen:
        want = vmap(lambda v_dot: a @ v_dot.repeat_interleave(2, 0))(by_row[2])
        got = attention_tangent(FrozenCotangents(None, None, tangents.v), *c.primal, impl="reference")
    else:
        want = vmap(lambda *dots: torch.func.jvp(lambda q, k, v: attention(q, k, v, scale), (q, k, v), dots)[1])(*by_row)
        got = attention_tangent(tangents, *c.primal, impl="reference")
    assert_close(got.permute(1, 2, 0, 3), want, EXACT)


@pytest.mark.few
@needs_triton
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("frozen", [False, True], ids=["exact", "frozen"])
def test_triton_is_the_reference(shape: tuple[int, ...], frozen: bool):
    c = case(*shape, dtype=torch.float32)
    want = attention_adjoint(double(c).cotangent, *double(c).primal, impl="reference", frozen=frozen)
    got = attention_adjoint(c.cotangent, *c.primal, impl="triton", frozen=frozen)
    assert_all_close(got, type(want)(*(None if x is None else x.float() for x in want)), TRITON)

    tangents = FrozenCotangents(None, None, c.tangents.v) if frozen else c.tangents
    exact = FrozenCotangents(None, None, double(c).tangents.v) if frozen else double(c).tangents
    moved = attention_tangent(tangents, *c.primal, impl="triton")
    assert_close(moved, attention_tangent(exact, *double(c).primal, impl="reference").float(), TRITON, "tangent")


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(7, 5, 4, 2, 10), (33, 1, 2, 1, 10)], ids=["grouped", "two blocks"])
def test_16_bit_numbers_are_summed_in_float32(shape: tuple[int, ...], dtype: torch.dtype, impl: Any):
    c = case(*shape, dtype=dtype)
    want = attention_adjoint(double(c).cotangent, *double(c).primal, impl="reference")
    got = attention_adjoint(c.cotangent, *c.primal, impl=impl)
    assert_all_close(got, AttentionCotangents(*(x.to(dtype) for x in want)), TRITON)
    moved = attention_tangent(c.tangents, *c.primal, impl=impl)
    assert_close(moved, attention_tangent(double(c).tangents, *double(c).primal, impl="reference").to(dtype), TRITON, "tangent")


@pytest.mark.parametrize("impl", IMPLS)
def test_only_keys_before_the_query_are_read(impl: Any):
    c = case(7, 5, 4, 2, 10, torch.float32)
    a, *rest = c.primal
    beyond = a.masked_fill(torch.ones_like(a[0], dtype=torch.bool).triu(1), torch.nan)
    assert_all_close(attention_adjoint(c.cotangent, beyond, *rest, impl=impl), attention_adjoint(c.cotangent, *c.primal, impl=impl), 0.0)
    assert_close(attention_tangent(c.tangents, beyond, *rest, impl=impl), attention_tangent(c.tangents, *c.primal, impl=impl), 0.0)


@needs_triton
def test_triton_takes_arguments_that_are_not_contiguous():
    c = case(7, 5, 4, 2, 10, torch.float32)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) if isinstance(x, Tensor) else x for x in (c.cotangent, *c.primal)]
    assert not turned[0].is_contiguous()
    assert_all_close(attention_adjoint(*turned, impl="triton"), attention_adjoint(c.cotangent, *c.primal, impl="triton"), 0.0)


# ------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("frozen", [False, True], ids=["exact", "frozen"])
def test_gradients_of_the_rules(frozen: bool):
    """First and second derivatives, with respect to what is carried and to the primal."""
    c = case(3, 2, 2, 1, 2)
    *primal, scale = (x.requires_grad_() if isinstance(x, Tensor) else x for x in c.primal)

    def adjoint(o: Tensor, *p: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for x in attention_adjoint(o, *p, scale, impl="reference", frozen=frozen) if x is not None)

    def tangent(*args: Tensor) -> Tensor:
        carried, p = ((None, None, args[0]), args[1:]) if frozen else (args[:3], args[3:])
        kind = FrozenCotangents if frozen else AttentionCotangents
        return attention_tangent(kind(*carried), *p, scale, impl="reference")

    carried = [x.requires_grad_() for x in (c.tangents[2:] if frozen else c.tangents)]
    for function, inputs in ((adjoint, (c.cotangent.requires_grad_(), *primal)), (tangent, (*carried, *primal))):
        torch.autograd.gradcheck(function, inputs)
        torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@needs_triton
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("frozen", [False, True], ids=["exact", "frozen"])
def test_gradients_of_triton_are_those_of_the_reference(frozen: bool):
    c = case(7, 5, 4, 2, 10, torch.float32)
    weights = c.tangents[2:] if frozen else tuple(c.tangents)

    def gradients(impl: Any) -> list[Tensor]:
        inputs = [x.detach().clone().requires_grad_() for x in (c.cotangent, *c.primal[:-1])]
        out = attention_adjoint(*inputs, c.primal[-1], impl=impl, frozen=frozen)
        loss = sum((x * w).sum() for x, w in zip((x for x in out if x is not None), weights, strict=True))
        return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))

    for name, got, want in zip(("cotangent", "pattern", "q", "k", "v", "z"), gradients("triton"), gradients("reference"), strict=True):
        assert_close(got, want, TRITON, name)


class Attention(torch.autograd.Function):
    """Attention whose backward is the kernel, as a differentiated segment uses it: z [positions, heads, d_head]."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, impl: Any) -> tuple[Tensor, Tensor]:
        a = pattern_of(q, k, scale)
        return (a @ v.repeat_interleave(len(q) // len(v), 0)).transpose(0, 1), a

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        q, k, v, ctx.scale, ctx.impl = inputs
        z, a = output
        ctx.mark_non_differentiable(a)
        ctx.save_for_backward(a, q, k, v, z.transpose(0, 1))

    @staticmethod
    def backward(ctx: Any, o: Tensor, _: Any) -> tuple[Any, ...]:
        out = attention_adjoint(o[:, None], *ctx.saved_tensors, ctx.scale, impl=ctx.impl)
        return *(x[:, 0].transpose(0, 1) for x in out), None, None

    generate_vmap_rule = True


@pytest.mark.parametrize("impl", IMPLS)
def test_jacrev_and_vmap_run_through_the_rule(impl: Any):
    """jacrev makes the cotangent batched, vmap around it the primal as well."""
    dtype = torch.float64 if impl == "reference" else torch.float32
    _, (_, q, k, v, _, scale), _ = case(3, 1, 2, 1, 3, dtype)
    scales = torch.tensor([1.0, 0.5, -2.0], dtype=dtype, device=q.device)

    def ours(factor: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return Attention.apply(factor * q, k, v, scale, impl)[0]

    def plain(factor: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(factor * q, k, v, scale).transpose(0, 1)

    got, want = (jacrev(f, argnums=(1, 2, 3))(scales[0], q, k, v) for f in (ours, plain))
    for name, x, y in zip("qkv", got, want, strict=True):
        assert_close(x, y, {torch.float64: EXACT} | TRITON, name)
    got, want = (vmap(jacrev(f, argnums=(1, 2, 3)), in_dims=(0, None, None, None))(scales, q, k, v) for f in (ours, plain))
    for name, x, y in zip("qkv", got, want, strict=True):
        assert_close(x, y, {torch.float64: EXACT} | TRITON, f"batched primal, {name}")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("frozen", [False, True], ids=["exact", "frozen"])
def test_every_batched_argument(impl: Any, frozen: bool):
    """vmap over each argument alone, at different dimensions, is a loop over it; so for the tangent."""
    c = case(3, 2, 2, 1, 3, torch.float32)
    tensors = (c.cotangent, *c.primal[:-1])

    def adjoint(*args: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for x in attention_adjoint(*args, c.primal[-1], impl=impl, frozen=frozen) if x is not None)

    def tangent(*args: Tensor) -> tuple[Tensor]:
        carried = FrozenCotangents(None, None, args[0]) if frozen else AttentionCotangents(*args[:3])
        return (attention_tangent(carried, *args[-5:], c.primal[-1], impl=impl),)

    carried = c.tangents[2:] if frozen else tuple(c.tangents)
    for function, args in ((adjoint, tensors), (tangent, (*carried, *c.primal[:-1]))):
        first_of_primal = len(args) - 5
        for batched in range(len(args)) if impl == "reference" else (0, first_of_primal):
            dim = batched % args[batched].ndim
            many = torch.stack([args[batched], 0.5 * args[batched]], dim)
            in_dims = tuple(dim if i == batched else None for i in range(len(args)))
            got = vmap(function, in_dims=in_dims)(*args[:batched], many, *args[batched + 1 :])
            each = [function(*args[:batched], x, *args[batched + 1 :]) for x in many.unbind(dim)]
            for x, y in zip(got, zip(*each, strict=True), strict=True):
                assert_close(x, torch.stack(y), TRITON, f"{function.__name__}, argument {batched}")


def test_no_rows_under_vmap():
    c = case(5, 0, 4, 2, 3)
    out = vmap(lambda o: attention_adjoint(o, *c.primal, impl="reference"))(torch.stack([c.cotangent] * 3))
    assert out.k.shape == (3, 5, 0, 2, 3)


def test_second_derivatives_of_attention():
    """Derivatives with respect to the primal make the Hessian whole: the adjoint's own arguments depend on q."""
    _, (_, q, k, v, _, scale), _ = c = case(3, 1, 2, 1, 2)

    def ours(q: Tensor) -> Tensor:
        a, z = pattern_of(q, k, scale), attention(q, k, v, scale)
        return attention_adjoint(c.cotangent, a, q, k, v, z, scale, impl="reference").q[:, 0].transpose(0, 1)

    want = jacrev(jacrev(lambda q: (attention(q, k, v, scale) * c.cotangent[:, 0].transpose(0, 1)).sum()))(q)
    assert_close(jacrev(ours)(q), want, EXACT)


# ------------------------------------------------------------------------------------- errors and imports


@pytest.mark.parametrize(
    ("argument", "wrong", "message"),
    [
        ("q", (4, 7), r"q: shape \(4, 7\) came, expected \[heads, positions, d_head\]"),
        ("k", (2, 6, 10), r"k: shape \(2, 6, 10\) came, expected \[kv_heads, positions=7, d_head=10\]"),
        ("v", (4, 7, 10), r"v: .* expected \[kv_heads=2, positions=7"),
        ("z", (2, 7, 10), r"z: .* expected \[heads=4"),
        ("pattern", (4, 7, 9), r"pattern: .* expected \[heads=4, positions=7, positions=7\]"),
        ("cotangent", (7, 5, 40), r"cotangent: shape \(7, 5, 40\) came, expected \[positions=7, rows, heads=4, d_head=10\]"),
        ("k", (3, 7, 10), r"k: 3 key heads came for 4 query heads"),
    ],
)
def test_a_wrong_shape_is_named(argument: str, wrong: tuple[int, ...], message: str):
    c = case(7, 5, 4, 2, 10)
    a, q, k, v, z, _ = c.primal
    given = {"q": q, "k": k, "v": v, "z": z, "pattern": a, "cotangent": c.cotangent}
    given[argument] = q.new_zeros(wrong)
    if wrong == (3, 7, 10):
        given["v"] = given["k"]
    with pytest.raises(ValueError, match=message):
        check_arguments(**given)


def test_errors_of_the_public_functions():
    c = case(7, 5, 4, 2, 10)
    a, q, k, v, z, scale = c.primal
    with pytest.raises(ValueError, match=r"k: 3 key heads came for 4 query heads of q; expected a divisor"):
        attention_adjoint(c.cotangent, a, q, k[[0, 1, 1]], v[[0, 1, 1]], z, scale, impl="reference")
    with pytest.raises(ValueError, match=r"tangents\.v: torch\.float32 on .* came, and q is torch\.float64"):
        attention_tangent(AttentionCotangents(*c.tangents[:2], c.tangents.v.float()), *c.primal, impl="reference")


@needs_triton
def test_what_triton_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch):
    c = case(3, 2, 2, 1, 4)
    with pytest.raises(ValueError, match=r'impl: "triton" sums in float32, and float64 came\. Use impl="reference"'):
        attention_adjoint(c.cotangent, *c.primal, impl="triton")
    from attrib_kernels.attention_adjoint import triton as fast

    c = c.to(torch.float32)
    if DEVICE == "cpu":
        monkeypatch.setattr(fast.triton, "JITFunction", type(fast._key_kernel))  # as if nothing were interpreted
        with pytest.raises(ValueError, match=r'impl: "triton" needs CUDA tensors, and CPU tensors came'):
            attention_tangent(c.tangents, *c.primal, impl="triton")


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    import attrib_kernels.attention_adjoint as package

    monkeypatch.setitem(sys.modules, "triton", None)  # an import of it fails
    monkeypatch.delitem(sys.modules, "attrib_kernels.attention_adjoint.triton", raising=False)
    monkeypatch.delattr(package, "triton", raising=False)
    c = case(3, 2, 2, 1, 4, torch.float32)
    with pytest.raises(ImportError, match=r"needs the package triton; pip install 'attrib\[gpu\]', or use impl='reference'"):
        attention_adjoint(c.cotangent, *c.primal, impl="triton")
