"""What the products of one step are made in, beside the rows that go into it and those that come out.

A step's products are gone when it is over, so of all steps only the largest counts: held.py goes through them in their
order. Sizes are counts of numbers; the letters are those of the docs:

    n targets, m sources    c cells of a cone    d = d_model, f = d_mlp
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

from attrib.engine.blocks.attention import takes_norm
from attrib.engine.blocks.passing import Passed
from attrib.engine.plan.task import Counts, Seeded, Task
from attrib.engine.sweep.cells import Band, Cone, Shape, blocks, even
from attrib.engine.sweep.seeded import fold_rows
from attrib.engine.sweep.steps import spread_runs


@dataclass(frozen=True)
class Sizes:
    """Of the steps of one piece of work, either way: `is_down` is for cotangents, else for tangents."""

    task: Task
    of_targets: dict[tuple[str, bool], int] = field(default_factory=dict)
    """Sizes of cotangents that take a pass over all positions or blocks, and are asked for in every layer of every way of the plan."""
    of_sources: dict[tuple[str, bool], int] = field(default_factory=dict)
    """The same of tangents."""

    def against(self, sources: Seeded) -> "Sizes":
        """The same with other sources: what hangs on targets alone is not counted again."""
        return Sizes(replace(self.task, sources=sources), self.of_targets)

    def once(self, name: str, is_down: bool, is_spread: bool, size: Callable[[], int]) -> int:
        """A size that is counted once: it hangs on the rows of one side alone."""
        known, key = self.of_targets if is_down else self.of_sources, (name, is_spread)
        if key not in known:
            known[key] = size()
        return known[key]

    def seeds(self, is_down: bool) -> Counts:
        """Rows at the positions where they are seeded."""
        return self.task.targets if is_down else self.task.sources

    @cached_property
    def down(self) -> int:
        """Cells of the cotangents' cone."""
        return sum(map(sum, self.task.down()))

    @cached_property
    def up(self) -> int:
        """Cells of the tangents' cone."""
        return sum(map(sum, self.task.up()))

    def cells(self, is_down: bool, is_spread: bool) -> int:
        """Rows at all positions where they live."""
        if is_spread:
            return self.down if is_down else self.up
        return self.task.n_targets if is_down else self.task.n_sources

    @property
    def d_kv(self) -> int:
        """Width of a layer's keys."""
        return self.task.config.n_kv_heads * self.task.config.d_head

    @property
    def is_exact(self) -> bool:
        """Whether queries and keys are moved, or values alone."""
        return self.task.policy.attention == "exact"

    @property
    def turns(self) -> bool:
        """Whether queries and keys are rotated or normed, by position."""
        return self.task.config.positions == "rotary" or self.task.config.qk_norm != "none"

    # ------------------------------------------------------------------------------- points of the primal

    @property
    def slopes(self) -> int:
        """The point of an MLP."""
        return self.task.tokens * self.task.d_hidden

    @property
    def scaled_slopes(self) -> int:
        """The same times 1 / s, for the folds of several positions at once, where the norm is held; see `with_frozen_norm`."""
        return self.slopes if self.task.span > 1 and self.task.policy.norm == "frozen" else 0

    @property
    def patterns(self) -> int:
        """Softmaxes of one layer."""
        return self.task.config.n_heads * sum(len(rows) ** 2 for rows in self.task.targets)

    @property
    def normed_patterns(self) -> int:
        """The same times 1 / s of the norm before attention, where it goes there; see `attention.with_norm`."""
        return self.patterns if takes_norm(self.task.policy) else 0

    @property
    def points(self) -> int:
        """The points of an attention and of its norms."""
        c = self.task.config
        normed = (2 * c.d_model if c.post_norm else 0) + (0 if c.qk_norm == "none" else self.task.d_q + self.d_kv)
        patterns = self.patterns * (1 if c.score_cap is None else 2)
        return self.task.tokens * (2 * c.d_model + 2 * self.task.d_q + 2 * self.d_kv + normed) + patterns

    # --------------------------------------------------------------------------------------- a whole cone

    @cached_property
    def runs_down(self) -> list[list[Band]]:
        """The bands of cotangents that go through an attention together."""
        return list(Cone(self.task.bands(up=False)).runs(self.task.pieces.chunk))

    @cached_property
    def runs_up(self) -> list[list[Band]]:
        """The bands of tangents that do."""
        return list(Cone(self.task.bands(up=True)).runs(self.task.pieces.chunk))

    def chunk(self, is_down: bool) -> int:
        """Cells of the largest run of bands."""
        runs = self.runs_down if is_down else self.runs_up
        return self.once("chunk", is_down, True, lambda: max((sum(band.cells for band in run) for run in runs), default=0))

    def shapes(self, is_down: bool) -> set[Shape]:
        """Of the rectangles in which rows pass the maps of an attention: many are alike."""
        return {shape for run in (self.runs_down if is_down else self.runs_up) for _, shape in blocks(run, self.task.block)}

    def gathered(self, is_down: bool) -> int:
        """Rows of the largest piece in which those that live at a position are gathered, to be read out there."""
        alive, span = self.task.down() if is_down else self.task.up(), self.task.span
        most = max(1, self.task.pieces.chunk // span)
        return span * self.once("gathered", is_down, True, lambda: max(even(rows, most) for rows in set().union(*alive)))

    def read_wide(self, is_down: bool) -> int:
        """What rows of several positions are read out in, beside those that are gathered."""
        if self.task.span == 1:
            return 0
        most = max(map(max, self.seeds(not is_down)))
        return 4 * self.gathered(is_down) * most + self.task.span * most * self.task.config.d_model

    # ------------------------------------------------------------------------------------------ attention

    def maps(self, is_down: bool) -> int:
        """What one block's attention map is made in."""
        return self.once("maps", is_down, True, lambda: max((self.map(shape, is_down) for shape in self.shapes(is_down)), default=0))

    def map(self, block: Shape, is_down: bool) -> int:
        """What the maps of one block are made in."""
        task, c = self.task, self.task.config
        rows, length = block.rows, block.end - block.begin
        ends = [min(first + task.queries, length) for first in range(0, length, task.queries)]
        # of each run of queries: how many, and up to where they see
        runs = [(end - first, end if c.causal else length) for first, end in zip([0, *ends], ends, strict=False)]
        # of each query and row: with all keys that it sees, and with those at which the rows live
        seen, own = (c.n_heads * max(count * (before + reach) for count, reach in runs) for before in (block.begin, 0))
        queries, keys = rows * min(task.queries, length) * task.d_q, rows * length * self.d_kv
        gathered = rows * length * (task.d_q + task.d_heads) if block.is_gathered else 0
        if is_down and block.is_gathered:  # cotangents are put where products read them, and written back from where these write
            gathered, queries = rows * length * task.d_q * (2 if self.is_exact else 1), queries if self.is_exact else 0
        if not self.is_exact:
            return gathered + keys + queries + seen
        if is_down:
            laid_out = 0 if block.is_gathered else queries
            normed = 0 if c.qk_norm == "none" else queries
            added = 0 if length <= task.queries else keys  # of one run of queries to those of others
            return gathered + 2 * keys + added + queries + laid_out + normed + seen * (rows + 1)
        turned = rows * length * (task.d_q + self.d_kv) if self.turns else 0
        return gathered + 2 * keys + queries + (seen + own) * rows + turned

    def attention(self, is_down: bool) -> int:
        """A cone through an attention, a chunk of bands at a time."""
        task, d, chunk = self.task, self.task.config.d_model, self.chunk(is_down)
        normed = chunk * d if task.policy.norm == "exact" else 0  # a norm that is held is a scale in head space
        made = chunk * (task.d_q + task.d_heads) + max(self.maps(is_down), normed if is_down else 0)
        written = chunk * (2 * d + task.d_q) if task.config.post_norm else 0
        held = self.normed_patterns if is_down else 0
        return d * task.d_heads + self.points + held + max(2 * self.patterns, made, written, normed + chunk * task.d_heads)

    def spread(self, is_down: bool) -> int:
        """From seeds to the first cone, a band at a time; on the way down its norm follows."""
        return self.once("spread", is_down, True, lambda: self._spread(self.seeds(is_down), is_down))

    def _spread(self, seeds: Counts, is_down: bool) -> int:
        task, c = self.task, self.task.config
        longest, most = max(map(len, seeds)), max(map(max, seeds))
        lives = c.seen if is_down else c.seeing
        reach = max((len(lives(t, len(rows))) * count for rows in seeds for t, count in enumerate(rows) if count), default=0)
        band = c.n_heads * most * c.d_model
        if self.is_exact:
            # what all rows share is of size [heads, positions, d] where it differs by position
            shared = longest if self.turns or not is_down else 1
            band += c.n_heads * (shared * c.d_model + longest * c.d_head + 2 * reach)
        if task.span > 1:
            wide = (self._wide(band) for band in task.bands(up=not is_down) if band.is_wide)
            band, reach = max(band, *wide, 0), max(reach, *(each.cells for each in task.bands(up=not is_down)))
        if not is_down:
            alone = (run for is_alone, run in spread_runs(task.bands(up=True), task.policy) if is_alone)
            band = max(band, *map(self._seeded, alone), 0)
        # tangents are in head space, and on the way there were normed
        rows, normed = (0, 0) if is_down else (task.n_sources * task.d_heads, task.n_sources * c.d_model)
        # softmaxes are made before the rows: what that takes is gone by then
        rows += self.normed_patterns if is_down else 0
        return c.d_model * task.d_heads + self.points + rows + max(2 * self.patterns, normed, band, reach * c.d_model if is_down else 0)

    def _wide(self, band: Band) -> int:
        """What the rows of several positions are spread in."""
        c, reach = self.task.config, band.end - band.begin
        if not self.is_exact:
            return band.rows * c.n_heads * (c.d_model + 3 * reach)
        keys = 4 * band.cells * self.d_kv if self.turns else 0
        longest = max(map(len, self.task.targets))
        by_head = 2 * band.rows * c.d_model + 6 * band.rows * longest + reach * c.d_model
        return c.n_heads * by_head + 6 * band.rows * self.task.d_q + keys

    def spread_heads(self) -> int:
        """Tangents from seeds to z, block by block."""
        seeded = self._seeded(self.task.bands(up=True))
        rows, normed = self.task.n_sources * self.task.d_heads, self.task.n_sources * self.task.config.d_model
        return self.task.config.d_model * self.task.d_heads + self.points + rows + max(2 * self.patterns, normed, seeded)

    def _seeded(self, bands: Sequence[Band]) -> int:
        """Tangents at their own positions, spread as rectangles."""
        kinds = {(shape, sum(band.cells for band in block)) for block, shape in blocks(bands, self.task.block)}
        return max((self.seeded(*kind) for kind in kinds), default=0)

    def seeded(self, block: Shape, cells: int) -> int:
        """The same as one rectangle, of so many cells in all."""
        rectangle = block.rows * (block.end - block.begin)
        gathered = 0 if block.is_gathered else rectangle * (self.task.d_q + self.task.d_heads)  # else counted below
        return self.map(block, is_down=False) + gathered + cells * self.task.d_q

    def output(self, is_down: bool, is_spread: bool) -> int:
        """Through W_O, and the norm behind attention where there is one: its point takes an attention of the primal."""
        if not self.task.config.post_norm:
            return 0
        normed = 3 * self.cells(is_down, is_spread) * self.task.config.d_model
        return self.points + max(2 * self.patterns, normed)

    def heads(self) -> int:
        """Rows read out in head space, beside the sources as they are and pushed there."""
        task, d = self.task, self.task.config.d_model
        chunk = self.chunk(is_down=True)
        read = min(chunk, self.gathered(is_down=True)) * (d + task.d_heads) + 2 * self.read_wide(is_down=True)
        read = chunk * (d + task.d_heads) + max(read, chunk * task.d_q + self.maps(is_down=True))
        return self.points + task.n_sources * (d + task.d_heads) + read

    # ----------------------------------------------------------------------------------------------- MLP

    def mlp(self, is_down: bool, is_spread: bool) -> int:
        """Rows through an MLP: folded a position at a time, else a long stretch of a band alone and short ones gathered."""
        return self.once("mlp", is_down, is_spread, lambda: self._mlp(is_down) if is_spread else self._seeded_mlp(is_down))

    def with_mlp(self) -> int:
        """Seeded tangents with what an MLP makes of them: the sum, what is added, and the pieces that this is put together from."""
        return 3 * self.task.n_sources * self.task.config.d_model + self.mlp(is_down=False, is_spread=False)

    def _mlp(self, is_down: bool) -> int:
        task, c = self.task, self.task.config
        d, f, pays, seeds = c.d_model, c.d_mlp, fold_rows(c), self.seeds(is_down)
        alive = task.down() if is_down else task.up()
        gates, piece = 2 if c.gated else 1, task.pieces.mlp
        if task.span > 1:  # stretches are those of wide bands
            alone = short = min(self.cells(is_down, True), piece)
        else:
            lives, sizes = c.seen if is_down else c.seeing, list[int]()
            for rows, counts in zip(seeds, alive, strict=True):
                plain = [0, *accumulate(count <= pays for count in counts)]  # so many positions before each at which rows are not folded
                reached = ((count, lives(t, len(rows))) for t, count in enumerate(rows) if count)
                sizes += (count * (plain[reach.stop] - plain[reach.start]) for count, reach in reached)
            alone = min(max((size for size in sizes if size > piece // 3), default=0), piece)
            short = sum(size for size in sizes if size <= piece // 3)
        gathered = min(short, even(short, piece) + piece // 3)
        rest = max(alone * (2 * d + f * gates), gathered * (4 * d + task.d_hidden + f * gates))
        return self._layer_mlp(alive, rest)

    def _seeded_mlp(self, is_down: bool) -> int:
        task, c = self.task, self.task.config
        rows = even(self.cells(is_down, False), task.pieces.mlp)
        return self._layer_mlp(self.seeds(is_down), rows * (2 * c.d_model + task.d_hidden + c.d_mlp * (2 if c.gated else 1)))

    def _layer_mlp(self, alive: Counts, rest: int) -> int:
        """The point and the weights of an MLP, with a fold or with the rows that are not folded."""
        task, d, f = self.task, self.task.config.d_model, self.task.config.d_mlp
        most = max(map(max, alive))
        fold = task.span * (d * f + 2 * d * d + 2 * most * d) if most > fold_rows(task.config) else 0
        weights = d * task.d_hidden if fold or sum(map(sum, alive)) >= f else 0  # with the norm folded in, or as they are
        return weights + self.slopes + max(5 * task.tokens * f, self.scaled_slopes + fold if fold else 0, rest)

    def matrices(self, is_down: bool, is_spread: bool) -> int:
        """Rows through an MLP's matrices alone: a band at a time, or, at their own positions, a piece."""
        task, c = self.task, self.task.config
        bands = task.bands(up=not is_down) if is_spread else ()
        rows = max((band.cells for band in bands), default=even(self.cells(is_down, False), task.pieces.mlp))
        left = 3 * c.d_model if c.post_norm else c.d_model
        return self.slopes + max(5 * task.tokens * c.d_mlp, rows * (left + task.d_hidden + c.d_mlp * (2 if c.gated else 1)))

    def norm(self, is_down: bool, is_spread: bool) -> int:
        """Rows through the norm before an MLP: a band at a time, or, at their own positions, all."""
        bands = self.task.bands(up=not is_down) if is_spread else ()
        rows = max((band.cells for band in bands), default=self.cells(is_down, False))
        return (2 * rows + 2 * self.task.tokens) * self.task.config.d_model

    # ------------------------------------------------------------------------------------------- meetings

    def read(self, width: int) -> int:
        """A cone against what is seeded on the other side: its rows are gathered, position by position."""
        return self.gathered(is_down=True) * width + self.read_wide(is_down=True)

    def meeting(self, passes_mlp: bool, width: int) -> int:
        """Both sides, a position at a time, at one place or about the MLP between them."""
        task, c = self.task, self.task.config
        down, up = task.down(), task.up()
        fewer = max(min(a, b) for rows, others in zip(down, up, strict=True) for a, b in zip(rows, others, strict=True))
        rows = max(map(max, down)) + max(map(max, up))
        if not passes_mlp:
            return task.span * rows * width
        through = c.d_model * c.d_mlp + 2 * c.d_model**2 if fewer > fold_rows(c) else fewer * 3 * c.d_mlp
        weights = c.d_model * task.d_hidden + self.slopes + self.scaled_slopes
        again = 2 * fewer if task.span > 1 else fewer  # moved, and laid row by row
        return weights + max(5 * task.tokens * c.d_mlp, task.span * ((rows + again) * c.d_model + through))

    # --------------------------------------------------------------------------------------- dictionaries

    @staticmethod
    def reading(passed: Passed) -> int:
        """How a dictionary's terms move with what it reads: the gradients, and what they are made of and gathered in."""
        return (9 if passed.scales else 5) * sum(map(sum, passed.terms)) * passed.d_in

    @staticmethod
    def writing(passed: Passed, width: int) -> int:
        """How what is written moves with each term: rows of the decoder, and with scales what these are put together from."""
        return (4 if passed.scales else 1) * sum(map(sum, passed.terms)) * width

    @staticmethod
    def met(passed: Passed, alive: Sequence[Sequence[int]]) -> int:
        """So many rows at each position, as numbers of the terms there."""
        return sum(n * m for rows, terms in zip(alive, passed.terms, strict=True) for n, m in zip(rows, terms, strict=True))
