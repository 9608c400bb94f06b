"""What a sweep costs, counted before it runs: the products of meet.py and steps.py, one by one.

Every count is of matrix products, 2 m k n operations for [m, k] @ [k, n], as torch's own counter has it; the
pointwise work between them is bounded by the same bytes. A test holds the counts against torch's.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from attrib.core.types import SITE_KINDS, Site, SiteKind
from attrib.engine.plan.task import Task
from attrib.engine.sweep.cells import Block, blocks
from attrib.engine.sweep.primal import attentions_between, stream_sites
from attrib.engine.sweep.seeded import fold_rows
from attrib.engine.sweep.steps import spread_blocks
from attrib.models.transformer import ModelConfig

Part = Literal["capture", "primal", "seeds", "spread", "mlp", "attention", "cuts", "readout"]


@dataclass
class Cost:
    """Operations and bytes by part. Bytes count each product's operands and result once."""

    itemsize: int
    flops: Counter[Part] = field(default_factory=Counter)
    bytes: Counter[Part] = field(default_factory=Counter)

    def mm(self, part: Part, m: int, k: int, n: int, batch: int = 1) -> None:
        """Count `batch` products [m, k] @ [k, n]."""
        self.flops[part] += 2 * batch * m * k * n
        self.bytes[part] += batch * self.itemsize * (m * k + k * n + m * n)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.itemsize, self.flops + other.flops, self.bytes + other.bytes)

    @property
    def total(self) -> int:
        """Operations of all parts."""
        return sum(self.flops.values())


# ------------------------------------------------------------------------------------------- parts


def mlp_rows(task: Task, cost: Cost, part: Part, rows: int) -> None:
    """Rows through the matrices of an MLP."""
    d, f = task.config.d_model, task.config.d_mlp
    cost.mm(part, rows, d, f)
    cost.mm(part, rows, task.d_hidden, d)


def mlp(task: Task, cost: Cost, layer: int, alive: Sequence[Sequence[int]]) -> None:
    """So many rows at each position of each prompt through the MLP of a layer."""
    if not task.passes_mlp(layer):
        return
    d, pays = task.config.d_model, fold_rows(task.config)
    for rows in alive:
        for count in rows:
            if count > pays:
                cost.mm("mlp", d, task.config.d_mlp, d)
                cost.mm("mlp", count, d, d)
            elif count:
                mlp_rows(task, cost, "mlp", count)
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


def _queries(positions: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, positions)) for first in range(0, positions, size)]


def attention(task: Task, cost: Cost, up: bool, is_from_z: bool = False) -> None:
    """A cone through an attention; `is_from_z`, from its heads' outputs on."""
    d, alive = task.config.d_model, task.up() if up else task.down()
    cells = sum(map(sum, alive))
    if not is_from_z:
        cost.mm("attention", cells, d, task.d_q)
    cost.mm("attention", cells, d, task.d_heads)
    maps = attention_maps(task, up)
    cost.flops.update(maps.flops)
    cost.bytes.update(maps.bytes)
    attention_point(task, cost)


@lru_cache(maxsize=256)
def attention_maps(task: Task, up: bool) -> Cost:
    """A cone through the maps of all heads of one layer: the same in every layer, and in every way of the plan."""
    cost = Cost(task.itemsize)
    for block in blocks(task.bands(up), task.block):
        _maps(task, cost, "attention", block, up)
    return cost


def _maps(task: Task, cost: Cost, part: Part, block: Block, up: bool) -> None:
    """Of one block's rows through the maps of all heads."""
    begin = block.begin
    for first, end in _queries(block.end - begin, task.queries):
        maps = [end, end, end + begin, end + begin] if up else [end] * 4
        for keys in maps if task.policy.attention == "exact" else maps[:1]:
            cost.mm(part, end - first, task.config.d_head, keys, batch=block.rows * task.config.n_heads)


def spread_down(task: Task, cost: Cost) -> None:
    """Seeded cotangents of z to their cone."""
    c, d = task.config, task.config.d_model
    exact = task.policy.attention == "exact"
    for band in task.bands(up=False):
        n, end = band.rows, band.end
        cost.mm("spread", n, task.d_q, d)
        cost.mm("spread", end, c.n_heads, n * d)
        if exact:
            cost.mm("spread", n, c.d_head, end, batch=2 * c.n_heads)
            cost.mm("spread", end if c.positions == "rotary" or c.qk_norm != "none" else 1, task.d_q, d)
            if c.qk_norm == "whole":
                cost.mm("spread", end, c.n_kv_heads * c.d_head, d)
            cost.mm("spread", end * n, c.n_heads, d)
            cost.mm("spread", n, task.d_q, d)
    attention_point(task, cost, leaves=False)


def _spread_up(task: Task, cost: Cost) -> None:
    c, d = task.config, task.config.d_model
    exact = task.policy.attention == "exact"
    cost.mm("spread", task.n_sources, d, task.d_heads)
    for is_alone, block in spread_blocks(task.bands(up=True), task.policy, task.block):
        if is_alone:
            _maps(task, cost, "spread", block, up=True)
            cost.mm("spread", sum(band.cells for band in block.bands), task.d_q, d)
            continue
        for band in block.bands:
            n, reach = band.rows, band.end - band.begin
            cost.mm("spread", n, task.d_q, d)
            cost.mm("spread", reach, c.n_heads, n * d)
            if exact:
                cost.mm("spread", reach, c.d_head, n, batch=c.n_heads)
                cost.mm("spread", reach, task.d_q, d)
                cost.mm("spread", reach * n, c.n_heads, d)
                cost.mm("spread", n, c.d_head, band.begin + 1, batch=2 * c.n_heads)
                cost.mm("spread", n, task.d_q, d)
    attention_point(task, cost)


def _seeds(task: Task, cost: Cost, to_z: bool) -> None:
    """Targets from `stop` to the first z, or to the resid_mid above it."""
    kind, n = task.stop.kind, task.n_targets
    layer = task.stop.layer - (kind == "resid_pre")
    is_behind = kind in ("resid_pre", "resid_post", "mlp_out") and layer >= 0  # the MLP there; below the first layer is none
    if is_behind and task.start.depth < Site(layer, "mlp_out").depth and task.passes_mlp(layer):
        mlp_rows(task, cost, "seeds", n)
        mlp_point(task, cost)
    if to_z and kind != "z":
        cost.mm("seeds", n, task.config.d_model, task.d_q)
        if task.config.post_norm:
            attention_point(task, cost)


def readout(task: Task, cost: Cost, up: bool, width: int) -> None:
    """A cone against what is seeded on the other side."""
    others = task.targets if up else task.sources
    seeded = [list(accumulate(rows, initial=0)) for rows in others]
    places = [list(accumulate((count > 0 for count in rows), initial=0)) for rows in others]
    for block in blocks(task.bands(up), task.block):
        met, at = (of_prompt[block.prompt][block.end] - of_prompt[block.prompt][block.begin] for of_prompt in (seeded, places))
        cost.flops["readout"] += 2 * block.rows * width * met
        cost.bytes["readout"] += cost.itemsize * (at * block.rows * width + (block.rows + width) * met)


def walk(task: Task, cost: Cost) -> None:
    """The primal of the segment, where it is walked again."""
    if task.walks:
        last = max(site.depth for site in (task.start, *stream_sites(task.start, task.stop)))
        model_pass(cost, "primal", task.config, [len(rows) for rows in task.targets], task.start.depth, last)


def model_pass(cost: Cost, part: Part, config: ModelConfig, lengths: Sequence[int], first: tuple[int, int], last: tuple[int, int]) -> None:
    """All positions of prompts through the model, from behind one place to another; places by their depth."""
    d, d_q, d_kv, tokens = config.d_model, config.n_heads * config.d_head, config.n_kv_heads * config.d_head, sum(lengths)

    def layers(kind: SiteKind) -> int:
        return sum(first < (layer, SITE_KINDS.index(kind)) <= last for layer in range(config.n_layers))

    cost.mm(part, tokens, d, d_q + 2 * d_kv, batch=layers("z"))
    for length in lengths:
        cost.mm(part, length, config.d_head, length, batch=2 * config.n_heads * layers("z"))
    cost.mm(part, tokens, d_q, d, batch=layers("attn_out"))
    plain_mlp(cost, part, config, tokens, layers("mlp_out"))


def plain_mlp(cost: Cost, part: Part, config: ModelConfig, rows: int, layers: int = 1) -> None:
    """Rows through MLPs as the model has them."""
    cost.mm(part, rows, config.d_model, config.d_mlp * (2 if config.gated else 1), batch=layers)
    cost.mm(part, rows, config.d_mlp, config.d_model, batch=layers)


# ------------------------------------------------------------------------------------ whole sweeps

MIDDLE = ("z", "attn_out", "resid_mid", "mlp_in")
"""Kinds of sites that have an MLP between them and the next attention."""


def local_cost(task: Task) -> Cost:
    """Of a path that meets no attention: targets are pulled, seeded, to the source's site."""
    cost = Cost(task.itemsize)
    _seeds(task, cost, to_z=False)
    for _ in task.writes or (task.start,):
        meet_seeded(task, cost, task.config.d_model)
    walk(task, cost)
    return cost


def meet_seeded(task: Task, cost: Cost, width: int) -> None:
    """Both sides at their own positions."""
    for rows, others in zip(task.targets, task.sources, strict=True):
        for n, m in zip(rows, others, strict=True):
            cost.mm("readout", n, width, m)


def push_cost(task: Task) -> Cost:
    """Of pushing seeded sources to the first attention; in a parallel block, through the MLP beside it as well."""
    cost, is_parallel = Cost(task.itemsize), task.config.parallel
    if task.start.kind == "z":
        cost.mm("seeds", task.n_sources, task.d_q, task.config.d_model)
        if task.config.post_norm:
            attention_point(task, cost)
    is_above = task.start.kind == "mlp_in" or (task.start.kind in MIDDLE and not is_parallel)
    mlps = [task.start.layer] * is_above + [task.layers[0]] * is_parallel
    for _ in filter(task.passes_mlp, mlps):
        mlp_rows(task, cost, "seeds", task.n_sources)
        mlp_point(task, cost)
    return cost


def reverse_cost(task: Task) -> Cost:
    """Of `meet.reverse` to the source's own site."""
    cost, d = Cost(task.itemsize), task.config.d_model
    walk(task, cost)
    _seeds(task, cost, to_z=True)
    spread_down(task, cost)
    down = task.down()
    heads = task.start.kind in ("resid_pre", "resid_post") and len(task.layers) > 1 and in_head_space(task)
    for layer in task.layers[:-1]:
        if heads and task.config.parallel and layer == task.layers[0]:
            if task.passes_mlp(layer):  # sources pass the lowest MLP, and not the cone
                mlp_rows(task, cost, "readout", task.n_sources)
                mlp_point(task, cost)
        else:
            mlp(task, cost, layer, down)
        attention(task, cost, up=False)
    if heads:
        cost.flops["attention"] -= 2 * sum(map(sum, down)) * d * task.d_heads  # the cone stays in head space
        cost.mm("readout", task.n_sources, d, task.d_heads)
    if task.start.kind == "mlp_in" and task.passes_mlp(task.start.layer):
        mlp_rows(task, cost, "mlp", sum(map(sum, down)))
        mlp_point(task, cost)
    elif task.start.kind in MIDDLE and not task.config.parallel:
        mlp(task, cost, task.start.layer, down)
    if task.start.kind == "z":
        cost.mm("seeds", sum(map(sum, down)), d, task.d_q)
    width = task.d_q if task.start.kind == "z" else d + task.d_heads if heads else d
    readout(task, cost, False, width)
    above = [attentions_between(site, task.stop) for site in task.writes[1:]]  # which, where there are several, lie at mlp_out
    for layers in above:
        if layers:
            readout(task, cost, False, d)
        else:
            meet_seeded(task, cost, d)
    return cost


def in_head_space(task: Task) -> bool:
    """Whether pushing the sources into head space is fewer products than pulling the cone out of it."""
    met = sum(n * m for rows, others in zip(task.down(), task.sources, strict=True) for n, m in zip(rows, others, strict=True))
    return met + task.n_sources * task.config.d_model < sum(map(sum, task.down())) * task.config.d_model


def forward_cost(task: Task) -> Cost:
    """Of `meet.forward`, with the sources pushed to the first attention."""
    cost = push_cost(task)
    walk(task, cost)
    if not task.config.parallel:
        _seeds(task, cost, to_z=False)
    _spread_up(task, cost)
    for layer in task.layers[1:] if task.config.parallel else task.layers[:-1]:
        mlp(task, cost, layer, task.up())
        attention(task, cost, up=True)
    readout(task, cost, True, task.config.d_model)
    return cost


def lift_cost(task: Task, layer: int) -> Cost:
    """Of `meet.lift` to the MLP of `layer`, with the sources pushed to the first attention."""
    cost = push_cost(task)
    walk(task, cost)
    _spread_up(task, cost)
    for below in range(task.layers[0], layer):
        mlp(task, cost, below + task.config.parallel, task.up())
        attention(task, cost, up=True)
    return cost


def both_cost(task: Task, layer: int) -> Cost:
    """Of `meet.both` at the MLP of `layer`, after `lift`."""
    cost, d, pays = Cost(task.itemsize), task.config.d_model, fold_rows(task.config)
    _seeds(task, cost, to_z=True)
    spread_down(task, cost)
    for above in range(layer + 1, task.layers[-1]):
        mlp(task, cost, above, task.down())
        attention(task, cost, up=False)
    for rows, others in zip(task.down(), task.up(), strict=True):
        for n, m in zip(rows, others, strict=True):
            fewer = min(n, m)
            if fewer and task.passes_mlp(layer) and not task.config.parallel:
                if fewer > pays:
                    cost.mm("mlp", d, task.config.d_mlp, d)
                    cost.mm("mlp", fewer, d, d)
                else:
                    mlp_rows(task, cost, "mlp", fewer)
            cost.mm("readout", n, d, m)
    if task.passes_mlp(layer) and not task.config.parallel:
        mlp_point(task, cost)
    return cost
