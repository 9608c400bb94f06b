"""Several sources and targets of one prompt at one primal point, and their Jacobians by one way down (sweep/join.py).

A `Path` (path.py) has one of each; a bundle has what all paths between its ends share: one pass of the model, one
encoding of each dictionary, and one sweep.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Policy, Site
from attrib.engine.blocks.kernels import Impl
from attrib.engine.blocks.passing import NOTHING, Between, in_float64, passed_of, place_of, together
from attrib.engine.halves import in_halves
from attrib.engine.path import Path, Sources, Targets
from attrib.engine.plan.joint import Joint, JointPlan, PairWay, SourceCounts, TargetCounts, in_smaller_pieces, plan_joint
from attrib.engine.precision import Error, Precision, error_of, precision_of, products
from attrib.engine.segment import Segment
from attrib.engine.sweep.cells import pieces_of
from attrib.engine.sweep.join import SourceSet, TargetSet, join
from attrib.engine.sweep.primal import Primal, Seeds, Streams, primal, seeds, stream_sites
from attrib.engine.tiles import LEAST_FOR_SAMPLES, adjoint, in_float64_between, sampled
from attrib.models.transformer import Model, width


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
    pairs: Mapping[tuple[int, int], PairWay] = field(default_factory=dict)
    """What stands on the way of each pair of sources and targets that could be swept alone."""

    def __repr__(self) -> str:
        sources, targets = (sum(len(each[0].position) for each in ends) for ends in (self.sources, self.targets))
        return (
            f"Bundle({sources:,} sources of {len(self.sources)} kinds to {targets:,} targets of {len(self.targets)}, "
            f"{self.start} to {self.stop}, {self.length} positions of {self.model.name!r})"
        )

    @cached_property
    def order(self) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """Of each row of the sweep the set that it is of, and its place there: by position, and at one position set by set."""
        sizes = torch.tensor([len(each.targets.position) for each in self.targets])
        number = torch.arange(len(sizes)).repeat_interleave(sizes)
        place = torch.cat([torch.arange(size) for size in sizes.tolist()])
        sorted_by = torch.cat([each.targets.position for each in self.targets]).cpu().argsort(stable=True)
        return number[sorted_by], place[sorted_by]

    def path(self, source: int, target: int) -> Path:
        """One pair alone, as the sweeps of one and one take it."""
        way, end, (sources, writes, is_brought) = self.pairs[source, target], self.targets[target], self.sources[source]
        reached = [site for site in writes if site.depth <= end.stop.depth]
        columns = sum(width(self.model.config, site) for site in reached)
        streams = {site: self.streams[site] for site in stream_sites(writes[0], end.stop)}
        passing = tuple(self.between.passing[number] for number in way.passed)
        between = Between(way.held, passing) if way.held or passing or len(writes) > 1 else NOTHING
        x = self.streams[self.stop] if self.stop in self.streams else next(iter(self.streams.values()))
        return Path(
            Segment(self.model, writes[0], end.stop, self.policy), x, None,
            sources._replace(direction=sources.direction[:, :columns]), end.targets, _unknown, from_tokens=is_brought, streams=streams,
            writes=tuple(reached), between=between,
        )  # fmt: skip

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


def _unknown(values: Tensor) -> Tensor:
    raise AssertionError("a bundle's ends are swept, and are no plain function of each other")


def _double(column: Tensor) -> Tensor:
    return column.double() if column.is_floating_point() else column


class Piece(NamedTuple):
    """Rows of the Jacobian of one kind of targets by one kind of sources."""

    source: int
    target: int
    place: Int[Tensor, " rows"]
    """Which of the targets they are."""
    gradient: Float[Tensor, "rows _"]


def joint_of(bundles: Sequence[Bundle]) -> Joint:
    """What a pack of bundles, which differ in their prompts alone, asks of the engine."""
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
    return Joint(
        one.model.config, one.policy, one.start, one.stop, tuple(targets), tuple(sources), one.model.dtype.itemsize,
        pieces_of(one.model.device), between.held, tuple(passed_of(passing, lengths) for passing in between.passing), one.pairs,
    )  # fmt: skip


def jacobians(bundles: Sequence[Bundle], plan: JointPlan, precision: Precision, impl: Impl = "torch") -> Iterator[tuple[int, Piece]]:
    """The Jacobians of a pack of bundles, with the number of the prompt that each piece is of. Rows of one pair come in order of position.

    Args:
        precision: of the sweep's products.
        impl: of the attention maps.

    Warns:
        UserWarning: where the device ran out of memory and a sweep is done in halves, or a pack prompt by prompt.
    """
    for (source, target), alone in plan.alone.items():
        for number, tile in adjoint([bundle.path(source, target) for bundle in bundles], alone, precision, impl):
            place = torch.arange(tile.first, tile.first + len(tile.gradient))
            yield number, Piece(source, target, place, tile.gradient)
            del tile
    swept = in_halves(
        plan.sweeps,
        partial(_share, bundles, plan, precision, impl),
        lambda shared, first, end: _sweep(shared, bundles, precision, first, end),
        lambda _: len(bundles) > 1,
    )
    for done in swept:
        if done is None:
            yield from _one_by_one(bundles, plan, precision, impl)
            return
        for number, rows in enumerate(done[1]):
            yield from ((number, piece) for piece in _pieces(bundles[number], plan.joint.left_out, rows))
        del done, rows  # before the next sweep fills another


def _one_by_one(bundles: Sequence[Bundle], plan: JointPlan, precision: Precision, impl: Impl) -> Iterator[tuple[int, Piece]]:
    """What takes less memory than a pack."""
    warnings.warn(f"out of memory with {len(bundles)} prompts together; going on one at a time.", stacklevel=3)
    for number, bundle in enumerate(bundles):
        joint = joint_of([bundle])
        joint = joint.without(plan.joint.left_out) if plan.joint.left_out else joint
        for _, piece in jacobians([bundle], in_smaller_pieces(joint, plan), precision, impl):
            yield number, piece


class _Rows(NamedTuple):
    """Rows of a bundle, of each kind of targets those that a sweep has taken, by every kind of sources."""

    first: int
    end: int
    """Which of the rows that `Bundle.order` tells they are."""
    gradient: list[Float[Tensor, "rows _"]]


def _pieces(bundle: Bundle, left_out: Collection[int], rows: _Rows) -> Iterator[Piece]:
    """Pair by pair."""
    of_set, place = (column[rows.first : rows.end] for column in bundle.order)
    for target, end in enumerate(bundle.targets):
        chosen = (of_set == target).nonzero().squeeze(1)
        for source, gradient in enumerate(rows.gradient):
            if source not in end.barred and source not in left_out and len(chosen):
                yield Piece(source, target, place[chosen], gradient.index_select(0, chosen.to(gradient.device)))


class _Shared(NamedTuple):
    """What all sweeps of a pack share."""

    on: Primal
    sources: list[SourceSet]
    between: Between


@torch.no_grad()
def _share(bundles: Sequence[Bundle], plan: JointPlan, precision: Precision, impl: Impl) -> _Shared:
    one, lengths, whole = bundles[0], [bundle.length for bundle in bundles], plan.joint.whole
    on = primal(
        one.model, one.policy, whole.start, one.stop, [bundle.streams for bundle in bundles], lengths, dtype=precision.sweep, impl=impl,
        pieces=whole.pieces, shut_mlps=whole.shut_mlps,
    )  # fmt: skip
    between = together([bundle.between for bundle in bundles], lengths)
    ends = ([bundle.sources[number] for bundle in bundles] for number in range(len(one.sources)))
    return _Shared(on, [_source_set(on, end, number in plan.joint.left_out) for number, end in enumerate(ends)], between)


def _source_set(on: Primal, ends: Sequence[SourceEnd], is_left_out: bool) -> SourceSet:
    """The sources of one kind, of all prompts, by the place at which they write; at none, where they are left to others."""
    if is_left_out:
        return SourceSet({}, ends[0].is_brought)
    widths = [width(on.model.config, site) for site in ends[0].writes]
    directions = zip(*(end.sources.direction.split(widths, dim=1) for end in ends), strict=True)
    positions = [end.sources.position for end in ends]
    written = {place_of(at): seeds(on, positions, list(rows)) for at, rows in zip(ends[0].writes, directions, strict=True)}
    return SourceSet(written, ends[0].is_brought)


@torch.no_grad()
def _sweep(shared: _Shared, bundles: Sequence[Bundle], precision: Precision, first: int, end: int) -> list[_Rows]:
    """One sweep over the rows `first:end` of one bundle, or over all rows of several."""
    on, sources, between = shared
    ends = [(first, end) if len(bundles) == 1 else (0, len(bundle.order[0])) for bundle in bundles]
    with products(precision):
        targets = [_target_set(on, bundles, number, ends) for number in range(len(bundles[0].targets))]
        found = join(on, targets, sources, between)
    none = torch.zeros(0)  # of sources that are left to others
    return [_Rows(*of_prompt, [jacobian[prompt] if jacobian else none for jacobian in found]) for prompt, of_prompt in enumerate(ends)]


def _target_set(on: Primal, bundles: Sequence[Bundle], number: int, ends: Sequence[tuple[int, int]]) -> TargetSet:
    """The targets of one kind that a sweep takes, of all prompts."""
    rows, positions, cotangents = [], [], []
    for bundle, (first, end) in zip(bundles, ends, strict=True):
        of_set, place = (column[first:end] for column in bundle.order)
        chosen = (of_set == number).nonzero().squeeze(1)
        targets = bundle.targets[number].targets
        taken = place[chosen].to(targets.position.device)
        rows.append(chosen.to(taken.device))
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
    plan = plan_joint(joint_of([bundle]), max(budget, LEAST_FOR_SAMPLES))
    columns = [len(end.sources.position) for end in bundle.sources]
    found = [[end.targets.value.new_zeros(len(end.targets.position), count) for count in columns] for end in bundle.targets]
    for _, piece in jacobians([bundle], plan, precision, impl):
        found[piece.target][piece.source][piece.place.to(piece.gradient.device), : piece.gradient.shape[1]] = piece.gradient.to(
            found[0][0].dtype
        )
    return torch.cat([torch.cat(rows, dim=1) for rows in found])
