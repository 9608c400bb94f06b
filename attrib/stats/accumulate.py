"""Many parts of one block's statistics into one, within the memory bound."""

from attrib.stats.rows import Aggregates, collapse, empty
from attrib.stats.sketch import Sketch, add_pairs, add_sketch, bits_of, blank, max_pairs
from attrib.stats.table import PART, Exact, Table

Held = Exact | Sketch
"""A block's statistics: a table, or the sketch that took its place."""

_FEW = 1 << 16
"""Rows that wait, at least, before they are merged into the rest: each merge goes through all of it."""


class Accumulator:
    """Parts go in, in any order; `result` is what all of them make together.

    It is a table as long as the pairs fit, and from then on a sketch. Pairs never become fewer, so whether the result is a
    sketch does not depend on the order either: a part that turned into one earlier has pairs enough for the whole.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._table = empty()
        self._sketch: Sketch | None = None
        self._waiting: list[Aggregates] = []

    def add(self, part: Held) -> None:
        """Add a table, or a sketch that was made with this memory bound or a larger one."""
        if isinstance(part, Sketch):
            add_sketch(self._become_sketch(), part)
        else:
            for rows in part.parts():
                self.add_rows(rows)

    def add_rows(self, rows: Aggregates) -> None:
        """Add pairs, in ascending order of the key."""
        self._waiting.append(rows)
        through = len(self._table.key) // 4 if self._sketch is None else self._sketch.width
        if sum(len(part.key) for part in self._waiting) >= max(_FEW, through):
            self._settle()

    def result(self) -> Held:
        """The table or sketch of all parts. The accumulator must not be used after."""
        self._settle()
        return Table(self._table) if self._sketch is None else self._sketch

    def _settle(self) -> None:
        """Merge what waits into the table or sketch."""
        parts, self._waiting = [part for part in (self._table, *self._waiting) if len(part.key)], []
        if len(parts) > 1:
            _, self._table = collapse(parts, [part.key for part in parts])
        elif parts:
            self._table = parts[0]
        if self._sketch is not None or len(self._table.key) > max_pairs(self.memory):
            self._become_sketch()

    def _become_sketch(self) -> Sketch:
        """Put the pairs of the table into the sketch, a new one where there was none."""
        if self._sketch is None:
            self._sketch = blank(bits_of(self.memory))
        table, self._table = self._table, empty()
        for start in range(0, len(table.key), PART):  # what is computed for every pair is as long as these
            add_pairs(self._sketch, table.take(slice(start, start + PART)))
        return self._sketch
