"""Many sources and targets of one prompt: which of them are before which, what stands between, and all of it opened at once.

What one source and one target of them mean is `path`'s, with the same cuts. Their primal point is the model's own pass,
so that a dictionary's latents, or what is left of a place beside them, can be sources of one and targets of another path.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.finite import asked_together
from attrib.core.positions import Positions
from attrib.core.types import Effect, ErrorAt, InputError, Logits, Policy, Site
from attrib.dictionaries.dictionary import Dictionary, encode_sparse
from attrib.engine.blocks.passing import Between, Passing, place_of
from attrib.engine.bundle import Bundle, SourceEnd, TargetEnd
from attrib.engine.path import Sources
from attrib.engine.sweep.primal import stream_sites
from attrib.models.transformer import Model, check_end, embed, place
from attrib.passes.capture import captured, cut
from attrib.passes.replacement import CutLeaves, Replacement, put_together
from attrib.paths.cuts import Cuts, apart_from, cuts_between, is_same, nothing
from attrib.paths.ends import read_end, stop_site
from attrib.paths.path import require_finite_ends, start_site
from attrib.paths.starts import latent_sources, start_at_tokens, with_errors
from attrib.paths.targets import read_site

Source = Dictionary | ErrorAt | Literal["tokens"]
Target = Dictionary | Logits


class Pair(NamedTuple):
    """One source, and one target behind it."""

    stop: Site
    """Where their path ends."""
    cuts: Cuts | None
    """What is put in on it."""


@dataclass(frozen=True)
class Ends:
    """The sources and targets of a call. Dictionaries fit the model, and are in its precision."""

    model: Model
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    cuts: tuple[Dictionary, ...]
    effect: Effect
    policy: Policy
    is_error_source: bool = False
    """Whether the error of each source, which then writes at one place without cuts, is a source of each position too."""
    known: "Mapping[tuple[int, int], Pair] | None" = None
    """Its pairs, where they are those of some of the ends of others."""

    @cached_property
    def pairs(self) -> "Mapping[tuple[int, int], Pair]":
        """What stands between each source and each target that is behind it, by their numbers.

        Raises:
            InputError: where dictionaries do not go together, or no target is behind any source.
        """
        if self.known is not None:
            return self.known
        found = {}
        for i, source in enumerate(self.sources):
            self._check_error(source)
            for j, target in enumerate(self.targets):
                dictionary = source if isinstance(source, Dictionary) else None
                cuts = apart_from(self.cuts, dictionary, target)
                stop = stop_site(self.model, target, (dictionary, *cuts))
                if self._is_before(source, stop, target):
                    start = self.start_of(source)
                    put_in = cuts_between(self.model, dictionary, target, start, stop, cuts, self.effect, self.policy)
                    found[i, j] = Pair(stop, put_in)
        if not found:
            raise InputError(
                "targets: none is behind any of the sources; attributions run forward. Choose later targets, or earlier sources."
            )
        return found

    def _check_error(self, source: Source) -> None:
        """Raises InputError for an error at a place where nothing is decoded."""
        if isinstance(source, ErrorAt):
            at, written = place(self.model, self.start_of(source)), {place(self.model, site) for cut in self.cuts for site in cut.writes}
            if at not in written:
                known = ", ".join(map(str, sorted(written, key=lambda site: site.depth))) or "none is given"
                raise InputError(f"sources: the error at {at}, but no cut writes there; expected a place that the cuts write: {known}.")

    def start_of(self, source: Source) -> Site:
        """Where a source enters the model."""
        if isinstance(source, ErrorAt):
            return check_end(self.model, source.site, "sources")
        return start_site(source if isinstance(source, Dictionary) else None)

    def _is_before(self, source: Source, stop: Site, target: Target) -> bool:
        """Whether a target is behind a source; at one place, what is read of the stream is behind what is written there."""
        if source == "tokens":
            return True
        start = self.start_of(source)
        return stop.depth > start.depth or (stop.depth == start.depth and not isinstance(target, Dictionary))

    def groups(self) -> "Iterator[tuple[Ends, list[int], list[int]]]":
        """The ends of each sweep, with the numbers of its sources and of its targets here.

        All go together but sources that write at several places and are none of the cuts: such a source takes those places, as a cut
        does, on its own paths alone.
        """
        shared = []
        for number, source in enumerate(self.sources):
            if isinstance(source, Dictionary) and len(source.writes) > 1 and not any(is_same(source, cut) for cut in self.cuts):
                yield from self._some([number])
            else:
                shared.append(number)
        yield from self._some(shared)

    def _some(self, sources: Sequence[int]) -> "Iterator[tuple[Ends, list[int], list[int]]]":
        """Those of some sources that have targets behind them, and these targets; nothing where there are none."""
        chosen = [i for i in sources if any(pair[0] == i for pair in self.pairs)]
        targets = sorted({j for i, j in self.pairs if i in chosen})
        if chosen:
            known = {(chosen.index(i), targets.index(j)): pair for (i, j), pair in self.pairs.items() if i in chosen}
            some = tuple(self.sources[i] for i in chosen), tuple(self.targets[j] for j in targets)
            yield replace(self, sources=some[0], targets=some[1], known=known), chosen, targets

    # ------------------------------------------------------------------------- what a sweep is told of them

    @cached_property
    def start(self) -> Site:
        """The lowest place at which a source writes."""
        return min(map(self.start_of, self.sources), key=lambda site: site.depth)

    @cached_property
    def stops(self) -> list[Site]:
        """Where the paths to each target end."""
        dictionaries = [source for source in self.sources if isinstance(source, Dictionary)]
        return [stop_site(self.model, target, (*dictionaries, *apart_from(self.cuts, target))) for target in self.targets]

    @cached_property
    def stop(self) -> Site:
        """The highest of these."""
        return max(self.stops, key=lambda site: site.depth)

    @property
    def held(self) -> frozenset[Site]:
        """The places written on the way."""
        return frozenset[Site]().union(*(pair.cuts.held for pair in self.pairs.values() if pair.cuts is not None))

    @cached_property
    def passed(self) -> list[Dictionary]:
        """The cuts that derivatives pass."""
        found = [d for pair in self.pairs.values() if pair.cuts is not None for d in pair.cuts.passed_dictionaries]
        return [d for number, d in enumerate(found) if not any(is_same(d, other) for other in found[:number])]

    @cached_property
    def replaced(self) -> Replacement | None:
        """The pass that has the cuts in it, where a source is what they leave."""
        if not any(isinstance(source, ErrorAt) for source in self.sources):
            return None
        return put_together(self.model, {f"cuts[{number}]": cut for number, cut in enumerate(self.cuts)}, self.policy)

    @cached_property
    def seen(self) -> set[Site]:
        """Where the model's own pass is looked at."""
        ends = {read_site(self.model, target) for target in self.targets} | {*self.stops} | {*map(self.start_of, self.sources)}
        reads = {d.site for d in (*self.sources, *self.passed) if isinstance(d, Dictionary)}
        return ends | reads | {*stream_sites(self.model.config, self.start, self.stop)} | (self.replaced.sites if self.replaced else set())

    # -------------------------------------------------------------------------------------- one prompt

    @torch.no_grad()
    @asked_together()
    def open(self, tokens: Int[Tensor, " positions"], positions: Positions) -> Bundle:
        """One prompt's ends at the model's own pass.

        Raises:
            NotFiniteError: where an end, a pre-activation or a target is NaN or infinite; minus infinity may be a logit.
        """
        seen = captured(self.model, tokens, self.seen)
        sites = [read_site(self.model, target) for target in self.targets]
        require_finite_ends(self.model, tokens, seen, {*map(self.start_of, self.sources), *self.stops, *sites})
        leaves = self.replaced.leaves_of(embed(self.model, tokens), seen) if self.replaced else None
        sources = tuple(self._open_source(source, tokens, seen, leaves) for source in self.sources)
        targets = []
        for number, (target, site, stop) in enumerate(zip(self.targets, sites, self.stops, strict=True)):
            read, _, found = read_end(self.model, target, site, stop, seen[site], seen[stop], seen[stop], positions, self.policy)
            is_own_place = isinstance(target, Dictionary) and target.site in target.writes and place_of(target.site) == place_of(stop)
            barred = frozenset(i for i in range(len(self.sources)) if (i, number) not in self.pairs)
            targets.append(TargetEnd(found, stop, is_own_place, barred, read.labels, read.probability))
        is_total = self.effect == "total"
        passing = (Passing(d, x := seen[d.site], encode_sparse(d, x) if is_total else nothing(x), is_total) for d in self.passed)
        streams = {site: seen[site] for site in stream_sites(self.model.config, self.start, self.stop)}
        return Bundle(
            self.model, self.policy, self.start, self.stop, len(tokens), streams, sources, tuple(targets),
            Between(self.held, tuple(passing)),
        )  # fmt: skip

    def _open_source(
        self, source: Source, tokens: Int[Tensor, " positions"], seen: Mapping[Site, Tensor], leaves: CutLeaves | None
    ) -> SourceEnd:
        if isinstance(source, Dictionary):
            x = seen[source.site]
            writes = tuple(sorted((at for at in source.writes if at.depth <= self.stop.depth), key=lambda at: at.depth))
            own = latent_sources(source, x, writes, encode_sparse(source, x))
            return SourceEnd(with_errors(own, cut(source, x, seen[writes[0]]).error) if self.is_error_source else own, writes)
        if isinstance(source, ErrorAt):
            assert self.replaced is not None
            assert leaves is not None
            at = place(self.model, self.start_of(source))
            direction = leaves.errors[self.replaced.written.index(at)]
            every = torch.arange(len(tokens), device=tokens.device)
            return SourceEnd(Sources(every, torch.full_like(every, -1), torch.ones_like(direction[:, 0]), direction), (at,))
        return SourceEnd(start_at_tokens(seen[self.start_of(source)], tokens).sources, (self.start_of(source),), is_brought=True)
