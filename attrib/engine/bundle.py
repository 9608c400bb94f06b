"""Several sources and targets of one prompt at one primal point, and their Jacobians by one sweep (sweep/join.py).

A `Path` (path.py) has one of each; a bundle has what all paths between its ends share: one pass of the model, one
encoding of each dictionary, and one sweep.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.types import Policy, Site
from attrib.engine.blocks.kernels import Impl
from attrib.engine.blocks.passing import NOTHING, Between, in_float64, passed_of, place_of, together
from attrib.engine.halves import in_halves
from attrib.engine.path import Sources, Targets
from attrib.engine.plan.choose_joint import JointPlan, in_smaller_pieces, plan_joint
from attrib.engine.plan.joint import Joint, SourceCounts, TargetCounts
from attrib.engine.precision import Error, Precision, error_of, precision_of, products
from attrib.engine.sweep.cells import pieces_of
from attrib.engine.sweep.join import Block, Lifted, SourceSet, TargetSet, join, lift
from attrib.engine.sweep.primal import Primal, Seeds, Streams, primal, seeds
from attrib.engine.tiles import LEAST_FOR_SAMPLES, in_float64_between, sampled
from attrib.models.transformer import Model, width

One = TypeVar("One")


class SourceEnd(NamedTuple):
    """Sources of one kind, which write at one place or several."""

    sources: Sources
    writes: tuple[Site, ...]
    """In the order in which their directions lie side by side."""
    is_brought: bool = False
    """Whether they are what the model brings to their place, as embeddings are."""


class TargetEnd(NamedTuple):
    """Targets that are read at one place."""

    targets: Targets
    stop: Site
    stops_below: bool
    """Whether they read what the model brings to their place, and not what is written there."""
    barred: frozenset[int]
    """Numbers of the sources that are not before them."""
    labels: tuple[str, ...] = ()
    probability: Float[Tensor, " targets"] | None = None


class Order(NamedTuple):
    """The rows of a sweep."""

    of_set: Int[Tensor, " rows"]
    """The number of the set of targets that each is of."""
    place: Int[Tensor, " rows"]
    """Which of them it is."""

    def only(self, first: int, end: int) -> "Order":
        """Some of them."""
        return Order(self.of_set[first:end], self.place[first:end])


@dataclass(frozen=True)
class Bundle:
    """One prompt's ends."""

    model: Model
    policy: Policy
    start: Site
    """The lowest place at which a source writes."""
    stop: Site
    """The highest at which targets are read."""
    length: int
    streams: Streams
    sources: tuple[SourceEnd, ...]
    targets: tuple[TargetEnd, ...]
    between: Between = NOTHING

    def __repr__(self) -> str:
        sources, targets = (sum(len(each[0].position) for each in ends) for ends in (self.sources, self.targets))
        return (
            f"Bundle({sources:,} sources of {len(self.sources)} kinds to {targets:,} targets of {len(self.targets)}, "
            f"{self.start} to {self.stop}, {self.length} positions of {self.model.name!r})"
        )

    @cached_property
    def order(self) -> "Order":
        """All its rows."""
        return self.order_of(range(len(self.targets)))

    def order_of(self, chosen: Sequence[int]) -> "Order":
        """The rows of some sets of targets: by position, and at one position set by set."""
        positions = [self.targets[number].targets.position.cpu() for number in chosen]
        of_set = torch.tensor(chosen, dtype=torch.long).repeat_interleave(torch.tensor([len(at) for at in positions], dtype=torch.long))
        none = torch.zeros(0, dtype=torch.long)
        place, at = torch.cat([none, *(torch.arange(len(at)) for at in positions)]), torch.cat([none, *positions])
        sorted_by = at.argsort(stable=True)
        return Order(of_set[sorted_by], place[sorted_by])

    def only(self, rows: Int[Tensor, " chosen"]) -> "Bundle":
        """The same with some of its rows, by the numbers that `order` gives them."""
        of_set, place = (column[rows] for column in self.order)
        targets = []
        for number, end in enumerate(self.targets):
            chosen = place[of_set == number].to(end.targets.position.device)
            probability = None if end.probability is None else end.probability[chosen]
            labels = tuple(end.labels[at] for at in chosen.tolist()) if end.labels else ()
            targets.append(end._replace(targets=Targets(*(c[chosen] for c in end.targets)), labels=labels, probability=probability))
        return replace(self, targets=tuple(targets))

    def double(self) -> "Bundle":
        """The same in float64, at the same point; only the blocks that are passed are converted."""
        model = in_float64_between(self.model, self.start, self.stop)
        sources = tuple(end._replace(sources=Sources(*map(_double, end.sources))) for end in self.sources)
        targets = tuple(end._replace(targets=Targets(*map(_double, end.targets))) for end in self.targets)
        streams = {at: value.double() for at, value in self.streams.items()}
        return replace(self, model=model, streams=streams, sources=sources, targets=targets, between=in_float64(self.between))


def _double(column: Tensor) -> Tensor:
    return column.double() if column.is_floating_point() else column


class Piece(NamedTuple):
    """Rows of the Jacobian of one kind of targets by one kind of sources."""

    source: int
    target: int
    place: Int[Tensor, " rows"]
    """Which of the targets they are."""
    gradient: Float[Tensor, "rows _"]


def joint_of(bundles: Sequence[Bundle], precision: Precision | None = None) -> Joint:
    """What a pack of bundles, which differ in their prompts alone, asks of the engine.

    Args:
        precision: of the sweep's products, beside which asking a device for them is weighed; None is the model's own dtype.
    """
    one, lengths = bundles[0], [bundle.length for bundle in bundles]
    between = together([bundle.between for bundle in bundles], lengths)

    def counts(positions: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
        pairs = zip(positions, lengths, strict=True)
        return tuple(tuple(torch.bincount(at, minlength=length).tolist()) for at, length in pairs)

    targets = [
        TargetCounts(end.stop, counts([bundle.targets[number].targets.position for bundle in bundles]), end.stops_below, end.barred)
        for number, end in enumerate(one.targets)
    ]
    sources = [
        SourceCounts(end.writes, counts([bundle.sources[number].sources.position for bundle in bundles]), end.is_brought)
        for number, end in enumerate(one.sources)
    ]
    pieces = pieces_of(one.model.device, (precision or precision_of(one.model, None)).products)
    return Joint(
        one.model.config, one.policy, one.start, one.stop, tuple(targets), tuple(sources), one.model.dtype.itemsize,
        pieces.narrow.within(0), between.held, tuple(passed_of(passing, lengths) for passing in between.passing),
    )  # fmt: skip


class Found(NamedTuple):
    """Rows of one prompt by all sources, as a sweep leaves them."""

    order: Order
    """Which rows they are."""
    prompt: int
    """Its number among those that were swept together."""
    blocks: Sequence[Block]
    """Of all of these; rows are numbered as each one's order has them."""

    @property
    def device(self) -> torch.device | None:
        """Where they lie; None where nothing was found."""
        return self.blocks[0].value[self.prompt].device if self.blocks else None

    def fill(self, runs: Sequence[tuple[int, int]], counts: Sequence[int], into: Float[Tensor, "rows columns"]) -> None:
        """Write some rows, by the first so many sources of each set, side by side.

        Args:
            runs: which rows, as runs `[first, end)`, one behind the other.
            counts: how many of each set of sources.
        """
        for number, columns in enumerate(into.split(list(counts), dim=1)):
            blocks, row = [block for block in self.blocks if number in block.columns], 0
            for run in runs if columns.shape[1] else ():
                part = columns[row : row + run[1] - run[0]]
                there = [found for block in blocks if (found := block.first(number, self.prompt, run, columns.shape[1])) is not None]
                part.copy_(there[0]) if there else part.zero_()
                for more in there[1:]:
                    part += more
                row += len(part)


def jacobians(bundles: Sequence[Bundle], plan: JointPlan, precision: Precision, impl: Impl = "torch") -> Iterator[tuple[int, Piece]]:
    """The Jacobians of a pack of bundles, with the number of the prompt that each piece is of. Rows of one pair come in order of position.

    The arguments and warnings are those of `found_rows`.
    """
    for number, found in found_rows(bundles, plan, precision, impl):
        yield from map(partial(numbered, number), pieces(bundles[number], found))
        del found  # before the next sweep fills another


def numbered(number: int, found: One) -> tuple[int, One]:
    """With the number of its prompt. For `map`, which keeps nothing while the next is computed; the variable of a loop would."""
    return number, found


def found_rows(bundles: Sequence[Bundle], plan: JointPlan, precision: Precision, impl: Impl = "torch") -> Iterator[tuple[int, Found]]:
    """The rows of the Jacobians of a pack of bundles by all sources, sweep by sweep, with the number of the prompt that they are of.

    Args:
        precision: of the sweep's products.
        impl: of the attention maps and of reading out.

    Warns:
        UserWarning: where the device ran out of memory and a sweep is done in halves, or a pack prompt by prompt.
    """
    above = [number for number in range(len(bundles[0].targets)) if number not in plan.joint.below]
    orders = [bundle.order_of(above) for bundle in bundles]
    swept = in_halves(
        plan.sweeps,
        partial(share, bundles, plan, precision, impl),
        lambda shared, first, end: sweep(shared, bundles, orders, precision, first, end),
        lambda is_shared: len(bundles) > 1 or (is_shared and plan.joint.meets is not None),
    )
    for done in swept:
        if done is None:
            yield from _one_by_one(bundles, plan, precision, impl)
            return
        for rows in done[1]:
            yield from ((prompt, Found(order, prompt, rows.blocks)) for prompt, order in enumerate(rows.orders))
            del rows
        del done  # before the next sweep fills another


def _one_by_one(bundles: Sequence[Bundle], plan: JointPlan, precision: Precision, impl: Impl) -> Iterator[tuple[int, Found]]:
    """What takes less memory than a pack, or than tangents beside it: cotangents, prompt by prompt."""
    warnings.warn(f"out of memory with {len(bundles)} prompt(s) {plan.way}; going on down, one at a time.", stacklevel=3)
    for number, bundle in enumerate(bundles):
        for _, found in found_rows([bundle], in_smaller_pieces(joint_of([bundle]), plan), precision, impl):
            yield number, found
            del found


class Rows(NamedTuple):
    """Rows of every prompt, and what has been found of them."""

    orders: Sequence[Order]
    blocks: list[Block]


def pieces(bundle: Bundle, found: Found, taken: Bool[Tensor, " rows"] | None = None) -> Iterator[Piece]:
    """Rows that were found, pair by pair.

    Args:
        taken: which of them; None is all.
    """
    of_set, place = found.order
    for target, end in enumerate(bundle.targets):
        chosen = ((of_set == target) if taken is None else (of_set == target) & taken).nonzero().squeeze(1)
        for source in range(len(bundle.sources)) if len(chosen) else ():
            if source not in end.barred:
                yield Piece(source, target, place[chosen], _gradient(bundle, source, found, chosen))


def _gradient(bundle: Bundle, source: int, found: Found, rows: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen _"]:
    """Some rows of one prompt, by one kind of sources: what all blocks have of them."""
    parts = [part for block in found.blocks if (part := block.of(source, found.prompt, rows)) is not None]
    if not parts:
        position = bundle.sources[source].sources.position
        return torch.zeros(len(rows), len(position), dtype=bundle.model.dtype, device=position.device)
    for part in parts[1:]:
        parts[0] += part
    return parts[0]


class Shared(NamedTuple):
    """What all sweeps of a pack share."""

    on: Primal
    sources: list[SourceSet]
    between: Between
    lifted: Lifted | None
    below: list[Rows]
    """What has been found as sources were lifted, until the first sweep is over."""


@torch.no_grad()
def share(bundles: Sequence[Bundle], plan: JointPlan, precision: Precision, impl: Impl) -> Shared:
    """What comes before the first sweep: the primal point, and what is lifted."""
    one, lengths, joint = bundles[0], [bundle.length for bundle in bundles], plan.joint
    whole = joint.whole
    on = primal(
        one.model, one.policy, whole.start, one.stop, [bundle.streams for bundle in bundles], lengths, dtype=precision.sweep, impl=impl,
        pieces=whole.pieces, shut_mlps=whole.shut_mlps,
    )  # fmt: skip
    between = together([bundle.between for bundle in bundles], lengths)
    ends = ([bundle.sources[number] for bundle in bundles] for number in range(len(one.sources)))
    sources = [source_set(on, end) for end in ends]
    if joint.meets is None:
        return Shared(on, sources, between, None, [])
    orders = [[bundle.order_of([number]) for bundle in bundles] for number in joint.below]
    with products(precision):
        below = [_target_set(on, bundles, number, own) for number, own in zip(joint.below, orders, strict=True)]
        lifted = lift(on, joint.meets, below, sources, joint.lifted, between)
    found = [Rows(own, blocks) for own, blocks in zip(orders, lifted.below, strict=True)]
    return Shared(on, sources, between, lifted._replace(below=[]), found)


def source_set(on: Primal, ends: Sequence[SourceEnd]) -> SourceSet:
    """The sources of one kind, of all prompts, by the place at which they write."""
    widths = [width(on.model.config, site) for site in ends[0].writes]
    directions = zip(*(end.sources.direction.split(widths, dim=1) for end in ends), strict=True)
    positions = [end.sources.position for end in ends]
    written = {place_of(at): seeds(on, positions, list(rows)) for at, rows in zip(ends[0].writes, directions, strict=True)}
    return SourceSet(written, ends[0].is_brought)


@torch.no_grad()
def sweep(shared: Shared, bundles: Sequence[Bundle], orders: Sequence[Order], precision: Precision, first: int, end: int) -> list[Rows]:
    """One sweep over the rows `first:end` of one bundle, or over all rows of several; with the first, what has been found before it."""
    taken = [order.only(first, end) if len(bundles) == 1 else order for order in orders]
    with products(precision):
        targets = [_target_set(shared.on, bundles, number, taken) for number in sorted({n for each in taken for n in each.of_set.tolist()})]
        found = join(shared.on, targets, shared.sources, shared.between, shared.lifted) if targets else []
    rows = [*shared.below, Rows(taken, found)]
    shared.below.clear()
    return rows


def _target_set(on: Primal, bundles: Sequence[Bundle], number: int, orders: Sequence[Order]) -> TargetSet:
    """The targets of one kind that a sweep takes, of all prompts."""
    rows, positions, cotangents = [], [], []
    for bundle, (of_set, place) in zip(bundles, orders, strict=True):
        chosen = (of_set == number).nonzero().squeeze(1)
        targets = bundle.targets[number].targets
        taken = place[chosen].to(targets.position.device, non_blocking=True)
        rows.append(chosen.to(taken.device, non_blocking=True))
        positions.append(targets.position[taken])
        cotangents.append(targets.cotangent[taken])
    one = bundles[0].targets[number]
    packed: Seeds = seeds(on, positions, cotangents)
    return TargetSet(place_of(one.stop), packed, tuple(rows), one.stops_below, one.barred)


# ------------------------------------------------------------------------------------- its error


def chosen_rows(bundle: Bundle, rows: int, seed: int = 0) -> Int[Tensor, " chosen"]:
    """Which of a bundle's rows are computed again, as `Bundle.order` numbers them."""
    return sampled(len(bundle.order[0]), rows, seed)


def sampled_rows_error(bundle: Bundle, rows: int, precision: Precision, impl: Impl, budget: int, seed: int = 0) -> Error:
    """The error of randomly chosen rows against float64, at the same primal point and with the same active latents."""
    part = bundle.only(chosen_rows(bundle, rows, seed))
    found, exact = _matrix(part, precision, impl, budget), _matrix(part.double(), None, "torch", budget)
    return error_of(found, exact, torch.cat([end.sources.value for end in bundle.sources]))


def _matrix(bundle: Bundle, precision: Precision | None, impl: Impl, budget: int) -> Float[Tensor, "targets sources"]:
    """The whole Jacobian of a bundle with few targets, all sources side by side."""
    precision = precision or precision_of(bundle.model, None)
    plan = plan_joint(joint_of([bundle], precision), max(budget, LEAST_FOR_SAMPLES))
    columns = [len(end.sources.position) for end in bundle.sources]
    found = [[end.targets.value.new_zeros(len(end.targets.position), count) for count in columns] for end in bundle.targets]
    for _, piece in jacobians([bundle], plan, precision, impl):
        found[piece.target][piece.source][piece.place.to(piece.gradient.device), : piece.gradient.shape[1]] = piece.gradient.to(
            found[0][0].dtype
        )
    return torch.cat([torch.cat(rows, dim=1) for rows in found])
