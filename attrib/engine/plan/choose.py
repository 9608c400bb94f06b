"""The plan of a pack of prompts: which way its Jacobian is taken, in which sweeps, and what that costs.

Every way that meet.py knows gives the same numbers. The plan counts the products of each (cost.py, meeting.py), bounds its
memory (memory.py), drops the ways that do not fit the budget, and takes the one with the fewest products; on a device that is asked
for every one, what asking costs is added (`weight`). A way that does not fit in one sweep over all targets is cut into sweeps over
runs of them.

Looking for all of these sweeps in every way and in pieces of every size would take longer than many a run. Where they are many, their
weight is told from a few places among the targets, and only those of the least weight are looked for.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from attrib.core.rates import FREE
from attrib.core.types import BudgetError
from attrib.engine.plan.cost import Asked, Cost, reverse_cost
from attrib.engine.plan.meeting import forward_cost, lift_cost, met_cost
from attrib.engine.plan.memory import Way, peak_memory
from attrib.engine.plan.runs import FEW, Runs
from attrib.engine.plan.task import Task
from attrib.engine.sweep.cells import Pieces


@dataclass(frozen=True)
class PackPlan:
    """How the Jacobian of a pack of prompts is taken."""

    task: Task
    way: Way
    layer: int | None
    """Where both sides meet, for `both`."""
    sweeps: tuple[tuple[int, int], ...]
    """Runs of targets `[first, end)` in order of position; one prompt's. A pack of many prompts has one sweep over all."""
    peak: int
    """Bytes of working memory at the fullest moment."""

    @cached_property
    def cost(self) -> Cost:
        """Operations and bytes of all sweeps. Counted when it is asked for: a run does without."""
        return _cost(_option_of(self.way, self.layer), self.task, self.sweeps)

    @property
    def floor(self) -> Cost:
        """What the cheapest way costs in one sweep, with no masked work and without the primal: see docs/engine.md."""
        return floor(self.task)  # counted when it is asked for: a run does without

    @property
    def bands(self) -> int:
        """Positions that are seeded, over all sweeps: each is a band of its own."""
        seeded = self.task.sources if self.way == "forward" else self.task.targets
        return sum(rows > 0 for prompt in seeded for rows in prompt)

    def __str__(self) -> str:
        met = "" if self.layer is None else f" at the MLP of layer {self.layer}"
        size = f"{self.task.n_targets} × {self.task.n_sources}"
        return f"{len(self.task.targets)} prompt(s), {size}: {self.way}{met}, {len(self.sweeps)} sweep(s), {self.bands} bands"


@dataclass(frozen=True)
class _Option:
    way: Way
    layer: int | None
    cost: Callable[[Task], Cost]
    lifted: Callable[[Task], Cost] | None
    """What is done once for all sweeps."""


def _options(task: Task) -> Iterator[_Option]:
    yield _option_of("through" if task.is_through else "reverse" if task.layers else "local")
    if not task.layers or task.is_beside:
        return
    if task.can_meet(None):
        yield _option_of("forward")
    for layer in filter(task.can_meet, task.layers[:-1]):
        yield _option_of("both", layer)


def _option_of(way: Way, layer: int | None = None) -> _Option:
    if way == "both":
        return _Option(way, layer, partial(met_cost, layer=layer), partial(lift_cost, layer=layer))
    return _Option(way, None, forward_cost if way == "forward" else reverse_cost, None)


def _in_pieces(task: Task) -> Iterator[Task]:
    """The task in the pieces that it asks for, and in ever smaller ones."""
    yield task
    if task.pieces.smaller != task.pieces:
        yield from _in_pieces(replace(task, pieces=task.pieces.smaller))


def plan_pack(task: Task, budget: int, prompt: int = 0) -> PackPlan:
    """The way that weighs least of those that fit.

    Args:
        budget: bytes of working memory, beside the parameters and the result.
        prompt: the number of the pack's first prompt, for the error.

    Raises:
        BudgetError: where no way fits with even one target at a time; names the smallest budget that would do.
    """
    plan = _plan(replace(task, pieces=task.pieces.within(budget)), budget)
    if isinstance(plan, int):
        raise BudgetError.of(budget, prompt, plan)
    return plan


@lru_cache(maxsize=64)
def _plan(task: Task, budget: int) -> PackPlan | int:
    """The plan, or the smallest budget that would do. Prompts of one length that have as many latents everywhere share it."""
    found, is_too_far, least = list[_Found](), False, 1 << 62
    for option in _options(task):
        best = min((each.weight for each in found), default=math.inf)
        if option.lifted is not None:  # to ever higher layers, so that tangents weigh as much as the last time and more
            is_too_far = is_too_far or (found != [] and weight(task, option.lifted(task), 0) >= best)
            if is_too_far:
                continue
        own, before = math.inf, math.inf
        for cut in _in_pieces(task):
            less = min(best, own)
            if less < math.inf and cut.pieces.asking != FREE and (one := _one(cut, option)) >= SPARED * less:
                if one > before:
                    break  # in still smaller pieces it is asked for more often than they save
                before = one
                continue
            peak = _memory(cut, option)
            if peak > budget:
                smallest = _smallest(cut, option, peak)
                least = min(least, smallest)
                if smallest <= budget and (each := _in_sweeps(cut, option, budget, peak, smallest, less)) is not None:
                    found.append(each)
                    own = min(own, each.weight)
                continue
            least = min(least, peak)
            found.append(_Found(one := _one(cut, option), cut, option, ((0, cut.n_targets),), peak))
            if one >= own or cut.pieces.asking == FREE:
                break  # smaller pieces would not save a product, or are asked for more often than they save
            own = one
    if not found:
        return least
    _, cut, option, sweeps, peak = min(found, key=lambda each: each.weight)
    if isinstance(sweeps, Runs):
        sweeps, peak = sweeps.all()
    return PackPlan(cut, option.way, option.layer, sweeps, peak)


SPARED = 1.25
"""Several sweeps may weigh a little less than one, in which there are more zeros: what weighs so many times the least in one sweep is not
looked at in several."""


def _one(task: Task, option: _Option) -> float:
    """What one sweep over all targets weighs."""
    return weight(task, _cost(option, task, ((0, task.n_targets),)), 1)


class _Found(NamedTuple):
    """A way, and pieces, that fit."""

    weight: float
    task: Task
    option: _Option
    sweeps: tuple[tuple[int, int], ...] | Runs
    """Runs that are yet to be looked for, where the weight is told from a few of them."""
    peak: int
    """Bytes; where runs are yet to be looked for, those that one over all targets would take."""


ASKED = Asked(launches=8, waits=1)
"""GPT-2's shape asked for 7.0 to 8.3 operations with each further product, whether in smaller pieces or under another policy."""


def weight(task: Task, cost: Cost, sweeps: int) -> float:
    """What sweeps of some work weigh, in operations of products."""
    return ASKED.weight(cost, sweeps, task.pieces.asking)


def _cost(option: _Option, task: Task, sweeps: Sequence[tuple[int, int]]) -> Cost:
    """Count sweeps, with what is done once for all of them."""
    cost = sum((option.cost(part_of(task, first, end)) for first, end in sweeps), Cost(task.itemsize))
    return cost if option.lifted is None else cost + option.lifted(task)


def least_memory(task: Task) -> int:
    """The smallest budget with which there is a plan: that of the way whose single row takes least."""
    task = replace(task, pieces=task.pieces.within(0))
    last = part_of(task, max(0, task.n_targets - 1), task.n_targets) if len(task.targets) == 1 else task
    parts = ((option, task if option.way == "forward" else last) for option in _options(task))
    return min(_memory(cut, option) for option, part in parts for cut in _in_pieces(part))


@runtime_checkable
class Plannable(Protocol):
    """The work of prompts, which may be put together."""

    def __add__(self, other: Any) -> Any: ...

    @property
    def cells(self) -> int:
        """(row, position) pairs."""

    @property
    def pieces(self) -> Pieces:
        """Those of the device."""


Item = TypeVar("Item")
AnyTask = TypeVar("AnyTask", bound=Plannable)
Planned = TypeVar("Planned")
Packed = TypeVar("Packed")


def packs(
    items: Iterable[Item], task_of: Callable[[Item], AnyTask], budget: int, plan: Callable[[AnyTask, int, int], Planned]
) -> Iterator[tuple[list[Item], Planned]]:
    """Prompts in packs: those whose sweeps are small share one, as far as a single sweep over them fits the budget.

    Args:
        plan: the plan of some work within a budget, for a prompt's number: `plan_pack`, or another.

    Raises:
        BudgetError: where a prompt alone does not fit.
    """
    pack: list[Item] = []
    task: AnyTask | None = None
    planned: Planned | None = None
    for number, item in enumerate(items):
        alone = task_of(item)
        together = None if task is None else task + alone
        joined = None if together is None else _planned(together, budget, plan)
        if joined is None:
            if planned is not None:
                yield pack, planned
            pack, task, planned = [item], alone, plan(alone, budget, number)
        else:
            pack, task, planned = [*pack, item], together, joined
        if task is not None and task.cells > task.pieces.pack and planned is not None:
            yield pack, planned  # nothing joins it: so that the next prompt is not opened, and in memory, meanwhile
            pack, task, planned = [], None, None
    if planned is not None:
        yield pack, planned


def refusing(packed: Iterator[Packed], refuse: Callable[[], object]) -> Iterator[Packed]:
    """The packs; where a prompt does not fit, `refuse` is called, to raise what is enough for all of them."""
    try:
        yield from packed
    except BudgetError:
        refuse()
        raise


def _planned(task: AnyTask, budget: int, plan: Callable[[AnyTask, int, int], Planned]) -> Planned | None:
    """The plan of a pack of several prompts, where they are small enough to gain by it and fit."""
    if task.cells > task.pieces.pack:
        return None
    try:
        return plan(task, budget, 0)
    except BudgetError:
        return None


def floor(task: Task) -> Cost:
    """The least products that the answer needs, as far as is known: see docs/engine.md."""
    costs = []
    for option in _options(task):
        # nothing masked is multiplied in blocks of one query; the bytes are those of the blocks that are used
        tasks = (replace(task, queries=queries) for queries in (1, task.queries))
        unmasked, cost = (_cost(option, each, ((0, each.n_targets),)) for each in tasks)
        cost.flops = unmasked.flops
        del cost.flops["primal"], cost.bytes["primal"]
        costs.append(cost)
    return min(costs, key=lambda cost: cost.total)


def part_of(task: Task, first: int, end: int) -> Task:
    """The task of a run of targets. A pack of many prompts is not cut."""
    if first == 0 and end == task.n_targets:
        return task
    (rows,) = task.targets
    begins = _begins(rows)
    low, high = bisect_right(begins, first) - 1, bisect_left(begins, end)  # the positions of the first row, and behind the last
    part = tuple(max(0, min(end, begins[t + 1]) - max(first, begins[t])) for t in range(low, high))
    return replace(task, targets=((0,) * low + part + (0,) * (len(rows) - high),), beside=task.n_targets - (end - first))


@lru_cache(maxsize=64)
def _begins(rows: tuple[int, ...]) -> tuple[int, ...]:
    """Where the rows of each position begin, and where the last ends: the same for all parts of a task."""
    return 0, *accumulate(rows)


def _smallest(task: Task, option: _Option, peak: int) -> int:
    """The smallest budget that would do, where one sweep over all targets takes `peak`."""
    count = task.n_targets
    if count <= 1 or len(task.targets) > 1 or option.way == "forward":
        return peak
    return _memory(part_of(task, count - 1, count), option)


def _in_sweeps(task: Task, option: _Option, budget: int, whole: int, smallest: int, best: float) -> _Found | None:
    """Several sweeps over runs of targets, or what they weigh; None where that is more than another's.

    Args:
        whole, smallest: bytes of a sweep over all targets, and over one.
        best: the least weight so far.
    """
    lifted = 0.0 if option.lifted is None else weight(task, option.lifted(task), 0)
    if lifted >= best:
        return None
    runs = _runs(task, option, budget, whole, smallest)
    own, sweeps = runs.weighed(lambda first, end: weight(task, option.cost(part_of(task, first, end)), 1), best - lifted)
    if sweeps > FEW:
        return _Found(lifted + own, task, option, runs, whole) if lifted + own < best else None
    cut, peak = runs.all()
    return _Found(weight(task, _cost(option, task, cut), len(cut)), task, option, cut, peak)


def _runs(task: Task, option: _Option, budget: int, whole: int, smallest: int) -> Runs:
    """Runs of one prompt's targets. At first as many cells are expected as fit if all take `whole` bytes."""
    [rows] = task.targets
    about = sum(map(sum, task.down())) * (budget - smallest) / max(1, whole - smallest)
    return Runs(rows, partial(_peak, task, option), budget, causal=task.config.causal, smallest=smallest, cells=about)


def _peak(task: Task, option: _Option, first: int, rows: int) -> int:
    """The peak of a sweep over some targets."""
    return _memory(part_of(task, first, first + rows), option)


def _memory(task: Task, option: _Option) -> int:
    """Bytes at the fullest moment: of opening the paths, which no smaller sweep makes less, or of a sweep beside what they hold."""
    return max(task.opened.peak, task.opened.held + peak_memory(task, option.way, option.layer))
