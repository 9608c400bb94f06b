"""The plan of a pack of prompts: which way its Jacobian is taken, in which sweeps, and what that costs.

Every way that meet.py knows gives the same numbers. The plan counts the products of each (cost.py, meeting.py), bounds its
memory (memory.py), drops the ways that do not fit the budget, and takes the one with the fewest products. A way that
does not fit in one sweep over all targets is cut into sweeps over runs of them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Protocol, TypeVar, runtime_checkable

from attrib.core.types import BudgetError
from attrib.engine.plan.cost import Cost, reverse_cost
from attrib.engine.plan.meeting import forward_cost, lift_cost, met_cost
from attrib.engine.plan.memory import Way, peak_memory
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
    cost: Cost
    peak: int
    """Bytes of working memory at the fullest moment."""

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
    yield _Option("through" if task.is_through else "reverse" if task.layers else "local", None, reverse_cost, None)
    if not task.layers or task.is_beside:
        return
    if task.can_meet(None):
        yield _Option("forward", None, forward_cost, None)
    for layer in filter(task.can_meet, task.layers[:-1]):
        yield _Option("both", layer, partial(met_cost, layer=layer), partial(lift_cost, layer=layer))


def _in_pieces(task: Task) -> Iterator[Task]:
    """The task in the pieces that it asks for, and in ever smaller ones."""
    yield task
    if task.pieces.smaller != task.pieces:
        yield from _in_pieces(replace(task, pieces=task.pieces.smaller))


def plan_pack(task: Task, budget: int, prompt: int = 0) -> PackPlan:
    """The cheapest way that fits.

    Args:
        budget: bytes of working memory, beside the parameters and the result.
        prompt: the number of the pack's first prompt, for the error.

    Raises:
        BudgetError: where no way fits with even one target at a time; names the smallest budget that would do.
    """
    task = replace(task, pieces=task.pieces.within(budget))
    best: PackPlan | None = None
    least = None
    is_too_far = False
    for option in _options(task):
        if option.lifted is not None:  # to ever higher layers, so that tangents cost as much as the last time and more
            is_too_far = is_too_far or (best is not None and option.lifted(task).total >= best.cost.total)
            if is_too_far:
                continue
        for cut in _in_pieces(task):
            if best is not None and _whole(option, cut).total >= best.cost.total:
                if _memory(cut, option) <= budget:
                    break  # as below
                continue  # several sweeps are no fewer products than one
            sweeps, peak, smallest = _sweeps(cut, option, budget)
            least = smallest if least is None else min(least, smallest)
            if sweeps is None:
                continue
            cost = sum((option.cost(part_of(cut, first, end)) for first, end in sweeps), Cost(task.itemsize))
            if option.lifted is not None:
                cost = cost + option.lifted(cut)
            if best is None or cost.total < best.cost.total:
                best = PackPlan(cut, option.way, option.layer, sweeps, cost, peak)
            if len(sweeps) == 1:
                break  # smaller pieces would not save a product
    if best is None:
        assert least is not None  # there is always a way
        raise BudgetError.of(budget, prompt, least)
    return best


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
        unmasked, cost = (_whole(option, replace(task, queries=queries)) for queries in (1, task.queries))
        cost.flops = unmasked.flops
        del cost.flops["primal"], cost.bytes["primal"]
        costs.append(cost)
    return min(costs, key=lambda cost: cost.total)


def _whole(option: _Option, task: Task) -> Cost:
    """The cost of a way in one sweep."""
    cost = option.cost(task)
    return cost if option.lifted is None else cost + option.lifted(task)


def part_of(task: Task, first: int, end: int) -> Task:
    """The task of a run of targets. A pack of many prompts is not cut."""
    if first == 0 and end == task.n_targets:
        return task
    (rows,) = task.targets
    begins = [0, *accumulate(rows)]
    part = tuple(max(0, min(end, hi) - max(first, lo)) for lo, hi in pairwise(begins))
    return replace(task, targets=(part,), beside=task.n_targets - (end - first))


def _sweeps(task: Task, option: _Option, budget: int) -> tuple[tuple[tuple[int, int], ...] | None, int, int]:
    """Runs of targets that fit, the peak, and the smallest budget that would do; None where one target does not fit."""
    count = task.n_targets
    whole = _memory(task, option)
    if whole <= budget or count <= 1:
        return (((0, count),) if whole <= budget else None), whole, whole
    if len(task.targets) > 1 or option.way == "forward":
        return None, whole, whole
    smallest = _memory(part_of(task, count - 1, count), option)
    if smallest > budget:
        return None, smallest, smallest
    sweeps, first, peak, rows = [], 0, 0, 0
    while first < count:
        rows, used = most_that_fit(partial(_peak, task, option, first), count - first, budget, rows)
        sweeps.append((first, first + rows))
        peak = max(peak, used)
        first += rows
    return tuple(sweeps), peak, smallest


def _peak(task: Task, option: _Option, first: int, rows: int) -> int:
    """The peak of a sweep over some targets."""
    return _memory(part_of(task, first, first + rows), option)


def _memory(task: Task, option: _Option) -> int:
    """Bytes at the fullest moment: of opening the paths, which no smaller sweep makes less, or of a sweep beside what they hold."""
    return max(task.opened.peak, task.opened.held + peak_memory(task, option.way, option.layer))


def most_that_fit(peak: Callable[[int], int], count: int, budget: int, about: int = 0) -> tuple[int, int]:
    """About the most of `count` rows that fit, at most a fiftieth fewer, and their peak; one row is known to fit.

    Args:
        about: how many fitted the last time, about which they are looked for first; 0 where nothing is known.
    """
    low, high, used, over = 1, count, 0, 0
    for guess in (about - about // 50, about + max(1, about // 50)) if about > 1 else ():
        if guess >= count:
            break
        if (needed := peak(guess)) > budget:
            high, over = guess, needed
            break
        low, used = guess, needed
    if not over:
        over = peak(count)
    if over <= budget:
        return count, over
    used = used or peak(1)
    while high - low > max(1, low // 50):
        # memory grows about as rows do, so the place is guessed; a tenth from both ends, so that either moves
        guess = low + round((high - low) * min(max((budget - used) / (over - used), 0.1), 0.9))
        guess = min(max(guess, low + 1), high - 1)
        if (needed := peak(guess)) <= budget:
            low, used = guess, needed
        else:
            high, over = guess, needed
    return low, used
