"""A latent's section of a page: its numbers, charts, examples and tables, as HTML in which every string is text."""

from collections.abc import Iterable, Mapping
from html import escape
from itertools import groupby
from typing import Any

import numpy as np

from attrib.core.shown import harmless
from attrib.graph.ov import OVNorms
from attrib.graph.vocabulary import TokenWeights
from attrib.latents.banding import quantile_bands
from attrib.latents.labels import LONGEST as OF_A_LABEL
from attrib.latents.surveyed import Example, LatentSurvey
from attrib.view.highlighting import sequence, shown_token
from attrib.view.latent_pages.charts import heat_map, histogram, log_bins
from attrib.view.latent_pages.gathered import Gathered, Group, Table

HEADS = 6
"""Rows of a table of heads."""
CELLS = 200_000
"""Cells of all heat maps of a page: the heads of a large model, for many latents, are tables alone."""
LONGEST = 60
"""Characters of a label in a table of relatives, and in the index."""
_PARTS = {"reads": "Tokens read", "writes": "Logits", "heads before": "Heads that it reads", "heads behind": "Heads that read it"}


def anchor(group: int, latent: int) -> str:
    """The id of a latent's section."""
    return f"l{group}-{latent}"


class Sections:
    """Sections of a page's latents, and what they have in common."""

    def __init__(self, found: Gathered, *, examples: int, bands: int, per_band: int) -> None:
        self.found, self.examples, self.bands, self.per_band = found, examples, bands, per_band
        self.anchors = {(group.name, latent): anchor(at, latent) for at, group in enumerate(found.groups) for latent in group.latents}
        self.density = {group.name: log_bins(group.part.density) for group in found.groups if group.part is not None}
        cells = sum(
            len(group.latents) * norms.norm[0].numel()
            for group in found.groups
            if group.weights is not None
            for norms in (group.weights.heads_before, group.weights.heads_behind)
            if norms is not None
        )
        self.has_maps = cells <= CELLS

    def section(self, group: Group, at: int) -> str:
        """The latent at a place of a group."""
        latent = group.latents[at]
        labels = self.found.named(group.name, latent)
        called = "".join(f"<p>{_text(_cut(label.text, OF_A_LABEL))} <small>({_text(label.source)})</small></p>" for label in labels)
        link = (
            "" if group.link is None else f'<p><a href="{escape(group.link)}{latent}" rel="noreferrer" target="_blank">Neuronpedia</a></p>'
        )
        tables = "".join(_titled(table) for table in self.found.tables.get((group.name, latent), ()))
        return (
            f'<section id="{self.anchors[group.name, latent]}" aria-labelledby="{self.anchors[group.name, latent]}-name">'
            f'<h2 id="{self.anchors[group.name, latent]}-name">{latent} <small>{_text(group.name)}</small></h2>'
            f"{called}{link}{self._corpus(group.part, latent) if group.part else ''}"
            f'<div class="tables">{tables}{self._weights(group, at)}</div></section>'
        )

    # --------------------------------------------------------------------------------------- over a corpus

    def _corpus(self, part: LatentSurvey, latent: int) -> str:
        at = int(np.searchsorted(part.latents, latent))
        count, density = int(part.count[at]), float(part.density[at])
        facts: dict[str, object] = {
            "active": f"{density:.4%} of {part.places:,} places, in {int(part.distinct_prompts[at]):,} prompts",
            "log10 density": f"{np.log10(density):.2f}, {self._denser(part, density)}" if density else "never active in this corpus",
        }
        if count:
            facts["maximum, mean, deviation"] = f"{part.maximum[at]:.4g}, {part.mean[at]:.4g}, {part.std[at]:.4g}"
        if part.asked.score != "activation":
            facts["score"] = part.asked.score.replace("_", "-")
        charts = self._charts(part, latent, density) if count else ""
        return f"{_facts(facts)}{charts}{self._examples(part, latent) if count else ''}"

    @staticmethod
    def _denser(part: LatentSurvey, density: float) -> str:
        alive = part.density[part.density > 0]
        return f"denser than {(alive < density).mean():.0%} of the {len(alive):,} that are ever active"

    def _charts(self, part: LatentSurvey, latent: int, density: float) -> str:
        edges, counts = part.histogram(latent)
        bins = np.arange(len(counts) + 1)
        low, high = (f"{edge:.3g}" for edge in (edges[0], min(edges[-1], part.maximum[np.searchsorted(part.latents, latent)])))
        said = f"How many places have which score, from {low} to {high}, four bars to the octave"
        charts = _figure(histogram(bins, counts, said), "scores, by their logarithm", low, high)
        if density:
            places, how_many = self.density[part.asked.dictionary]
            ends = [f"10^{end:.1f}" for end in (places[0], places[-1])]
            said = f"How many latents have which density, from {ends[0]} to {ends[1]}; this one has 10^{np.log10(density):.2f}"
            charts += _figure(histogram(places, how_many, said, mark=float(np.log10(density))), "log10 density of all latents", *ends)
        return f'<div class="charts">{charts}</div>'

    def _examples(self, part: LatentSurvey, latent: int) -> str:
        top = part.top(latent)
        most = max((max(map(abs, one.values)) for one in top), default=None)
        found = f"<h3>Largest scores</h3>{_listed(top[: self.examples], most)}" if top and self.examples else ""
        if not self.bands:
            return found
        found += "<h3>All scores, by quantiles</h3>"
        for band in quantile_bands(part, latent, self.bands, examples=self.per_band):
            listed = _listed(sorted(band.examples, key=lambda one: -one.value), most) or "<p>No example of it was kept.</p>"
            said = f"{_bound(band.low)} to {_bound(band.high)}: {band.places:,} places, {band.share:.1%}"
            found += f"<details><summary>{said}</summary>{listed}</details>"
        return found

    # ----------------------------------------------------------------------------------------- by weights

    def _weights(self, group: Group, at: int) -> str:
        weights = group.weights
        if weights is None:
            return ""
        parts = []
        if weights.writes is not None and weights.spread is not None:
            spread = weights.spread
            said = "How many tokens have which logit weight, heights by their logarithm"
            edges, counts = spread.edges[at].double().numpy(), spread.count[at].numpy()
            chart = _figure(histogram(edges, counts, said, mark=0.0, log=True), "logit weights", f"{edges[0]:.3g}", f"{edges[-1]:.3g}")
            parts.append(_tokens("Logits", ("raised", "lowered"), weights.writes, at, weights.strings) + chart)
        if weights.reads is not None:
            through = "" if weights.reads_through is None else f" through attention of layer {weights.reads_through}"
            parts.append(_tokens(f"Tokens read{through}", ("most", "least"), weights.reads, at, weights.strings))
        for norms, title in ((weights.heads_before, "Heads that it reads"), (weights.heads_behind, "Heads that read it")):
            if norms is not None:
                parts.append(self._heads(norms, at, title))
        kin = weights.kin[weights.kin["latent"] == group.latents[at]]
        for name, title in (("parent", "Parents"), ("child", "Children")):
            some = kin[kin["side"] == name] if len(kin) else kin
            if len(some):
                parts.append(self._kin(some, title))
        return "".join(f"<div>{part}</div>" for part in parts)

    def _heads(self, norms: OVNorms, at: int, title: str) -> str:
        values = norms.norm[at].double().numpy()
        order = np.argsort(-values, axis=None, kind="stable")[:HEADS]
        rows = [
            (f"{int(norms.layer[row])}.{column}", f"{values[row, column]:.3g}")
            for row, column in zip(*np.unravel_index(order, values.shape), strict=True)
        ]
        first, last = int(norms.layer[0]), int(norms.layer[-1])
        where = f"layers {first} to {last} downwards, heads across"
        mapped = _figure(heat_map(values, f"{title}: norms, {where}"), where) if self.has_maps else ""
        return _titled(Table(title, ("layer.head", "norm"), rows)) + mapped

    def _kin(self, some: Any, title: str) -> str:
        has_expected = bool(some["attribution"].notna().any())
        rows = []
        for one in some.itertuples():
            labels = self.found.named(one.dictionary, int(one.relative))
            number = _Raw(_linked(self.anchors.get((one.dictionary, int(one.relative))), str(one.relative)))
            called = _cut(labels[0].text, LONGEST) if labels else ""
            expected = [_number(one.attribution)] if has_expected else []
            rows.append((number, _number(one.weight), *expected, called))
        found = ""
        for name, part in groupby(zip(some["dictionary"], rows, strict=True), key=lambda pair: pair[0]):
            head = ("latent", "weight", *(["× mean"] if has_expected else []), "label")
            found += _titled(Table(f"{title}, {name}", head, [row for _, row in part]))
        return found


def index_row(found: Gathered, group: Group, at: int, id: str) -> str:
    """A latent's line in the index, with the words by which it is found."""
    latent = group.latents[at]
    labels = [label.text for label in found.named(group.name, latent)]
    words = [str(latent), group.name, *labels]
    if group.weights is not None and group.weights.writes is not None:
        words += [group.weights.strings[token] for token in group.weights.writes.highest[at].tolist()]
    if group.part is not None:
        words += dict.fromkeys(one.token for one in group.part.top(latent))
    called = f" {_text(_cut(labels[0], LONGEST))}" if labels else ""
    found_by = _text(" ".join(_cut(word, LONGEST) for word in words))
    return f'<li data-of="{id}" data-words="{found_by}"><a href="#{id}">{latent}</a>{called}</li>'


def not_here(found: Gathered) -> list[str]:
    """What a page does not have, and what to give to have it."""
    said = []
    without = [group.name for group in found.groups if group.part is None]
    if without:
        how = "give a survey of it (survey=, --survey FILE), as `attrib latents survey` makes."
        said.append(f"Densities, examples and bands of {', '.join(without)}: {how}")
    if not found.has_model:
        said.append("Logits, tokens read, heads: give the model (model=, --model NAME).")
    elif unknown := [group.name for group in found.groups if group.dictionary is None]:
        said.append(
            f"Logits, tokens read, heads of {', '.join(unknown)}: give the dictionary (--dictionary NAME), which a survey does not hold."
        )
    if not (found.has_others and found.has_model):
        said.append("Parents and children: give the model, and other dictionaries (others=, --other NAME).")
    for group in found.groups:
        faults = {} if group.weights is None else group.weights.faults
        said += [f"{_PARTS.get(part, part)} of {group.name}: {reason}" for part, reason in faults.items()]
    return said


# ------------------------------------------------------------------------------------------------------- HTML


class _Raw(str):
    """What is HTML already."""


def _text(text: object) -> str:
    return escape(harmless(text))


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _bound(value: float) -> str:
    return f"{value:.3g}".replace("inf", "∞")


def _linked(id: str | None, text: str) -> str:
    return escape(text) if id is None else f'<a href="#{id}">{escape(text)}</a>'


def _facts(facts: Mapping[str, object]) -> str:
    return f"<dl>{''.join(f'<dt>{_text(name)}</dt><dd>{_text(value)}</dd>' for name, value in facts.items())}</dl>"


def _figure(chart: str, caption: str, low: str = "", high: str = "") -> str:
    ends = f'<span class="ends"><span>{_text(low)}</span><span>{_text(high)}</span></span>' if low or high else ""
    return f"<figure>{chart}{ends}<figcaption>{_text(caption)}</figcaption></figure>"


def _listed(examples: Iterable[Example], most: float | None) -> str:
    rows = "".join(
        f"<li><b>{one.value:.3g}</b> <small>{one.prompt}:{one.position}</small> "
        f'<span class="tokens">{sequence(one.tokens, one.values, most, one.at)}</span></li>'
        for one in examples
    )
    return f'<ol class="examples">{rows}</ol>' if rows else ""


def _tokens(title: str, names: tuple[str, str], weights: TokenWeights, at: int, strings: Mapping[int, str]) -> str:
    ends = (weights.highest, weights.highest_weight), (weights.lowest, weights.lowest_weight)
    columns = [
        [
            (_Raw(f"<code>{shown_token(repr(strings[token]))}</code>"), _number(weight))
            for token, weight in zip(ids[at].tolist(), values[at].tolist(), strict=True)
        ]
        for ids, values in ends
    ]
    rows = [(*high, *low) for high, low in zip(*columns, strict=True)]
    return _titled(Table(title, (names[0], "weight", names[1], "weight"), rows))


def _titled(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.head)
    cells = "".join(
        f"<tr>{''.join(f'<td>{cell if isinstance(cell, _Raw) else _text(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    return f"<table><caption>{_text(table.title)}</caption><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>"
