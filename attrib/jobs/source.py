"""The prompts of files and data sets as a job reads them: one after another, as token ids."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from attrib.core.types import InputError
from attrib.jobs.ids import parts_of
from attrib.jobs.kind import Parts, Read, Source
from attrib.jobs.told import PromptsOf, Reach
from attrib.models.transformer import Model
from attrib.runs.prompts import Given, check_effect, read, uses


def prompts_of(of: PromptsOf, reach: Reach) -> Source:
    """What a table of prompts names. Raises InputError where it is not there or may not be read, and for options without effect."""
    sources = [reach.source("prompts.source", name, "--prompts") for name in of.source]
    check_effect(sources, of.form, field=of.field, split=of.split)

    def found(parts: Parts) -> Iterator[Read]:
        check_longest(of.max_tokens, parts.model)
        number = 0
        for given in limited(of, sources, (reach.folder, *reach.allowed)):
            ids, fault = parts_of(parts.model, number, given, of)
            number += max(1, len(ids))
            yield Read(ids, fault, given.where)

    return found


def check_longest(most: int | None, model: Model) -> None:
    """Raises InputError where prompts may be longer than the model reads."""
    if most is not None and most > (context := model.config.n_ctx):
        raise InputError(f"prompts.max_tokens: {most:,}, more than the {context:,} that the model reads. Give fewer.")


def limited(of: PromptsOf, sources: Sequence[str | Path], allowed: Sequence[Path]) -> Iterator[Given]:
    """The prompts of all sources, up to the limit."""
    options = {"field": of.field, "split": of.split}

    def prompts_in(source: str | Path) -> Iterator[Given]:
        used: dict[str, Any] = {name: value for name, value in options.items() if name in uses(source, of.form)}
        return read(source, form=of.form, allowed=allowed, **used)

    return islice((found for source in sources for found in prompts_in(source)), of.limit)
