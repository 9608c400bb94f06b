"""What a page of latents is made of: of each dictionary what is known of it, and which of its latents are shown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attrib.adapters.given import as_dictionary
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.metadata import metadata_of
from attrib.graph.stream import chosen_latents
from attrib.latents.files import open as open_survey
from attrib.latents.labels import Label, Labels, token_label
from attrib.latents.links import latents_at
from attrib.latents.surveyed import LatentSurvey, Survey
from attrib.models.transformer import Model
from attrib.view.latent_pages.weighed import Weighed, weighed

MOST = 2_000
"""Latents of a page."""

Row = tuple[object, ...]


@dataclass(frozen=True)
class Table:
    """Something more that is said of a latent."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Group:
    """A dictionary and those of its latents that are shown."""

    name: str
    site: str
    latents: tuple[int, ...]
    d_sae: int | None = None
    dictionary: Dictionary | None = None
    part: LatentSurvey | None = None
    link: str | None = None
    """The address of its latents up to their numbers."""
    weights: Weighed | None = None


@dataclass(frozen=True)
class Gathered:
    """All of a page."""

    groups: tuple[Group, ...]
    parts: Mapping[str, LatentSurvey] = field(default_factory=dict)
    """Surveys by the dictionary's name: of those that are shown and of their relatives."""
    labels: Labels = Labels(())  # noqa: RUF009  # it is frozen
    tables: Mapping[tuple[str, int], Sequence[Table]] = field(default_factory=dict)
    has_model: bool = False
    has_others: bool = False

    def named(self, name: str, latent: int) -> list[Label]:
        """What a latent is called: by the labels that were given, else by the tokens of its largest scores where those are known."""
        given = self.labels.of(name, latent)
        part = self.parts.get(name)
        if given or part is None or not np.isin(latent, part.latents):
            return given
        made = token_label(part, latent)
        return [made] if made else []


def groups_of(of: Any, latents: Any, survey: Survey | LatentSurvey | None) -> list[Group]:
    """The dictionaries and latents that are asked for, each with the survey of it where there is one.

    Raises:
        InputError: for what names no dictionary and no survey, no latents or too many, and a survey that has none of these dictionaries.
    """
    pairs = [(of, latents)] if latents is not None or not _is_list(of) else list(of)
    if not pairs or not all(isinstance(pair, Group) or (isinstance(pair, tuple | list) and len(pair) == 2) for pair in pairs):
        raise InputError("of: no list of (dictionary, latents); expected such pairs, or a dictionary with its latents beside it.")
    parts = by_hash(survey)
    found = [pair if isinstance(pair, Group) else group_of(pair[0], pair[1], parts, survey) for pair in pairs]
    if survey is not None and not any(group.part for group in found):
        there = ", ".join(part.asked.dictionary for part in _parts(survey))
        raise InputError(f"survey: of {there}; expected one of {', '.join(group.name for group in found)}.")
    if (count := sum(len(group.latents) for group in found)) > MOST:
        raise InputError(f"latents: {count:,}; expected at most {MOST:,} for one page. Choose fewer, or write several pages.")
    if len({group.name for group in found}) < len(found):
        raise InputError("of: two dictionaries of one name; expected different ones. Give the latents of one together.")
    return found


def _is_list(of: Any) -> bool:
    return isinstance(of, Iterable) and not isinstance(of, str | Path | Survey) and not hasattr(of, "cfg")


def _parts(survey: Survey | LatentSurvey | None) -> Sequence[LatentSurvey]:
    return () if survey is None else survey.parts if isinstance(survey, Survey) else (survey,)


def by_hash(survey: Survey | LatentSurvey | None) -> dict[str, LatentSurvey]:
    """The parts of a survey by the hash of their dictionary."""
    return {part.asked.dictionary_sha256: part for part in _parts(survey)}


def group_of(given: Any, latents: Any, parts: Mapping[str, LatentSurvey], survey: Survey | LatentSurvey | None = None) -> Group:
    """A dictionary, or the survey of one, with some of its latents; of None, the only one of the survey. Raises InputError."""
    if given is None and survey is not None:
        given = survey.of() if isinstance(survey, Survey) else survey
    if isinstance(given, Survey):
        given = given.of()
    if isinstance(given, LatentSurvey):
        asked, found = given.asked, metadata_of(given.asked.details).neuronpedia_id
        chosen = _latents(latents, asked.d_sae, given.latents)
        return Group(asked.dictionary, asked.site, chosen, asked.d_sae, part=given, link=None if found is None else latents_at(found))
    d = as_dictionary(given, "of")
    found, part = d.config.metadata.neuronpedia_id, parts.get(d.fingerprint)
    name = d.name if part is None else part.asked.dictionary
    chosen = _latents(latents, d.d_sae, None if part is None else part.latents)
    writes = "" if d.writes == (d.site,) else f", writes {', '.join(map(str, d.writes))}"
    return Group(name, f"{d.site}{writes}", chosen, d.d_sae, d, part, None if found is None else latents_at(found))


def _latents(given: Any, count: int, surveyed: np.ndarray | None) -> tuple[int, ...]:
    """Each once, in the order given."""
    if given is None:
        raise InputError("latents: none; expected numbers, a slice, or a mask.")
    chosen = tuple(dict.fromkeys(chosen_latents(given, count, "latents").tolist()))
    if surveyed is not None and (missing := [latent for latent in chosen if not np.isin(latent, surveyed)]):
        raise InputError(f"latents: {missing[0]} is not one of the {len(surveyed):,} that were surveyed; expected one of these.")
    return chosen


def as_survey(given: Any) -> Survey | LatentSurvey | None:
    """A survey, or the file of one. Raises InputError."""
    if given is None or isinstance(given, Survey | LatentSurvey):
        return given
    if isinstance(given, str | Path):
        if not Path(given).exists():
            raise InputError(f"survey: {given} does not exist; expected a survey, or its file.")
        return open_survey(given)
    raise InputError(f"survey: a {type(given).__name__}; expected a survey, or its file.")


def gathered(
    groups: Sequence[Group], model: Model | None, survey: Survey | LatentSurvey | None, others: Sequence[Dictionary], labels: Labels | None,
    links: Mapping[str, str], tables: Mapping[tuple[str, int], Sequence[Table]], k: int, budget: int,
) -> Gathered:  # fmt: skip
    """All that is known of the groups' latents. Raises InputError and BudgetError as what computes it does."""
    parts = {part.asked.dictionary: part for part in _parts(survey)}
    parts |= {group.name: group.part for group in groups if group.part is not None}
    surveyed = {part.asked.dictionary_sha256: part for part in parts.values()}
    shown, expected = [], {}
    for other in others:
        if (part := surveyed.get(other.fingerprint)) is not None:
            parts.setdefault(other.name, part)
            if part.asked.score == "activation" and part.places and len(part.latents) == part.asked.d_sae:
                expected[other.name] = part.sum / part.places
    for group in groups:
        weights = None
        if model is not None and group.dictionary is not None:
            kin = [other for other in others if other.fingerprint != group.dictionary.fingerprint]
            if len(groups) == 1 and len(kin) < len(others):  # of several dictionaries each may be another's relative
                raise InputError(f"others: {group.name} is the dictionary itself; expected earlier or later ones.")
            weights = weighed(model, group.dictionary, group.latents, kin, expected, k, budget)
        link = links.get(group.name, group.link)
        shown.append(Group(group.name, group.site, group.latents, group.d_sae, group.dictionary, group.part, link, weights))
    return Gathered(tuple(shown), parts, labels or Labels(()), tables, model is not None, bool(others))
