"""Rules of attribution that are more than one gradient: what they do at a prompt's path, as rows of gradients. core/rules.py has the maths.

Gradients at other points are those of the path whose sources have other values (`Path.moved`), by the same sweeps; where dictionaries
are met on the way, of its whole function. An ablation moves the primal by one source's direction, many at a time, behind its position.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vjp

from attrib.attribution.needs import Needs
from attrib.core.rules import Ablation, Gradient, GradientTimesActivation, IntegratedGradients, Patching, Rule
from attrib.engine.blocks.kernels import Impl
from attrib.engine.path import Path, Sources, Targets
from attrib.engine.plan.choose import plan_pack
from attrib.engine.plan.task import Task
from attrib.engine.tiles import adjoint
from attrib.engine.transforms import Tile, by_function, by_jvp, by_vjp, chunk_size, with_writes
from attrib.passes.behind import batches
from attrib.paths.path import MetricPath

Point = Float[Tensor, " sources"]
"""Values of the sources."""


def change_by(rule: Rule, sources: Sources, other: Point | None = None) -> Point | None:
    """What the rule multiplies gradients by; None where that is the sources' values.

    Args:
        other: the sources' values at the prompt that the rule compares with.
    """
    match rule:
        case GradientTimesActivation() | Ablation():
            return None
        case Gradient():
            return torch.ones_like(sources.value)
        case IntegratedGradients():
            return None if other is None else sources.value - other
        case Patching():
            assert other is not None
            return other - sources.value


def together_of(rule: Rule, found: Path | MetricPath) -> Float[Tensor, " targets"] | None:
    """What the targets gain (patching), or owe to what the rule takes away, when all sources move together; None of a gradient alone."""
    if isinstance(rule, GradientTimesActivation | Gradient):
        return None
    value = found.sources.value
    far = _value_at(found, torch.zeros_like(value) if found.other is None else found.other)
    here = found.value.reshape(1) if isinstance(found, MetricPath) else found.targets.value
    return far - here if isinstance(rule, Patching) else here - far


def _wide(value: Point) -> torch.dtype:
    """In which numbers means and differences are taken: in halves, the terms would be lost."""
    return torch.promote_types(value.dtype, torch.float32)


def _value_at(found: Path | MetricPath, values: Point) -> Float[Tensor, " targets"]:
    if isinstance(found, MetricPath):
        return found.function(values).detach().reshape(1)
    assert found.moved is not None
    return found.moved(values).targets.value


class Quadrature(NamedTuple):
    """Nodes between 0 and 1, and their weights, which sum to 1."""

    at: list[float]
    weight: list[float]


def quadrature(rule: IntegratedGradients) -> Quadrature:
    """The nodes of an integral. n of Gauss-Legendre are exact for polynomials of degree 2 n - 1, n midpoints for degree 1."""
    if rule.nodes == "midpoint":
        return Quadrature([(k + 0.5) / rule.steps for k in range(rule.steps)], [1 / rule.steps] * rule.steps)
    at, weight = np.polynomial.legendre.leggauss(int(rule.steps))
    return Quadrature(((at + 1) / 2).tolist(), (weight / 2).tolist())


# ------------------------------------------------------------------------------- rows of targets


def tiles_of(found: Path, needs: Needs, length: int, number: int, impl: Impl) -> Iterator[Tile]:
    """The rule's gradients of one prompt, as tiles of rows.

    Raises:
        BudgetError: where the budget is too small for one row, or one forward pass.
    """
    if isinstance(needs.rule, Ablation):
        yield Tile(0, _slopes(found, ablated(found, _at_once(found, needs, length, number))))
        return
    assert isinstance(needs.rule, IntegratedGradients)
    yield from _integral(found, needs, length, number, impl)


def _integral(found: Path, needs: Needs, length: int, number: int, impl: Impl) -> Iterator[Tile]:
    """Mean gradients on the way from the baseline, so many rows at a time that they fit into half of the budget."""
    assert isinstance(needs.rule, IntegratedGradients)
    value = found.sources.value
    base, nodes = torch.zeros_like(value) if found.other is None else found.other, quadrature(needs.rule)
    assert found.moved is not None
    count, columns = len(found.targets.position), max(1, len(value))
    rows = max(1, count if found.is_cut else min(count, needs.budget // (2 * columns * value.dtype.itemsize)))
    for first in range(0, count, rows):
        mean = value.new_zeros(min(rows, count - first), len(value), dtype=_wide(value))
        for at, weight in zip(*nodes, strict=True):
            there = found.moved(base + at * (value - base))
            part = there if found.is_cut else replace(there, targets=Targets(*(c[first : first + rows] for c in there.targets)))
            for tile in _swept(part, needs, length, number, impl):
                mean[tile.first : tile.first + len(tile.gradient), : tile.gradient.shape[1]] += weight * tile.gradient
            del there, part
        yield Tile(first, mean)
        del mean


def _swept(path: Path, needs: Needs, length: int, number: int, impl: Impl) -> Iterator[Tile]:
    """The Jacobian of a path at its own point."""
    if needs.is_reference or path.is_cut:
        chunk = chunk_size(with_writes(needs.working(length), path), needs.budget, number)
        yield from (by_function if path.is_cut else by_jvp if path.from_tokens else by_vjp)(path, chunk)
        return
    plan = plan_pack(needs.opened(torch.arange(length), path), needs.budget)
    yield from (tile for _, tile in adjoint([path], plan, needs.precision, impl))


# ------------------------------------------------------------------------------------ ablations


@torch.no_grad()
def ablated(found: Path | MetricPath, at_once: int) -> Float[Tensor, "targets sources"]:
    """What each target loses when each source alone is zero, by passes of the positions from the source on (passes/behind.py).

    The point itself goes with each batch: what is not moved then comes out of the same products, and its effect as no more than zero.

    Args:
        at_once: how many passes of a whole prompt go together.
    """
    value, position, direction = found.sources.value, found.sources.position, found.sources.direction
    here = found.value.reshape(1) if isinstance(found, MetricPath) else found.targets.value
    effect, wide = value.new_zeros(len(here), len(value), dtype=_wide(value)), _wide(value)
    assert found.known is not None
    assert found.reading is not None
    known = found.known()
    length, is_causal = len(known.reached), known.model.config.causal
    begins = position if is_causal else torch.zeros_like(position)
    for first, some in batches_of(begins, length, at_once):
        moved = direction.new_zeros(len(some) + 1, length - first, direction.shape[1])
        moved[torch.arange(1, len(moved), device=moved.device), position[some] - first] = -value[some, None] * direction[some]
        unmoved, *others = (found.reading(reached, first) for reached in known.behind(moved, first))
        effect[:, some] = (unmoved.to(wide) - torch.stack(others).to(wide)).reshape(len(some), -1).T
    if isinstance(found, Path) and is_causal:
        effect.masked_fill_(found.targets.position[:, None] < position, 0)  # attention looks back
    return effect


def batches_of(begins: Int[Tensor, " sources"], length: int, at_once: int) -> Iterator[tuple[int, Int[Tensor, " batch"]]]:
    """Ablations that go together with one pass of nothing ablated: the position at which they begin, and their numbers.

    Args:
        at_once: how many passes of the whole prompt go together.
    """
    return batches(begins, length, lambda rows: at_once * length // rows, beside=1)


def _slopes(found: Path | MetricPath, effect: Float[Tensor, "targets sources"]) -> Float[Tensor, "targets sources"]:
    """The effect of each source by its value: a mean gradient on the way to zero. A source that is zero has none."""
    value = found.sources.value
    return (effect / value.where(value != 0, 1)).where(value != 0, 0)


def _at_once(found: Path | MetricPath, needs: Needs, length: int, number: int) -> int:
    """How many forward passes go together in the budget, beside the result. Raises BudgetError where not one does."""
    targets = 1 if isinstance(found, MetricPath) else len(found.targets.value)
    return chunk_size(needs.passes(targets * len(found.sources.value), length), needs.budget, number)


class Passes(NamedTuple):
    """Forward passes that go together: bytes beside them, bytes of each, and how many."""

    fixed: int
    row: int
    at_once: int


def chunked(needs: Needs, task: Task, length: int) -> Passes:
    """The ablations of a prompt, as its plan has them."""
    working = needs.passes(task.n_targets * task.n_sources, length)
    return Passes(*working, min(task.n_sources, chunk_size(working, needs.budget, 0)))


# -------------------------------------------------------------------------------------- metrics


def gradient_of_metric(found: MetricPath, needs: Needs, length: int, number: int) -> Point:
    """The rule's gradient of a metric."""
    match needs.rule:
        case IntegratedGradients():
            return _mean_of_metric(found, quadrature(needs.rule))
        case Ablation():
            return _slopes(found, ablated(found, _at_once(found, needs, length, number)))[0]
        case GradientTimesActivation() | Gradient() | Patching():
            return found.gradient


@torch.no_grad()
def _mean_of_metric(found: MetricPath, nodes: Quadrature) -> Point:
    value = found.sources.value
    base, mean = torch.zeros_like(value) if found.other is None else found.other, torch.zeros_like(value, dtype=_wide(value))
    for at, weight in zip(*nodes, strict=True):
        mean += weight * _pulled(found.function, base + at * (value - base))
    return mean


def _pulled(function: Callable[[Point], Float[Tensor, ""]], at: Point) -> Point:
    value, pull, *_ = vjp(function, at)
    gradient: Point = pull(torch.ones_like(value))[0]
    return gradient
