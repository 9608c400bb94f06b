"""Products by oneDNN are torch's, to rounding; who multiplies is what was measured or asked for, wherever not only torch can."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, jvp, vjp, vmap
from torch.testing import assert_close as assert_equal_up_to

import attrib
from attrib.core.types import EXACT, LINEAR, InputError, Policy
from attrib.engine.blocks import multiplier as who
from attrib.engine.blocks import product as door
from attrib.engine.blocks.product import add_product, product, product_into
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
        assert a.is_contiguous()
        assert w.is_contiguous() or w.T.is_contiguous(), "plain loops would multiply these"
        found.append((*a.shape, w.shape[1]))
        return by_onednn(a, w)

    monkeypatch.setenv(who.VARIABLE, "onednn")
    monkeypatch.setattr(door, "LEAST_FLOPS", 0)
    monkeypatch.setattr(door, "_by_onednn", seen)
    return found


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def lying() -> Iterator[tuple[str, Tensor, Tensor, list[tuple[int, int]]]]:
    """Factors in every layout, and the rows and columns of the blocks that oneDNN takes."""
    yield "no rows", normal(0, 70), normal(70, 65), []
    yield "one row", normal(1, 70), normal(70, 65), []
    yield "fewer than a block", normal(15, 70), normal(70, 65), []
    yield "a block", normal(256, 70), normal(70, 65), [(256, 65)]
    yield "blocks and a rest", normal(256 + 2 * 64 + 16 + 5, 70), normal(70, 65), [(256, 65), (64, 65), (64, 65), (16, 65)]
    yield "blocks of a matrix that cannot be cut", normal(130, 70), normal(70, 300), [(64, 300)] * 2
    yield "more of them", normal(256, 70), normal(70, 257), [(64, 257)] * 4
    yield "a transposed matrix", normal(33, 70), normal(65, 70).T, [(16, 64), (16, 64)]
    yield "one that is even", normal(16, 70), normal(64, 70).T, [(16, 64)]
    yield "a wide one, cut", normal(16, 70), normal(3 * 256 + 37, 70).T, [(16, 256)] * 3 + [(16, 32)]
    yield "a narrow one", normal(33, 70), normal(15, 70).T, []
    yield "positions and rows", normal(5, 7, 70), normal(70, 65), [(16, 65)] * 2
    yield "some of the rows", normal(50, 70)[3:40], normal(70, 65), [(16, 65)] * 2
    yield "columns of a wider matrix", normal(33, 70), normal(70, 90)[:, 3:68], []
    yield "few columns of wider rows", normal(33, 90)[:, 3:73], normal(70, 65), []
    yield "columns of wider rows", normal(33, 90)[:, 3:73], normal(70, 130), [(16, 130)] * 2
    yield "transposed rows", normal(70, 33).T, normal(70, 130), [(16, 130)] * 2
    yield "transposed positions and rows", normal(7, 5, 70).mT.transpose(1, 2).transpose(0, 1), normal(70, 130), []
    yield "float64", normal(33, 70).double(), normal(70, 65).double(), []
    yield "bfloat16", normal(33, 70).bfloat16(), normal(70, 65).bfloat16(), []


CASES = {name: (a, w, blocks) for name, a, w, blocks in lying()}


def rounding(dtype: torch.dtype) -> dict[str, Any]:
    return {"atol": 0.2, "rtol": 0.01} if dtype == torch.bfloat16 else {"atol": 1e-4, "rtol": 1e-5}


@needs_onednn
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_in_float64(taken: Taken, name: str):
    a, w, blocks = CASES[name]
    found, want = product(a, w), a.double() @ w.double()
    assert taken == [(rows, 70, columns) for rows, columns in blocks]
    assert found.dtype == a.dtype
    assert_equal_up_to(found.double(), want, **rounding(a.dtype))
    assert torch.equal(found, product(a, w)), "a product made again has other bits"
    if a.dtype == torch.float64:
        assert torch.equal(found, a @ w)


@needs_onednn
@pytest.mark.parametrize("adds", [False, True], ids=["into", "added"])
@pytest.mark.parametrize("lies", ["rows", "columns", "wider"])
@pytest.mark.parametrize("name", [name for name, (a, *_) in CASES.items() if a.ndim == 2])
@pytest.mark.parametrize("is_turned", [False, True], ids=["", "transposed"])
def test_products_into_what_is_there(taken: Taken, name: str, is_turned: bool, lies: str, adds: bool):
    a, w, _ = CASES[name]
    if is_turned:
        a, w = w.T, a.T
    rows, width = len(a), w.shape[1]
    made = {"rows": (rows, width), "columns": (width, rows), "wider": (rows, width + 9)}[lies]
    room = torch.full(made, 3.0 if adds else torch.nan, dtype=a.dtype)
    out = {"rows": room, "columns": room.T, "wider": room[:, 4 : 4 + width]}[lies]
    beside = room[:, :4].clone()
    (add_product if adds else product_into)(a, w, out)
    assert_equal_up_to(out.double(), a.double() @ w.double() + 3 * adds, **rounding(a.dtype))
    if lies == "wider":
        assert torch.equal(room[:, :4].nan_to_num(7), beside.nan_to_num(7))


@needs_onednn
def test_what_is_large_enough_is_taken_whichever_way_it_lies(taken: Taken):
    a, w = normal(300, 70), normal(70, 96)
    for rows, matrix in ((a, w), (a.T.contiguous().T, w), (a, w.T.contiguous().T), (w.T, a.T), (w.T, a.T.contiguous())):
        product_into(rows, matrix, torch.empty(len(rows), matrix.shape[1]))
        assert sum(m * n for m, _, n in taken) > 0.9 * 300 * 96
        taken.clear()


@needs_onednn
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_comes_through(taken: Taken, bad: float):
    a, w = normal(80, 70), normal(70, 48)
    a[20, 3] = bad
    a[79, 0] = bad
    found = product(a, w)
    want = a @ w
    assert taken
    assert torch.equal(found.isnan(), want.isnan())
    assert torch.equal(found.isinf(), want.isinf())
    assert torch.equal(found.isfinite().all(1).logical_not().nonzero()[:, 0], torch.tensor([20, 79]))
    out = torch.zeros_like(found)
    add_product(a, w, out)
    assert torch.equal(out.isfinite(), want.isfinite())


def test_torch_multiplies_where_it_is_asked_for(taken: Taken, monkeypatch: pytest.MonkeyPatch):
    a, w = normal(300, 70), normal(70, 65)
    monkeypatch.setenv(who.VARIABLE, "torch")
    assert torch.equal(product(a, w), a @ w)
    assert not taken


@needs_onednn
@pytest.mark.parametrize("said", [None, "auto"])
@pytest.mark.parametrize("found", ["torch", "onednn"])
def test_who_is_faster_multiplies_where_nothing_is_asked_for(taken: Taken, said: str | None, found: str, monkeypatch: pytest.MonkeyPatch):
    a, w = normal(300, 70), normal(70, 65)
    monkeypatch.delenv(who.VARIABLE) if said is None else monkeypatch.setenv(who.VARIABLE, said)
    monkeypatch.setattr(who, "faster", lambda: found)
    product(a, w)
    assert bool(taken) == (found == "onednn")


@pytest.mark.parametrize(
    ("seconds", "first", "want"), [(1.0, 1.0, "torch"), (0.72, 1.0, "torch"), (0.6, 1.0, "onednn"), (0.4, 9.0, "onednn")]
)
def test_one_is_taken_where_it_is_clearly_faster(seconds: float, first: float, want: str):
    """By its best round: the first compiles, and others may be held up."""
    now, rounds = [0.0], count()

    def by_torch() -> None:
        now[0] += 1.0

    def by_onednn() -> None:
        number = next(rounds)
        now[0] += first if number == 0 else seconds if number == 3 else 5.0

    assert who.chosen(by_torch, by_onednn, lambda: now[0]) == want


def test_it_is_measured_once_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(who.VARIABLE, raising=False)
    calls = list[int]()

    def chosen(*ways: Callable[[], object]) -> str:
        calls.append(len([way() for way in ways]))
        return "torch"

    monkeypatch.setattr(who, "chosen", chosen)
    who.faster.cache_clear()
    state = torch.get_rng_state()
    try:
        assert flops(who.multiplier) == 0, "the measurement was counted"
        assert vmap(lambda x: x + len(who.multiplier()))(torch.zeros(2)).tolist() == [5.0, 5.0]
    finally:
        who.faster.cache_clear()
    assert calls == [2] * HAS_ONEDNN
    assert torch.equal(state, torch.get_rng_state())


@needs_onednn
def test_small_products_are_torchs(taken: Taken, monkeypatch: pytest.MonkeyPatch):
    a, w = normal(64 + 16, 70), normal(70, 65)
    monkeypatch.setattr(door, "LEAST_FLOPS", 2 * 64 * 70 * 65)
    product(a, w)
    assert taken == [(64, 70, 65)]
    product(a[:63], w)
    monkeypatch.setattr(door, "LEAST_FLOPS", 2 * 64 * 70 * 65 + 1)
    product(a, w)
    assert len(taken) == 1


@needs_onednn
def test_few_kernels_are_compiled(taken: Taken):
    """However many rows there are, and whatever is contracted with."""
    for rows in range(1, 600, 7):
        product(torch.zeros(rows, 24), torch.zeros(24, 32))
        add_product(torch.zeros(rows, 24), torch.zeros(rows + 3, 24).T, torch.zeros(rows, rows + 3))
    assert len(taken) > 500
    assert len(set(taken)) <= len(door.ROWS) * door.WIDEST // door.COLUMNS


def test_a_torch_without_the_operation_multiplies_by_its_own(taken: Taken, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(who, "operation", lambda: None)
    a, w = normal(300, 70), normal(70, 65)
    assert torch.equal(product(a, w), a @ w)
    assert who.faster.__wrapped__() == "torch"
    assert not taken


@pytest.mark.parametrize("missing", ["operation", "oneDNN"])
def test_the_operation_is_found_to_be_missing(missing: str, monkeypatch: pytest.MonkeyPatch):
    class Nothing:
        """A torch.ops.mkldnn of another torch."""

    if missing == "operation":
        monkeypatch.setattr(torch.ops, "mkldnn", Nothing())
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert who.operation.__wrapped__() is None


def test_a_word_that_is_not_known_is_refused(taken: Taken, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(who.VARIABLE, "mkl")
    with pytest.raises(InputError, match="ATTRIB_PRODUCT: 'mkl' in the environment; expected 'auto', 'torch' or 'onednn'"):
        product(normal(300, 70), normal(70, 65))


def gradient(a: Tensor, w: Tensor) -> Tensor:
    """The gradient of a product's sum by its matrix, on a tape."""
    leaf = w.clone().requires_grad_()
    (found,) = torch.autograd.grad(product(a, leaf).sum(), leaf)
    return found


TRANSFORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "jvp": lambda a, w: jvp(lambda x: product(x, w), (a,), (a,))[1],
    "vjp": lambda a, w: vjp(lambda x: product(x, w), a)[1](torch.ones(len(a), w.shape[1]))[0],
    "jacrev": lambda a, w: jacrev(lambda x: product(x, w).sum(0))(a),
    "vmap": lambda a, w: vmap(lambda x: product(x, w))(torch.stack([a, 2 * a])),
    "vmap of matrices": lambda a, w: vmap(lambda x: product(a, x))(torch.stack([w, 2 * w])),
    "autograd": gradient,
    "meta": lambda a, w: product(a.to("meta"), w.to("meta")).shape,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_looks_through_a_product_finds_torchs(taken: Taken, name: str, monkeypatch: pytest.MonkeyPatch):
    a, w = normal(36, 27), normal(27, 25)
    found = TRANSFORMS[name](a, w)
    assert not taken
    monkeypatch.setenv(who.VARIABLE, "torch")
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
    monkeypatch.setenv(who.VARIABLE, "torch")
    assert_close(found.result.gradient, run().gradient, ROUNDING)
    assert found.flops == flops(run)


@needs_onednn
def test_whoever_is_pinned_multiplies_whatever_is_said(taken: Taken, monkeypatch: pytest.MonkeyPatch):
    a, w = normal(300, 256), normal(256, 256)
    with who.multiplied_by("torch"), who.multiplied_by(None):
        product(a, w)
    assert not taken, "the environment's was taken"
    monkeypatch.setenv(who.VARIABLE, "torch")
    with who.multiplied_by("onednn"):
        product(a, w)
    assert taken
    assert who.multiplier() == "torch", "it is pinned for longer than it was asked for"
