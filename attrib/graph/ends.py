"""The ends of a whole graph: every node of a prompt, with what it writes, and every target, with what it reads.

Nodes come in parts, each of one kind at one place (nodes.py); a sweep takes them by the place where they write (engine/bundle.py).
This module alone knows which column of which source set is which node, and which row of which target set.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.positions import Positions
from attrib.core.types import Direction, InputError, Logits, Policy, Site, SparseLatents
from attrib.dictionaries.dictionary import Dictionary, decode_at, encode_at, selected, split
from attrib.engine.blocks.passing import Between, Passing, place_of
from attrib.engine.bundle import Bundle, SourceEnd, TargetEnd
from attrib.engine.path import Sources, Targets
from attrib.engine.sweep.primal import stream_sites
from attrib.graph.constants import constant_attention, constant_mlp, constant_z, embeddings
from attrib.graph.latents import LatentsOf
from attrib.graph.neurons import NAME, Neurons, active_units, hidden_units, read_units, unit_constants, unit_sources
from attrib.graph.nodes import NodeKind, Nodes, NodeSet
from attrib.graph.options import Mlps
from attrib.graph.outputs import ReadOutput, as_logits_read, read_output
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model, embed
from attrib.passes.capture import capture
from attrib.passes.replacement import Cut, Replacement, put_together
from attrib.paths.cuts import nothing
from attrib.paths.ends import end_of
from attrib.paths.path import require_finite_ends
from attrib.paths.starts import latent_sources
from attrib.paths.targets import Read, read_site

FIRST = Site(0, "resid_pre")
"""Where the model brings its embeddings."""


class Part(NamedTuple):
    """The nodes of one set, and what they write."""

    set: NodeSet
    order: tuple[tuple[int, int], int]
    """The depth of the place that it belongs to, and its turn there: what the model brings, who reads that, who writes, who reads then."""
    sources: Sources
    writes: tuple[Site, ...]
    """Empty where all that it would write lies behind the highest target: its nodes are targets alone."""
    is_brought: bool = False
    dictionary: int | None = None
    """The number of the dictionary whose latents they are."""


class Column(NamedTuple):
    """A number of a target's own, and how it counts."""

    own: Float[Tensor, " targets"]
    importance: Float[Tensor, " targets"]
    kind: NodeKind


@dataclass(frozen=True)
class Opened:
    """A prompt's graph before its edges are known."""

    bundle: Bundle
    nodes: Nodes
    columns: tuple[Int[Tensor, " _"], ...]
    """The node of each column of each set of sources."""
    rows: tuple[Int[Tensor, " _"], ...]
    """The node of each row of each set of targets."""
    value: Float[Tensor, " nodes"]
    own: Float[Tensor, " nodes"]
    importance: Float[Tensor, " nodes"]
    """The last three are of targets, by their nodes; of others they mean nothing."""
    whole: "Opened | None" = None
    """All of the prompt, which is held beside, where these are some of its rows."""

    @cached_property
    def node_of_row(self) -> Int[Tensor, " rows"]:
        """The node of each row of the sweep, in the bundle's order."""
        of_set, place = self.bundle.order
        found = torch.empty_like(of_set)
        for number, nodes in enumerate(self.rows):
            chosen = of_set == number
            found[chosen] = nodes[place[chosen]]
        return found

    def only(self, nodes: Int[Tensor, " chosen"]) -> "Opened":
        """The same with the rows of some nodes."""
        rows = torch.isin(self.node_of_row, nodes).nonzero()[:, 0]
        chosen = tuple(of_set[torch.isin(of_set, nodes)] for of_set in self.rows)
        return replace(self, bundle=self.bundle.only(rows), rows=chosen, whole=self.whole or self)


@dataclass(frozen=True)
class GraphEnds:
    """What graphs of a call are made of. Dictionaries fit the model, and are in its precision."""

    model: Model
    dictionaries: tuple[Dictionary, ...]
    outputs: tuple[ReadOutput, ...]
    policy: Policy
    positions: Positions
    mlps: Mlps
    demean: bool
    skipped: int
    """How many first positions have no latents: what stands there is error alone."""
    neurons: tuple[Neurons, ...] = ()
    """MLPs whose own hidden units are latents."""

    def __post_init__(self) -> None:
        places = [*(each.writes for each in self.neurons), *map(place_of, self.replaced.written)]
        if twice := [site for number, site in enumerate(places) if site in places[:number]]:
            raise InputError(
                f"dictionaries: two of them write {twice[0]}, of which one is an MLP's own units; expected one. Leave one out."
            )

    @cached_property
    def replaced(self) -> Replacement:
        """The pass that has all dictionaries in it. Raises InputError where they do not go together."""
        return put_together(self.model, {f"dictionaries[{number}]": d for number, d in enumerate(self.dictionaries)}, self.policy)

    @cached_property
    def written(self) -> frozenset[Site]:
        """The places that dictionaries write, as `place_of` names them."""
        return frozenset(map(place_of, self.replaced.written)) | {each.writes for each in self.neurons}

    @cached_property
    def readers(self) -> tuple[Dictionary | Direction, ...]:
        """What reads latents, set by set: dictionaries, and what stands for MLPs' own units."""
        none = torch.zeros(self.model.config.d_model)
        return (*self.dictionaries, *(Direction(none, each.reads) for each in self.neurons))

    def _reader(self, what: ReadOutput) -> Dictionary | Logits:
        """What is read where an output is."""
        return self.readers[what.number] if isinstance(what, LatentsOf) else as_logits_read(what)

    @cached_property
    def sites(self) -> list[Site]:
        """Where each output is read. Raises InputError where it does not fit the model."""
        return [read_site(self.model, self._reader(what)) for what in self.outputs]

    @property
    def stops(self) -> list[Site]:
        """Where the rows of each dictionary's latents begin, and then those of each output: where they are read.

        In a parallel block too, where what an MLP reads could be read off the stream: the bias of its norm is a node there.
        """
        return [*self.reads, *self.sites]

    @property
    def n_latent_sets(self) -> int:
        """How many sets of targets are latents: those before the outputs."""
        return len(self.dictionaries) + len(self.neurons)

    @cached_property
    def reads(self) -> tuple[Site, ...]:
        """Where latents are read, set by set."""
        return (*(d.site for d in self.dictionaries), *(each.reads for each in self.neurons))

    @cached_property
    def stop(self) -> Site:
        """The highest of these."""
        return max(self.stops, key=lambda site: site.depth)

    @cached_property
    def layers(self) -> range:
        """The layers that are passed, as far as some of their components lie below the highest target."""
        return range(min(self.stop.layer + 1, self.model.config.n_layers))

    def is_leaf(self, layer: int) -> bool:
        """Whether what an MLP writes is a node of its own."""
        is_free = self.model.config.has_mlps and Site(layer, "mlp_out") not in self.written
        return is_free and (self.mlps == "leaf" or self.policy.mlp == "frozen") and self.is_below(Site(layer, "mlp_out"))

    def is_passed(self, layer: int) -> bool:
        """Whether derivatives pass an MLP."""
        is_free = self.model.config.has_mlps and Site(layer, "mlp_out") not in self.written
        return is_free and not self.is_leaf(layer) and self.is_below(Site(layer, "mlp_out"))

    def is_touched(self, site: Site) -> bool:
        """Whether dictionaries or outputs read or write a place, so that a component is not passed in one step there."""
        return place_of(site) in {*map(place_of, (*self.reads, *self.sites)), *self.written}

    def is_below(self, site: Site) -> bool:
        """Whether a place lies below the highest target, or is it."""
        return site.depth <= self.stop.depth

    @cached_property
    def held(self) -> frozenset[Site]:
        """The places at which something else than the model writes."""
        return self.written | {Site(layer, "mlp_out") for layer in self.layers if self.is_leaf(layer)}

    @cached_property
    def skips(self) -> list[int]:
        """Numbers of the dictionaries that derivatives pass, through their skip connections alone."""
        return [number for number, d in enumerate(self.dictionaries) if d.has_skip and self.is_below(d.site)]

    @cached_property
    def seen(self) -> set[Site]:
        """Where the model's own pass is looked at."""
        within = {Site(layer, "mlp_out") for layer in self.layers if self.is_leaf(layer)}
        within |= {Site(layer, "z") for layer in self.layers if self.model.config.post_norm}
        within = {site for site in within if self.is_below(site)}
        return {*stream_sites(self.model.config, FIRST, self.stop), *self.stops, *self.replaced.sites, *within}

    # -------------------------------------------------------------------------------------- one prompt

    @torch.no_grad()
    def open(self, tokens: Int[Tensor, " positions"]) -> Opened:
        """One prompt's nodes and targets, at the model's own pass.

        Raises:
            NotFiniteError: where a place, a pre-activation or a target is NaN or infinite; minus infinity may be a logit.
        """
        seen = capture(self.model, tokens, self.seen)
        require_finite_ends(self.model, tokens, seen, {*self.stops})
        leaves = self.replaced.leaves_of(embed(self.model, tokens), seen)
        cuts = [self._without_first(cut) for cut in leaves.cuts]
        errors = self._errors(leaves.errors, leaves.cuts)
        parts = [*self._embedded(tokens), *self._constants(seen, len(tokens)), *self._latents(cuts, seen)]
        parts += self._left(errors, leaves.cuts, seen)
        units = []
        for number, each in enumerate(self.neurons):
            found, hidden = self._units(each, seen)
            parts += self._of_neurons(number, found, hidden)
            units.append(found)
            del hidden  # before the next is computed
        parts.sort(key=lambda part: part.order)
        ends, columns = _source_ends(parts)
        targets, own = self._targets([cut.latents for cut in cuts] + units, tokens, seen)
        return self._opened(tokens, seen, parts, (ends, columns), targets, own)

    def _opened(
        self,
        tokens: Tensor,
        seen: Mapping[Site, Tensor],
        parts: Sequence[Part],
        sources: tuple[tuple[SourceEnd, ...], tuple[Tensor, ...]],
        targets: tuple[TargetEnd, ...],
        own: Sequence[Column],
    ) -> Opened:
        """All of it together, numbered."""
        outputs = targets[self.n_latent_sets :]
        tables = [part.set for part in parts]
        for end, site, column in zip(outputs, self.sites, own[self.n_latent_sets :], strict=True):
            tables.append(NodeSet(column.kind, str(site), "", len(end.targets.position)))
        columns = [[*(part.sources[field] for part in parts), *(end.targets[field] for end in outputs)] for field in range(3)]
        labels = token_strings(self.model, tokens) + tuple(label for end in outputs for label in end.labels)
        position, latent, activation = (torch.cat([each.to(column[0]) for each in column]).cpu() for column in columns)
        nodes = Nodes(tuple(tables), position, latent, activation, labels)
        set_of = {part.dictionary: number for number, part in enumerate(parts)} | {
            number: len(parts) + number - self.n_latent_sets for number in range(self.n_latent_sets, len(targets))
        }
        rows = [torch.arange(nodes.first[at := set_of[number]], nodes.first[at + 1]) for number in range(len(targets))]
        value, constant, importance = (torch.zeros(len(nodes), dtype=activation.dtype) for _ in range(3))
        for node, end, column in zip(rows, targets, own, strict=True):
            value[node], constant[node], importance[node] = end.targets.value.cpu(), column.own.cpu(), column.importance.cpu()
        streams = {site: seen[site] for site in stream_sites(self.model.config, FIRST, self.stop)}
        passing = (self.dictionaries[number] for number in self.skips)
        between = Between(self.held, tuple(Passing(d, seen[d.site], nothing(seen[d.site]), False) for d in passing))
        bundle = Bundle(self.model, self.policy, FIRST, self.stop, len(tokens), streams, sources[0], targets, between)
        return Opened(bundle, nodes, sources[1], tuple(rows), value, constant, importance)

    def _without_first(self, cut: Cut) -> Cut:
        """The latents of positions that have some."""
        if not self.skipped:
            return cut
        chosen = cut.latents.position >= self.skipped
        return cut._replace(latents=SparseLatents(*(column[chosen] for column in cut.latents)))

    def _errors(self, errors: Sequence[Tensor], cuts: Sequence[Cut]) -> dict[Site, Float[Tensor, "positions _"]]:
        """What is left at each written place beside latents, biases and skip connections."""
        found = {place_of(site): error for site, error in zip(self.replaced.written, errors, strict=True)}
        for d, cut in zip(self.dictionaries, cuts, strict=True):
            chosen = cut.latents.position < self.skipped
            position, latent, value = (column[chosen] for column in cut.latents)
            rows = value[:, None] * d.decoder_rows(latent) * cut.scale.scale.index_select(0, position)
            for site, part in split(d, rows).items():
                found[place_of(site)] = found[place_of(site)].index_add(0, position, part.to(value.dtype))
        return found

    # ----------------------------------------------------------------------------------------- nodes

    def _embedded(self, tokens: Tensor) -> Iterator[Part]:
        """The embeddings of tokens, and of positions where the model has learned them."""
        token, position = embeddings(self.model, tokens)
        yield _part("token", "embed", ((0, -2), 0), token, (FIRST,), is_brought=True, latent=tokens)
        if position is not None:
            numbers = torch.arange(len(tokens), device=tokens.device)
            yield _part("position", "pos_embed", ((0, -1), 0), position, (FIRST,), is_brought=True, latent=numbers)

    def _constants(self, seen: Mapping[Site, Tensor], count: int) -> Iterator[Part]:
        """What the model's components add of their own."""
        model = self.model
        for layer in self.layers:
            z, out, read, written = (Site(layer, kind) for kind in ("z", "attn_out", "mlp_in", "mlp_out"))
            constant = constant_z(model, layer)
            if self.is_below(z) and self.is_touched(z):
                yield self._bias(z, constant.expand(count, -1))
            if self.is_below(out):
                true = seen[z] if model.config.post_norm else constant.new_zeros(count, len(constant))
                through = torch.zeros_like(constant) if self.is_touched(z) else constant
                yield self._bias(out, constant_attention(model, layer, true, through))
            bias, is_apart = model.params.blocks[layer].norm_2.bias, self.is_touched(read)
            if model.config.pre_norm and is_apart and self.is_below(read):
                yield self._bias(read, bias.expand(count, -1))
            if self.is_passed(layer):
                x = seen[read]
                moving = x - bias if model.config.pre_norm and not is_apart else x
                missed = constant_mlp(model, layer, x, moving, self.policy)
                yield _part("mlp", str(written), (written.depth, 0), missed, (written,), is_brought=True)

    def _bias(self, site: Site, direction: Float[Tensor, "positions _"]) -> Part:
        return _part("bias", str(site), (site.depth, 0), direction, (site,), is_brought=True)

    def _latents(self, cuts: Sequence[Cut], seen: Mapping[Site, Tensor]) -> Iterator[Part]:
        """The active latents of every dictionary."""
        for number, (d, cut) in enumerate(zip(self.dictionaries, cuts, strict=True)):
            writes = tuple(sorted((at for at in d.writes if self.is_below(at)), key=lambda at: at.depth))
            turn = 1 if place_of(d.site) in map(place_of, d.writes) else 3
            if writes:
                sources = latent_sources(d, seen[d.site], writes, cut.latents)
            else:  # whose latents are targets alone
                sources = Sources(*cut.latents, seen[d.site].new_zeros(len(cut.latents.position), 0))
            table = NodeSet("latent", str(d.site), d.name, len(sources.position))
            yield Part(table, (d.site.depth, turn), sources, writes, dictionary=number)

    def _left(self, errors: Mapping[Site, Tensor], cuts: Sequence[Cut], seen: Mapping[Site, Tensor]) -> Iterator[Part]:
        """What stands at written places beside latents: errors, and what dictionaries add of their own; and MLPs that are leaves."""
        own = {site: torch.zeros_like(error) for site, error in errors.items()}
        for d, cut in zip(self.dictionaries, cuts, strict=True):
            none = nothing(seen[d.site])
            for site, part in split(d, decode_at(d, none.value, none.position, none.latent, cut.scale)).items():
                own[place_of(site)] = own[place_of(site)] + part
        for site, error in errors.items():
            if self.is_below(site):
                yield _part("error", str(site), (site.depth, 2), error, (site,))
                yield _part("bias", str(site), (site.depth, 2), own[site], (site,))
        for layer in self.layers:
            if self.is_leaf(layer):
                site = Site(layer, "mlp_out")
                yield _part("mlp", str(site), (site.depth, 2), seen[site], (site,))

    def _units(self, what: Neurons, seen: Mapping[Site, Tensor]) -> tuple[SparseLatents, Float[Tensor, "positions d_mlp"]]:
        """The hidden units of an MLP that are nodes, and all of them."""
        hidden = hidden_units(self.model, what.layer, seen[what.reads])
        units = active_units(self.model, what, hidden)
        chosen = units.position >= self.skipped
        return SparseLatents(*(column[chosen] for column in units)), hidden

    def _of_neurons(self, number: int, units: SparseLatents, hidden: Float[Tensor, "positions d_mlp"]) -> Iterator[Part]:
        """What an MLP's units write, what the others do together, and what it adds of its own."""
        what = self.neurons[number]
        writes = (what.writes,) if self.is_below(what.writes) else ()
        if not writes:
            sources = Sources(*units, hidden.new_zeros(len(units.position), 0))
        else:
            sources = unit_sources(self.model, what, units, hidden)
            others, bias = unit_constants(self.model, what, units, hidden)
            yield _part("error", str(what.writes), (what.writes.depth, 2), others, writes)
            yield _part("bias", str(what.writes), (what.writes.depth, 2), bias, writes)
        table = NodeSet("latent", str(what.reads), NAME, len(units.position))
        yield Part(table, (what.reads.depth, 3), sources, writes, dictionary=len(self.dictionaries) + number)

    # --------------------------------------------------------------------------------------- targets

    def _targets(
        self, latents: Sequence[SparseLatents], tokens: Tensor, seen: Mapping[Site, Tensor]
    ) -> tuple[tuple[TargetEnd, ...], list[Column]]:
        """The rows of every dictionary's latents, and then those of every output."""
        ends, columns = [], []
        for number, (found, site) in enumerate(zip(latents, self.reads, strict=True)):
            end, own = self.latents_read(number, found, seen[site])
            ends.append(end)
            columns.append(Column(own, torch.zeros_like(own), "latent"))
        for what, site in zip(self.outputs, self.sites, strict=True):
            end, column = self._output_end(what, site, tokens, seen)
            ends.append(end)
            columns.append(column)
        return tuple(ends), columns

    def latents_read(
        self, number: int, latents: SparseLatents, x: Float[Tensor, "positions _"]
    ) -> tuple[TargetEnd, Float[Tensor, " targets"]]:
        """Rows of any latents of a set, active or not: of what their encoders read, with what each reads of its own.

        Args:
            latents: which, at which positions; their values are not looked at.
            x: the true value where they are read.
        """
        site = self.reads[number]
        is_own_place = number < len(self.dictionaries) and site in self.dictionaries[number].writes
        found = _in_runs(lambda run: self._run_read(number, run, x), latents)
        return TargetEnd(found[0], site, is_own_place, frozenset()), found[1]

    def _run_read(self, number: int, latents: SparseLatents, x: Float[Tensor, "positions _"]) -> tuple[Targets, Tensor]:
        """A run of them, and what each reads of its own."""
        if number < len(self.dictionaries):
            read = _read_again(self.dictionaries[number], latents)
        else:
            read = read_units(self.model, self.neurons[number - len(self.dictionaries)], latents, self.policy)
        return self._end(read, read, self.reads[number], x)

    def _output_end(self, what: ReadOutput, site: Site, tokens: Tensor, seen: Mapping[Site, Tensor]) -> tuple[TargetEnd, Column]:
        """An output as targets."""
        if isinstance(what, LatentsOf):
            chosen = sorted((position % len(tokens), latent) for position, latent in what.at)
            position, latent = torch.tensor(chosen, device=tokens.device).T
            end, own = self.latents_read(what.number, SparseLatents(position, latent, seen[site].new_zeros(len(chosen))), seen[site])
            labels = tuple(f"{what.label}[{number}]" for _, number in chosen)
            return end._replace(labels=labels), Column(own, torch.full_like(own, what.weight), "target")
        given, held = (self.model, what, tokens, seen[site], self.positions), self.policy._replace(norm="frozen")
        read, importance, is_logit = read_output(*given, self.policy, self.demean)
        again = read_output(*given, held, self.demean).read if self.policy.norm == "exact" else read
        targets, own = self._end(read, again, site, seen[site])
        end = TargetEnd(targets, site, False, frozenset(), read.labels, read.probability)
        return end, Column(own, importance, "logit" if is_logit else "target")

    def _end(self, read: Read, held: Read, site: Site, x: Tensor) -> tuple[Targets, Tensor]:
        """Targets, and what each reads with: its value less what it reads of the place where its row begins, all norms being held."""
        found = end_of(self.model, read, site, site, x, self.policy).targets
        linear = found
        if self.policy.norm == "exact":
            linear = end_of(self.model, held, site, site, x, self.policy._replace(norm="frozen")).targets
        return found, linear.value - (linear.cotangent * x.index_select(0, linear.position)).sum(-1)


READ_AT_ONCE = 4096
"""Targets that are read together: on the way to a cotangent there are several numbers for each of its own."""


def _in_runs(read: Callable[[SparseLatents], tuple[Targets, Tensor]], latents: SparseLatents) -> tuple[Targets, Tensor]:
    """Targets and what each reads of its own, read a run at a time; beside the whole there is one run of cotangents."""
    count = len(latents.latent)
    if count <= READ_AT_ONCE:
        return read(latents)
    parts, cotangent = [], latents.value.new_empty(0)
    for first in range(0, count, READ_AT_ONCE):
        targets, own = read(SparseLatents(*(column[first : first + READ_AT_ONCE] for column in latents)))
        if not first:
            cotangent = targets.cotangent.new_empty(count, targets.cotangent.shape[1])
        cotangent[first : first + len(own)] = targets.cotangent
        parts.append((targets.position, targets.latent, targets.value, own))
    position, latent, value, own = (torch.cat(column) for column in zip(*parts, strict=True))
    return Targets(position, latent, value, cotangent), own


def _read_again(d: Dictionary, latents: SparseLatents) -> Read:
    """Latents that have been found already."""

    def function(rows: Float[Tensor, "targets d_in"]) -> Float[Tensor, " targets"]:
        return encode_at(selected(d), rows, torch.arange(len(latents.latent), device=rows.device), latents.latent)

    return Read(latents.position, latents.latent, function)


def _part(
    kind: NodeKind,
    site: str,
    order: tuple[tuple[int, int], int],
    direction: Float[Tensor, "positions _"],
    writes: tuple[Site, ...],
    is_brought: bool = False,
    latent: Int[Tensor, " positions"] | None = None,
) -> Part:
    """A node for each position, which is there once."""
    every, ones = torch.arange(len(direction), device=direction.device), torch.ones_like(direction[:, 0])
    latent = torch.full_like(every, -1) if latent is None else latent
    return Part(NodeSet(kind, site, "", len(every)), order, Sources(every, latent, ones, direction), writes, is_brought)


def _source_ends(parts: list[Part]) -> tuple[tuple[SourceEnd, ...], tuple[Int[Tensor, " _"], ...]]:
    """Parts that write at the same places as one set, in order of position, and the node of each of its columns.

    Directions are the most of a prompt's nodes, and are held once: the parts give theirs away, set by set.
    """
    firsts = list(accumulate((part.set.size for part in parts), initial=0))
    groups: dict[tuple[tuple[Site, ...], bool], list[int]] = {}
    for number, part in enumerate(parts):
        if part.writes:
            groups.setdefault((tuple(map(place_of, part.writes)), part.is_brought), []).append(number)
    ends, columns = [], []
    for numbers in groups.values():
        one = parts[numbers[0]]
        node = torch.cat([torch.arange(firsts[number], firsts[number + 1]) for number in numbers])
        order = torch.cat([parts[number].sources.position for number in numbers]).argsort(stable=True)
        position, latent, value = (
            torch.cat([parts[number].sources[field] for number in numbers]).index_select(0, order) for field in range(3)
        )
        ends.append(SourceEnd(Sources(position, latent, value, _given_away(parts, numbers, order)), one.writes, one.is_brought))
        columns.append(node[order.cpu()])
    return tuple(ends), tuple(columns)


def _given_away(parts: list[Part], numbers: Sequence[int], order: Int[Tensor, " columns"]) -> Float[Tensor, "columns width"]:
    """The directions of some parts in this order; the parts have none afterwards."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)  # where each of the parts' columns goes
    found, first = parts[numbers[0]].sources.direction.new_empty(len(order), parts[numbers[0]].sources.direction.shape[1]), 0
    for number in numbers:
        rows = parts[number].sources.direction
        found.index_copy_(0, place[first : first + len(rows)], rows)
        first += len(rows)
        parts[number] = parts[number]._replace(sources=parts[number].sources._replace(direction=rows.new_empty(0, rows.shape[1])))
    return found
