"""A segment of the model as a pure function, whose reverse derivative is the written adjoint.

`segment(model, a, b)` is a plain function to every transform of torch.func. Where one differentiates it by `x`
in reverse (vjp, vmap(vjp), jacrev), the cotangents go down the way of compute.py, many together on one primal
and without a tape. The derivative of the derivative, forward mode, batched primals, and gradients by `base` or
by the model's parameters go through the plain function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.func import jvp, vjp, vmap
from torch.utils import _pytree as pytree

from attrib.adapters.given import as_model, takes
from attrib.core.types import EXACT, InputError, Policy, Site
from attrib.engine.sweep.cells import Band, Cone
from attrib.engine.sweep.compute import Down
from attrib.engine.sweep.primal import primal, walked
from attrib.models.transformer import Model, Stream, check_end, walk


@dataclass(frozen=True)
class Segment:
    """The function from the value at `start` to the value at `stop`; what `segment` returns."""

    model: Model
    start: Site
    stop: Site
    policy: Policy

    def __repr__(self) -> str:
        return f"Segment({self.start} to {self.stop} of {self.model.name!r}, {self.policy})"

    def __call__(self, x: Float[Tensor, "*batch positions width"], base: Stream | None = None) -> Float[Tensor, "*batch positions _"]:
        """The value at `stop`.

        Args:
            base: the stream that the value at `start` is added to, where that is not itself the stream.
        """
        constants = [base, *pytree.tree_leaves(self.model.params.blocks[self.start.layer : self.stop.layer + 1])]
        is_plain = self.start.depth == self.stop.depth or x.ndim != 2
        is_plain |= self.model.config.parallel and self.stop.kind in ("mlp_in", "mlp_out")  # no sweep ends there: see path.py
        if is_plain or any(c is not None and (c.requires_grad or is_functorch_wrapped_tensor(c)) for c in constants):
            return self.plain(x, base)
        return _Run.apply(x, base, self)  # type: ignore[no-untyped-call]

    def plain(self, x: Tensor, base: Tensor | None = None) -> Tensor:
        """The segment's value by torch's operations alone, which differentiate in every way."""
        return next(value for site, value in walk(self.model, self.start, x, base, self.policy) if site.depth == self.stop.depth)

    def pull(
        self, g: Float[Tensor, "positions rows width_b"], x: Float[Tensor, "positions width_a"], base: Tensor | None
    ) -> Float[Tensor, "positions rows width_a"]:
        """Cotangents of x from those of the value at `stop`, all rows on the primal at x."""
        positions, rows, _ = g.shape
        whole = Cone((Band(0, 0, positions, 0, rows, 0, positions - 1),))
        streams = walked(self.model, self.start, self.stop, x, base)
        on = primal(self.model, self.policy, self.start, self.stop, [streams], [positions])
        found: list[Tensor] = []
        Down(on, self.stop, whole, [self.start], lambda _, pulled, __: found.append(pulled)).everywhere(g.flatten(0, 1).clone())
        return found[0].unflatten(0, (positions, rows)) if found else g.new_zeros(positions, rows, x.shape[-1])


class _Run(torch.autograd.Function):
    """x → value at stop, with `_Pull` as its adjoint."""

    @staticmethod
    def forward(x: Tensor, base: Tensor | None, run: Segment) -> Tensor:
        return run.plain(x, base)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.base, ctx.run = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        if is_legacy_batchedtensor(g):  # torch.autograd.grad(is_grads_batched=True): an older vmap, which knows no rules of functions
            with torch.enable_grad():
                again = x.detach().requires_grad_()
                return torch.autograd.grad(ctx.run.plain(again, ctx.base), again, g)[0], None, None
        return _Pull.apply(g[:, None], x, ctx.base, ctx.run)[:, 0], None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return jvp(lambda x: ctx.run.plain(x, ctx.base), (x,), (tangent,))[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, base: Tensor | None, run: Segment) -> tuple[Tensor, int]:
        assert in_dims[0] is not None  # the only argument that can be batched: see Segment.__call__
        return vmap(lambda x: run.plain(x, base), in_dims=in_dims[0])(x), 0


class _Pull(torch.autograd.Function):
    """(g, x) → cotangent of x for rows g [positions, rows, width]; a vmap over g adds rows."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, base: Tensor | None, run: Segment) -> Tensor:
        return run.pull(g, x, base)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, x, ctx.base, ctx.run = inputs
        ctx.save_for_backward(g, x)
        ctx.save_for_forward(g, x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        _, pull, *_ = vjp(_plain_pull(ctx.run, ctx.base), *ctx.saved_tensors)
        return *pull(cotangent), None, None

    @staticmethod
    def jvp(ctx: Any, g: Tensor | None, x: Tensor | None, *_: Any) -> Tensor:
        at = ctx.saved_tensors
        tangents = tuple(torch.zeros_like(value) if tangent is None else tangent for tangent, value in zip((g, x), at, strict=True))
        return jvp(_plain_pull(ctx.run, ctx.base), at, tangents)[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], g: Tensor, x: Tensor, base: Tensor | None, run: Segment) -> tuple[Tensor, int]:
        if in_dims[1] is None:
            assert in_dims[0] is not None
            rows = g.movedim(in_dims[0], 1)
            pulled = _Pull.apply(rows.flatten(1, 2), x, base, run)  # type: ignore[no-untyped-call]
            return pulled.unflatten(1, rows.shape[1:3]), 1
        return vmap(_plain_pull(run, base), in_dims=in_dims[:2])(g, x), 0


def _plain_pull(run: Segment, base: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    def pull(g: Float[Tensor, "positions rows width_b"], x: Float[Tensor, "positions width_a"]) -> Float[Tensor, "positions rows width_a"]:
        _, back, *_ = vjp(lambda x: run.plain(x, base), x)
        return vmap(lambda row: back(row)[0], in_dims=1, out_dims=1)(g)

    return pull


@takes(model=as_model)
def segment(model: Model, a: Site | str, b: Site | str, *, policy: Policy = EXACT) -> Segment:
    """The pure function from the value at site `a` to the value at site `b`.

    It takes `x` [*batch, positions, width of a] and, where `a` is not the residual stream itself, `base`,
    the stream that `a`'s output is added to (see `attrib.models.transformer.walk`). It works under every transform of torch.func.

    Raises:
        InputError: where a site is outside the model, or `b` comes before `a`.
    """
    a, b = check_end(model, a, "a"), check_end(model, b, "b")
    if b.depth < a.depth:
        raise InputError(f"b: {b} comes before a: {a}; a segment runs forward. Swap them.")
    return Segment(model, a, b, policy)


@takes(model=as_model)
def block(model: Model, layer: int, x: Stream, *, policy: Policy = EXACT) -> Stream:
    """`resid_post` of a layer from its `resid_pre`."""
    return segment(model, Site(layer, "resid_pre"), Site(layer, "resid_post"), policy=policy)(x)
