"""The plan of a pack of prompts: which way its Jacobian is taken, in which sweeps, and what that costs.

Every way that meet.py knows gives the same numbers. The plan counts the products of each (cost.py), bounds its
memory (here), drops the ways that do not fit the budget, and takes the one with the fewest products. A way that
does not fit in one sweep over all targets is cut into sweeps over runs of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Literal

from attrib.cone import CHUNK
from attrib.cost import Cost, Task, both_cost, forward_cost, lift_cost, local_cost, reverse_cost
from attrib.sweep import FOLD_BLOCK, MLP_CHUNK, fold_rows
from attrib.types import BudgetError, Site

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
        raise BudgetError(
            f"budget: {budget:,} bytes are too few for prompt {prompt}, which needs at least {least:,}. "
            "Raise the budget or shorten the prompt."
        )
    return replace(best, floor=floor(task))


def floor(task: Task) -> Cost:
    """The least products that the answer needs, as far as is known: see docs/engine.md."""
    task = replace(task, blocks=1)
    costs = []
    for option in _options(task):
        cost = option.cost(task)
        if option.lifted is not None:
            cost = cost + option.lifted(task)
        del cost.flops["primal"], cost.bytes["primal"]
        costs.append(cost)
    return min(costs, key=lambda cost: cost.total)


def _part(task: Task, first: int, end: int) -> Task:
    """The task of a run of targets. A pack of many prompts is not cut."""
    if first == 0 and end == task.n_targets:
        return task
    (rows,) = task.targets
    begins = [0, *accumulate(rows)]
    part = tuple(max(0, min(end, hi) - max(first, lo)) for lo, hi in pairwise(begins))
    return replace(task, targets=(part,))


def _sweeps(task: Task, option: _Option, budget: int) -> tuple[tuple[tuple[int, int], ...] | None, int, int]:
    """Runs of targets that fit, the peak, and the smallest budget that would do; None where one target does not fit."""
    count = task.n_targets
    whole = peak_memory(task, option.way)
    if whole <= budget or count <= 1:
        return (((0, count),) if whole <= budget else None), whole, whole
    if len(task.targets) > 1 or option.way == "forward":
        return None, whole, whole
    smallest = peak_memory(_part(task, count - 1, count), option.way)
    if smallest > budget:
        return None, smallest, smallest
    sweeps, first, peak = [], 0, 0
    while first < count:
        low, high = 1, count - first
        while low < high:  # the most targets from `first` on that fit
            middle = (low + high + 1) // 2
            low, high = (middle, high) if peak_memory(_part(task, first, first + middle), option.way) <= budget else (low, middle - 1)
        sweeps.append((first, first + low))
        peak = max(peak, peak_memory(_part(task, first, first + low), option.way))
        first += low
    return tuple(sweeps), peak, smallest


# ------------------------------------------------------------------------------------------ memory


def peak_memory(task: Task, way: Way) -> int:
    """Bytes at the fullest moment of a sweep, with the primal, the seeded rows and the tile that it fills."""
    c, d, heads = task.config, task.config.d_model, task.d_heads
    n, m, tokens, d_kv = task.n_targets, task.n_sources, task.tokens, c.n_kv_heads * c.d_head
    longest = max(map(len, task.targets))
    tile = sum(sum(rows) * sum(columns) for rows, columns in zip(task.targets, task.sources, strict=True))
    # streams of the primal; both sides' rows, in the path and packed; targets on their way to z
    held = 3 * d * tokens * (len(task.layers) + 1) + 2 * (n + m) * d + n * (d + task.d_q) + tile
    hidden = task.d_hidden
    slopes = tokens * hidden
    mlp_chunk = MLP_CHUNK * (3 * hidden + 6 * d)
    seeded_mlp = 4 * slopes + min(n, MLP_CHUNK) * (3 * hidden + 2 * d)
    if way == "local":
        return task.itemsize * (held + seeded_mlp)
    down, up = task.down(), task.up()
    cells = 0 if way == "forward" else sum(map(sum, down))
    lifted = 0 if way == "reverse" else sum(map(sum, up))
    seeds = [rows for prompt in (task.sources if way == "forward" else task.targets) for rows in prompt]
    widest = max(min(max(seeds) * longest, CHUNK), longest)
    points = tokens * (4 * task.d_q + 4 * d_kv) + sum(3 * c.n_heads * len(rows) ** 2 for rows in task.targets)
    chunk = min(max(cells, lifted), max(CHUNK, longest))
    blocks = min(task.blocks, longest)
    # one band: z, cotangents of q, k and v, and two tiles of the softmax's adjoint
    band = widest * (2 * task.d_q + 2 * heads) + 3 * c.n_heads * blocks * widest
    attention = 2 * d * heads + points + chunk * (task.d_q + 2 * heads + 2 * d) + band
    spread = 2 * d * heads + points + 2 * widest * d + max(seeds) * c.n_heads * d * 2 + longest * c.n_heads * d
    alive = max(max(rows) for rows in (*down, *up))
    folding = alive > fold_rows(c)
    fold = FOLD_BLOCK * d * d * 2 + 2 * c.d_mlp * d + 2 * FOLD_BLOCK * max(seeds) * d if folding else 0
    mlp = 2 * d * hidden + 4 * slopes + max(fold, min(mlp_chunk, max(cells, lifted) * (3 * hidden + 6 * d)))
    meeting = 2 * d * hidden + 4 * slopes + max(map(max, down)) * 2 * d + max(map(max, up)) * 2 * d + fold
    layers = [spread, seeded_mlp]
    if len(task.layers) > 1:
        layers += [attention, mlp]
    if way == "both":
        layers.append(meeting)
    readout = m * (d + heads) * 2 if way == "reverse" else 0
    return task.itemsize * (held + (cells + lifted) * d + max(layers) + readout)


def bands(task: Task, sweeps: Sequence[tuple[int, int]]) -> list[int]:
    """How many positions are seeded in each sweep: each is a band of its own."""
    return [sum(rows > 0 for prompt in _part(task, first, end).targets for rows in prompt) for first, end in sweeps]


def resid_pre(task: Task) -> Site:
    """Where seeded sources are pushed to."""
    return Site(task.layers[0], "resid_pre")
