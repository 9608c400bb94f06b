"""What a sweep costs, counted before it runs: the products of steps.py, one by one, and those of the whole way down.

The way down is route.py's, taken by the number of rows in place of the rows: no step that a sweep takes can be missing. meeting.py
has the way up, and where both sides meet.

Every count is of matrix products, 2 m k n operations for [m, k] @ [k, n], as torch's own counter has it; the
pointwise work between them is bounded by the same bytes. A test holds the counts against torch's.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate, chain, product
from operator import mul
from typing import Literal, NamedTuple

from attrib.core.rates import Asking
from attrib.core.types import SITE_KINDS, Site, SiteKind
from attrib.engine.blocks.passing import place_of
from attrib.engine.plan.task import Counts, Task
from attrib.engine.sweep.cells import Band, Shape, blocks, read_runs
from attrib.engine.sweep.primal import stream_sites
from attrib.engine.sweep.route import Descent
from attrib.engine.sweep.seeded import fold_rows
from attrib.engine.sweep.steps import spread_runs
from attrib.models.transformer import ModelConfig, width

Part = Literal["capture", "primal", "seeds", "spread", "mlp", "attention", "cuts", "readout"]


@dataclass
class Cost:
    """Operations and bytes by part. Bytes count each product's operands and result once."""

    itemsize: int
    flops: Counter[Part] = field(default_factory=Counter)
    bytes: Counter[Part] = field(default_factory=Counter)
    asked: float = 0.0
    """How many products a device is asked for, about: a batch is one, and those of several positions or bands that go together are one."""

    def mm(self, part: Part, m: int, k: int, n: int, batch: int = 1, asked: float = 1.0) -> None:
        """Count `batch` products [m, k] @ [k, n]."""
        self.flops[part] += 2 * batch * m * k * n
        self.bytes[part] += batch * self.itemsize * (m * k + k * n + m * n)
        self.asked += asked

    def several(self, part: Part, rows: int, k: int, n: int, products: int, asked: float) -> None:
        """Count so many products [m, k] @ [k, n], each with matrices of its own, of `rows` rows in all."""
        self.flops[part] += 2 * rows * k * n
        self.bytes[part] += self.itemsize * (rows * k + products * k * n + rows * n)
        self.asked += asked

    def met(self, part: Part, rows: Iterable[int], k: int, others: Iterable[int], asked: float = 1.0) -> None:
        """Count a product [rows, k] @ [k, others] for each position."""
        rows, others = list(rows), list(others)
        entries = sum(map(mul, rows, others))
        self.flops[part] += 2 * k * entries
        self.bytes[part] += self.itemsize * (k * (sum(rows) + sum(others)) + entries)
        self.asked += asked * len(rows)

    def take(self, other: "Cost", times: int = 1) -> None:
        """Count another's products too."""
        for part, flops in other.flops.items():
            self.flops[part] += times * flops
            self.bytes[part] += times * other.bytes[part]
        self.asked += times * other.asked

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.itemsize, self.flops + other.flops, self.bytes + other.bytes, self.asked + other.asked)

    @property
    def total(self) -> int:
        """Operations of all parts."""
        return sum(self.flops.values())


class Asked(NamedTuple):
    """What a device is asked for beside products, about: counted on the device that is not there."""

    launches: float
    """Operations with each product, itself among them: norms, what is gathered, moved and copied."""
    waits: float
    """With each further sweep."""

    def weight(self, cost: Cost, sweeps: int, asking: Asking) -> float:
        """What sweeps weigh, in operations of products: their own, and those that the device would do while it is asked."""
        return float(cost.total + asking.launch * self.launches * cost.asked + asking.wait * self.waits * sweeps)


# ------------------------------------------------------------------------------------------- parts


def mlp_rows(task: Task, cost: Cost, part: Part, rows: int, products: int = 1) -> None:
    """Counts through the matrices of an MLP, of so many products in all."""
    d, f = task.config.d_model, task.config.d_mlp
    pieces = rows / task.pieces.mlp  # many positions share one
    cost.several(part, rows, d, f, products, asked=pieces)
    cost.several(part, rows, task.d_hidden, d, products, asked=pieces)


def mlp(task: Task, cost: Cost, layer: int, alive: Counts, part: Part = "mlp") -> None:
    """So many rows at each position of each prompt through the MLP of a layer."""
    if not task.passes_mlp(layer):
        return
    d, pays = task.config.d_model, fold_rows(task.config)
    counts = list(chain(*alive))
    many, few = [count for count in counts if count > pays], [count for count in counts if 0 < count <= pays]
    cost.mm(part, d, task.config.d_mlp, d, batch=len(many), asked=len(many) / task.span)
    cost.several(part, sum(many), d, d, len(many), asked=len(many) / task.span)
    mlp_rows(task, cost, part, sum(few), len(few))
    mlp_point(task, cost)


def mlp_point(task: Task, cost: Cost) -> None:
    """The point of an MLP."""
    c = task.config
    cost.mm("primal", task.tokens, c.d_model, task.d_hidden)
    if c.post_norm:  # which wants what the MLP computes
        cost.mm("primal", task.tokens, c.d_model, task.d_hidden)
        cost.mm("primal", task.tokens, c.d_mlp, c.d_model)


def attention_point(task: Task, cost: Cost, leaves: bool = True) -> None:
    """The point of an attention.

    Args:
        leaves: whether rows pass the norm behind it too, where there is one, which wants what attention computes.
    """
    d, d_kv = task.config.d_model, task.config.n_kv_heads * task.config.d_head
    cost.mm("primal", task.tokens, d, task.d_q + 2 * d_kv)
    scores = 3 if task.config.score_cap is not None else 2
    for rows in task.targets:
        cost.mm("primal", len(rows), task.config.d_head, len(rows), batch=scores * task.config.n_heads)
    if leaves and task.config.post_norm:
        cost.mm("primal", task.tokens, task.d_q, d)


def output_point(task: Task, cost: Cost, layer: int) -> None:
    """The point of the norm behind W_O, where there is one: it wants what attention computes, from z where that is at hand."""
    if task.config.post_norm and task.start == Site(layer, "z"):
        cost.mm("primal", task.tokens, task.d_q, task.config.d_model)
    elif task.config.post_norm:
        attention_point(task, cost)


class _Queries(NamedTuple):
    """The products [queries, d_head] @ [d_head, keys] of one row in one head, in runs of queries: sums over them."""

    products: int
    queries: int
    keys: int
    pairs: int
    """Of a query and a key."""


@lru_cache(maxsize=1 << 14)
def _queries(length: int, begin: int, size: int, causal: bool, exact: bool, up: bool) -> _Queries:
    """Of a row that lives on `length` positions from `begin` on, by `size` queries at once. Every layer and way asks for them again."""
    products = queries = keys = pairs = 0
    for first in range(0, length, size):
        upto = min(first + size, length)
        seen = upto if causal else length
        maps = [seen, seen, seen + begin, seen + begin] if up else [seen] * 4
        for count in maps if exact else maps[:1]:
            products, queries, keys, pairs = products + 1, queries + upto - first, keys + count, pairs + (upto - first) * count
    return _Queries(products, queries, keys, pairs)


def attention(task: Task, cost: Cost, up: bool, is_from_z: bool = False, is_to_heads: bool = False) -> None:
    """A cone through an attention; `is_from_z`, from its heads' outputs on; `is_to_heads`, and no further than head space."""
    d, alive = task.config.d_model, task.up() if up else task.down()
    cells = sum(map(sum, alive))
    chunks = cells / task.pieces.chunk
    if not is_from_z:
        cost.mm("attention", cells, d, task.d_q, asked=chunks)
    if not is_to_heads:
        cost.mm("attention", cells, d, task.d_heads, asked=chunks)
    cost.take(attention_maps(task, up))
    attention_point(task, cost)


@lru_cache(maxsize=256)
def attention_maps(task: Task, up: bool) -> Cost:
    """A cone through the maps of all heads of one layer: the same in every layer, and in every way of the plan."""
    cost = Cost(task.itemsize)
    _maps(task, cost, "attention", (shape for _, shape in blocks(task.bands(up), task.block)), up)
    return cost


def _maps(task: Task, cost: Cost, part: Part, shapes: Iterable[Shape], up: bool) -> None:
    """Count rows of blocks through the maps of all heads."""
    c, exact, flops, size = task.config, task.policy.attention == "exact", 0, 0
    for shape in shapes:
        begin, end, rows, _ = shape
        one = _queries(end - begin, begin if up else 0, task.queries, c.causal, exact, up)
        flops += rows * one.pairs
        size += rows * (c.d_head * (one.queries + one.keys) + one.pairs)
        cost.asked += one.products
    cost.flops[part] += 2 * c.n_heads * c.d_head * flops
    cost.bytes[part] += c.n_heads * cost.itemsize * size


def of_each(cost: Cost, sizes: Iterable[tuple[int, ...]], count: Callable[..., None]) -> None:
    """Count the products of many bands that are asked for the same. They are linear in each size of a band, so those of 0 and 1 tell all.

    Args:
        sizes: of each band.
        count: counts the products of one band of some sizes.
    """
    each = list(sizes)
    columns = list(zip(*each, strict=True))
    for corner in product((0, 1), repeat=len(columns)) if each else ():
        one, shares = Cost(cost.itemsize), [1] * len(each)
        count(one, *corner)
        for is_one, column in zip(corner, columns, strict=True):
            shares = list(map(mul, shares, column if is_one else (1 - size for size in column)))
        cost.take(one, sum(shares))


@lru_cache(maxsize=64)
def spread_down(task: Task) -> Cost:
    """Seeded cotangents of z to their cone: the same in every way of the plan."""
    cost, bands = Cost(task.itemsize), task.bands(up=False)
    of_each(cost, ((band.rows, band.end) for band in bands if band.is_wide), partial(_wide_down, task))
    of_each(cost, ((band.rows, band.end) for band in bands if not band.is_wide), partial(_narrow_down, task))
    attention_point(task, cost, leaves=False)
    return cost


def _narrow_down(task: Task, cost: Cost, n: int, end: int) -> None:
    """`attention_pull_at` of so many rows that see up to some position."""
    c, d = task.config, task.config.d_model
    cost.mm("spread", n, task.d_q, d)
    cost.mm("spread", end, c.n_heads, n * d)
    if task.policy.attention != "exact":
        return
    cost.mm("spread", n, c.d_head, end, batch=2 * c.n_heads)
    cost.mm("spread", end if c.positions == "rotary" or c.qk_norm != "none" else 1, task.d_q, d)
    if c.qk_norm == "whole":
        cost.mm("spread", end, c.n_kv_heads * c.d_head, d)
    cost.mm("spread", end * n, c.n_heads, d)
    cost.mm("spread", n, task.d_q, d)


@lru_cache(maxsize=64)
def spread_up(task: Task) -> Cost:
    """Seeded tangents of resid_pre through an attention to their cone."""
    c, d, cost = task.config, task.config.d_model, Cost(task.itemsize)
    cost.mm("spread", task.n_sources, d, task.d_heads)
    shared = list[Band]()
    for is_alone, run in spread_runs(task.bands(up=True), task.policy):
        if not is_alone:
            shared += run
            continue
        for bands, shape in blocks(run, task.block):
            _maps(task, cost, "spread", [shape], up=True)
            cost.mm("spread", sum(band.cells for band in bands), task.d_q, d)
    wide, narrow = ([band for band in shared if band.is_wide == is_wide] for is_wide in (True, False))
    of_each(cost, ((band.rows, band.end - band.begin, band.seeded[-1][0] + 1) for band in wide), partial(_wide_up, task))
    sizes = ((band.rows, band.end - band.begin, len(c.seen(band.seed, band.end))) for band in narrow)
    of_each(cost, sizes, partial(_narrow_up, task))
    attention_point(task, cost)
    return cost


def _narrow_up(task: Task, cost: Cost, n: int, reach: int, seen: int) -> None:
    """`attention_push_at` of so many rows, which see so many positions, to as many as they reach."""
    c, d = task.config, task.config.d_model
    cost.mm("spread", n, task.d_q, d)
    cost.mm("spread", reach, c.n_heads, n * d)
    if task.policy.attention != "exact":
        return
    cost.mm("spread", reach, c.d_head, n, batch=c.n_heads)
    cost.mm("spread", reach, task.d_q, d)
    cost.mm("spread", reach * n, c.n_heads, d)
    cost.mm("spread", n, c.d_head, seen, batch=2 * c.n_heads)
    cost.mm("spread", n, task.d_q, d)


def _wide_down(task: Task, cost: Cost, n: int, end: int) -> None:
    """`attention_pull_wide` of so many rows that see up to some position."""
    c, d = task.config, task.config.d_model
    cost.mm("spread", n, task.d_q, d)
    cost.mm("spread", end, c.n_heads, d, batch=n)
    if task.policy.attention != "exact":
        return
    cost.mm("spread", n, c.d_head, end, batch=2 * c.n_heads)
    if c.positions == "rotary" or c.qk_norm != "none":
        cost.mm("spread", end, c.n_heads // c.n_kv_heads, c.d_head, batch=n * c.n_kv_heads)
        cost.mm("spread", end * n, c.n_kv_heads * c.d_head, d)
    else:
        cost.mm("spread", n, task.d_q, d)
        cost.mm("spread", end, c.n_heads, d, batch=n)
    cost.mm("spread", n, task.d_q, d)


def _wide_up(task: Task, cost: Cost, n: int, reach: int, end: int) -> None:
    """`attention_push_wide` of so many rows, the last of them seeded before `end`, to so many positions."""
    c, d = task.config, task.config.d_model
    cost.mm("spread", n, task.d_q, d)
    cost.mm("spread", reach, c.n_heads, d, batch=n)
    if task.policy.attention != "exact":
        return
    cost.mm("spread", n, c.d_head, reach, batch=c.n_heads)
    cost.mm("spread", n, task.d_q, d)
    cost.mm("spread", reach, c.n_heads, d, batch=n)
    cost.mm("spread", reach, task.d_q, d)
    cost.mm("spread", n, c.n_heads, d, batch=reach)
    cost.mm("spread", n, c.d_head, end, batch=2 * c.n_heads)
    cost.mm("spread", n, task.d_q, d)


def spread_heads(task: Task, cost: Cost) -> None:
    """Seeded tangents of resid_pre to z, over their cone."""
    cost.mm("spread", task.n_sources, task.config.d_model, task.d_heads)
    _maps(task, cost, "spread", (shape for _, shape in blocks(task.bands(up=True), task.block)), up=True)
    attention_point(task, cost, leaves=False)


def readout(task: Task, cost: Cost, up: bool, width: int) -> None:
    """A cone against what is seeded on the other side, at each position."""
    alive, others = (task.up(), task.targets) if up else (task.down(), task.sources)
    if task.span > 1:
        for rows, seeded in zip(alive, others, strict=True):
            for count, most, positions in _read_runs(task.span, tuple(rows), tuple(seeded)):
                cost.mm("readout", count, width, most, batch=positions)
        return
    for (n, m), times in Counter(zip(chain(*alive), chain(*others), strict=True)).items():
        one = Cost(task.itemsize)
        one.mm("readout", n, width, m, asked=1.0 if n and m else 0.0)
        cost.take(one, times)


@lru_cache(maxsize=64)
def _read_runs(span: int, alive: tuple[int, ...], seeded: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Of the runs of one prompt that are read out together: rows, the most that is seeded, and positions. Every way asks for them again."""
    return tuple((alive[begin], most, end - begin) for begin, end, most in read_runs(span, alive, [0, *accumulate(seeded)]))


def walk(task: Task, cost: Cost) -> None:
    """The primal of the segment, where it is walked again."""
    if task.walks:
        last = max(site.depth for site in (task.start, *stream_sites(task.config, task.start, task.stop)))
        model_pass(cost, "primal", task.config, [len(rows) for rows in task.targets], task.start.depth, last)


def model_pass(
    cost: Cost, part: Part, config: ModelConfig, lengths: Sequence[int], first: tuple[int, int], last: tuple[int, int], before: int = 0
) -> None:
    """All positions of prompts through the model, from behind one place to another; places by their depth.

    Args:
        before: how many more positions there are before those, whose keys and values are known.
    """
    d, d_q, d_kv, tokens = config.d_model, config.n_heads * config.d_head, config.n_kv_heads * config.d_head, sum(lengths)

    def layers(kind: SiteKind) -> int:
        return sum(first < (layer, SITE_KINDS.index(kind)) <= last for layer in range(config.n_layers))

    cost.mm(part, tokens, d, d_q + 2 * d_kv, batch=layers("z"))
    for length in lengths:
        cost.mm(part, length, config.d_head, before + length, batch=2 * config.n_heads * layers("z"))
    cost.mm(part, tokens, d_q, d, batch=layers("attn_out"))
    plain_mlp(cost, part, config, tokens, layers("mlp_out"))


def plain_mlp(cost: Cost, part: Part, config: ModelConfig, rows: int, layers: int = 1) -> None:
    """Counts through MLPs as the model has them."""
    cost.mm(part, rows, config.d_model, config.d_mlp * (2 if config.gated else 1), batch=layers)
    cost.mm(part, rows, config.d_mlp, config.d_model, batch=layers)


# ------------------------------------------------------------------------------------ whole sweeps


def meet_seeded(task: Task, cost: Cost, width: int) -> None:
    """Both sides at their own positions."""
    cost.met("readout", chain(*task.targets), width, chain(*task.sources))


def reverse_cost(task: Task) -> Cost:
    """Count `meet.reverse`, whatever stands between; where no attention does, it is the way called local."""
    low = place_of(task.start)
    above = [site for site in task.writes if place_of(site) != low]
    way = DescentCount(task, above, [low], in_heads=reads_in_heads(task))
    way.run(Moving())
    walk(task, way.cost)
    return way.cost


def reads_in_heads(task: Task) -> bool:
    """Whether `meet.reverse` reads the lowest attention out in head space."""
    is_open = not task.passed and all(site.layer in task.shut_mlps for site in task.held)
    return is_open and place_of(task.start).kind == "resid_pre" and len(task.layers) > 1 and heads_pay(task, task.sources)


def heads_pay(task: Task, sources: Counts) -> bool:
    """Whether pushing sources into head space is fewer products than pulling the cone out of it."""
    d, down = task.config.d_model, task.down()
    met = sum(map(mul, chain(*down), chain(*sources)))
    return met + sum(map(sum, sources)) * d < sum(map(sum, down)) * d


# ------------------------------------------------------------------------------- the way down, counted


class Moving:
    """Counts that are not zero. All that is known of them is that they are there, and which they are."""


class DescentCount(Descent[Moving]):
    """The products of compute.py's `Down`, step by step."""

    def __init__(
        self,
        task: Task,
        wanted: Collection[Site],
        brought: Collection[Site],
        *,
        stop: Site | None = None,
        stops_below: bool = False,
        in_heads: bool = False,
    ) -> None:
        super().__init__(
            task.config, task.policy, stop or task.stop, task.held, task.passed, wanted, brought=brought, stops_below=stops_below,
            in_heads=in_heads,
        )  # fmt: skip
        self.task, self.cost = task, Cost(task.itemsize)
        self.alive: Counts = task.targets
        self.waits: dict[int, Counts] = {}

    @property
    def mlp_part(self) -> Part:
        """What products of an MLP are a part of."""
        return "mlp" if self.is_spread else "seeds"

    @property
    def cells(self) -> int:
        """How many rows there are, at all positions."""
        return sum(map(sum, self.alive))

    def add(self, a: Moving, b: Moving) -> Moving:
        """No product."""
        return Moving()

    def through_mlp(self, layer: int, stream: Moving, keeps: bool) -> Moving:
        """Its matrices for each row, or once for all rows at a position where they are many."""
        mlp(self.task, self.cost, layer, self.alive, self.mlp_part)
        return Moving() if keeps else stream

    def through_mlp_alone(self, layer: int, rows: Moving) -> Moving:
        """The residual that is left out is no product."""
        mlp(self.task, self.cost, layer, self.alive, self.mlp_part)
        return rows

    def through_matrices(self, layer: int, rows: Moving) -> Moving:
        """Row by row: a fold would have the norm in it."""
        mlp_rows(self.task, self.cost, self.mlp_part, self.cells)
        mlp_point(self.task, self.cost)
        return Moving()

    def through_norm(self, layer: int, rows: Moving) -> Moving:
        """No product."""
        return Moving()

    def through_output(self, layer: int, rows: Moving) -> Moving:
        """W_O, and what the norm behind it wants to know."""
        self.cost.mm("seeds", self.cells, self.config.d_model, self.task.d_q)
        output_point(self.task, self.cost, layer)
        return Moving()

    def through_attention(self, layer: int, below: Moving | None, written: Moving) -> Moving:
        """The whole of an attention, over the cone."""
        attention(self.task, self.cost, up=False)
        return Moving() if below is None else below

    def through_heads(self, layer: int, below: Moving | None, z: Moving) -> Moving:
        """The same without W_O."""
        attention(self.task, self.cost, up=False, is_from_z=True)
        return Moving() if below is None else below

    def spread(self, layer: int, below: Moving | None, z: Moving) -> Moving:
        """The first attention, and from then on every position that rows see."""
        self.cost.take(spread_down(self.task))
        self.alive = self.task.down()
        if not self.config.causal:  # what waits is of all rows that live at its position, from here on
            self.waits = dict.fromkeys(self.waits, self.alive)
        return Moving()

    def enter(self, number: int, site: Site, rows: Moving) -> None:
        """Each row against what is active at its position, and the skip connection."""
        passed, size = self.task.passed[number], width(self.config, site)
        self._terms(self.alive, passed.terms, size)
        if passed.has_skip:
            self.cost.mm("cuts", self.cells, size, passed.d_in)
        self.waits[number] = self.alive

    def arrive(self, number: int) -> Moving:
        """From each of these to what the dictionary reads."""
        passed = self.task.passed[number]
        self._terms(self.waits.pop(number), passed.terms, passed.d_in)
        return Moving()

    def _terms(self, alive: Counts, terms: Counts, size: int) -> None:
        self.cost.met("cuts", chain(*alive), size, chain(*terms))

    def read_heads(self, layer: int, stream: Moving, z: Moving | None) -> None:
        """The cone goes as far as head space, and the sources come to meet it there."""
        task, d, d_heads = self.task, self.config.d_model, self.task.d_heads
        attention(task, self.cost, up=False, is_from_z=z is not None, is_to_heads=True)
        if self.config.parallel and task.passes_mlp(layer):  # which sources pass, and not the cone
            mlp_rows(task, self.cost, "readout", task.n_sources)
            mlp_point(task, self.cost)
        self.cost.mm("readout", task.n_sources, d, d_heads)
        readout(task, self.cost, False, d + d_heads)

    def read(self, site: Site, rows: Moving, is_brought: bool) -> None:
        """Rows against the sources that they see, or those at their own position."""
        if self.is_spread:
            readout(self.task, self.cost, False, width(self.config, site))
        else:
            meet_seeded(self.task, self.cost, width(self.config, site))
