"""Runs of rows that fit into a budget, each as long as it may be.

What a run takes is told by going its whole way by sizes, so it is asked seldom, and about runs that are likely to be right: rows take
about as much memory as they have cells, (row, position) pairs, and a run has about as many cells as the one before it.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

FEW = 8
"""So many sweeps are looked for at once, in place of what they weigh."""
PLACES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where sweeps are tried among the rows, to tell what all weigh: a fifth of the rows has sweeps as that in its middle. Of wide bands,
whose sweeps grow by 16 positions at once, three places told a tenth too many."""


class Runs:
    """Runs of one prompt's rows."""

    def __init__(
        self, rows: Sequence[int], peak: Callable[[int, int], int], budget: int, *, causal: bool, smallest: int, cells: float
    ) -> None:
        """Rows by their position.

        Args:
            rows: how many there are at each position.
            peak: the bytes that rows take, by the first of them and how many they are.
            budget: the bytes that there are; each row alone fits.
            causal: whether rows live at their own position and before it; else they live at all.
            smallest: the bytes that one row takes.
            cells: how many a run has, about: where the first is looked for.
        """
        self.peak, self.budget, self.smallest, self.most = peak, budget, smallest, cells
        self.begins = [0, *accumulate(rows)]
        self.lives = [position + 1 if causal else len(rows) for position in range(len(rows))]
        self.cells = [0, *accumulate(count * lives for count, lives in zip(rows, self.lives, strict=True))]

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.begins[-1]

    def longest(self, first: int) -> tuple[int, int]:
        """How many rows from here on fit, at most a fiftieth fewer, and the bytes that they take."""
        before = self._cells_before(first)
        upto = before + self.most
        at = min(max(0, bisect_left(self.cells, upto) - 1), len(self.lives) - 1)
        about = round(self.begins[at] + (upto - self.cells[at]) / self.lives[at]) - first
        rows, used = most_that_fit(partial(self.peak, first), self.count - first, self.budget, max(1, about))
        self.most = (self._cells_before(first + rows) - before) * (self.budget - self.smallest) / max(1, used - self.smallest)
        return rows, used

    def all(self) -> tuple[tuple[tuple[int, int], ...], int]:
        """All runs, `[first, end)`, each as long as fits, and the most bytes that one takes."""
        sweeps, first, peak = list[tuple[int, int]](), 0, 0
        while first < self.count:
            rows, used = self.longest(first)
            sweeps.append((first, first + rows))
            first, peak = first + rows, max(peak, used)
        return tuple(sweeps), peak

    def weighed(self, weigh: Callable[[int, int], float], enough: float = math.inf) -> tuple[float, float]:
        """What all runs weigh, and how many they are, both about: told from a few of them.

        Args:
            weigh: what one weighs, by its first row and its end.
            enough: of many runs with so much weight no more is asked.
        """
        weight, sweeps = 0.0, 0.0
        for place in PLACES:
            first = int(place * self.count)
            rows, _ = self.longest(first)
            alike = self.count / len(PLACES) / rows
            weight, sweeps = weight + alike * weigh(first, first + rows), sweeps + alike
            if sweeps > FEW and weight >= enough:
                break
        return weight, sweeps

    def _cells_before(self, row: int) -> int:
        at = max(0, bisect_left(self.begins, row) - 1)
        return self.cells[at] + (row - self.begins[at]) * self.lives[at]


def most_that_fit(peak: Callable[[int], int], count: int, budget: int, about: int = 0) -> tuple[int, int]:
    """About the most of `count` rows that fit, at most a fiftieth fewer, or so many that they take 99 hundredths of the budget.

    Returns them with their peak. One row is known to fit.

    Args:
        about: where they are looked for first; 0 where nothing is known.
    """
    low, used, high, at, needed = 0, 0, count + 1, 0, 0
    guess = min(about, count) if about > 0 else count
    while True:
        before, least = at, needed
        at, needed = guess, peak(guess)
        if needed <= budget:
            low, used = at, needed
        else:
            high = at
        if low == count or (low and (100 * used >= 99 * budget or high - low <= max(1, low // 50))):
            return low, used
        if high == 1:
            return 1, needed
        # memory grows about as rows do: the next is where the line through the last two comes close to the budget
        rate = (needed - least) / (at - before)
        step = at + (0.995 * budget - needed) / rate if rate > 0 else (low + high) / 2
        if low and high <= count:  # a tenth from both ends, so that either moves
            step = min(max(step, low + 0.1 * (high - low)), high - 0.1 * (high - low))
        guess = min(max(round(step), low + 1), high - 1)
