"""The attention kernels where tiles come by tensor descriptors: the values of pointers and of the reference, and when pointers stay."""

import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from tests.support.kernel_device import DEVICE

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from attrib_kernels import descriptors
from attrib_kernels.attention_adjoint import AttentionCotangents, FrozenCotangents, attention_adjoint, attention_tangent
from attrib_kernels.attention_adjoint import triton as fast
from attrib_kernels.impl import check_loads

from tests.support.builders import normal

if DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0):
    pytest.skip("this GPU has no tensor memory accelerator", allow_module_level=True)

BOUNDS = {torch.float32: 3e-3 if DEVICE == "cuda" else 5e-6, torch.bfloat16: 1e-2}
"""Relative Frobenius errors against float64, as the same kernels have them by pointers.

A GPU rounds float32 to TF32; the interpreter rounds no operand."""

SHAPES = {
    "one position": (1, 3, 2, 1, 16),
    "one of everything": (1, 1, 1, 1, 16),
    "less than a tile": (7, 5, 4, 2, 32),
    "a tile and one": (65, 2, 2, 2, 64),
    "a group of three": (37, 3, 3, 1, 64),
    "more rows than a tile": (3, 70, 1, 1, 16),
    "padding of heads": (19, 3, 2, 1, 24),
    "padding of columns": (17, 2, 1, 1, 80),
    "wide heads": (33, 2, 2, 1, 128),
    "the widest": (20, 1, 2, 2, 256),
}
"""positions, rows, heads, kv_heads, d_head."""

Primal = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]


def numbers(*shape: int, seed: int) -> Tensor:
    return normal(*shape, dtype=torch.float64, seed=seed).to(DEVICE)


def drawn(positions: int, rows: int, heads: int, kv_heads: int, d_head: int, dtype: torch.dtype) -> tuple[AttentionCotangents, Primal]:
    """What is carried, whose queries serve as cotangents too, and the primal, with any lower triangle for a pattern."""
    sizes = (heads, kv_heads, kv_heads)
    carried = AttentionCotangents(*(numbers(positions, rows, n, d_head, seed=seed).to(dtype) for seed, n in enumerate(sizes)))
    pattern = numbers(heads, positions, positions, seed=3).tril().softmax(-1).tril()
    q, k, v, z = (numbers(n, positions, d_head, seed=seed) for n, seed in ((heads, 4), (kv_heads, 5), (kv_heads, 6), (heads, 7)))
    return carried, (*(x.to(dtype) for x in (pattern, q, k, v, z)), 1.3 * d_head**-0.5)


def double(primal: Primal) -> Primal:
    *tensors, scale = primal
    return (*(x.double() for x in tensors), scale)


def maps(carried: AttentionCotangents, primal: Primal, frozen: bool, **how: Any) -> dict[str, Tensor]:
    """Both maps by the names of what they give."""
    pulled = attention_adjoint(carried.q, *primal, frozen=frozen, **how)
    pushed = attention_tangent(FrozenCotangents(None, None, carried.v) if frozen else carried, *primal, **how)
    return {**{name: x for name, x in pulled._asdict().items() if x is not None}, "tangent": pushed}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What descriptors were made of; every new tensor without values is full of NaN, so that what a kernel leaves out is seen."""
    seen: list[Tensor] = []

    def noted(x: Tensor, *rest: Any) -> Any:
        seen.append(x)
        return descriptors.described(x, *rest)

    monkeypatch.setattr(fast, "described", noted)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield seen
    torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------------- by value


@pytest.mark.few
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", [False, True], ids=["exact", "frozen"])
def test_they_give_what_pointers_and_the_reference_give(shape: tuple[int, ...], dtype: torch.dtype, frozen: bool, made: list[Tensor]):
    carried, primal = drawn(*shape, dtype=dtype)
    want = maps(AttentionCotangents(*(x.double() for x in carried)), double(primal), frozen, impl="reference")
    plain = maps(carried, primal, frozen, impl="triton")
    assert not made
    got = maps(carried, primal, frozen, impl="triton", loads="descriptors")
    # queries' kernel: o, k, v; keys': o, q, v; tangent: all six. Where the pattern is frozen, o and v̇ alone.
    assert len(made) == (2 if frozen else 12)
    for name, x in got.items():
        assert x.dtype == dtype, name
        assert (x.double() - want[name]).norm() <= BOUNDS[dtype] * want[name].norm(), name
        if DEVICE == "cpu":
            assert torch.equal(x, plain[name]), name


@pytest.mark.parametrize("seed", range(3))
def test_random_shapes(seed: int, made: list[Tensor]):
    source = torch.Generator().manual_seed(seed)

    def up_to(most: int) -> int:
        return int(torch.randint(1, most + 1, (), generator=source))

    kv_heads = up_to(3)
    shape = (up_to(50), up_to(3), kv_heads * up_to(2), kv_heads, 4 * up_to(16))
    carried, primal = drawn(*shape, dtype=torch.float32)
    want = maps(AttentionCotangents(*(x.double() for x in carried)), double(primal), False, impl="reference")
    for name, x in maps(carried, primal, False, impl="triton", loads="descriptors").items():
        assert (x.double() - want[name]).norm() <= BOUNDS[torch.float32] * want[name].norm(), (name, shape)
    assert made


def test_arguments_that_are_not_contiguous(made: list[Tensor]):
    """They are copied. One with a size of 1 counts as contiguous whatever its stride there, which a descriptor must not take over."""
    carried, primal = drawn(5, 1, 2, 1, 16, torch.float32)
    want = maps(carried, primal, False, impl="triton", loads="descriptors")

    def turned(x: Any) -> Any:
        return x.transpose(0, 1).contiguous().transpose(0, 1) if isinstance(x, Tensor) else x

    odd = carried.q.as_strided(carried.q.shape, (32, 3, 16, 1))
    assert odd.is_contiguous()
    got = maps(carried._replace(q=odd, k=turned(carried.k)), tuple(map(turned, primal)), False, impl="triton", loads="descriptors")
    assert all(torch.equal(x, want[name]) for name, x in got.items())


def test_no_rows_and_every_row_of_a_batch(made: list[Tensor]):
    carried, primal = drawn(5, 4, 2, 1, 16, torch.float32)
    none = maps(AttentionCotangents(*(x[:, :0] for x in carried)), primal, False, impl="triton", loads="descriptors")
    assert [tuple(x.shape) for x in none.values()] == [(5, 0, 2, 16), (5, 0, 1, 16), (5, 0, 1, 16), (5, 0, 2, 16)]
    assert not made
    want = maps(carried, primal, False, impl="triton", loads="descriptors")
    many = vmap(lambda *x: maps(AttentionCotangents(*x), primal, False, impl="triton", loads="descriptors"), in_dims=1, out_dims=1)
    got = many(*(x.unflatten(1, (2, 2)) for x in carried))
    assert all(torch.equal(x.flatten(1, 2), want[name]) for name, x in got.items())
    assert len(made) == 24


def test_derivatives_load_by_descriptors_too(made: list[Tensor]):
    """The backward of the adjoint is the tangent map, and of the tangent map the adjoint."""
    carried, primal = drawn(5, 2, 2, 1, 16, torch.float32)
    cotangent, v_dot = carried.q.clone().requires_grad_(), carried.v.clone().requires_grad_()
    attention_adjoint(cotangent, *primal, impl="triton", loads="descriptors").v.sum().backward()
    assert len(made) == 12
    attention_tangent(carried._replace(v=v_dot), *primal, impl="triton", loads="descriptors").sum().backward()
    assert len(made) == 24


# --------------------------------------------------------------------------------- where pointers stay


@pytest.mark.parametrize(
    ("d_head", "dtype", "precision"),
    [(10, torch.float32, "tf32"), (12, torch.bfloat16, "tf32"), (16, torch.float32, "tf32x3"), (16, torch.float32, "ieee")],
)
def test_rows_that_16_bytes_do_not_divide_and_other_products(d_head: int, dtype: torch.dtype, precision: str, made: list[Tensor]):
    carried, primal = drawn(5, 2, 2, 1, d_head, dtype)
    got, want = (maps(carried, primal, False, impl="triton", precision=precision, loads=loads) for loads in ("descriptors", "pointers"))
    assert not made
    assert all(torch.equal(x, want[name]) for name, x in got.items())


@pytest.mark.parametrize("which", range(1, 4), ids=["q", "k", "v"])
def test_an_address_that_16_bytes_do_not_divide(which: int, made: list[Tensor]):
    carried, primal = drawn(5, 2, 2, 1, 16, torch.float32)
    x = primal[which]
    moved = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
    assert moved.data_ptr() % 16
    got = maps(carried, (*primal[:which], moved, *primal[which + 1 :]), False, impl="triton", loads="descriptors")
    assert not made
    assert all(torch.equal(x, y) for x, y in zip(got.values(), maps(carried, primal, False, impl="triton").values(), strict=True))


@pytest.mark.parametrize(
    ("backend", "arch", "there"),
    [("cuda", 80, False), ("cuda", 89, False), ("cuda", 90, True), ("cuda", 120, True), ("hip", "gfx942", False)],
)
def test_which_gpus_have_them(monkeypatch: pytest.MonkeyPatch, backend: str, arch: int | str, there: bool):
    active = SimpleNamespace(get_current_target=lambda: SimpleNamespace(backend=backend, arch=arch))
    runtime, knobs = SimpleNamespace(driver=SimpleNamespace(active=active)), SimpleNamespace(runtime=SimpleNamespace(interpret=False))
    monkeypatch.setattr(descriptors, "triton", SimpleNamespace(runtime=runtime, knobs=knobs))
    assert descriptors.describable(numbers(2, 16, seed=0)) is there


def test_a_triton_without_them(monkeypatch: pytest.MonkeyPatch):
    assert descriptors.describable(numbers(2, 16, seed=0))
    monkeypatch.setattr(descriptors, "TensorDescriptor", None)
    assert not descriptors.describable(numbers(2, 16, seed=0))


def test_a_way_to_load_that_is_none_is_refused_by_name():
    check_loads("descriptors")
    with pytest.raises(ValueError, match="loads: 'tma'; expected one of pointers, descriptors"):
        check_loads("tma")
