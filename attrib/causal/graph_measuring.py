"""Interventions on the nodes of an attribution graph: what a node writes is written more or less, and every row is read again.

All dictionaries are put in and stand still, as the graph has it, so a change passes no latent; what the policy freezes is held. A latent's
row is its pre-activation, as in the graph, which has no gate to fall silent by.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.causal.nudged import Nudged
from attrib.core.types import InputError, Policy, Site, SparseLatents
from attrib.dictionaries.dictionary import encode_at, selected
from attrib.engine.bundle import TargetEnd
from attrib.engine.precision import precision_of
from attrib.graph.again import places_among
from attrib.graph.ends import GraphEnds, Opened
from attrib.graph.given import ends_of
from attrib.graph.graph import Graph
from attrib.graph.latents import Given, LatentsOf
from attrib.graph.neurons import read_units
from attrib.graph.options import GraphAsked
from attrib.graph.outputs import read_output
from attrib.models.transformer import Model, place

ROWS = 512
"""Positions of all passes that run side by side."""
FIRST = Site(0, "resid_pre")

Rows = Callable[[Float[Tensor, "rows _"]], Float[Tensor, " rows"]]


class MeasuredEdges(NamedTuple):
    """One step of some edges of a graph."""

    step: float
    entry: Int[Tensor, " edges"]
    measured: Float[Tensor, " edges"]
    lost: list[str]
    """Of edges without a number, the place at which the source's pass leaves what the dtype holds, as `Nudged.lost` has it; else ""."""


@dataclass(frozen=True)
class GraphQuestion:
    """A graph's nodes and rows, opened again in the precision of the measurement."""

    graph: Graph
    ends: GraphEnds
    opened: Opened
    place: Int[Tensor, " nodes"]
    """The number of each of the graph's nodes among those that were opened, or -1."""

    @classmethod
    def of(cls, graph: Graph, model: Model, given: Sequence[Given], targets: Any) -> "GraphQuestion":
        """Open it.

        Args:
            model: in the precision of the measurement.
            targets: what the graph was built for.

        Raises:
            InputError: where its nodes are not those of its prompt.
        """
        call: Any = graph.call
        positions = call["positions"]
        asked = GraphAsked(
            targets=targets, policy=Policy(**call["policy"]), mlps=call["mlps"], demean=call["demean"],
            skip_positions=call["skip_positions"], positions=tuple(positions) if isinstance(positions, list) else positions,
        )  # fmt: skip
        ends = ends_of(model, given, asked, precision_of(model, None), [graph.tokens])
        opened = ends.open(graph.tokens)
        return cls(graph, ends, opened, places_among(graph.nodes, opened.nodes))

    @property
    def measurable(self) -> Bool[Tensor, " edges"]:
        """The graph's edges whose sources can be changed and whose targets can be read."""
        return (self.place[self.graph.indices] >= 0) & (self.place[self.graph.target] >= 0)

    def measure(
        self, entry: Int[Tensor, " edges"], steps: Sequence[float], done: Callable[[int], None] = lambda _: None
    ) -> list[MeasuredEdges]:
        """Intervene on the sources of some of the graph's edges, by their numbers, ascending, and measure these.

        Args:
            done: told how many more edges are measured, after each pass.
        """
        chosen, which = self.graph.indices[entry].unique(return_inverse=True)
        node = self.place[self.graph.target[entry]]
        factors = [factor for step in steps for factor in _factors(step)]
        found, primal = list[MeasuredEdges](), self._primal[node]
        values = dict(zip(factors, self._values(chosen, which, node, factors, done), strict=True))
        for step in steps:
            below, above = values[-step], values.get(step, primal)
            measured = (above - below) / (1 if step == 1 else 2 * step)
            lost = self._lost(chosen[which[~measured.isfinite()].unique()], step)
            nodes = chosen[which].tolist()
            told = ["" if known else lost[source] for source, known in zip(nodes, measured.isfinite().tolist(), strict=True)]
            found.append(MeasuredEdges(step, entry, measured, told))
        return found

    def _values(
        self,
        chosen: Int[Tensor, " passes"],
        which: Int[Tensor, " edges"],
        node: Int[Tensor, " edges"],
        factors: Sequence[float],
        done: Callable[[int], None],
    ) -> Float[Tensor, "factors edges"]:
        """The row of each edge's target, where the source, one of those that are chosen, is changed alone by each factor of what it writes.

        All edges of a source share its passes, and all factors go side by side, since a pass of few positions costs the reading of the
        model's weights.
        """
        value = torch.zeros(len(factors), len(which), dtype=self.ends.model.dtype)
        for end, some, columns in self._by_end(chosen, len(factors)):
            place = torch.full((len(chosen),), -1).index_put((some,), torch.arange(len(some)))[which]
            own = (place >= 0).nonzero()[:, 0]
            value[:, own] = self._read(end, columns, factors)[:, place[own], node[own]]
            done(len(own))
        return value

    @cached_property
    def _primal(self) -> Float[Tensor, " nodes"]:
        """Every row, by its node among all, where nothing is changed."""
        end = next(each for each in self.opened.bundle.sources if len(each.sources.position))
        return self._read(end, torch.zeros(1, dtype=torch.int64), (0.0,))[0, 0]

    def _lost(self, chosen: Int[Tensor, " passes"], step: float) -> dict[int, str]:
        """By each of some nodes, where its passes first have what is no number; "" where that is beyond all places."""
        found, factors = dict[int, str](), _factors(step)
        for end, some, columns in self._by_end(chosen, len(factors)):
            places = self._pass_of(end).lost(*self._changed(end, columns, factors), len(factors) * len(columns))
            for node, at in zip(len(factors) * chosen[some].tolist(), places, strict=True):
                found[node] = found.get(node) or at
        return found

    def _by_end(self, chosen: Int[Tensor, " passes"], factors: int) -> Iterator[tuple[Any, Int[Tensor, " some"], Int[Tensor, " some"]]]:
        """The nodes that are sources of each end, some at a time: which of those that are chosen, and their numbers among the end's.

        Args:
            factors: how many passes go side by side for each of them.
        """
        here = self.place[chosen]
        for end, columns in zip(self.opened.bundle.sources, self.opened.columns, strict=True):
            where = torch.full((len(self.opened.nodes),), -1).index_put((columns,), torch.arange(len(columns)))[here]
            for some in (where >= 0).nonzero()[:, 0].split(max(1, ROWS // (len(self.graph.tokens) * factors))):
                if len(some):
                    yield end, some, where[some]

    def _changed(self, end: Any, columns: Int[Tensor, " some"], factors: Sequence[float]) -> tuple[dict[Site, Tensor], Tensor | None]:
        """What stands more in the passes of some nodes, by one factor behind those by another; for what is brought, what stands where
        they begin."""
        model, tokens = self.ends.model, self.graph.tokens
        places = [place(model, site) for site in end.writes]
        written = end.sources.direction[columns] * end.sources.value[columns, None]
        position, rows = end.sources.position[columns].repeat(len(factors)), torch.cat([written * factor for factor in factors])
        change = {}
        for at, part in zip(places, rows.chunk(len(places), 1), strict=True):
            change[at] = part.new_zeros(len(rows), len(tokens), part.shape[1])
            change[at][torch.arange(len(rows)), position] = part
        if end.is_brought:
            return {}, self._pass(places[0]).true[places[0]] + change[places[0]]
        return change, None

    def _pass_of(self, end: Any) -> Nudged:
        return self._pass(place(self.ends.model, end.writes[0]))

    def _read(self, end: Any, columns: Int[Tensor, " some"], factors: Sequence[float]) -> Float[Tensor, "factors some nodes"]:
        """Every row, by its node among all, where each of some nodes is changed alone by each factor of what it writes."""
        model, pass_, passes = self.ends.model, self._pass_of(end), len(factors) * len(columns)
        change, scaled = self._changed(end, columns, factors)
        value = torch.zeros(passes, len(self.opened.nodes), dtype=model.dtype)
        targets = list(zip(self.opened.bundle.targets, self.opened.rows, self._readers, strict=True))
        for is_below in (True, False):
            read = [each for each in targets if each[0].stops_below is is_below]
            sites = {each[0].stop for each in read}
            reached = {site for site in sites if place(model, site).depth >= pass_.start.depth}
            found = pass_.values(change, reached, scaled, brought=is_below) if reached else {}
            for target, nodes, function in read:
                if target.stop in found:
                    x = found[target.stop].index_select(1, target.targets.position)
                    value[:, nodes] = function(x.flatten(0, 1)).view(passes, -1)
                else:
                    value[:, nodes] = target.targets.value
        return value.unflatten(0, (len(factors), -1))

    def _pass(self, start: Site) -> Nudged:
        """The pass from a place on. What stands truly and what is held is found once, by the pass from the first place."""
        if start not in self._passes:
            self._passes[start] = replace(self._whole, start=start, whole=self._whole)
        return self._passes[start]

    @cached_property
    def _whole(self) -> Nudged:
        ends = self.ends
        units = frozenset(each.writes for each in ends.neurons)
        stands = units | {Site(layer, "mlp_out") for layer in ends.layers if ends.is_leaf(layer)}
        begins = frozenset(place(ends.model, end.writes[0]) for end in self.opened.bundle.sources)
        return Nudged(ends.model, self.graph.tokens, FIRST, None, ends.dictionaries, "direct", ends.policy, stands=stands, also=begins)

    @cached_property
    def _passes(self) -> dict[Site, Nudged]:
        return {FIRST: self._whole}

    @cached_property
    def _readers(self) -> list[Callable[[Tensor], Tensor]]:
        """What each set of targets reads of its rows, one pass's behind another's."""
        ends, found = self.ends, []
        seen = {end.stop: self._pass(FIRST).primal(end.stop) for end in self.opened.bundle.targets}
        for number, end in enumerate(self.opened.bundle.targets):
            what = None if number < ends.n_latent_sets else ends.outputs[number - ends.n_latent_sets]
            if what is None or isinstance(what, LatentsOf):
                found.append(self._latents(number if what is None else what.number, end))
            elif ends.policy.norm == "frozen":
                found.append(_linear(end, seen[end.stop]))
            else:
                tokens = self.graph.tokens
                read = read_output(ends.model, what, tokens, seen[end.stop], ends.positions, ends.policy, ends.demean).read
                found.append(_by_pass(read.function, len(end.targets.position)))
        return found

    def _latents(self, number: int, end: TargetEnd) -> Callable[[Tensor], Tensor]:
        ends = self.ends
        if number < len(ends.dictionaries):
            d = selected(ends.dictionaries[number])

            def encoded(rows: Tensor) -> Tensor:
                latent = end.targets.latent.repeat(len(rows) // max(1, len(end.targets.latent)))
                return encode_at(d, rows, torch.arange(len(rows)), latent)

            return encoded
        what = ends.neurons[number - len(ends.dictionaries)]
        read = read_units(ends.model, what, SparseLatents(*end.targets[:3]))
        return _by_pass(read.function, len(end.targets.position))


def _factors(step: float) -> tuple[float, ...]:
    """By how much of what it writes a source is changed for a step: down and up, and where it is left out down alone."""
    return (-step,) if step == 1 else (-step, step)


def _linear(end: TargetEnd, x: Float[Tensor, "positions _"]) -> Callable[[Tensor], Tensor]:
    """A target that reads with a norm held is linear in its row."""
    targets, true = end.targets, x.index_select(0, end.targets.position)

    def function(rows: Tensor) -> Tensor:
        moved = rows.view(-1, *true.shape) - true
        return (targets.value + (moved * targets.cotangent).sum(-1)).flatten()

    return function


def _by_pass(function: Rows, count: int) -> Callable[[Tensor], Tensor]:
    """A function of one pass's rows, of those of several."""
    return lambda rows: torch.cat([function(some) for some in rows.split(count)]) if len(rows) else rows.new_zeros(0)


def check_graph(graph: Graph) -> Mapping[str, Any]:
    """The call of a graph. Raises InputError where it does not say how it was built, or has heads as nodes."""
    if graph.call.get("kind") != "graph":
        raise InputError("graph: does not say how it was built; expected one that attrib.graph.build made.")
    if len(graph.nodes.of_kind("head")):
        raise InputError("graph: has heads as nodes, which no pass can change alone; give the graph that `with_heads` was given.")
    if not bool(graph.weight.isfinite().all()):
        raise InputError("graph: a weight is NaN or infinite; `attrib verify-file` says what is wrong with a file.")
    return graph.call
