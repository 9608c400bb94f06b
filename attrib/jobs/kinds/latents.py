"""Jobs of surveys: what the latents of dictionaries are over a corpus (docs/latents.md).

A prompt is computed alone, and surveys of parts add up to one of the whole, bit for bit; so a shard is a survey of some prompts in the
data set's order, and merging all is the survey.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import AfterValidator, BaseModel, ByteSize, Field
from torch import Tensor

from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.jobs.kind import Of, Portion, Source
from attrib.jobs.kinds.parts import parts_on
from attrib.jobs.source import prompts_of
from attrib.jobs.told import Names, Number, Prompted, Reach, Told
from attrib.latents.files import open as open_survey
from attrib.latents.files import save
from attrib.latents.spans import count, spans_of
from attrib.latents.surveyed import SCORES, LatentSurvey, Survey
from attrib.latents.surveying import DEFAULT_BUDGET, gathered, merge
from attrib.latents.tally import Limits
from attrib.models.tokens import PromptIds, check_ids
from attrib.models.transformer import Model
from attrib.runs.results import Counts

_SLICE = re.compile(r"\s*(-?\d*)\s*:\s*(-?\d*)\s*(?::\s*(-?\d*)\s*)?")


def _slice_of(text: str) -> slice:
    """A slice as text has it. Raises ValueError."""
    if (found := _SLICE.fullmatch(text)) is None:
        raise ValueError(f"{text!r}; expected numbers, or a slice as '100:200'")
    return slice(*(int(end) if end else None for end in found.groups()))


def _score(given: str) -> str:
    if given not in SCORES:
        raise ValueError(f"{given!r}; expected {' or '.join(map(repr, SCORES))}")
    return given


def _some(given: list[int] | str | None) -> list[int] | str | None:
    if isinstance(given, str):
        _slice_of(given)
    return given


class LatentsFile(Told):
    """Everything that a survey's numbers follow from; the options are those of `attrib.latents.survey`."""

    kind: Literal["latents"] = "latents"
    dictionaries: Annotated[Names, Field(min_length=1)]
    prompts: Prompted
    score: Annotated[str, AfterValidator(_score)] = "activation"
    latents: Annotated[list[Number] | str | None, AfterValidator(_some)] = None
    """Numbers, or a slice as text; None is all."""
    together: Annotated[bool, Field(strict=True)] | list[Number] = False
    ignore: list[Number | str] | Number | str | None = None
    special: Annotated[bool, Field(strict=True)] = True
    skip: Number = 0
    top: Number = 20
    per_band: Number = 4
    context: tuple[Number, Number] = (16, 8)
    seed: Number = 0
    budget: Annotated[ByteSize, Field(lt=1 << 63)] = ByteSize(DEFAULT_BUDGET)

    @property
    def options(self) -> dict[str, Any]:
        """As `gathered` takes them."""
        names = ("score", "together", "ignore", "special", "skip", "top", "per_band", "context", "seed")
        latents = _slice_of(self.latents) if isinstance(self.latents, str) else self.latents
        return {name: getattr(self, name) for name in names} | {"latents": latents}


@dataclass(frozen=True)
class SurveyParts:
    """A survey's model and dictionaries in memory."""

    config: LatentsFile
    model: Model
    dictionaries: dict[str, Dictionary]

    def survey(self, portion: Portion) -> Survey:
        """Of these prompts; of none, a survey of nothing."""
        for number, one in zip(portion.numbers.tolist(), portion.ids, strict=True):
            check_ids(self.model, number, one)  # a job's folder may come from elsewhere
        ids = PromptIds(one.to(self.model.device) for one in portion.ids)
        several = tuple(self.dictionaries.values())
        return gathered(self.model, several, ids, portion.numbers.tolist(), None, self.config.options, int(self.config.budget))


class LatentsKind:
    """Surveys; a shard is what `attrib.latents.save` writes of some prompts."""

    name = "latents"
    makes = "scores"
    by_length = False
    file: type[BaseModel] = LatentsFile

    def has_beside(self, config: LatentsFile) -> bool:
        """Nothing."""
        return False

    def load(self, config: LatentsFile, device: torch.device, places: Mapping[str, str | Path]) -> SurveyParts:
        """The model and dictionaries."""
        return SurveyParts(config, *parts_on(config, device, places))

    def check(self, parts: SurveyParts) -> None:
        """Raise what does not hang on prompts: dictionaries that do not fit, latents that are not there, a budget that is too small."""
        parts.survey(Portion([], np.empty(0, np.int64), []))

    def open(self, config: LatentsFile, reach: Reach) -> Source:
        """The prompts of the config's sources."""
        return prompts_of(config.prompts, reach)

    def compute(self, parts: SurveyParts, portion: Portion) -> Survey:
        """The survey of some prompts, by their numbers in the data set."""
        return parts.survey(portion)

    def faulty(self, results: Survey) -> dict[int, str]:
        """None: what is not finite is raised where it is met."""
        return {}

    def counts(self, results: Survey) -> Counts:
        """Prompts, tokens, and scores that are not zero, of all dictionaries."""
        first = results.parts[0]
        return Counts(count(first.prompts), first.tokens, sum(int(part.count.sum()) for part in results))

    def write(self, path: Path, results: Survey, numbers: Int[Tensor, " prompts"], compression: str | None) -> Path:
        """As `attrib.latents.save`."""
        return save(path, results, compression=compression, overwrite=True)

    def faults(self, path: Path, of: Of, kept: Portion) -> tuple[list[str], Counts]:
        """Other prompts than the job's, other options, and another model or other dictionaries; the reader sees all else."""
        survey, config = open_survey(path), of.config
        found, spans, tokens = [], spans_of(kept.numbers.tolist()), sum(map(len, kept.ids))
        if sorted(part.asked.dictionary_sha256 for part in survey) != sorted(of.dictionaries.values()):
            found.append("it is of other dictionaries than the job's")
        limits = Limits(config.top, config.per_band, config.context[0], config.context[1], config.seed)
        for part in survey:
            asked, name = part.asked, part.asked.dictionary
            if asked.model_sha256 != of.model:
                found.append(f"its survey of {name} is of another model than the job's")
            if (asked.score, asked.skip, asked.limits) != (config.score, config.skip, limits):
                found.append(f"its survey of {name} was asked for with other options than the job's")
            if part.prompts != spans:
                found.append(f"its survey of {name} is of prompts of other numbers than the job's")
            elif part.tokens != tokens:
                found.append(f"its survey of {name} is of {part.tokens:,} tokens, and the job's prompts have {tokens:,}")
        return found, self.counts(survey)

    def difference(self, path: Path, again: Survey) -> str:
        """The first dictionary of which other numbers come out."""
        for was, now in zip(open_survey(path), again, strict=True):
            if (sizes := [int(part.count.sum()) for part in (was, now)])[0] != sizes[1]:
                return f"computed again, {was.asked.dictionary} has {sizes[1]:,} scores that are not zero, and {sizes[0]:,} are stored"
            if apart := _apart(was, now):
                return f"computed again, the mean of a latent of {was.asked.dictionary} differs by {apart:.1e} of it"
        return "computed again, its numbers are the same, but not its bytes"

    def merge(self, out: Path, shards: Sequence[Path], compression: str | None, overwrite: bool) -> Path:
        """One survey of all, as if there had been no shards."""
        if not shards:
            raise InputError("shards: none is done; expected at least one.")
        return save(out, reduce(merge, map(open_survey, shards)), compression=compression, overwrite=overwrite)  # two are in memory


def _apart(was: LatentSurvey, now: LatentSurvey) -> float:
    """The largest difference of a latent's sum of scores, as a share of it."""
    some = was.sum != 0
    return float((abs(was.sum - now.sum)[some] / abs(was.sum)[some]).max(initial=0))
