"""What opening a path costs, counted before it runs: the prompt's own pass, the encoders, and what is read at its end.

It comes before the sweeps, and no budget makes it smaller: a prompt is opened as a whole. The products are those of path.py,
one by one; of memory the fullest moment is bounded, and what stays as long as the path does is counted apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

from attrib.core.positions import Positions, numbers_of
from attrib.core.types import Difference, Direction, Effect, Logits, Policy, Site, TokenLogits, TopLogits
from attrib.dictionaries.dictionary import COMPETING, Dictionary, tile_columns
from attrib.engine.bundle import Bundle
from attrib.engine.plan.cost import Cost, model_pass, plain_mlp
from attrib.engine.plan.task import Opened, Task
from attrib.engine.precision import Precision
from attrib.engine.sweep.cells import pieces_of
from attrib.engine.sweep.primal import stream_sites
from attrib.models.transformer import Model, ModelConfig, width
from attrib.paths.bundle import Ends
from attrib.paths.cuts import Cuts, apart_from, cuts_between
from attrib.paths.ends import stop_site
from attrib.paths.path import sites_seen, start_site
from attrib.paths.targets import read_site


class Counts(NamedTuple):
    """How many there are of what a prompt's path is made of."""

    tokens: int
    sources: int
    targets: int
    read: int
    """Positions at which targets are read."""
    active: tuple[int, ...] = ()
    """Active latents of each dictionary that is put in, where they are counted: without the source's error."""


@dataclass(frozen=True)
class Opening:
    """What the paths of a call are opened with, prompt by prompt."""

    config: ModelConfig
    source: Dictionary | None
    target: Dictionary | Logits
    site: Site
    """Where targets are read."""
    stop: Site
    cuts: Cuts | None
    error: bool
    itemsize: int
    is_error_source: bool = False

    @property
    def is_true(self) -> bool:
        """Whether the path's primal is the model's own pass."""
        return self.error or self.source is None

    @cached_property
    def seen(self) -> set[Site]:
        """Where the model's own pass is looked at."""
        return sites_seen(self.config, self.source, self.site, self.stop, self.is_true and not self.is_error_source, self.cuts)

    @cached_property
    def start(self) -> Site:
        """Where the path begins."""
        return start_site(self.source)

    @property
    def written(self) -> int:
        """Width of what the source writes up to the path's end, at all its sites together."""
        if self.source is None:
            return self.config.d_model
        return sum(width(self.config, site) for site in self.source.writes if site.depth <= self.stop.depth)

    @cached_property
    def encoders(self) -> list[Dictionary]:
        """Every encoder that is applied to the prompt, as often as it is."""
        found = [d for d in (self.source, self.target) if isinstance(d, Dictionary)]
        if not self.is_true and isinstance(self.target, Dictionary):
            found.append(self.target)  # which of them win their place there
        if self.cuts is None:
            return found
        if not self.is_true:
            found += self.cuts.replaced.dictionaries
            if self.cuts.effect == "total":
                found += [d for number, d in self._met if number not in self.cuts.leaves_of]
        return found + (self.cuts.passed_dictionaries if self.cuts.effect == "total" else [])

    @cached_property
    def skips(self) -> list[Dictionary]:
        """Every skip connection that is applied to the prompt, as often as it is."""
        if self.cuts is None:
            found = [] if self.source is None else [self.source] * 2
        else:
            found = [] if self.is_true else [*self.cuts.replaced.dictionaries, *(d for _, d in self._met)]
        return [d for d in found if d.has_skip]

    @property
    def _met(self) -> Iterator[tuple[int, Dictionary]]:
        """The dictionaries that the replaced pass meets, with their numbers."""
        if self.cuts is not None:
            yield from ((number, d) for number, d in enumerate(self.cuts.replaced.dictionaries) if d.site.depth <= self.stop.depth)

    @property
    def _ends_beside(self) -> bool:
        """Whether targets are read off a parallel block's MLP, which stands beside the path."""
        return self.site != self.stop

    def opened(self, task: Task, read: int, active: tuple[int, ...] = ()) -> Task:
        """The task of one prompt with what opening its path takes."""
        return replace(task, opened=self.memory(Counts(task.tokens, task.n_sources, task.n_targets, read, active)))

    # ------------------------------------------------------------------------------------ operations

    def cost(self, counts: Counts) -> Cost:
        """The products."""
        cost, c, tokens = Cost(self.itemsize), self.config, counts.tokens
        model_pass(cost, "capture", c, [tokens], (0, 0), max(site.depth for site in self.seen))
        for d in self.encoders:
            cost.mm("capture", tokens, d.d_in, d.d_sae)
        for d in self.skips:
            cost.mm("capture", tokens, d.d_in, d.d_out)
        if not self.is_true:
            model_pass(cost, "primal", c, [tokens], self.start.depth if self.cuts is None else (0, 0), self.stop.depth)
        self.reading_cost(cost, counts)
        return cost

    def reading_cost(self, cost: Cost, counts: Counts) -> None:
        """The products in which targets are read, and their cotangents."""
        c, ends = self.config, 2 * counts.targets  # there and back
        if isinstance(self.target, TopLogits | TokenLogits):
            cost.mm("capture", counts.read, c.d_model, c.d_vocab)
        elif isinstance(self.target, Difference):
            named = sum(1 if isinstance(side, int | str) else len(side) for side in self.target)
            cost.mm("capture", ends, c.d_model, named)
        if self._ends_beside and self.site.kind == "mlp_out":
            again = 0 if self.is_true or not isinstance(self.target, Dictionary) else counts.tokens
            plain_mlp(cost, "capture", c, ends + again)

    # ---------------------------------------------------------------------------------------- memory

    def memory(self, counts: Counts) -> Opened:
        """Bytes; a bound of the fullest moment, stage by stage."""
        (tokens, sources, targets, *_), d = counts, self.config.d_model
        number = max(1, 8 // self.itemsize)  # an index, in numbers
        streams = self._widths(stream_sites(self.config, self.start, self.stop)) * tokens
        seen = self._widths(self.seen) * tokens
        rows = sources * (self.written if self.source is not None else 0)
        leaves = sources * (2 * number + 1) + rows
        kept = tokens * (self.written + 2 * d)  # the source's error; x and its base, or what dictionaries read, where they are no streams
        passed = () if self.cuts is None else self.cuts.passed_dictionaries
        kept += tokens * sum(p.d_in for p in passed)
        read = targets * (2 * (2 * number + 1) + 2 * d)  # cotangents, and the columns that the path's function reads with

        def encoding(dictionary: object, count: int) -> int:
            return self._encoding(dictionary, tokens, count) if isinstance(dictionary, Dictionary) else 0

        stages = [seen + self._passing(tokens)]
        if self.source is not None:
            stages += [
                seen + encoding(self.source, sources),
                seen + kept + leaves + (rows if self.cuts is None or self.written > d else 0),
            ]
        reached = 0
        if not self.is_true:
            reached = streams + 2 * tokens * d
            put_in = [] if self.cuts is None else list(zip(self.cuts.replaced.dictionaries, counts.active, strict=False))
            before = seen + kept + leaves + sum(count * (2 * number + 1) for _, count in put_in)
            before += tokens * self._widths(() if self.cuts is None else self.cuts.replaced.written)
            decoding = max([2 * count * dictionary.d_out for dictionary, count in put_in], default=2 * rows)
            made = max([encoding(dictionary, count) for dictionary, count in put_in], default=0)
            stages += [before + max(decoding, made), before + reached + max(self._passing(tokens), decoding, made)]
        stages.append(kept + (reached or streams) + tokens * 3 * d + leaves + self._reading(counts, number))
        held = kept + sources * (2 * number + 1) + targets * (2 * (2 * number + 1) + d)
        return Opened(*(self.itemsize * size for size in (max(stages), held, kept + streams + leaves + read)))

    def _widths(self, sites: "Sequence[Site] | set[Site] | tuple[Site, ...]") -> int:
        """Width of the values at sites together; one value may have two names."""
        return sum({site.depth: width(self.config, site) for site in sites}.values())

    def _passing(self, tokens: int) -> int:
        """What a step through the model is made in: a layer's heads and patterns, or its MLP, and the logits of no position."""
        c = self.config
        d_q, heads = c.n_heads * c.d_head, (c.n_heads + 2 * c.n_kv_heads) * c.d_head
        patterns = 3 * c.n_heads * tokens**2 + tokens**2 + tokens * (heads + d_q)
        return tokens * 4 * c.d_model + max(patterns, 3 * tokens * heads, tokens * c.d_mlp * (3 if c.gated else 2))

    def _encoding(self, dictionary: Dictionary, tokens: int, count: int) -> int:
        """What sparse encoding is made in: a tile of columns at a time, ranked where latents compete, and the active ones sorted."""
        columns = min(tile_columns(tokens, dictionary.params.b_enc.device), dictionary.d_sae)
        ranked = 7 if dictionary.config.rule in COMPETING else 3
        held = dictionary.d_in * columns if dictionary.config.lazy else 0
        normed = 0 if dictionary.config.normalisation == "none" else 4 * tokens * dictionary.d_in
        return held + normed + ranked * tokens * columns + 19 * count

    def _reading(self, counts: Counts, number: int) -> int:
        """What targets are read in, and their cotangents."""
        c, targets, d = self.config, counts.targets, self.config.d_model
        ends = targets * (2 * (2 * number + 1) + 8 * d)
        if self._ends_beside:
            ends += targets * (4 * d + (c.d_mlp * (5 if c.gated else 4) if self.site.kind == "mlp_out" else 0))
        if isinstance(self.target, Dictionary):
            return max(self._encoding(self.target, counts.tokens, targets), ends)
        if isinstance(self.target, Direction):
            return ends
        return max(counts.read * (3 * c.d_vocab + 4 * d), ends)


def opening_of(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits,
    cuts: Sequence[Dictionary],
    effect: Effect,
    policy: Policy,
    error: bool,
    itemsize: int,
    is_error_source: bool = False,
) -> Opening:
    """What the paths of a call are opened with.

    Raises:
        InputError: as `attrib.path`.
    """
    cuts = apart_from(cuts, source, target)
    stop = stop_site(model, target, (source, *cuts))
    put_in = cuts_between(model, source, target, start_site(source), stop, cuts, effect, policy)
    return Opening(model.config, source, target, read_site(model, target), stop, put_in, error, itemsize, is_error_source)


def ends_opened(ends: Ends, bundle: Bundle, read: Sequence[int], itemsize: int) -> Opened:
    """Bytes for opening many ends of one prompt at once; a bound of the fullest moment, and what stays as long as they do.

    Args:
        read: at how many positions each target is read.
    """
    config, tokens, d = ends.model.config, bundle.length, ends.model.config.d_model
    number, nothing = max(1, 8 // itemsize), Opening(config, None, Direction(torch.zeros(0)), ends.stop, ends.stop, None, True, itemsize)
    entry = 2 * number + 1  # a position, a latent and a value
    sources = [(len(end.sources.position), end.sources.direction.shape[1]) for end in bundle.sources]
    targets = [len(end.targets.position) for end in bundle.targets]
    rows, leaves = sum(n * size for n, size in sources), sum(n for n, _ in sources) * entry
    passed = sum(len(passing.latents.position) for passing in bundle.between.passing) * entry
    passed += tokens * sum(d.d_in for d in ends.passed)
    written = tokens * sum(width(config, site) for site in ends.replaced.written) if ends.replaced else 0

    def making(dictionary: object, count: int) -> int:
        return nothing._encoding(dictionary, tokens, count) if isinstance(dictionary, Dictionary) else 0

    made = [nothing._passing(tokens)]
    made += [making(source, count) + count * size for source, (count, size) in zip(ends.sources, sources, strict=True)]
    made += [making(cut, tokens * min(cut.d_sae, 64)) for cut in (*ends.passed, *(ends.replaced.dictionaries if ends.replaced else ()))]
    made += [one._reading(counts, number) for one, counts in _read(ends, bundle, read, itemsize)]
    kept = leaves + passed + written + sum(targets) * 2 * entry
    streams = nothing._widths(stream_sites(ends.model.config, ends.start, ends.stop)) * tokens
    held = kept + sum(targets) * d
    peak = nothing._widths(ends.seen) * tokens + held + rows + sum(targets) * d + 2 * written + max(made)
    return Opened(*(itemsize * size for size in (peak, held, held + rows + streams + sum(targets) * d)))


def ends_cost(ends: Ends, bundle: Bundle, read: Sequence[int], itemsize: int) -> Cost:
    """The products in which many ends of one prompt are opened at once.

    Args:
        read: at how many positions each target is read.
    """
    cost, tokens = Cost(itemsize), bundle.length
    model_pass(cost, "capture", ends.model.config, [tokens], (0, 0), max(site.depth for site in ends.seen))
    put_in = ends.replaced.dictionaries if ends.replaced else ()
    passed = ends.passed if ends.effect == "total" else ()
    for d in (*ends.sources, *ends.targets, *passed, *put_in):
        if isinstance(d, Dictionary):
            cost.mm("capture", tokens, d.d_in, d.d_sae)
    for d in put_in:
        if d.has_skip:
            cost.mm("capture", tokens, d.d_in, d.d_out)
    for one, counts in _read(ends, bundle, read, itemsize):
        one.reading_cost(cost, counts)
    return cost


def _read(ends: Ends, bundle: Bundle, read: Sequence[int], itemsize: int) -> Iterator[tuple[Opening, Counts]]:
    """Each target as the end of a path of its own, and its counts."""
    for target, end, at, stop in zip(ends.targets, bundle.targets, read, ends.stops, strict=True):
        one = Opening(bundle.model.config, None, target, read_site(ends.model, target), stop, None, True, itemsize)
        yield one, Counts(bundle.length, 0, len(end.targets.position), at)


def positions_read(target: Dictionary | Logits, positions: Positions, length: int) -> int:
    """At how many positions of a prompt targets are read."""
    return len({*numbers_of(_positions(target, positions), length)})


def _positions(target: Dictionary | Logits, positions: Positions) -> Positions:
    return -1 if positions is None and not isinstance(target, Dictionary) else positions


def counts_known(source: Dictionary | None, target: Dictionary | Logits, active: int | None = None) -> bool:
    """Whether it is known without a pass how many sources and targets a prompt has."""
    if isinstance(target, TopLogits) and target.mass is not None:
        return False
    return active is not None or all(not isinstance(d, Dictionary) or d.config.k is not None for d in (source, target))


def known_task(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits,
    length: int,
    policy: Policy,
    positions: Positions,
    precision: Precision,
    active: int | None,
) -> Task:
    """The work of a prompt whose counts are known beforehand."""

    def count(dictionary: Dictionary) -> int:
        return min(active or dictionary.config.k or 0, dictionary.d_sae)

    if isinstance(target, Dictionary):
        rows = count(target)
    else:
        rows = min(_logits(target), model.config.d_vocab) if isinstance(target, TopLogits) else _logits(target)
    chosen = {*numbers_of(_positions(target, positions), length)}
    targets = tuple(rows * (position in chosen) for position in range(length))
    sources = (1 if source is None else count(source),) * length
    ends = start_site(source), stop_site(model, target, (source,))
    pieces = pieces_of(model.device, precision.products)
    return Task(model.config, policy, *ends, (targets,), (sources,), precision.path.itemsize, pieces=pieces)


def _logits(what: Logits) -> int:
    match what:
        case TopLogits(k=k):
            return k
        case TokenLogits(tokens=tokens):
            return len(tokens)
        case Difference() | Direction():
            return 1
