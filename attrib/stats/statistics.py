"""Statistics: the aggregates of one or several blocks, asked for the strongest parents and children of a latent."""

from dataclasses import dataclass, field
from math import exp
from typing import TYPE_CHECKING, Any, SupportsIndex

from attrib.core.shown import SHOWN, in_html
from attrib.core.types import InputError
from attrib.stats.accumulate import Held
from attrib.stats.fixed import UNIT
from attrib.stats.heavy import Estimates, certain, heavy_sources, heavy_targets
from attrib.stats.ranking import BY, ranked
from attrib.stats.rows import LARGEST_LATENT
from attrib.stats.sketch import DEPTH, Sketch, max_pairs
from attrib.store import Block
from attrib.store.numbers import checked_number

if TYPE_CHECKING:
    import pandas as pd

    from attrib.core.types import Site


@dataclass(frozen=True)
class BlockStatistics:
    """One block: its name, what the calls of its edges have in common, and a table or a sketch of its pairs."""

    block: Block
    held: Held
    call: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        form = f"a sketch, l1 ≥ {self.found_from:.3g} are found" if self.pairs is None else f"a table of {self.pairs:,} pairs"
        return f"BlockStatistics({self.block}: {form})"

    @property
    def is_exact(self) -> bool:
        """Whether every pair is there."""
        return not isinstance(self.held, Sketch)

    @property
    def pairs(self) -> int | None:
        """How many pairs there are; None where a sketch cannot tell."""
        return None if isinstance(self.held, Sketch) else len(self.held)

    @property
    def found_from(self) -> float:
        """The l1 from which on every pair is found: 0 for a table, a fraction phi of all mass for a sketch."""
        return self.held.phi * _value(self.held.mass) if isinstance(self.held, Sketch) else 0.0

    @property
    def error(self) -> float:
        """How far off l1 and sum of a pair are: 0 for a table; for a sketch less than this, with probability `confidence`."""
        return self.held.epsilon * _value(self.held.mass) if isinstance(self.held, Sketch) else 0.0

    @property
    def confidence(self) -> float:
        """1 for a table, 1 - e**-4 = 0.982 for a sketch."""
        return 1 - exp(-DEPTH) if isinstance(self.held, Sketch) else 1.0

    def parents(self, latent: SupportsIndex) -> Estimates:
        """The pairs of a target latent. Raises InputError for a number that no latent has."""
        target = self._checked(latent, "target")
        return heavy_sources(self.held, target) if isinstance(self.held, Sketch) else certain(self.held.of_target(target))

    def children(self, latent: SupportsIndex) -> Estimates:
        """The pairs of a source latent. Raises InputError for a number that no latent has."""
        source = self._checked(latent, "source")
        return heavy_targets(self.held, source) if isinstance(self.held, Sketch) else certain(self.held.of_source(source))

    def _checked(self, latent: SupportsIndex, end: str) -> int:
        """A latent's number, held against the size of its dictionary where the call says one: no edges, or no such latent?"""
        expected, last, of = "a latent's number, a vocabulary id, or -1", LARGEST_LATENT, self.call.get(end)
        found = checked_number("latent", latent, expected)
        if isinstance(of, dict) and isinstance(size := of.get("d_sae"), int):
            expected, last = f"0 to {size - 1}, the latents of {of.get('name', 'the dictionary')}, which are the {end}s here", size - 1
        if not (0 if last < LARGEST_LATENT else -1) <= found <= last:
            raise InputError(f"latent: {found}; expected {expected}.")
        return found

    def top(self, estimates: Estimates, k: SupportsIndex, by: str) -> dict[str, Any]:
        """The k strongest as columns. Raises InputError where a sketch cannot rank them so, or k is below 1."""
        if not self.is_exact and by in BY and by not in ("l1", "sum"):
            raise InputError(
                f"by: {by!r}; '{self.block}' is a sketch, which ranks by 'l1' or 'sum' alone: it finds pairs by their mass. "
                f"Build the statistics again with more memory, for a table of all pairs."
            )
        return ranked(estimates, checked_number("k", k, "a whole number of pairs, from 1"), by)


def _value(number: int) -> float:
    return number / (1 << UNIT)


@dataclass(frozen=True)
class Statistics:
    """Aggregates of edges over prompts and positions, by block; docs/statistics.md says what each column is.

    `memory` is the bound in bytes under which they were made, for each block.
    """

    memory: int
    parts: tuple[BlockStatistics, ...]
    """In the order of their blocks' names."""

    def __repr__(self) -> str:
        return f"Statistics(within {self.memory:,} bytes a block, {len(self.parts)} blocks: {'; '.join(map(repr, self.parts))})"

    def _repr_html_(self) -> str:
        """A row for each block, for notebooks."""
        rows = [
            (str(part.block), *(("table", f"{part.pairs:,}", 0.0) if part.pairs is not None else ("sketch", "", part.found_from)))
            for part in self.parts[:SHOWN]
        ]
        more = f"; the first {SHOWN} blocks:" if len(self.parts) > SHOWN else ""
        said = f"Statistics within {self.memory:,} bytes a block, {len(self.parts)} blocks{more}"
        return in_html(said, ("block", "held as", "pairs", "found from l1"), rows)

    @property
    def blocks(self) -> list[Block]:
        """The blocks that there are."""
        return [part.block for part in self.parts]

    @property
    def max_pairs(self) -> int:
        """Pairs that a block may have before it turns into a sketch."""
        return max_pairs(self.memory)

    def part(self, kind: str | None = None, source: "str | Site | None" = None, target: "str | Site | None" = None) -> BlockStatistics:
        """The one block with this kind and these sites; None fits any. Raises InputError where none or several fit."""
        asked = [name if name is None else str(name) for name in (kind, source, target)]
        found = [part for part in self.parts if all(name in (None, own) for name, own in zip(asked, part.block, strict=True))]
        if len(found) != 1:
            raise InputError(
                f"block: kind={asked[0]!r}, source={asked[1]!r}, target={asked[2]!r} fit {len(found) or 'no'} blocks; expected one. "
                f"There are: {'; '.join(map(str, self.blocks))}."
            )
        return found[0]

    def top_parents(
        self,
        latent: SupportsIndex,
        k: SupportsIndex = 20,
        by: str = "l1",
        *,
        kind: str | None = None,
        source: "str | Site | None" = None,
        target: "str | Site | None" = None,
    ) -> "pd.DataFrame":
        """The strongest source latents of a target latent, in the one block that fits.

        `by` is l1 = Σ |attribution|, |sum|, |mean|, max |attribution| or the count of edges; ties stand in the order of
        the latents. Nothing but that latent's pairs is read. A block that is a sketch has the pairs of at least
        `phi` of its mass, with their bounds, and ranks by l1 or sum alone.

        Raises:
            InputError: no block or several fit, or `latent`, `k` or `by` cannot be used.
            FormatError: what is read is damaged.
        """
        import pandas as pd

        part = self.part(kind, source, target)
        return pd.DataFrame(part.top(part.parents(latent), k, by))

    def top_children(
        self,
        latent: SupportsIndex,
        k: SupportsIndex = 20,
        by: str = "l1",
        *,
        kind: str | None = None,
        source: "str | Site | None" = None,
        target: "str | Site | None" = None,
    ) -> "pd.DataFrame":
        """The strongest target latents of a source latent; else as `top_parents`."""
        import pandas as pd

        part = self.part(kind, source, target)
        return pd.DataFrame(part.top(part.children(latent), k, by))
