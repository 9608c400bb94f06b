"""The plan of a sweep that several sets of targets and of sources join: where both sides meet, and in which runs of rows it is done.

Every place of the stream at which both sides can meet gives the same numbers, and so does none, where all rows go down to the lowest
source. Products and memory are those of the same routes on counts and on sizes (joined.py). On a device that is asked for every product,
what asking costs is added, and pieces of every size are tried, as on paths (choose.py).
"""

import gc
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import mul
from typing import NamedTuple, NoReturn

from attrib.core.rates import FREE
from attrib.core.types import BudgetError
from attrib.engine.blocks.passing import place_of
from attrib.engine.blocks.product import beside_products
from attrib.engine.plan.cost import Asked, Cost, attention_maps
from attrib.engine.plan.held import sizes_of
from attrib.engine.plan.joined import Kept, lift_cost, lift_held, sweep_cost, sweep_held
from attrib.engine.plan.joint import Joint, added, part_of
from attrib.engine.plan.memory import held_rows, selected
from attrib.engine.plan.runs import FEW, Runs, most_that_fit
from attrib.engine.plan.task import alive_of, bands_of
from attrib.engine.sweep.ascent import climb
from attrib.engine.sweep.primal import BESIDE, is_spread_above


@dataclass(frozen=True)
class JointPlan:
    """In which runs of rows a pack's sweep is done."""

    joint: Joint
    """With the place where both sides meet."""
    sweeps: tuple[tuple[int, int], ...]
    """Runs `[first, end)` of the rows that come down, in order of position; one prompt's. A pack of many prompts has one sweep over all."""
    peak: int
    """Bytes of working memory at the fullest moment."""

    @cached_property
    def cost(self) -> Cost:
        """Operations and bytes of all sweeps. Counted when it is asked for: a run does without."""
        raised = lift_cost(self.joint)
        return sum((sweep_cost(part_of(self.joint.above, first, end), raised) for first, end in self.sweeps), raised.cost)

    @property
    def way(self) -> str:
        """Its name, beside those of one source and one target."""
        return "joined"

    def __str__(self) -> str:
        met = "" if self.joint.meets is None else f" at {self.joint.meets}"
        size = f"{self.joint.n_targets} × {self.joint.whole.n_sources}"
        return f"{len(self.joint.whole.targets)} prompt(s), {size}: {self.way}{met}, {len(self.sweeps)} sweep(s)"


ASKED = Asked(launches=3.5, waits=9)
"""A small graph asked for 2.3 to 4.1 operations with each further product, in more sweeps or in smaller pieces, and waited 8 to 13 times
for each further sweep."""


def weight(joint: Joint, cost: Cost, sweeps: int) -> float:
    """What sweeps of some work weigh, in operations of products."""
    return ASKED.weight(cost, sweeps, joint.pieces.asking)


def joint_cost(joint: Joint) -> Cost:
    """Count a sweep over all rows."""
    raised = lift_cost(joint)
    return raised.cost + sweep_cost(joint.above, raised)


def joint_memory(joint: Joint) -> int:
    """Bytes at the fullest moment: of opening the bundles, or of a sweep over all rows beside what they hold."""
    kept = lift_held(joint)
    return max(_lift_memory(joint, kept), _memory(joint.above, kept))


def _lift_memory(joint: Joint, kept: Kept) -> int:
    """Bytes at the fullest moment of the way up."""
    if joint.meets is None:
        return 0
    task = replace(joint.whole, targets=added([end.counts for end in joint.targets if end.stop.depth < joint.meets.depth]))
    there = held_rows(replace(task, beside=joint.above.n_targets)) + _written_again(joint)
    return joint.opened.held + joint.itemsize * (there + kept.most + beside_products(joint.itemsize))


def _memory(joint: Joint, kept: Kept) -> int:
    """Bytes at the fullest moment of a way down, or of what follows."""
    down, piece = sweep_held(joint, kept), _largest(joint)
    # while rows are selected, the sweep's own cells are gone; lifted tangents stay for the next sweep
    selecting = selected(joint.whole, piece) + kept.kept + down.found + piece
    sweep = joint.itemsize * (held_rows(joint.whole) + _written_again(joint) + max(down.most + beside_products(joint.itemsize), selecting))
    return max(joint.opened.peak, joint.opened.held + sweep)


def _written_again(joint: Joint) -> int:
    """Numbers that sources have at other places than their first."""
    return sum((len(each.writes) - 1) * sum(map(sum, each.counts)) for each in joint.sources) * joint.config.d_model


def _largest(joint: Joint) -> int:
    """Entries of the largest piece that is selected from: one prompt's, of one set of targets by one of sources."""
    of_prompts = ([[*map(sum, each.counts)] for each in ends] for ends in (joint.targets, joint.sources))
    rows, columns = (map(max, zip(*ends, strict=True)) for ends in of_prompts)
    return max(map(mul, rows, columns), default=0)


MANY = 1 << 14
"""Rows of a prompt beyond which what was counted for its plan is let go of: half a GB, for 200,000 rows."""


def plan_joint(joint: Joint, budget: int, prompt: int = 0, every: Joint | None = None) -> JointPlan:
    """The one that weighs least of those that fit.

    Args:
        budget: bytes of working memory, beside the parameters and the result.
        prompt: the number of the pack's first prompt, for the error.
        every: the same with all rows, where `joint` has some: as tangents pass a target's place, all its rows are read.

    Raises:
        BudgetError: where not even one row at a time fits; names the smallest budget that would do.
    """
    least, best = 1 << 62, None
    weighed = [(_one(joint), -1, joint), *_counted(list(meetings(joint, every)))]
    for one, _, each in sorted(weighed, key=lambda known: known[:2]):
        if best is not None and one >= best.weight:
            break  # and no less in several sweeps
        found = _planned(each, budget, math.inf if best is None else best.weight)
        if isinstance(found, int):
            least = min(least, found)
        elif best is None or found.weight < best.weight:
            best = found
    if best is None:
        raise BudgetError.of(budget, prompt, least)
    sweeps, peak = best.sweeps.all() if isinstance(best.sweeps, Runs) else (best.sweeps, best.peak)
    if joint.n_targets > MANY:
        for known in (bands_of, alive_of, sizes_of, attention_maps):
            known.cache_clear()
        gc.collect()  # ways and the rooms that they are in know each other
    return JointPlan(best.joint, sweeps, max(peak, best.peak))


MEETINGS = 6
"""So many meetings are all counted; of more, those around the least."""


def _one(joint: Joint) -> float:
    """What one sweep over all rows weighs."""
    return weight(joint, joint_cost(joint), 1)


def _counted(every: Sequence[Joint]) -> list[tuple[float, int, Joint]]:
    """Weight of one sweep, number and work of meetings, among them the lightest: weights fall towards it, and rise behind it.

    Where both kinds of places of a layer are met they take turns, and each kind has its own valley: so one kind is gone down first, and
    then the neighbours of its least are asked.
    """
    known: dict[int, float] = {}

    def cost(number: int) -> float:
        if number not in known:
            known[number] = _one(every[number])
        return known[number]

    first, last = 0, len(every) - 1
    while last - first > MEETINGS:
        middle = (first + last) // 4 * 2  # of one kind
        if cost(middle) <= cost(middle + 2):
            last = middle + 2
        else:
            first = middle + 1
    for number in range(first, last + 1):
        cost(number)
    return [(one, number, every[number]) for number, one in known.items()]


def meetings(joint: Joint, every: Joint | None = None) -> Iterator[Joint]:
    """The same with both sides meeting, at every place of the stream where they can: above the lowest source, up to the last target.

    Args:
        every: the same with all rows, of which all are read that lie below the meeting; None has none but these.
    """
    for site in climb(low := place_of(joint.start), place_of(joint.stop)):
        # in a parallel block there is no stream between attention and MLP
        if site.is_residual and site != low and not (joint.config.parallel and site.kind == "resid_mid"):
            met = replace(joint, meets=site)
            read = met.targets if every is None else (every.targets[n] if n in met.below else end for n, end in enumerate(met.targets))
            yield replace(met, targets=tuple(read))


class _Found(NamedTuple):
    """A meeting, and pieces, that fit."""

    weight: float
    """In operations of products; about, where not all sweeps are known."""
    joint: Joint
    sweeps: tuple[tuple[int, int], ...] | Runs
    """Runs that are yet to be looked for, where the weight is told from a few of them."""
    peak: int
    """Bytes at the fullest moment; of runs that are yet to be looked for, before the first."""


def _planned(joint: Joint, budget: int, best: float) -> _Found | int:
    """In as few sweeps as fit, in the pieces that the work asks for or in smaller ones; else the least budget that would do.

    Args:
        best: the least weight of other meetings. What is known to weigh more is not looked at to its end.
    """
    least, found = 1 << 62, None
    while True:
        own = best if found is None else min(best, found.weight)
        if found is not None and _one(joint) >= own:
            return found  # smaller pieces are asked for more often than they save, and no less in several sweeps
        each = _in_pieces(joint, budget, own)
        if isinstance(each, int):
            least = min(least, each)
        elif found is None or each.weight < found.weight:
            found = each
        if joint.pieces.smaller == joint.pieces or (found is not None and joint.pieces.asking == FREE):
            return least if found is None else found
        joint = replace(joint, pieces=joint.pieces.smaller)


def _in_pieces(joint: Joint, budget: int, best: float) -> _Found | int:
    """The same in the pieces that the work asks for."""
    kept, above, least = lift_held(joint), joint.above, 1 << 62
    before = _lift_memory(joint, kept)
    is_cut = len(joint.whole.targets) == 1 and above.n_targets > 1
    if not is_cut or _least(above) <= budget:
        if (whole := max(before, _memory(above, kept))) <= budget:
            return _Found(_one(joint), joint, ((0, above.n_targets),), whole)
        least = whole
    if before <= budget and is_cut:
        smallest = _memory(part_of(above, above.n_targets - 1, above.n_targets), kept)
        if smallest <= budget:
            return _in_sweeps(joint, kept, budget, before, smallest, best)
        least = min(least, smallest)
    return least


def least_joint_memory(joint: Joint) -> int:
    """The smallest budget with which there is a plan for one prompt."""
    while joint.pieces.smaller != joint.pieces:
        joint = replace(joint, pieces=joint.pieces.smaller)
    return joint_memory(part_of(joint, max(0, joint.n_targets - 1), joint.n_targets))


def refuse(prompts: Iterable[Joint], budget: int) -> NoReturn:
    """Raises BudgetError with what is enough for each of the prompts of a call."""
    least = list(map(least_joint_memory, prompts))
    number = max(range(len(least)), key=least.__getitem__)
    raise BudgetError.of(budget, number, least[number])


def in_smaller_pieces(joint: Joint, plan: JointPlan) -> JointPlan:
    """The plan of one prompt out of a pack that was too large, in smaller pieces and one sweep, in which nothing is lifted."""
    smaller = replace(joint, pieces=plan.joint.pieces.smaller)
    return JointPlan(smaller, ((0, joint.n_targets),), joint_memory(smaller))


def _least(joint: Joint) -> int:
    """Bytes that a way down takes at least, known without going it: rows at all positions where they live, if they come to be there."""
    if joint.passed or any(site.kind not in BESIDE for site in joint.held):
        return 0  # where the stream itself is cut, rows may go on in dictionaries alone
    low = place_of(joint.start) if joint.meets is None else joint.meets
    spread = [end.counts for end in joint.targets if is_spread_above(joint.config, low, end.stop)]
    lives = joint.config.seen
    cells = sum(n * len(lives(t, len(rows))) for counts in spread for rows in counts for t, n in enumerate(rows))
    return cells * joint.config.d_model * joint.itemsize


def _in_sweeps(joint: Joint, kept: Kept, budget: int, before: int, smallest: int, best: float) -> _Found:
    """Several sweeps over runs of rows.

    Args:
        before: bytes that are taken before the first.
        smallest: bytes that the last row takes.
        best: the least weight so far; of more than that it is only told that it is more.
    """
    raised, above = lift_cost(joint), joint.above
    lifted, runs = weight(joint, raised.cost, 0), _runs(joint, kept, budget, smallest)
    down, sweeps = runs.weighed(lambda first, end: weight(joint, sweep_cost(part_of(above, first, end), raised), 1), best - lifted)
    if sweeps > FEW:
        return _Found(lifted + down, joint, runs, before)
    cut, peak = runs.all()
    plan = JointPlan(joint, cut, max(peak, before))
    return _Found(weight(joint, plan.cost, len(cut)), joint, cut, plan.peak)


def _runs(joint: Joint, kept: Kept, budget: int, smallest: int) -> Runs:
    """Runs of one prompt's rows. At first a cell is expected to take its own row and what that is moved in."""
    above, config = joint.above, joint.config
    [rows] = above.whole.targets
    cells = (budget - smallest) / (2 * config.d_model * joint.itemsize)
    return Runs(rows, partial(_peak, above, kept), budget, causal=config.causal, smallest=smallest, cells=cells)


def rows_at_once(joint: Joint, kept: Kept, budget: int) -> int:
    """How many rows of one prompt fit into a sweep wherever they lie: as if all came from the highest place and the last position.

    Args:
        joint: all its rows, and where they meet what has been lifted.
    """
    above = joint.above
    ends = [number for number, end in enumerate(above.targets) if any(map(any, end.counts))]
    if not ends:
        return 1
    top = max(ends, key=lambda number: above.targets[number].stop.depth)
    length = len(above.targets[top].counts[0])
    last = max(position for number in ends for position, count in enumerate(above.targets[number].counts[0]) if count)

    def peak(rows: int) -> int:
        counts = tuple(rows if position == last else 0 for position in range(length))
        targets = (end._replace(counts=(counts if number == top else (0,) * length,)) for number, end in enumerate(joint.targets))
        return _memory(replace(joint, targets=tuple(targets)), kept)

    return most_that_fit(peak, above.n_targets, budget)[0]


def _peak(above: Joint, kept: Kept, first: int, rows: int) -> int:
    return _memory(part_of(above, first, first + rows), kept)
