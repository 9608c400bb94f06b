"""Interventions on the sources of stored edges, and what they do to the targets.

A step s takes a source from its activation a to a (1 ± s), or, where s = 1, to nothing. What is reported is the change of the target for
the whole of the source, which an attribution predicts:

    measured = (f(a (1 + s)) - f(a (1 - s))) / 2s    for s < 1,        f(a) - f(0)    for s = 1

Everything that the edges held is held: other latents of a direct cut, errors, and what the policy freezes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.causal.nudged import Nudged
from attrib.causal.readings import Read, Reading
from attrib.core.edges import Edges, Nodes
from attrib.core.types import Effect, ErrorAt, Policy, Site
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model, place
from attrib.paths.path import start_site

ROWS = 512
"""Positions of all passes that run side by side."""


class Measured(NamedTuple):
    """One step of some edges of a prompt."""

    step: float
    entry: Int[Tensor, " edges"]
    measured: Float[Tensor, " edges"]
    silent: Bool[Tensor, " edges"]
    """Which targets, being latents, are inactive in a pass."""
    activated: int
    """How many other latents of the target's dictionary became active, in all passes of the step."""
    lost: list[str]
    """Of edges without a number, the place at which the source's pass leaves what the dtype holds, as `Nudged.lost` has it; else ""."""


@dataclass(frozen=True)
class Question:
    """What edges are edges of: their ends in the precision of the measurement, and what is held.

    Args:
        source: a dictionary, an error, or None for the tokens' scales.
    """

    model: Model
    source: Dictionary | ErrorAt | None
    reading: Reading
    cuts: tuple[Dictionary, ...]
    effect: Effect
    policy: Policy
    error: bool

    def opened(self, tokens: Int[Tensor, " positions"]) -> Nudged:
        """The pass of a prompt."""
        source = self.source if isinstance(self.source, Dictionary) else None
        start = Site.parse(self.source.site) if isinstance(self.source, ErrorAt) else start_site(source)
        return Nudged(self.model, tokens, place(self.model, start), source, self.cuts, self.effect, self.policy, self.error)


def measure(question: Question, edges: Edges, entry: Int[Tensor, " edges"], steps: Sequence[float]) -> list[Measured]:
    """Intervene on the sources of some of one prompt's edges, and measure these.

    A pass of one source reads all targets of the prompt, so all of its edges are measured at the cost of one.

    Args:
        entry: the numbers of the edges, ascending.
    """
    chosen, of_source = edges.indices[entry].unique(return_inverse=True)
    opened = question.opened(edges.prompts.ids)
    units = _Units(question, opened, edges.sources, chosen)
    targets = edges.targets
    primal = question.reading.read(opened, {}, targets.position, targets.latent)
    row, found = edges.row[entry], list[Measured]()
    for step in steps:
        below = _read(units, -step, question, targets)
        above = primal if step == 1 else _read(units, step, question, targets)
        change = (above.value - below.value) / (1 if step == 1 else 2 * step)
        silent = (below.silent | above.silent.expand_as(below.silent))[of_source, row]
        activated = int(below.activated.sum()) + (0 if step == 1 else int(above.activated.sum()))
        measured = change[of_source, row]
        lost = _lost(units, of_source[~measured.isfinite()].unique(), step)
        told = ["" if known else lost[number] for number, known in zip(of_source.tolist(), measured.isfinite().tolist(), strict=True)]
        found.append(Measured(step, entry, measured, silent, activated, told))
    return found


def _lost(units: "_Units", sources: Int[Tensor, " sources"], step: float) -> dict[int, str]:
    """By the number of each of some sources, where its passes first have what is no number; "" where that is beyond all places."""
    found = dict[int, str]()
    for some in _side_by_side(units, sources):
        for factor in (-step,) if step == 1 else (-step, step):
            places = units.opened.lost(*units.change(some, factor), len(some))
            for number, at in zip(some.tolist(), places, strict=True):
                found[number] = found.get(number) or at
    return found


def _side_by_side(units: "_Units", sources: Int[Tensor, " sources"]) -> Sequence[Int[Tensor, " some"]]:
    return sources.split(max(1, ROWS // max(1, len(units.opened.tokens)))) if len(sources) else ()


def _read(units: "_Units", factor: float, question: Question, targets: Nodes) -> Read:
    """All targets, by source, where each is changed alone by `factor` of its activation."""
    parts = []
    for some in _side_by_side(units, torch.arange(len(units))):
        change, scaled = units.change(some, factor)
        parts.append(question.reading.read(units.opened, change, targets.position, targets.latent, scaled))
    return Read(*(torch.cat(column) for column in zip(*parts, strict=True)))


class _Units:
    """Chosen sources, and what the whole of each puts at its position of the places that it writes."""

    def __init__(self, question: Question, opened: Nudged, nodes: Nodes, chosen: Int[Tensor, " sources"]) -> None:
        model, source = question.model, question.source
        self.opened, self.position = opened, nodes.position[chosen]
        self.is_scaled = source is None
        latent, value = nodes.latent[chosen], nodes.activation[chosen].to(model.dtype)
        if source is None:
            self.whole = {opened.start: opened.true[opened.start].index_select(0, self.position)}
        elif isinstance(source, ErrorAt):
            self.whole = {opened.start: opened.error_at(opened.start).index_select(0, self.position)}
        else:
            written = opened.written_by_latents(source, self.position, latent)
            self.whole = {at: rows * value[:, None] for at, rows in written.items()}

    def __len__(self) -> int:
        return len(self.position)

    def change(self, some: Int[Tensor, " passes"], factor: float) -> tuple[dict[Site, Tensor], Tensor | None]:
        """What stands more in each of some passes; for tokens, what stands where they begin."""
        length, made = len(self.opened.tokens), {}
        for at, rows in self.whole.items():
            added = rows.new_zeros(len(some), length, rows.shape[1])
            added[torch.arange(len(some)), self.position[some]] = factor * rows[some]
            made[at] = added
        if self.is_scaled:
            return {}, self.opened.true[self.opened.start] + made[self.opened.start]
        return made, None
