"""`segment` under every transform of torch.func and of autograd gives what its plain form gives, and runs on the written pull."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils import _pytree as pytree

import attrib
from attrib.core.types import EXACT, LINEAR, InputError, Policy, Site
from attrib.engine.segment import Segment, segment
from attrib.models.transformer import Model, width
from attrib.passes.capture import capture
from attrib.paths.path import base_site
from tests.support.builders import FAMILIES, Family, all_sites, build, normal, prompt
from tests.support.covering import each_pair
from tests.support.tolerances import FOREIGN, assert_close

POSITIONS = 4
Function = Callable[[Tensor], Tensor]
families = pytest.mark.parametrize("family", FAMILIES)
policies = pytest.mark.parametrize("policy", [EXACT, LINEAR], ids=["exact", "linear"])
ENDS = [
    (Site(1, "resid_pre"), Site(2, "resid_pre")),
    (Site(0, "resid_post"), Site(2, "mlp_out")),
    (Site(1, "mlp_in"), Site(2, "attn_out")),
    (Site(1, "z"), Site(2, "resid_mid")),
    (Site(1, "resid_mid"), Site(1, "mlp_out")),
]


class Case:
    """A segment at a primal point, as a function of x alone, and its plain form."""

    def __init__(self, family: Family, start: Site, stop: Site, policy: Policy, dtype: torch.dtype = torch.float64) -> None:
        self.model = build(family, dtype)
        self.run, base = segment(self.model, start, stop, policy=policy), base_site(start)
        seen = capture(self.model, prompt(POSITIONS), {start} | ({base} if base else set()))
        self.x, self.base = seen[start], seen[base] if base else None
        self.cotangent = normal(POSITIONS, width(self.model.config, stop), dtype=dtype, seed=3)
        self.tangent = normal(*self.x.shape, dtype=dtype, seed=9)

    def fast(self, x: Tensor) -> Tensor:
        return self.run(x, self.base)

    def plain(self, x: Tensor) -> Tensor:
        return self.run.plain(x, self.base)

    def scalar(self, f: Function) -> Function:
        """A function of x that is not linear in the segment's value."""
        return lambda x: (f(x) * self.cotangent).sum() + (f(x) ** 2).sum()

    def assert_same(self, transform: Callable[[Function], Any], what: str) -> None:
        got, want = (pytree.tree_leaves(transform(f)) for f in (self.fast, self.plain))
        assert len(got) == len(want) > 0
        assert any(one.any() for one in want)
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, FOREIGN, what)


# ------------------------------------------------------------------------------------- transforms


def rows(case: Case, *shape: int) -> Tensor:
    """Many cotangents [*shape, positions, width]."""
    count = torch.Size(shape).numel()
    return torch.linspace(-1, 1, count, dtype=case.x.dtype).view(*shape, 1, 1) * case.cotangent + case.cotangent.roll(1, 0)


TRANSFORMS: dict[str, Callable[[Case, Function], Any]] = {
    "value": lambda case, f: f(case.x),
    "vjp": lambda case, f: (vjp(f, case.x)[0], vjp(f, case.x)[1](case.cotangent)),
    "vmap of vjp": lambda case, f: vmap(lambda g: vjp(f, case.x)[1](g)[0])(rows(case, 3)),
    "vmap of vjp along the middle": lambda case, f: vmap(lambda g: vjp(f, case.x)[1](g)[0], in_dims=1, out_dims=2)(
        rows(case, 3).transpose(0, 1)
    ),
    "two vmaps of vjp": lambda case, f: vmap(vmap(lambda g: vjp(f, case.x)[1](g)[0]))(rows(case, 2, 3)),
    "jacrev": lambda case, f: jacrev(f)(case.x),
    "jacrev in chunks": lambda case, f: jacrev(f, chunk_size=7)(case.x),
    "jacfwd": lambda case, f: jacfwd(f)(case.x),
    "jvp": lambda case, f: jvp(f, (case.x,), (case.tangent,)),
    "grad": lambda case, f: grad(case.scalar(f))(case.x),
    "jvp of grad": lambda case, f: jvp(grad(case.scalar(f)), (case.x,), (case.tangent,)),
    "grad of grad": lambda case, f: grad(lambda x: (grad(case.scalar(f))(x) * case.tangent).sum())(case.x),
    "grad of jvp": lambda case, f: grad(lambda x: jvp(case.scalar(f), (x,), (case.tangent,))[1])(case.x),
    "jacfwd of grad": lambda case, f: jacfwd(grad(case.scalar(f)))(case.x)[0, :2],
    "jacrev of grad": lambda case, f: jacrev(lambda x: grad(case.scalar(f))(x)[0, :2])(case.x),
    "vjp through the cotangent": lambda case, f: grad(lambda g: (vjp(f, case.x)[1](g)[0] ** 2).sum())(case.cotangent),
    "vmap over x": lambda case, f: vmap(f)(batch(case)),
    "vmap of grad over x": lambda case, f: vmap(grad(case.scalar(f)))(batch(case)),
    "vmap of jacrev over x": lambda case, f: vmap(jacrev(lambda x: f(x)[-1, :3]))(batch(case)),
    "vmap over x and cotangents": lambda case, f: vmap(lambda x, g: vjp(f, x)[1](g)[0])(batch(case), rows(case, 3)),
    "a batch of x": lambda case, f: f(batch(case)) if case.base is None else f(case.x),
    "autograd": lambda case, f: by_autograd(f, case.x, case.cotangent),
    "autograd of batched cotangents": lambda case, f: by_autograd(f, case.x, rows(case, 3), is_grads_batched=True),
    "autograd twice": lambda case, f: by_autograd(lambda x: by_autograd(f, x, case.cotangent, create_graph=True), case.x, case.tangent),
}


def batch(case: Case) -> Tensor:
    return case.x * torch.tensor([0.8, 1.0, 1.3], dtype=case.x.dtype)[:, None, None]


def by_autograd(f: Function, x: Tensor, g: Tensor, **options: Any) -> Tensor:
    x = x if x.requires_grad else x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x, g, **options)[0]


@pytest.mark.few
@each_pair(family=FAMILIES, ends=ENDS, policy=(EXACT, LINEAR))
def test_every_transform_gives_what_the_plain_segment_gives(family: Family, ends: tuple[Site, Site], policy: Policy):
    case = Case(family, *ends, policy)
    for name, transform in TRANSFORMS.items():
        case.assert_same(lambda f, transform=transform: transform(case, f), name)


@families
@policies
def test_in_float32(family: Family, policy: Policy):
    case = Case(family, Site(1, "resid_pre"), Site(2, "resid_mid"), policy, torch.float32)
    for name in ("vjp", "vmap of vjp", "jacrev", "jacfwd", "grad", "autograd of batched cotangents"):
        case.assert_same(lambda f, name=name: TRANSFORMS[name](case, f), name)


@families
@policies
def test_every_pair_of_sites_under_jacrev(family: Family, policy: Policy):
    sites = [site for site in all_sites() if site.layer == 1] + [Site(2, "resid_pre"), Site(2, "z")]
    for number, start in enumerate(sites):
        for stop in sites[number + 1 :]:
            if stop.depth > start.depth:
                case = Case(family, start, stop, policy)
                case.assert_same(lambda f: jacrev(lambda x: f(x)[-2:, :9])(case.x), f"{start} to {stop}")  # noqa: B023


@families
def test_a_site_to_itself_is_the_identity(family: Family):
    model, x = build(family), normal(POSITIONS, 32)
    assert segment(model, Site(1, "resid_post"), Site(2, "resid_pre"))(x) is x
    J = jacrev(segment(model, Site(1, "resid_post"), Site(2, "resid_pre")))(x)
    assert torch.equal(J.flatten(2).flatten(0, 1), torch.eye(x.numel()))


# -------------------------------------------------------------------------- the rule is what runs


@pytest.fixture
def pulls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call of the written pull."""
    seen: list[int] = []
    plain = Segment.pull

    def pull(self: Segment, g: Tensor, x: Tensor, base: Tensor | None) -> Tensor:
        seen.append(g.shape[1])
        return plain(self, g, x, base)

    monkeypatch.setattr(Segment, "pull", pull)
    return seen


@families
def test_reverse_mode_runs_on_the_written_pull_all_rows_together(family: Family, pulls: list[int]):
    case = Case(family, Site(1, "resid_pre"), Site(2, "resid_pre"), EXACT)
    size = POSITIONS * 32
    for name, rows_of_each_call in {
        "vmap of vjp": [3],
        "vmap of vjp along the middle": [3],
        "two vmaps of vjp": [6],
        "jacrev": [size],
        "jacrev in chunks": [7] * (size // 7) + [size % 7],
        "grad": [1, 1],
        "autograd": [1],
        # forward mode, batched primals and the older vmap go the plain way
        "jacfwd": [],
        "jvp": [],
        "vmap over x": [],
        "autograd of batched cotangents": [],
    }.items():
        pulls.clear()
        TRANSFORMS[name](case, case.fast)
        assert pulls == rows_of_each_call, name


@families
def test_a_wrong_pull_would_be_seen(family: Family, monkeypatch: pytest.MonkeyPatch):
    plain = Segment.pull
    monkeypatch.setattr(Segment, "pull", lambda *args: 1.001 * plain(*args))
    case = Case(family, Site(1, "resid_pre"), Site(2, "resid_pre"), EXACT)
    for name in ("vjp", "vmap of vjp", "jacrev", "grad", "autograd"):
        with pytest.raises(AssertionError, match="apart"):
            case.assert_same(lambda f, name=name: TRANSFORMS[name](case, f), name)


# ------------------------------------------------------------------------ what goes the plain way


@families
@policies
def test_gradients_by_the_base(family: Family, policy: Policy, pulls: list[int]):
    case = Case(family, Site(1, "mlp_out"), Site(2, "resid_mid"), policy)
    run, x, g = case.run, case.x, case.cotangent
    assert case.base is not None
    want = vjp(run.plain, x, case.base)[1](g)
    for got, expected in zip(vjp(run, x, case.base)[1](g), want, strict=True):
        assert_close(got, expected, FOREIGN, "both")
    leaf, base = x.clone().requires_grad_(), case.base.clone().requires_grad_()
    for got, expected in zip(torch.autograd.grad(run(leaf, base), (leaf, base), g), want, strict=True):
        assert_close(got, expected, FOREIGN, "autograd")
    assert_close(vmap(run)(x.expand(2, -1, -1), case.base.expand(2, -1, -1))[1], run.plain(x, case.base), FOREIGN, "batched base")
    assert not pulls


@families
@policies
def test_gradients_by_parameters(family: Family, policy: Policy, pulls: list[int]):
    case = Case(family, Site(1, "resid_pre"), Site(2, "resid_mid"), policy)
    model, x = case.model, case.x
    block = model.params.blocks[1]

    def loss(W_O: Tensor, x: Tensor, is_plain: bool = False) -> Tensor:
        blocks = list(model.params.blocks)
        blocks[1] = block._replace(attention=block.attention._replace(W_O=W_O))
        changed: Model = replace(model, params=model.params._replace(blocks=tuple(blocks)))
        run = segment(changed, case.run.start, case.run.stop, policy=policy)
        return ((run.plain if is_plain else run)(x) * case.cotangent).sum()

    W_O = block.attention.W_O
    want = grad(lambda W: loss(W, x, True))(W_O)
    assert want.any()
    assert_close(grad(loss)(W_O, x), want, FOREIGN, "torch.func.grad")
    leaf = W_O.clone().requires_grad_()
    assert_close(torch.autograd.grad(loss(leaf, x), leaf)[0], want, FOREIGN, "autograd")
    for got, expected in zip(grad(loss, argnums=(0, 1))(W_O, x), grad(lambda *a: loss(*a, True), argnums=(0, 1))(W_O, x), strict=True):
        assert_close(got, expected, FOREIGN, "by parameters and x")
    leaf, at = W_O.clone().requires_grad_(), x.clone().requires_grad_()
    for got, expected in zip(torch.autograd.grad(loss(leaf, at), (leaf, at)), (want, grad(loss, argnums=1)(W_O, x)), strict=True):
        assert_close(got, expected, FOREIGN, "autograd by both")
    calls = len(pulls)
    batch = torch.stack([W_O, 2 * W_O])
    got = vmap(grad(loss, argnums=1), in_dims=(0, None))(batch, x)
    assert_close(got[1], grad(lambda x: loss(2 * W_O, x, True))(x), FOREIGN, "vmap over parameters")
    assert len(pulls) == calls


@families
@policies
@pytest.mark.parametrize("shape", [(3,), (2, 2)], ids=str)
def test_batches_of_primals(family: Family, policy: Policy, shape: tuple[int, ...]):
    case = Case(family, Site(1, "mlp_in"), Site(2, "resid_mid"), policy)
    assert case.base is not None
    many, bases = case.x.expand(*shape, -1, -1) * 0.9, case.base.expand(*shape, -1, -1)
    want = vjp(case.plain, case.x * 0.9)
    value, pull = vjp(lambda x: case.run(x, bases), many)
    assert_close(value[(0,) * len(shape)], want[0], FOREIGN, "value")
    assert_close(pull(case.cotangent.expand_as(value))[0][(-1,) * len(shape)], want[1](case.cotangent)[0], FOREIGN, "vjp")


def test_nothing_is_recorded_where_nothing_asks():
    case = Case("gpt2", Site(1, "resid_pre"), Site(2, "resid_pre"), EXACT)
    assert not case.fast(case.x).requires_grad
    assert case.fast(case.x.clone().requires_grad_()).requires_grad
    with torch.no_grad():
        assert not case.fast(case.x.clone().requires_grad_()).requires_grad


def test_bad_sites():
    model = build("gpt2")
    with pytest.raises(InputError, match=r"b: blocks.1.hook_resid_pre comes before a: blocks.2.hook_resid_pre; .* Swap them"):
        segment(model, Site(2, "resid_pre"), Site(1, "resid_pre"))
    with pytest.raises(InputError, match=r"^a: .*layers 0 to 3"):
        attrib.segment(model, Site(4, "resid_pre"), Site(4, "resid_post"))
