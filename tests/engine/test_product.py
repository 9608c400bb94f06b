"""Products by oneDNN are torch's, to rounding; and which of the two multiplies is what was asked for, wherever only torch can."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, jvp, vmap
from torch.testing import assert_close as assert_equal_up_to

import attrib
from attrib.core.types import EXACT, LINEAR, InputError, Policy
from attrib.engine.blocks import product as door
from attrib.engine.blocks.product import product, product_into
from tests.support.builders import attrib_model, dictionary, prompt
from tests.support.measured import flops, measured
from tests.support.tolerances import ROUNDING, assert_close

HAS_ONEDNN = torch.backends.mkldnn.is_available()
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this torch is built without oneDNN")
Taken = list[tuple[int, ...]]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """The shapes that oneDNN multiplies, which it is asked for however small they are."""
    found: Taken = []
    by_onednn = door._by_onednn

    def seen(a: Tensor, w: Tensor) -> Tensor:
        found.append((*a.shape, w.shape[1]))
        return by_onednn(a, w)

    monkeypatch.setenv(door.VARIABLE, "onednn")
    monkeypatch.setattr(door, "LEAST_FLOPS", 0)
    monkeypatch.setattr(door, "LEAST_SIDE", 1)
    monkeypatch.setattr(door, "_by_onednn", seen)
    return found


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def lying() -> Iterator[tuple[str, Tensor, Tensor, bool]]:
    """Factors in every layout, and whether oneDNN takes them."""
    for rows in (0, 1, 31, 256, 300):
        yield f"{rows} rows", normal(rows, 70), normal(70, 65), True
    yield "a transposed matrix", normal(33, 70), normal(65, 70).T, True
    yield "positions and rows", normal(5, 7, 70), normal(70, 65), True
    yield "some of the rows", normal(50, 70)[3:40], normal(70, 65), True
    yield "a matrix of one column", normal(33, 70), normal(70, 1), True
    yield "columns of a wider matrix", normal(33, 70), normal(70, 90)[:, 3:68], False
    yield "columns of wider rows", normal(33, 90)[:, 3:73], normal(70, 65), False
    yield "transposed rows", normal(70, 33).T, normal(70, 65), False
    yield "float64", normal(33, 70).double(), normal(70, 65).double(), False
    yield "bfloat16", normal(33, 70).bfloat16(), normal(70, 65).bfloat16(), False


CASES = {name: (a, w, is_taken) for name, a, w, is_taken in lying()}


@needs_onednn
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_in_float64(taken: Taken, name: str):
    a, w, is_taken = CASES[name]
    found, want = product(a, w), a.double() @ w.double()
    assert len(taken) == is_taken
    assert found.dtype == a.dtype
    assert_equal_up_to(
        found.double(), want, atol=0.2 if a.dtype == torch.bfloat16 else 1e-4, rtol=0.01 if a.dtype == torch.bfloat16 else 1e-5
    )
    if is_taken:
        assert torch.equal(found, product(a, w)), "a product made again has other bits"


@needs_onednn
@pytest.mark.parametrize("name", [name for name, (a, *_) in CASES.items() if a.ndim == 2])
@pytest.mark.parametrize("is_turned", [False, True], ids=["", "transposed"])
def test_products_into_what_is_there(taken: Taken, name: str, is_turned: bool):
    a, w, is_taken = CASES[name]
    if is_turned:
        a, w = w.T, a.T
    out = torch.full((len(a), w.shape[1]), torch.nan, dtype=a.dtype)
    product_into(a, w, out)
    tolerance = {"atol": 0.2, "rtol": 0.01} if a.dtype == torch.bfloat16 else {"atol": 1e-4, "rtol": 1e-5}
    assert_equal_up_to(out.double(), a.double() @ w.double(), **tolerance)
    if is_taken:
        assert len(taken) == 1


def test_torch_multiplies_where_nothing_is_asked_for(taken: Taken, monkeypatch: pytest.MonkeyPatch):
    a, w = normal(300, 70), normal(70, 65)
    for value in (None, "torch"):
        monkeypatch.delenv(door.VARIABLE) if value is None else monkeypatch.setenv(door.VARIABLE, value)
        assert torch.equal(product(a, w), a @ w)
    assert not taken


@needs_onednn
def test_small_products_are_torchs(taken: Taken, monkeypatch: pytest.MonkeyPatch):
    a, w = normal(64, 70), normal(70, 65)
    monkeypatch.setattr(door, "LEAST_FLOPS", 2 * 64 * 70 * 65)
    product(a, w)
    assert taken == [(64, 70, 65)]
    product(a[1:], w)
    monkeypatch.setattr(door, "LEAST_SIDE", 66)
    product(a, w)
    assert len(taken) == 1


def test_a_torch_without_the_operation_multiplies_by_its_own(taken: Taken, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(door, "_operation", lambda: None)
    a, w = normal(300, 70), normal(70, 65)
    assert torch.equal(product(a, w), a @ w)
    assert not taken


@pytest.mark.parametrize("missing", ["operation", "oneDNN"])
def test_the_operation_is_found_to_be_missing(missing: str, monkeypatch: pytest.MonkeyPatch):
    class Nothing:
        """A torch.ops.mkldnn of another torch."""

    if missing == "operation":
        monkeypatch.setattr(torch.ops, "mkldnn", Nothing())
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert door._operation.__wrapped__() is None


def test_a_word_that_is_not_known_is_refused(taken: Taken, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(door.VARIABLE, "mkl")
    with pytest.raises(InputError, match="ATTRIB_PRODUCT: 'mkl' in the environment; expected 'torch' or 'onednn'"):
        product(normal(300, 70), normal(70, 65))


def gradient(a: Tensor, w: Tensor) -> Tensor:
    """The gradient of a product's sum by its matrix, on a tape."""
    leaf = w.clone().requires_grad_()
    (found,) = torch.autograd.grad(product(a, leaf).sum(), leaf)
    return found


TRANSFORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "jvp": lambda a, w: jvp(lambda x: product(x, w), (a,), (a,))[1],
    "jacrev": lambda a, w: jacrev(lambda x: product(x, w).sum(0))(a),
    "vmap": lambda a, w: vmap(lambda x: product(x, w))(torch.stack([a, 2 * a])),
    "vmap of matrices": lambda a, w: vmap(lambda x: product(a, x))(torch.stack([w, 2 * w])),
    "autograd": gradient,
    "meta": lambda a, w: product(a.to("meta"), w.to("meta")).shape,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_looks_through_a_product_finds_torchs(taken: Taken, name: str, monkeypatch: pytest.MonkeyPatch):
    a, w = normal(9, 7), normal(7, 5)
    found = TRANSFORMS[name](a, w)
    assert not taken
    monkeypatch.setenv(door.VARIABLE, "torch")
    want = TRANSFORMS[name](a, w)
    assert torch.equal(found, want) if isinstance(found, Tensor) else found == want


@needs_onednn
@pytest.mark.parametrize(
    "family", ["gpt2", "gemma2"]
)  # one whose MLP is folded from transposed factors, and one with gates and norms behind
@pytest.mark.parametrize("policy", [EXACT, LINEAR], ids=["exact", "linear"])
def test_attribution_by_onednn_is_that_by_torch_and_counted(taken: Taken, family: Any, policy: Policy, monkeypatch: pytest.MonkeyPatch):
    model = attrib_model(family)
    width = model.config.d_model
    source, target = (dictionary("topk", site=f"blocks.{layer}.hook_resid_pre", d_in=width, d_sae=500, k=20) for layer in (0, 3))

    def run() -> attrib.Edges:
        return attrib.latent_to_latent(model, source, target, prompt(9), policy=policy)

    found = measured(run)
    assert len({shape[1:] for shape in taken}) > 1
    monkeypatch.setenv(door.VARIABLE, "torch")
    assert_close(found.result.gradient, run().gradient, ROUNDING)
    assert found.flops == flops(run)
