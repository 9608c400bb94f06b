"""Sparse decode and encode: the dense products at the chosen places, with every derivative and every batching of torch.func."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.root import ROOT

# Triton's own functions become interpreted when triton is first imported, or never.
os.environ["TRITON_INTERPRET"] = "1"

import attrib_kernels.sparse_decode as decode_package
import attrib_kernels.sparse_encode as encode_package
import pytest
import torch
from attrib_kernels.sparse_decode import sparse_decode
from attrib_kernels.sparse_encode import sparse_encode
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils import _pytree as pytree

from tests.support.builders import normal

triton = pytest.importorskip("triton")
assert type(triton.language.sum).__name__ == "InterpretedFunction", (
    "triton was imported before TRITON_INTERPRET=1 was set, so its functions cannot be interpreted: set it in the shell"
)

from attrib_kernels.sparse_decode import rule as decode_rule  # noqa: E402
from attrib_kernels.sparse_decode.triton import sparse_decode_triton  # noqa: E402
from attrib_kernels.sparse_encode import rule as encode_rule  # noqa: E402
from attrib_kernels.sparse_encode.triton import sparse_encode_triton  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMPLS = ("reference", "triton")

SIZES = [
    # positions, pairs, latents, width
    (5, 11, 9, 7),
    (1, 1, 1, 1),
    (4, 0, 3, 5),
    (0, 0, 3, 5),
    (0, 0, 0, 5),
    (3, 6, 4, 0),
    (6, 24, 15, 133),
]


class Places(NamedTuple):
    """Pairs (position, latent), sorted by position; with more than two positions, the first and the last have none."""

    position: Tensor
    latent: Tensor


def places(positions: int, pairs: int, latents: int, *, seed: int = 5) -> Places:
    generator = torch.Generator().manual_seed(seed)
    first, last = (1, positions - 1) if positions > 2 else (0, positions)
    position = torch.randint(first, max(last, first + 1), (pairs,), generator=generator).sort().values
    return Places(position, torch.randint(0, max(latents, 1), (pairs,), generator=generator))


def whole(*shape: int, dtype: torch.dtype = torch.float64, seed: int) -> Tensor:
    """Numbers from -2 to 2: sums of their products are exact in float32, so they are rounded once, whatever their order."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dense_decode(value: Tensor, at: Places, W_dec: Tensor, positions: int) -> Tensor:
    """scatter the values, then the whole product."""
    latents = value.new_zeros(*value.shape[:-1], positions, len(W_dec)).double()
    latents.view(*value.shape[:-1], -1).index_add_(-1, at.position * len(W_dec) + at.latent, value.double())
    return (latents @ W_dec.double()).to(value.dtype)


def dense_encode(x: Tensor, W_enc: Tensor, at: Places) -> Tensor:
    """the whole product, then a gather."""
    return (x.double() @ W_enc.double())[..., at.position, at.latent].to(x.dtype)


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


# --------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_decode_is_the_dense_product(impl: Any, dtype: torch.dtype, sizes: tuple[int, int, int, int]):
    positions, pairs, d_sae, width = sizes
    at, value, W_dec = places(positions, pairs, d_sae), whole(pairs, dtype=dtype, seed=1), whole(d_sae, width, dtype=dtype, seed=2)
    out = sparse_decode(value, *at, W_dec, positions, impl=impl)
    assert out.dtype == dtype
    assert torch.equal(out, dense_decode(value, at, W_dec, positions))
    if positions > 2 and width:
        assert not out[[0, -1]].any()  # no latent there
        assert pairs == 0 or out.any()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_encode_is_the_dense_product(impl: Any, dtype: torch.dtype, sizes: tuple[int, int, int, int]):
    positions, pairs, d_sae, width = sizes
    at, x, W_enc = places(positions, pairs, d_sae), whole(positions, width, dtype=dtype, seed=1), whole(width, d_sae, dtype=dtype, seed=2)
    want = dense_encode(x, W_enc, at)
    for layout in (W_enc, W_enc.T.contiguous().T):
        out = sparse_encode(x, layout, *at, impl=impl)
        assert out.dtype == dtype
        assert torch.equal(out, want)
    mixed = Places(*(column.flip(0) for column in at))
    assert torch.equal(sparse_encode(x, W_enc, *mixed, impl=impl), want.flip(0))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_rounded_once(impl: Any, dtype: torch.dtype):
    at, value, W_dec = places(6, 50, 30), normal(50, dtype=dtype), normal(30, 20, dtype=dtype, seed=3)
    x, W_enc = normal(6, 20, dtype=dtype, seed=4), W_dec.T
    half, eps = torch.finfo(dtype).eps / 2, torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for out, dense, sizes in (
        (sparse_decode(value, *at, W_dec, 6, impl=impl), dense_decode, (value, at, W_dec, 6)),
        (sparse_encode(x, W_enc, *at, impl=impl), dense_encode, (x, W_enc, at)),
    ):
        exact, bound = (
            dense(*(change(a.double()) if isinstance(a, Tensor) and a.is_floating_point() else a for a in sizes))
            for change in (lambda a: a, torch.abs)
        )
        assert ((out.double() - exact).abs() <= half * exact.abs() + 64 * eps * bound).all()


@pytest.mark.parametrize("blocks", [(1, 1, 16), (2, 4, 2), (4, 16, 256)], ids=str)
def test_every_blocking_gives_the_same(blocks: tuple[int, int, int]):
    positions, at, W = 5, places(5, 13, 9), whole(9, 11, seed=2)
    value, x = whole(3, 13, seed=1), whole(3, positions, 11, seed=1)
    assert torch.equal(sparse_decode_triton(value, *at, W, positions, blocks=blocks), dense_decode(value, at, W, positions))
    assert torch.equal(sparse_encode_triton(x, *at, W, blocks=blocks), dense_encode(x, W.T, at))


@pytest.mark.parametrize("impl", IMPLS)
def test_leading_dimensions_strides_and_narrow_indices(impl: Any):
    positions, at = 5, places(5, 11, 9)
    narrow = Places(*(column.int() for column in at))
    value, x = whole(11, 2, 3, seed=1).movedim(0, -1), whole(7, 2, 3, positions, seed=1).movedim(0, -1)
    W_dec, W_enc = whole(18, 14, seed=2)[::2, 1::2], whole(14, 18, seed=2)[::2, 1::2]
    assert torch.equal(sparse_decode(value, *narrow, W_dec, positions, impl=impl), dense_decode(value, at, W_dec, positions))
    assert torch.equal(sparse_encode(x, W_enc, *narrow, impl=impl), dense_encode(x, W_enc, at))
    every_other = Places(*(torch.stack([column, column], 1)[:, 0] for column in at))
    assert torch.equal(sparse_decode(value, *every_other, W_dec, positions, impl=impl), dense_decode(value, at, W_dec, positions))
    assert torch.equal(sparse_encode(x, W_enc, *every_other, impl=impl), dense_encode(x, W_enc, at))
    assert sparse_decode(value[:0], *at, W_dec, positions, impl=impl).shape == (0, 3, positions, 7)
    assert sparse_encode(x[:0], W_enc, *at, impl=impl).shape == (0, 3, 11)


@pytest.mark.parametrize("impl", IMPLS)
def test_what_no_pair_names_is_not_seen(impl: Any):
    """Blocks are filled up with the first latent and position, which may hold anything."""
    at, W = Places(torch.tensor([1, 1, 3]), torch.tensor([2, 1, 2])), whole(3, 5, seed=2)
    value, x = whole(3, seed=1), whole(4, 5, seed=1)
    W[0], x[[0, 2]] = torch.nan, torch.inf
    assert torch.equal(sparse_decode(value, *at, W, 4, impl=impl), dense_decode(value, at, W.nan_to_num(), 4))
    assert torch.equal(sparse_encode(x, W.T, *at, impl=impl), dense_encode(x.nan_to_num(posinf=0), W.T.nan_to_num(), at))


# ---------------------------------------------------------------------------------------- derivatives

POSITIONS, PAIRS, LATENTS, WIDTH = 4, 5, 3, 2
AT = places(POSITIONS, PAIRS, LATENTS)
MIXED = Places(*(column[[3, 0, 4, 1, 2]] for column in AT))


def decode(impl: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda value, W_dec: sparse_decode(value, *AT, W_dec, POSITIONS, impl=impl)


def encode(impl: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, W_enc_T: sparse_encode(x, W_enc_T.T, *MIXED, impl=impl)


OPERATIONS = {"decode": (decode, (PAIRS,)), "encode": (encode, (POSITIONS, WIDTH))}
each = pytest.mark.parametrize(("operation", "shape"), OPERATIONS.values(), ids=OPERATIONS)


def arguments(shape: tuple[int, ...], *, seed: int = 7) -> tuple[Tensor, Tensor]:
    return normal(*shape, dtype=torch.float64, seed=seed), normal(LATENTS, WIDTH, dtype=torch.float64, seed=seed + 1)


def assert_equal_trees(got: Any, want: Any) -> None:
    ours, theirs = pytree.tree_leaves(got), pytree.tree_leaves(want)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@each
@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_are_those_of_finite_differences(operation: Any, shape: tuple[int, ...], impl: Any):
    """Along random directions where the kernel is interpreted, which is slow; entry by entry it is held against the reference below."""
    primal = tuple(t.requires_grad_() for t in arguments(shape))
    if impl == "triton":
        # no batched gradients: there they are torch's older vmap, which knows no rule of ours
        assert gradcheck(operation(impl), primal, check_forward_ad=True, fast_mode=True)
    else:
        assert gradcheck(operation(impl), primal, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(operation(impl), primal)


@each
@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
def test_jacobians_are_the_references(operation: Any, shape: tuple[int, ...], argnums: Any):
    primal = arguments(shape)
    for transform in (jacrev, jacfwd):
        got, want = (transform(operation(impl), argnums)(*primal) for impl in ("triton", "reference"))
        assert_equal_trees(got, want)


@each
def test_vjp_jvp_and_vmaps_of_them_are_the_references(operation: Any, shape: tuple[int, ...]):
    primal, tangents = arguments(shape), tuple(torch.stack([t, 2 * t, -t]) for t in arguments(shape, seed=11))
    outcomes = []
    for impl in ("triton", "reference"):
        out, pull = vjp(operation(impl), *primal)
        cotangents = normal(3, *out.shape, dtype=torch.float64)
        push = lambda *tangent, impl=impl: jvp(operation(impl), primal, tangent)[1]  # noqa: E731
        leaves = [t.clone().requires_grad_() for t in primal]
        tape = operation(impl)(*leaves)
        taped = vmap(lambda g, tape=tape, leaves=leaves: torch.autograd.grad(tape, leaves, g, retain_graph=True))(cotangents)
        pushed = push(*(t[0] for t in tangents)), vmap(push)(*tangents)
        outcomes.append((out, pull(cotangents[0]), vmap(pull)(cotangents), taped, pushed))
    assert_equal_trees(*outcomes)


@each
def test_the_derivative_of_a_nonlinear_function_of_it(operation: Any, shape: tuple[int, ...]):
    """Forward over reverse, through both rules."""

    def loss(impl: Any) -> Callable[..., Tensor]:
        return lambda *both: operation(impl)(*both).sin().sum()

    primal, tangent = arguments(shape), arguments(shape, seed=11)
    got, want = (jvp(jacrev(loss(impl), (0, 1)), primal, tangent) for impl in ("triton", "reference"))
    assert_equal_trees(got, want)


@each
@pytest.mark.parametrize("in_dims", [(0, None), (None, 1), (1, 0), (-1, 2)], ids=str)
def test_vmap_is_the_loop(operation: Any, shape: tuple[int, ...], in_dims: tuple[int | None, int | None]):
    primal = arguments(shape)
    batched = [t if d is None else torch.stack([t, 2 * t + 1, -t], d) for t, d in zip(primal, in_dims, strict=True)]
    got = vmap(operation("triton"), in_dims)(*batched)
    members = [[t if d is None else t.select(d, m) for t, d in zip(batched, in_dims, strict=True)] for m in range(3)]
    assert_equal_trees(got, torch.stack([operation("reference")(*both) for both in members]))


@each
def test_nested_vmaps(operation: Any, shape: tuple[int, ...]):
    """The outer one over both arguments, the inner one over the first: a batch within a range of positions."""
    first, W = arguments(shape)
    firsts, Ws = (
        torch.stack([torch.stack([first, 2 * first]), torch.stack([-first, first + 1]), torch.zeros(2, *shape)]),
        torch.stack([W, -W, W + 1]),
    )
    got, want = (vmap(vmap(operation(impl), (0, None)))(firsts, Ws) for impl in ("triton", "reference"))
    assert_equal_trees(got, want)


@pytest.mark.parametrize("batched", [(1, 0, 0, 0), (0, 1, 1, 0), (1, 1, 1, 0), (0, 0, 0, 1), (1, 1, 0, 1)], ids=str)
def test_vmap_over_the_indices(batched: tuple[int, ...]):
    def three(*draws: Tensor) -> Tensor:
        return torch.stack(draws)

    ats = [places(POSITIONS, PAIRS, LATENTS, seed=seed) for seed in (5, 6, 7)]
    position, latent = (three(*column) for column in zip(*ats, strict=True))
    in_dims = tuple(0 if b else None for b in batched)
    W = three(*(whole(LATENTS, WIDTH, seed=s) for s in (1, 2, 3)))
    for first, call in (
        (whole(3, PAIRS, seed=9), lambda impl: lambda v, p, i, w: sparse_decode(v, p, i, w, POSITIONS, impl=impl)),
        (whole(3, POSITIONS, WIDTH, seed=9), lambda impl: lambda x, p, i, w: sparse_encode(x, w.T, p, i, impl=impl)),
    ):
        given = [t if b else t[0] for t, b in zip((first, position, latent, W), batched, strict=True)]
        members = [[t[m] if b else t for t, b in zip(given, batched, strict=True)] for m in range(3)]
        want = torch.stack([call("reference")(*member) for member in members])
        assert torch.equal(vmap(call("triton"), in_dims)(*given), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (2, 2)], ids=str)
def test_gradients_in_every_dtype_with_a_batch(dtype: torch.dtype, lead: tuple[int, ...]):
    """Whole numbers, so that the gradient of a batch, summed over it, is exact whatever the order."""
    positions, at, W = 5, places(5, 11, 9), whole(9, 7, dtype=dtype, seed=2)
    mixed = Places(*(column.flip(0) for column in at))
    for first, run in (
        (whole(*lead, 11, dtype=dtype, seed=1), lambda v, w, impl: sparse_decode(v, *at, w, positions, impl=impl)),
        (whole(*lead, positions, 7, dtype=dtype, seed=1), lambda x, w, impl: sparse_encode(x, w.T, *mixed, impl=impl)),
    ):
        found = {}
        for impl, make in (("triton", dtype), ("reference", torch.float64)):
            both = [t.to(make).requires_grad_() for t in (first, W)]
            out = run(*both, impl)
            found[impl] = torch.autograd.grad(out, both, whole(*out.shape, dtype=make, seed=3))
        for got, want in zip(found["triton"], found["reference"], strict=True):
            assert torch.equal(got, want.to(dtype))
            assert got.any()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("sizes", [(4, 0, 3, 5), (0, 0, 3, 5), (3, 6, 4, 0), (2, 3, 5, 1)], ids=str)
def test_gradients_of_empty_things(impl: Any, sizes: tuple[int, int, int, int]):
    positions, pairs, d_sae, width = sizes
    at, W = places(positions, pairs, d_sae), whole(d_sae, width, seed=2).requires_grad_()
    value, x = whole(pairs, seed=1).requires_grad_(), whole(positions, width, seed=1).requires_grad_()
    of_value, of_W = torch.autograd.grad(sparse_decode(value, *at, W, positions, impl=impl).sum(), (value, W))
    assert torch.equal(of_value, W.detach().sum(1)[at.latent])
    assert torch.equal(of_W, torch.zeros(d_sae).double().index_add(0, at.latent, value.detach())[:, None].expand(d_sae, width))
    of_x, of_W = torch.autograd.grad(sparse_encode(x, W.T, *at, impl=impl).sum(), (x, W))
    assert torch.equal(of_x, torch.zeros_like(of_x).index_add(0, at.position, W.detach()[at.latent]))
    assert torch.equal(of_W, torch.zeros_like(of_W).index_add(0, at.latent, x.detach()[at.position]))


def test_a_gradient_of_the_weights_is_made_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("a dense gradient was made")

    for module in (decode_rule, encode_rule):
        monkeypatch.setattr(module, "table_adjoint", refuse)
    for operation, shape in OPERATIONS.values():
        first, W = arguments(shape)
        run = operation("triton")
        torch.autograd.grad(run(first.requires_grad_(), W).sum(), first)
        vjp(lambda first, run=run, W=W: run(first, W), first.detach())[1](run(first.detach(), W))
        with pytest.raises(AssertionError, match="a dense gradient was made"):
            torch.autograd.grad(run(first, W.requires_grad_()).sum(), W)


def test_a_module_through_functional_call():
    """Parameters that enter by functional_call, as people write it."""

    class Read(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W_enc = torch.nn.Parameter(arguments((1,))[1].T.contiguous())

        def forward(self, x: Tensor, impl: Any) -> Tensor:
            return sparse_encode(x, self.W_enc, *MIXED, impl=impl)

    module, (x, W) = Read(), arguments((POSITIONS, WIDTH))
    got, want = (jacrev(lambda p, impl=impl: functional_call(module, p, (x, impl)))({"W_enc": W.T}) for impl in ("triton", "reference"))
    assert_equal_trees(got, want)


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": -1}, r"positions: -1; expected a number >= 0"),
        ({"latent": torch.zeros(4, dtype=torch.int64)}, r"value, position, latent: shapes \[5\], \[5\], \[4\]"),
        ({"value": torch.ones(2, 4)}, r"value, position, latent: shapes \[2, 4\], \[5\], \[5\]"),
        ({"W_dec": torch.ones(3, 2).double()}, r"W_dec: torch.float64; expected torch.float32"),
        ({"position": torch.zeros(5, dtype=torch.int64, device="meta")}, r"position: on meta; expected cpu"),
    ],
)
def test_what_does_not_fit_a_decoder_is_refused_by_name(change: dict[str, Any], message: str):
    given = {"value": torch.ones(5), "position": AT.position, "latent": AT.latent, "W_dec": torch.ones(3, 2), "positions": 4}
    decode_package.check(**given)
    with pytest.raises(ValueError, match=message):
        decode_package.check(**given | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_enc": torch.ones(3, 2)}, r"W_enc: shape \[3, 2\]; expected \[2, d_sae\]"),
        ({"latent": torch.zeros(4, dtype=torch.int64)}, r"position, latent: shapes \[5\], \[4\]"),
        ({"x": torch.ones(4, 2).half()}, r"W_enc: torch.float32; expected torch.float16"),
        ({"W_enc": torch.ones(2, 3, device="meta")}, r"W_enc: on meta; expected cpu"),
    ],
)
def test_what_does_not_fit_an_encoder_is_refused_by_name(change: dict[str, Any], message: str):
    given = {"x": torch.ones(4, 2), "W_enc": torch.ones(2, 3), "position": AT.position, "latent": AT.latent}
    encode_package.check(**given)
    with pytest.raises(ValueError, match=message):
        encode_package.check(**given | change)


# --------------------------------------------------------------------- without triton, and for a device


def test_the_references_need_no_triton_and_the_kernels_a_device():
    program = """
import sys, torch, attrib_kernels
from attrib_kernels.sparse_decode import sparse_decode
from attrib_kernels.sparse_encode import sparse_encode
one, at = torch.ones(1), torch.zeros(1, dtype=torch.int64)
assert sparse_decode(one, at, at, one[None], 1, impl="reference") == 1 == sparse_encode(one[None], one[None], at, at, impl="reference")
assert "triton" not in sys.modules
decode = lambda: sparse_decode(one, at, at, one[None], 1, impl="triton")
encode = lambda: sparse_encode(one[None], one[None], at, at, impl="triton")
for call in (decode, encode):
    try:
        call()
    except ValueError as error:
        print(error)
"""
    assert [line.split(",")[0] for line in run(program).splitlines()] == ["value: on cpu", "x: on cpu"]


def test_the_kernels_compile_for_a_device(tmp_path: Path):
    """The interpreter takes what the compiler would not. No device is needed to compile for one."""
    program = """
import torch, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from attrib_kernels.sparse_decode import triton as decode
from attrib_kernels.sparse_encode import triton as encode

def build(kernel, kind, wide, **constants):
    kinds = dict.fromkeys(["position", "latent", "first"], "*i64") | dict.fromkeys(["value", "x", "table", "out"], "*" + kind)
    constants["ACC"] = getattr(tl, wide)
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    assert "ptx" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
    print(kernel.__name__, kind)

for kind, wide, batch in (("bf16", "float32", 4), ("fp64", "float64", 1)):
    build(decode._decode, kind, wide, BLOCK_BATCH=batch, BLOCK_ACTIVE=8, BLOCK_WIDTH=128)
    build(encode._encode, kind, wide, BLOCK_BATCH=batch, BLOCK_PAIRS=16, BLOCK_WIDTH=64)
"""
    assert len(run(program, TRITON_CACHE_DIR=str(tmp_path)).splitlines()) == 4


def run(program: str, **environment: str) -> str:
    """What a fresh, uninterpreted Python prints."""
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = plain | {"PYTHONPATH": path} | environment
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
