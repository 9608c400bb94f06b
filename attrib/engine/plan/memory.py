"""What a sweep holds at its fullest moment, counted before it runs.

A sweep goes through stages, one after the other: it seeds, spreads, passes MLPs and attentions, meets, and at
the end rows are selected. Each stage holds what is held throughout (`held`), the cones that are alive, and
what its own products are made in. Sizes are counts of numbers; the letters are those of the docs:

    n targets, m sources    c cells of a cone    d = d_model, f = d_mlp    R = rows · query block · d_q
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

from attrib.engine.plan.cost import reads_in_heads
from attrib.engine.plan.meeting import Step, raised
from attrib.engine.plan.task import Counts, Task
from attrib.engine.sweep.cells import Band, Cone, Rectangle, even, rectangles
from attrib.engine.sweep.seeded import fold_rows
from attrib.engine.sweep.steps import spread_blocks

Way = Literal["local", "reverse", "forward", "both", "through"]
"""`local`: `reverse` where no attention is between, so that targets meet sources at their own positions. `through`: `reverse` with more
than MLPs cut. `forward` and `both`: `meet`, above the last attention or about some MLP."""


def peak_memory(task: Task, way: Way, layer: int | None = None) -> int:
    """Bytes at the fullest moment of a sweep, with the primal, the seeded rows and the tile that it fills.

    Args:
        layer: where the sides meet, for `both`.
    """
    sizes = _sizes(task)
    return task.itemsize * (sizes.held + max(sizes.stages(way, layer)))


@dataclass(frozen=True)
class _Sizes:
    task: Task
    known: dict[tuple[str, bool], int] = field(default_factory=dict)
    """Sizes that take a pass over all blocks, and are asked for once for each way of the plan."""

    def stages(self, way: Way, layer: int | None) -> Iterator[int]:
        """Numbers beyond those held throughout, stage by stage."""
        task, d = self.task, self.task.config.d_model
        down, up, n_layers = self.down * d, self.up * d, len(task.layers)
        # while rows are selected, the sweep's own cells are gone; lifted tangents stay for the next sweep
        yield 8 * min(self.tile, max(task.pieces.select, task.n_sources)) + (up if way == "both" else 0)
        yield self.seeding
        if way == "through":
            yield self.through(True)
        if task.is_through and way in ("forward", "both"):
            way_up = raised(task, layer).way
            lifted = (up if way_up.is_spread else task.n_sources * d) + self.waiting(is_down=False)  # which stay for all sweeps
            yield self.through(False, way_up.steps, way_up.is_spread)
            if way == "both":
                yield lifted + self.through(True)
                yield lifted + down + self.waiting(is_down=True) + (self.meeting if way_up.is_spread else 0)
            return
        is_within = task.stop.kind in ("z", "attn_out")
        if is_within and way == "forward":  # the last attention makes no stream, and has no MLP beside it
            yield up + self.up * max(task.d_q, d) + self.attention(is_down=False) - self.beside(is_down=False)
        if way in ("reverse", "both"):
            yield down + self.spread(task.targets, is_down=True) + (up if way == "both" else 0)
        if way in ("forward", "both"):
            yield up + self.spread(task.sources, is_down=False)
        if way == "reverse" and n_layers > 1:
            yield down + self.mlp(task.down(), task.targets, is_down=True)
            yield down + self.attention(is_down=True)
        if way in ("reverse", "through") and reads_in_heads(task):
            # beside the rows that are read out, sources as they are and in head space
            seeds = task.n_sources * (d + task.d_heads)
            chunk, joined = self.chunk(is_down=True), self.joined(is_down=True)
            read = chunk * (d + 2 * task.d_heads) + joined * (d + task.d_heads)
            read = max(read, chunk * (task.d_q + task.d_heads) + self.maps(is_down=True))
            yield down + self.points + seeds + read
        if (way == "forward" and n_layers > 1 + (is_within and task.config.parallel)) or (layer is not None and layer > task.layers[0]):
            yield up + self.mlp(task.up(), task.sources, is_down=False)
            yield up + self.attention(is_down=False)
        if layer is not None:
            if layer < task.layers[-1] - 1:
                yield down + up + self.mlp(task.down(), task.targets, is_down=True)
                yield down + up + self.attention(is_down=True)
            yield down + up + self.meeting

    @property
    def held(self) -> int:
        """Each side's rows in the path and packed, the streams of the primal, and the tile."""
        task, d = self.task, self.task.config.d_model
        packed = 2 if len(task.targets) > 1 else 1
        rows = task.n_sources * packed * max(1, len(task.writes)) + 2 * task.n_targets + task.beside
        return rows * d + 3 * task.tokens * packed * d * len(task.layers) + self.tile

    @property
    def tile(self) -> int:
        """Entries of the Jacobian."""
        return sum(sum(rows) * sum(columns) for rows, columns in zip(self.task.targets, self.task.sources, strict=True))

    @cached_property
    def down(self) -> int:
        """Cells of the cotangents' cone."""
        return sum(map(sum, self.task.down()))

    @cached_property
    def up(self) -> int:
        """Cells of the tangents' cone."""
        return sum(map(sum, self.task.up()))

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

    @property
    def slopes(self) -> int:
        """The point of an MLP."""
        return self.task.tokens * self.task.d_hidden

    @property
    def patterns(self) -> int:
        """Softmaxes of one layer."""
        return self.task.config.n_heads * sum(len(rows) ** 2 for rows in self.task.targets)

    @property
    def points(self) -> int:
        """The points of an attention and of its norms."""
        c = self.task.config
        normed = (2 * c.d_model if c.post_norm else 0) + (0 if c.qk_norm == "none" else self.task.d_q + self.d_kv)
        patterns = self.patterns * (1 if c.score_cap is None else 2)
        return self.task.tokens * (2 * c.d_model + 2 * self.task.d_q + 2 * self.d_kv + normed) + patterns

    @property
    def seeding(self) -> int:
        """Seeded rows through the MLP, some at a time."""
        task, c = self.task, self.task.config
        rows = even(task.n_targets, task.pieces.mlp) * (task.d_hidden + c.d_mlp * (2 if c.gated else 1) + 2 * c.d_model)
        most, fold = max(map(max, task.targets)), 0
        if most > fold_rows(c):  # beside the weights that a fold reads, with the norm folded in
            fold = c.d_model * task.d_hidden + c.d_model * (c.d_mlp + 2 * c.d_model + 2 * most)
        elif task.n_targets >= c.d_mlp:
            rows += c.d_model * task.d_hidden
        # the MLP, and then the norm of all rows
        return self.slopes + task.n_targets * c.d_model * 2 + max(5 * task.tokens * c.d_mlp, rows, fold, 3 * task.n_targets * c.d_model)

    def spread(self, seeds: Counts, is_down: bool) -> int:
        """From seeds to the first cone, a band at a time; on the way down its norm follows."""
        return self.once("spread", is_down, lambda: self._spread(seeds, is_down))

    def _spread(self, seeds: Counts, is_down: bool) -> int:
        task, c = self.task, self.task.config
        longest, most = max(map(len, seeds)), max(map(max, seeds))
        reach = max((t + 1 if is_down else len(rows) - t) * rows[t] for rows in seeds for t in range(len(rows)))
        band = c.n_heads * most * c.d_model
        if self.is_exact:
            # what all rows share is of size [heads, positions, d] where it differs by position
            shared = longest if self.turns or not is_down else 1
            band += c.n_heads * (shared * c.d_model + longest * c.d_head + 2 * reach)
        if not is_down:
            alone = (block for is_alone, block in spread_blocks(task.bands(up=True), task.policy, task.block) if is_alone)
            band = max(band, *(self.seeded(block) for block in alone), 0)
        rows = sum(map(sum, seeds)) * (task.d_q + c.d_model)
        # softmaxes are made before the rows: what that takes is gone by then
        return c.d_model * task.d_heads + self.points + rows + max(2 * self.patterns, band, reach * c.d_model if is_down else 0)

    def seeded(self, block: Rectangle) -> int:
        """Rows that are each alone at their positions, spread as a rectangle."""
        rectangle, cells = block.rows * (block.end - block.begin), sum(band.cells for band in block.bands)
        gathered = rectangle * (self.task.d_q + self.task.d_heads) if len(block.bands) == 1 else 0  # else counted below
        return self.map(block, is_down=False) + gathered + cells * self.task.d_q

    @cached_property
    def runs_down(self) -> list[list[Band]]:
        """The bands of cotangents that go through an attention together."""
        return [bands for _, bands in Cone(self.task.bands(up=False)).chunks(self.task.pieces.chunk)]

    @cached_property
    def runs_up(self) -> list[list[Band]]:
        """The bands of tangents that do."""
        return [bands for _, bands in Cone(self.task.bands(up=True)).chunks(self.task.pieces.chunk)]

    def once(self, name: str, is_down: bool, size: Callable[[], int]) -> int:
        """A size that is counted once."""
        if (name, is_down) not in self.known:
            self.known[name, is_down] = size()
        return self.known[name, is_down]

    def chunk(self, is_down: bool) -> int:
        """Cells of the largest run of bands."""
        runs = self.runs_down if is_down else self.runs_up
        return self.once("chunk", is_down, lambda: max((sum(band.cells for band in run) for run in runs), default=0))

    def rectangles(self, is_down: bool) -> Iterator[Rectangle]:
        """In which rows pass the maps of an attention."""
        for run in self.runs_down if is_down else self.runs_up:
            yield from rectangles(run, self.task.block)

    def joined(self, is_down: bool) -> int:
        """Cells of the largest block of several bands, whose rows are gathered."""
        joined = (block for block in self.rectangles(is_down) if len(block.bands) > 1)
        return max((block.rows * (block.end - block.begin) for block in joined), default=0)

    def maps(self, is_down: bool) -> int:
        """What one block's attention map is made in."""
        return self.once("maps", is_down, lambda: max((self.map(block, is_down) for block in self.rectangles(is_down)), default=0))

    def map(self, block: Rectangle, is_down: bool) -> int:
        """What the maps of one block are made in."""
        task, c = self.task, self.task.config
        rows, length = block.rows, block.end - block.begin
        ends = [min(first + task.queries, length) for first in range(0, length, task.queries)]
        runs = list(zip([0, *ends], ends, strict=False))
        # of each query and row: with all keys that it sees, and with those at which the rows live
        seen, own = (c.n_heads * max((end - first) * (before + end) for first, end in runs) for before in (block.begin, 0))
        queries, keys = rows * min(task.queries, length) * task.d_q, rows * length * self.d_kv
        gathered = rows * length * (task.d_q + task.d_heads) if len(block.bands) > 1 else 0
        if not self.is_exact:
            return gathered + keys + queries + seen
        if is_down:
            return gathered + 3 * keys + 2 * queries + seen * (rows + 1)
        turned = rows * length * (task.d_q + self.d_kv) if self.turns else 0
        return gathered + 2 * keys + queries + (seen + own) * rows + turned

    def beside(self, is_down: bool) -> int:
        """The second cone of a parallel block, whose MLP and attention read the same rows."""
        return (self.down if is_down else self.up) * self.task.config.d_model if self.task.config.parallel else 0

    def attention(self, is_down: bool) -> int:
        """A cone through an attention, a chunk of bands at a time."""
        task, d, chunk = self.task, self.task.config.d_model, self.chunk(is_down)
        made = chunk * (task.d_q + task.d_heads) + max(self.maps(is_down), chunk * d if is_down else 0)
        written = chunk * (2 * d + task.d_q) if task.config.post_norm else 0
        return self.beside(is_down) + d * task.d_heads + self.points + max(2 * self.patterns, made, written, chunk * (d + task.d_heads))

    def mlp(self, alive: Counts, seeds: Counts, is_down: bool) -> int:
        """A cone through an MLP: folded a position at a time, else a long stretch of a band alone and short ones gathered."""
        return self.once("mlp", is_down, lambda: self._mlp(alive, seeds, is_down))

    def _mlp(self, alive: Counts, seeds: Counts, is_down: bool) -> int:
        task, c = self.task, self.task.config
        d, f, pays = c.d_model, c.d_mlp, fold_rows(c)
        most, gates, piece = max(map(max, alive)), 2 if c.gated else 1, task.pieces.mlp
        fold = d * f + 2 * d * d + 2 * most * d if most > pays else 0
        plain = [[count <= pays for count in prompt] for prompt in alive]
        at = [(b, t) for b, prompt in enumerate(seeds) for t in range(len(prompt)) if prompt[t]]
        sizes = [seeds[b][t] * sum(plain[b][: t + 1] if is_down else plain[b][t:]) for b, t in at]
        alone = min(max((size for size in sizes if size > piece // 3), default=0), piece)
        short = sum(size for size in sizes if size <= piece // 3)
        gathered = min(short, even(short, piece) + piece // 3)
        rest = max(alone * (2 * d + f * gates), gathered * (4 * d + task.d_hidden + f * gates))
        weights = d * task.d_hidden if fold or sum(map(sum, alive)) >= f else 0  # with the norm folded in, or as they are
        return self.beside(is_down) + weights + self.slopes + max(5 * task.tokens * f, fold, rest)

    def waiting(self, is_down: bool) -> int:
        """The most that waits in dictionaries at once, which is taken to wait from the lowest layer to the highest."""
        alive, cells = (self.task.down(), self.down) if is_down else (self.task.up(), self.up)
        layers = Counter[int]()
        for passed in self.task.passed:
            met = sum(n * m for rows, terms in zip(alive, passed.terms, strict=True) for n, m in zip(rows, terms, strict=True))
            size = met + sum(map(sum, passed.terms)) * (self.task.config.d_model + passed.d_in)
            size += cells * passed.d_in if passed.has_skip else 0
            layers.update(dict.fromkeys(range(passed.reads.layer, max(passed.writes, key=lambda site: site.depth).layer + 1), size))
        return max(layers.values(), default=0)

    def through(self, is_down: bool, steps: Collection[Step] = ("spread", "attention", "mlp"), is_spread: bool = True) -> int:
        """Rows through cuts: the stream, what goes by beside it, what a component gets and what it makes, and what waits.

        Args:
            steps: which are taken.
            is_spread: whether an attention is passed; else rows stay at their own positions.
        """
        task, d = self.task, self.task.config.d_model
        seeds, alive, cells = (task.targets, task.down(), self.down) if is_down else (task.sources, task.up(), self.up)
        made = [0]
        if "spread" in steps:
            made.append(self.spread(seeds, is_down))
        if "attention" in steps:
            made.append(self.attention(is_down))
        if "mlp" in steps:
            made.append(self.mlp(alive, seeds, is_down) if is_spread else self._mlp(seeds, seeds, is_down))
        cells = cells if is_spread else sum(map(sum, seeds))
        # the columns and rows that a component's terms are gathered in, beside those that are kept
        made += [(8 if passed.scales else 4) * sum(map(sum, passed.terms)) * max(d, passed.d_in) for passed in task.passed]
        return 3 * cells * max(d, task.d_q) + self.waiting(is_down) + max(made)

    @property
    def meeting(self) -> int:
        """Both sides at the MLP between them, a position at a time."""
        task, c = self.task, self.task.config
        down, up = task.down(), task.up()
        fewer = max(min(a, b) for rows, others in zip(down, up, strict=True) for a, b in zip(rows, others, strict=True))
        through = c.d_model * c.d_mlp + 2 * c.d_model**2 if fewer > fold_rows(c) else fewer * 3 * c.d_mlp
        rows = max(map(max, down)) + max(map(max, up)) + fewer
        return c.d_model * task.d_hidden + self.slopes + max(5 * task.tokens * c.d_mlp, rows * c.d_model + through)


@lru_cache(maxsize=16)
def _sizes(task: Task) -> _Sizes:
    return _Sizes(task)
