"""One sweep's rows over several devices: each sweeps its share on a copy of the model, and what they find comes in the order of one.

A prompt is opened once, on the first device. The runs of rows that its plan has (`sweeps`) go round the devices; where there are fewer runs
than devices, they are cut so that each part costs about as much. A run that is not cut is swept as one device alone sweeps it, with the
same bits; one that is cut has products of another size, whose last digits may differ. A pack of prompts, which has one sweep over all of
them, is cut between prompts.

Each device has the whole budget, and a thread of its own (core/hands.py) that goes on once its rows are taken: a device holds the rows of
one sweep, as a device alone does. Sources are lifted on each device, which is work that more devices do not share.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.core.hands import Hand, Hands
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine import bundle as bundles_of
from attrib.engine import tiles
from attrib.engine.blocks.kernels import Impl
from attrib.engine.blocks.passing import Between
from attrib.engine.bundle import Bundle, Found, Order, Piece, joint_of, numbered, pieces
from attrib.engine.path import Path, Sources, Targets
from attrib.engine.plan.choose import PackPlan, plan_pack
from attrib.engine.plan.choose_joint import JointPlan, plan_joint
from attrib.engine.precision import Precision
from attrib.engine.tiles import order_of, task_of
from attrib.engine.transforms import Tile
from attrib.models.transformer import Model

Run = tuple[int, int]
"""Rows `[first, end)`."""
Rows = TypeVar("Rows")


class Team(Hands):
    """The devices of a call; of one alone nothing is spread. A context in which their threads live."""

    def __init__(self, devices: Sequence[torch.device], budget: int) -> None:
        """None is at work yet.

        Args:
            devices: the first of which opens prompts.
            budget: bytes of working memory on each.
        """
        super().__init__()
        self.devices, self.budget = devices, budget
        self._copies: dict[tuple[int, torch.device], tuple[Any, Any]] = {}

    def __enter__(self) -> "Team":
        return self

    @property
    def is_one(self) -> bool:
        """Whether there is nothing to spread."""
        return len(self.devices) < 2

    def left(self, prompts: int, peak: int) -> int:
        """Bytes of each device's budget that a plan of so many prompts leaves beside its fullest moment."""
        return self.budget - peak if self.is_one or prompts == 1 else 0  # parts of a pack have plans of their own

    # ------------------------------------------------------------------------------- one source, one target

    def adjoint(self, paths: Sequence[Path], plan: PackPlan, precision: Precision, impl: Impl) -> Iterator[tuple[int, Tile]]:
        """What `tiles.adjoint` gives, in its order; each tile lies on the device that has computed it."""
        if self.is_one:
            yield from tiles.adjoint(paths, plan, precision, impl)
        elif len(paths) > 1:
            weights = [_cells(counts, plan.task.config.causal) for counts in plan.task.targets]
            yield from self._packs(weights, partial(self._paths, paths, plan, precision, impl))
        else:
            yield from map(partial(numbered, 0), self._one_path(paths[0], plan, precision, impl))

    def _paths(
        self, paths: Sequence[Path], plan: PackPlan, precision: Precision, impl: Impl, run: Run, device: torch.device
    ) -> Callable[[], Iterator[tuple[int, Tile]]]:
        """Some prompts of a pack, by a plan of their own."""
        some = paths[slice(*run)]
        task = replace(task_of(some, precision), itemsize=plan.task.itemsize, opened=plan.task.opened)
        return partial(tiles.adjoint, [self._path_on(path, device) for path in some], plan_pack(task, self.budget), precision, impl)

    def _one_path(self, path: Path, plan: PackPlan, precision: Precision, impl: Impl) -> Iterator[Tile]:
        """Runs of one prompt's targets."""
        count, (position,) = len(self.devices), path.copies.of([path.targets.position])
        sorting = order_of(position)
        is_sorted = sorting is None
        order = (torch.arange(len(position)) if sorting is None else sorting).to(path.x.device, non_blocking=True)
        runs = cut_runs(plan.sweeps, _weights(plan.task.targets[0], plan.task.config.causal), count)

        def maker(own: Sequence[Run], device: torch.device) -> Callable[[], Iterator[tuple[int, Tile]]]:
            rows = torch.cat([order[first:end] for first, end in own])
            part = replace(path, targets=Targets(*(column[rows] for column in path.targets)))
            of_part = replace(plan, task=replace(plan.task, targets=task_of([part]).targets), sweeps=_one_behind_the_other(own))
            return partial(tiles.adjoint, [self._path_on(part, device)], of_part, precision, impl)

        hands = self._round(runs, maker)
        whole: Tensor | None = None
        try:
            for number, (first, end) in enumerate(runs):
                hand, at = hands[number % count], first
                while at < end:
                    found = hand.take()
                    assert found is not None
                    gradient = found[1].gradient
                    del found
                    size = len(gradient)
                    if is_sorted:
                        yield Tile(at, gradient)
                    else:  # as tiles.adjoint does: rows go back to their places
                        whole = path.x.new_zeros(len(order), gradient.shape[1], dtype=gradient.dtype) if whole is None else whole
                        whole[order[at : at + size]] = gradient.to(whole.device)
                    del gradient
                    at += size
                    hand.give_back()
            if whole is not None:
                yield Tile(0, whole)
        finally:
            self.end(hands)

    # ------------------------------------------------------------------------------- several of each

    def jacobians(self, bundles: Sequence[Bundle], plan: JointPlan, precision: Precision, impl: Impl) -> Iterator[tuple[int, Piece]]:
        """What `bundle.jacobians` gives, in its order; each piece lies on the device that has computed it."""
        for number, found, chosen in self.found_rows(bundles, plan, precision, impl):
            yield from map(partial(numbered, number), pieces(bundles[number], found, chosen))
            del found

    def found_rows(
        self, bundles: Sequence[Bundle], plan: JointPlan, precision: Precision, impl: Impl
    ) -> Iterator[tuple[int, Found, Bool[Tensor, " rows"] | None]]:
        """What `bundle.found_rows` gives, and which rows of each are taken now; None is all. Rows of one set come in order of position."""
        if self.is_one:
            yield from map(_all_taken, bundles_of.found_rows(bundles, plan, precision, impl))
        elif len(bundles) > 1:
            weights = [_cells(counts, plan.joint.config.causal) for counts in plan.joint.whole.targets]
            packs = self._packs(weights, partial(self._bundles, bundles, plan, precision, impl))
            yield from map(_all_taken, packs)
        else:
            yield from map(_of_the_first, self._one_bundle(bundles[0], plan, precision, impl))

    def _bundles(
        self, bundles: Sequence[Bundle], plan: JointPlan, precision: Precision, impl: Impl, run: Run, device: torch.device
    ) -> Callable[[], Iterator[tuple[int, Found]]]:
        """Some prompts of a pack, by a plan of their own."""
        some = bundles[slice(*run)]
        joint = replace(joint_of(some, precision), itemsize=plan.joint.itemsize, opened=plan.joint.opened)
        there = [self._bundle_on(each, device) for each in some]
        return partial(bundles_of.found_rows, there, plan_joint(joint, self.budget), precision, impl)

    def _one_bundle(
        self, bundle: Bundle, plan: JointPlan, precision: Precision, impl: Impl
    ) -> Iterator[tuple[Found, Bool[Tensor, " rows"] | None]]:
        """Runs of one prompt's rows. Those that sources meet as they are lifted, on every device, are cut by their number."""
        count, (of_set, place), joint = len(self.devices), bundle.order, plan.joint
        is_below = torch.isin(of_set, torch.tensor(joint.below, dtype=torch.long))
        above, below = (mask.nonzero()[:, 0] for mask in (~is_below, is_below))
        runs = cut_runs(plan.sweeps, _weights(joint.above.whole.targets[0], joint.config.causal), count)
        met = cut_runs([(0, len(below))], [1] * len(below), count)
        places, makers = list[list[Int[Tensor, " _"]]](), list[Callable[[], Iterator[tuple[int, Found]]]]()
        for number, device in zip(range(max(len(runs), len(met))), self.devices, strict=False):
            own = runs[number::count] or [(0, 0)]
            some = [below[slice(*run)] for run in met[number : number + 1]]
            rows = torch.cat([*some, *(above[first:end] for first, end in own)]).sort().values
            places.append([place[rows[of_set[rows] == each]] for each in range(len(bundle.targets))])
            part = replace(plan, sweeps=_one_behind_the_other(own))
            makers.append(partial(bundles_of.found_rows, [self._bundle_on(bundle.only(rows), device)], part, precision, impl))
        hands = self.begin(self.devices[: len(makers)], makers)
        taken = [_Taken(hand, where, joint.below, list(range(number, len(runs), count)), runs)
                 for number, (hand, where) in enumerate(zip(hands, places, strict=True))]  # fmt: skip
        try:
            for number, (first, end) in enumerate(met):
                yield from taken[number].of_run(BELOW, end - first)
            for number, (first, end) in enumerate(runs):
                yield from taken[number % count].of_run(number, end - first)
        finally:
            self.end(hands)

    # ------------------------------------------------------------------------------- who does what

    def _round(self, runs: Sequence[Run], maker: Callable[[Sequence[Run], torch.device], Callable[[], Iterator[Rows]]]) -> list[Hand[Rows]]:
        """Give runs to devices in turns."""
        count = len(self.devices)
        shares = [(own, device) for number, device in enumerate(self.devices) if (own := runs[number::count])]
        return self.begin([device for _, device in shares], [maker(own, device) for own, device in shares])

    def _packs(
        self, weights: Sequence[int], maker: Callable[[Run, torch.device], Callable[[], Iterator[tuple[int, Rows]]]]
    ) -> Iterator[tuple[int, Rows]]:
        """Give prompts to devices, as many to each as cost about the same."""
        runs = cut_runs([(0, len(weights))], weights, len(self.devices))
        devices = self.devices[: len(runs)]
        hands = self.begin(devices, [maker(run, device) for run, device in zip(runs, devices, strict=True)])
        try:
            for (first, _), hand in zip(runs, hands, strict=True):
                while (found := hand.take()) is not None:
                    yield first + found[0], found[1]
                    del found
                    hand.give_back()
        finally:
            self.end(hands)

    # ------------------------------------------------------------------------------- copies

    def _copy(self, given: Any, device: torch.device, make: Callable[[], Any]) -> Any:
        """One copy for a call of what is used again and again."""
        known = self._copies.setdefault((id(given), device), (given, None))  # which holds it, so that no other has its number
        if known[1] is None:
            known = self._copies[id(given), device] = given, make()
        return known[1]

    def _model_on(self, model: Model, device: torch.device) -> Model:
        def make() -> Model:
            return replace(model, params=pytree.tree_map(lambda p: p.to(device), model.params))

        return model if model.device == device else self._copy(model.params, device, make)

    def _dictionary_on(self, dictionary: Dictionary, device: torch.device) -> Dictionary:
        return self._copy(dictionary, device, lambda: dictionary.to(device=device))

    def _between_on(self, between: Between, device: torch.device) -> Between:
        if not between.passing:
            return between
        passing = (
            replace(p, dictionary=self._dictionary_on(p.dictionary, device), x=p.x.to(device), latents=_on(p.latents, device))
            for p in between.passing
        )
        return replace(between, passing=tuple(passing))

    def _path_on(self, path: Path, device: torch.device) -> Path:
        """What the sweeps of a path take of it; its functions stay where they are."""
        if path.x.device == device:
            return path
        return replace(
            path, through=replace(path.through, model=self._model_on(path.through.model, device)), x=path.x.to(device),
            base=None if path.base is None else path.base.to(device), sources=Sources(*_on(path.sources, device)),
            targets=Targets(*_on(path.targets, device)), between=self._between_on(path.between, device),
            streams=None if path.streams is None else _streams_on(path.streams, device),
        )  # fmt: skip

    def _bundle_on(self, bundle: Bundle, device: torch.device) -> Bundle:
        if bundle.model.device == device:
            return bundle
        return replace(
            bundle, model=self._model_on(bundle.model, device), streams=_streams_on(bundle.streams, device),
            sources=tuple(end._replace(sources=_on(end.sources, device)) for end in bundle.sources),
            targets=tuple(end._replace(targets=_on(end.targets, device)) for end in bundle.targets),
            between=self._between_on(bundle.between, device),
        )  # fmt: skip


BELOW = -1
"""As which run the rows count that sources meet as they are lifted."""


class _Taken:
    """Rows of one device as they come, run by run. Where memory did not suffice for lifting, rows of all its runs come together."""

    def __init__(
        self, hand: Hand[tuple[int, Found]], places: Sequence[Int[Tensor, " _"]], below: Sequence[int], own: Sequence[int],
        runs: Sequence[Run],
    ) -> None:  # fmt: skip
        """None yet.

        Args:
            places: of each set of targets, which of the prompt's each of this device's is.
            below: the sets that count as `BELOW`.
            own: the numbers of its runs.
        """
        self.hand, self.places, self.below = hand, places, torch.tensor(below, dtype=torch.long)
        none = torch.zeros(0, dtype=torch.long)
        self.run_of_row = torch.cat([none, *(torch.full((end - first,), number) for number in own for first, end in [runs[number]])])
        self.found: Found | None = None
        self.runs, self.left, self.seen = torch.zeros(0, dtype=torch.long), 0, 0

    def of_run(self, number: int, rows: int) -> Iterator[tuple[Found, Bool[Tensor, " rows"] | None]]:
        """All rows of a run."""
        while rows:
            if self.found is None:
                self._take()
            if self.left:
                chosen = self.runs == number
                count = int(chosen.sum())
                assert count, "rows come in order"
                assert self.found is not None
                yield self.found, None if count == len(chosen) else chosen
                rows, self.left = rows - count, self.left - count
            if not self.left:
                self.found = None
                self.hand.give_back()

    def _take(self) -> None:
        taken = self.hand.take()
        assert taken is not None
        found = taken[1]
        of_set, place = found.order
        is_below = torch.isin(of_set, self.below)
        self.runs, count = torch.full_like(of_set, BELOW), int((~is_below).sum())
        self.runs[~is_below] = self.run_of_row[self.seen : self.seen + count]
        self.seen, self.left = self.seen + count, len(of_set)
        of_prompt = place.clone()
        for number, where in enumerate(self.places):
            of_prompt[of_set == number] = where[place[of_set == number]]
        self.found = found._replace(order=Order(of_set, of_prompt))


def _all_taken(found: tuple[int, Found]) -> tuple[int, Found, None]:
    """With no rows that are left for later. For `map`, as `numbered` is, and so is the next."""
    return *found, None


def _of_the_first(found: tuple[Found, Bool[Tensor, " rows"] | None]) -> tuple[int, Found, Bool[Tensor, " rows"] | None]:
    return 0, *found


def cut_runs(runs: Sequence[Run], weights: Sequence[int], count: int) -> list[Run]:
    """The runs where there are as many as devices; else each cut into so many parts that there are, of about equal weight.

    Args:
        weights: what each row costs, beside the others.
        count: of devices.
    """
    if len(runs) >= count or not runs:
        return list(runs)
    found, parts = list[Run](), -(-count // len(runs))
    for first, end in runs:
        ends = [first, *(first + at for at in _shares(weights[first:end], parts)), end]
        found += [(begin, upto) for begin, upto in pairwise(ends) if upto > begin or first == end]
    return found


def _shares(weights: Sequence[int], parts: int) -> Iterator[int]:
    """Where to cut rows: as near to equal weights as whole rows come, and none without a row where there are enough."""
    sums, count, before = [0, *accumulate(weights)], len(weights), 0
    for part in range(1, min(parts, count)):
        wanted = sums[-1] * part / parts
        above = bisect_left(sums, wanted)
        nearest = above - 1 if above and wanted - sums[above - 1] < sums[above] - wanted else above
        before = min(max(nearest, before + 1), count - min(parts, count) + part)
        yield before


def _weights(counts: Sequence[int], is_causal: bool) -> list[int]:
    """Of each row, seeded at so many positions: how many positions it lives on."""
    return [position + 1 if is_causal else 1 for position, rows in enumerate(counts) for _ in range(rows)]


def _cells(counts: Sequence[int], is_causal: bool) -> int:
    """Of all rows of a prompt together, and its pass."""
    return len(counts) + sum(_weights(counts, is_causal))


def _one_behind_the_other(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs of rows of which there are no others."""
    ends = list(accumulate(end - first for first, end in runs))
    return tuple(zip([0, *ends], ends, strict=False))


def _on(columns: Any, device: torch.device) -> Any:
    """A record of tensors on a device."""
    return type(columns)(*(column.to(device) for column in columns))


def _streams_on(streams: Mapping[Any, Tensor], device: torch.device) -> dict[Any, Tensor]:
    return {site: value.to(device) for site, value in streams.items()}
