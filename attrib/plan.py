"""The plan of a pack of prompts: which way its Jacobian is taken, in which sweeps, and what that costs.

Every way that meet.py knows gives the same numbers. The plan counts the products of each (cost.py), bounds its
memory (here), drops the ways that do not fit the budget, and takes the one with the fewest products. A way that
does not fit in one sweep over all targets is cut into sweeps over runs of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Literal, TypeVar

from attrib.cone import BAND, CHUNK
from attrib.cost import Cost, Task, both_cost, forward_cost, lift_cost, local_cost, reverse_cost
from attrib.sweep import MLP_CHUNK, fold_rows
from attrib.types import BudgetError

Way = Literal["local", "reverse", "forward", "both"]
"""`local`: no attention between, targets meet sources at their own positions. The others are those of meet.py."""


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
    floor: Cost
    """Of the cheapest way, in one sweep, with no masked work and without the primal: see docs/engine.md."""

    @property
    def bands(self) -> int:
        """Positions that are seeded, over all sweeps: each is a band of its own."""
        seeded = self.task.sources if self.way == "forward" else self.task.targets
        return sum(rows > 0 for prompt in seeded for rows in prompt)


@dataclass(frozen=True)
class _Option:
    way: Way
    layer: int | None
    cost: Callable[[Task], Cost]
    lifted: Callable[[Task], Cost] | None
    """What is done once for all sweeps."""


def _options(task: Task) -> Iterator[_Option]:
    if not task.layers:
        yield _Option("local", None, local_cost, None)
        return
    yield _Option("reverse", None, reverse_cost, None)
    if task.stop.kind not in ("z", "attn_out"):
        yield _Option("forward", None, forward_cost, None)
        for layer in task.layers[:-1]:
            yield _Option("both", layer, partial(both_cost, layer=layer), partial(lift_cost, layer=layer))


def plan_pack(task: Task, budget: int, prompt: int = 0) -> PackPlan:
    """The cheapest way that fits.

    Args:
        budget: bytes of working memory, beside the parameters and the result.
        prompt: the number of the pack's first prompt, for the error.

    Raises:
        BudgetError: where no way fits with even one target at a time; names the smallest budget that would do.
    """
    best: PackPlan | None = None
    least = None
    for option in _options(task):
        sweeps, peak, smallest = _sweeps(task, option, budget)
        least = smallest if least is None else min(least, smallest)
        if sweeps is None:
            continue
        cost = sum((option.cost(_part(task, first, end)) for first, end in sweeps), Cost(task.itemsize))
        if option.lifted is not None:
            cost = cost + option.lifted(task)
        if best is None or cost.total < best.cost.total:
            best = PackPlan(task, option.way, option.layer, sweeps, cost, peak, cost)
    if best is None:
        assert least is not None  # there is always a way
        raise BudgetError.of(budget, prompt, least)
    return replace(best, floor=floor(task))


SELECTED = 1 << 16
"""Numbers of a tile that are selected from at once on a CPU, rows at a time: ranking takes several times their memory."""

PACK_CELLS = 1 << 14
"""(row, position) pairs of a pack: beyond, its products are large enough, and more prompts would only take memory."""

Item = TypeVar("Item")


def packs(items: Iterable[Item], task_of: Callable[[Item], Task], budget: int) -> Iterator[tuple[list[Item], PackPlan]]:
    """Prompts in packs: those whose sweeps are small share one, as far as a single sweep over them fits the budget.

    Raises:
        BudgetError: where a prompt alone does not fit; see `plan_pack`.
    """
    pack: list[Item] = []
    task = planned = None
    for number, item in enumerate(items):
        alone = task_of(item)
        joined: PackPlan | None = _planned(task + alone, budget) if task is not None else None
        if joined is None:
            if planned is not None:
                yield pack, planned
            pack, task, planned = [item], alone, plan_pack(alone, budget, number)
        else:
            pack, task, planned = [*pack, item], joined.task, joined
    if planned is not None:
        yield pack, planned


def _planned(task: Task, budget: int) -> PackPlan | None:
    """The plan of a pack of several prompts, where they are small enough to gain by it and fit."""
    if task.cells > PACK_CELLS:
        return None
    try:
        return plan_pack(task, budget)
    except BudgetError:
        return None


def floor(task: Task) -> Cost:
    """The least products that the answer needs, as far as is known: see docs/engine.md."""
    costs = []
    for option in _options(task):
        # nothing masked is multiplied in blocks of one query; the bytes are those of the blocks that are used
        unmasked, cost = (_whole(option, replace(task, blocks=blocks)) for blocks in (1, task.blocks))
        cost.flops = unmasked.flops
        del cost.flops["primal"], cost.bytes["primal"]
        costs.append(cost)
    return min(costs, key=lambda cost: cost.total)


def _whole(option: _Option, task: Task) -> Cost:
    """The cost of a way in one sweep."""
    cost = option.cost(task)
    return cost if option.lifted is None else cost + option.lifted(task)


def _part(task: Task, first: int, end: int) -> Task:
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
    whole = peak_memory(task, option.way, option.layer)
    if whole <= budget or count <= 1:
        return (((0, count),) if whole <= budget else None), whole, whole
    if len(task.targets) > 1 or option.way == "forward":
        return None, whole, whole
    smallest = peak_memory(_part(task, count - 1, count), option.way, option.layer)
    if smallest > budget:
        return None, smallest, smallest
    sweeps, first, peak = [], 0, 0
    while first < count:
        low, high = 1, count - first
        while low < high:  # the most targets from `first` on that fit
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if peak_memory(_part(task, first, first + middle), option.way, option.layer) <= budget else (low, middle - 1)
            )
        sweeps.append((first, first + low))
        peak = max(peak, peak_memory(_part(task, first, first + low), option.way, option.layer))
        first += low
    return tuple(sweeps), peak, smallest


# ------------------------------------------------------------------------------------------ memory


def peak_memory(task: Task, way: Way, layer: int | None = None) -> int:
    """Bytes at the fullest moment of a sweep, with the primal, the seeded rows and the tile that it fills."""
    c, d, heads, hidden, f = task.config, task.config.d_model, task.d_heads, task.d_hidden, task.config.d_mlp
    n, m, tokens = task.n_targets, task.n_sources, task.tokens
    d_kv, exact = c.n_kv_heads * c.d_head, task.policy.attention == "exact"
    gates = 2 if c.gated else 1
    tile = sum(sum(rows) * sum(columns) for rows, columns in zip(task.targets, task.sources, strict=True))
    pairs = c.n_heads * sum(len(rows) ** 2 for rows in task.targets)
    down, up = task.down(), task.up()
    # each side's rows in the path and packed, the streams of the primal, the tile
    held = (m + 2 * n + task.beside) * d + (m * d if len(task.targets) > 1 else 0) + 3 * tokens * d * len(task.layers) + tile
    slopes = tokens * hidden
    seeded = slopes + 5 * n * d + max(4 * tokens * f, min(n, MLP_CHUNK) * (hidden + f * gates + 2 * d))
    stages = [8 * min(tile, max(SELECTED, m))]  # while rows are selected, the sweep's own cells are gone
    if way == "local":
        return task.itemsize * (held + max(stages[0], seeded))
    cells = 0 if way == "forward" else sum(map(sum, down))
    lifted = 0 if way == "reverse" else sum(map(sum, up))
    points = 2 * tokens * d + tokens * (2 * task.d_q + 2 * d_kv) + pairs
    to_heads, to_hidden = d * heads, d * hidden

    def spread(seeds: Sequence[Sequence[int]], is_down: bool) -> int:
        reach = max((t + 1 if is_down else len(rows) - t) * rows[t] for rows in seeds for t in range(len(rows)))
        longest, most = max(map(len, seeds)), max(map(max, seeds))
        keys = 2 * longest * c.n_heads * d if exact and (c.positions == "rotary" or not is_down) else 0
        rows = (n if is_down else m) * (task.d_q + d)
        return to_heads + points + rows + max(2 * pairs, 2 * reach * d + most * c.n_heads * d + 3 * c.n_heads * reach + keys)

    def attention(seeds: Sequence[Sequence[int]], alive: int, is_down: bool = True) -> int:
        longest = max(map(len, seeds))
        rows = max(min(max(map(max, seeds)), BAND // longest), 1)
        block, band = min(task.blocks, longest), rows * longest
        temporary = 2 * band * d_kv + 2 * rows * block * task.d_q
        if exact:
            temporary += (
                band * d_kv
                + rows * block * task.d_q
                + c.n_heads * block * (band + longest)
                + (2 * band * heads if c.positions == "rotary" else 0)
            )
        chunk = min(alive, max(CHUNK, band))
        if exact and not is_down:
            temporary += c.n_heads * block * band
        # softmaxes are made before the rows: what that takes is gone by then
        return to_heads + points + max(2 * pairs, chunk * (task.d_q + heads) + max(temporary, chunk * d))

    def mlp(rows: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], is_down: bool) -> int:
        pays = fold_rows(c)
        folded = max(map(max, rows)) > pays
        fold = 2 * d * d + d * f * (2 if c.gated else 1) + 2 * max(map(max, rows)) * d if folded else 0
        # a long stretch of a band goes through alone, short ones are gathered, and their points with them
        plain = [[count <= pays for count in prompt] for prompt in rows]
        at = [(b, t) for b, prompt in enumerate(seeds) for t in range(len(prompt)) if prompt[t]]
        sizes = [seeds[b][t] * sum(plain[b][: t + 1] if is_down else plain[b][t:]) for b, t in at]
        alone = min(max((size for size in sizes if size > MLP_CHUNK // 3), default=0), MLP_CHUNK)
        gathered = min(sum(size for size in sizes if size <= MLP_CHUNK // 3), MLP_CHUNK)
        rest = max(alone * (2 * d + f * gates), gathered * (4 * d + hidden + f * gates))
        return to_hidden + slopes + max(4 * tokens * f, fold, rest)

    def meeting() -> int:
        fewer = max(min(a, b) for rows, others in zip(down, up, strict=True) for a, b in zip(rows, others, strict=True))
        through = d * d + d * f * (2 if c.gated else 1) if fewer > fold_rows(c) else fewer * 3 * f
        return to_hidden + slopes + max(map(max, down)) * d + max(map(max, up)) * d + fewer * d + through

    stages.append(seeded)
    if way != "forward":
        stages.append(cells * d + spread(task.targets, True))
    if way != "reverse":
        stages.append(lifted * d + spread(task.sources, False))
    below = task.layers[-1] - 1 if layer is None else layer
    if way == "reverse" and len(task.layers) > 1:
        seeds = m * (d + heads)
        stages.append(cells * d + mlp(down, task.targets, True))
        stages.append(cells * d + attention(task.targets, cells) + seeds)
        stages.append(cells * d + points + seeds + min(cells, CHUNK) * (d + 2 * heads))
    if way == "forward" and len(task.layers) > 1:
        stages.append(lifted * d + mlp(up, task.sources, False))
        stages.append(lifted * d + attention(task.sources, lifted, False))
    if way == "both":
        if below < task.layers[-1] - 1:
            stages.append((cells + lifted) * d + max(mlp(down, task.targets, True), attention(task.targets, cells)))
        if below > task.layers[0]:
            stages.append(lifted * d + max(mlp(up, task.sources, False), attention(task.sources, lifted, False)))
        stages.append((cells + lifted) * d + max(spread(task.targets, True), meeting()))
        stages[0] += lifted * d
    return task.itemsize * (held + max(stages))
