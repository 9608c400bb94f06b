"""The prompts of files and data sets as a job reads them: one after another, as token ids."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from attrib.core.types import InputError
from attrib.jobs.ids import parts_of
from attrib.jobs.kind import Parts, Read, Source
from attrib.jobs.told import PromptsOf, Reach
from attrib.models.transformer import Model
from attrib.runs.prompts import Given, check_effect, read, read_pairs, uses


def prompts_of(of: PromptsOf, reach: Reach, corrupt: str | None = None) -> Source:
    """What a table of prompts names. Raises InputError where it is not there or may not be read, and for options without effect.

    Args:
        corrupt: the key or column that holds the prompt that each is compared with, whose token ids come beside its own.
    """
    sources = [reach.source("prompts.source", name, "--prompts") for name in of.source]
    check_effect(sources, of.form, field=of.field, split=of.split)

    def found(parts: Parts) -> Iterator[Read]:
        check_longest(of.max_tokens, parts.model)
        number = 0
        for given, other in limited(of, sources, (reach.folder, *reach.allowed), corrupt):
            ids, fault = parts_of(parts.model, number, given, of)
            beside: tuple[int, ...] = ()
            if other is not None and ids:
                beside, fault = _corrupt_of(parts.model, number, ids[0], other, of)
                ids = [] if fault else ids
            number += max(1, len(ids))
            yield Read(ids, fault, given.where, beside)

    return found


def check_longest(most: int | None, model: Model) -> None:
    """Raises InputError where prompts may be longer than the model reads."""
    if most is not None and most > (context := model.config.n_ctx):
        raise InputError(f"prompts.max_tokens: {most:,}, more than the {context:,} that the model reads. Give fewer.")


def _corrupt_of(model: Model, number: int, ids: Tensor, other: Given, of: PromptsOf) -> tuple[tuple[int, ...], str]:
    """The token ids of the prompt that one is compared with, or what is wrong with the pair."""
    parts, fault = parts_of(model, number, other, of)
    if not parts:
        return (), f"has a corrupt prompt that {fault}"
    if len(parts[0]) != len(ids):
        return (), f"has {len(ids)} tokens, and its corrupt prompt {len(parts[0])}; expected as many"
    return tuple(parts[0].tolist()), ""


def limited(
    of: PromptsOf, sources: Sequence[str | Path], allowed: Sequence[Path], corrupt: str | None
) -> Iterator[tuple[Given, Given | None]]:
    """The prompts of all sources, up to the limit, each with the one that it is compared with where there are pairs."""
    options = {"field": of.field, "split": of.split}

    def prompts_in(source: str | Path) -> Iterator[tuple[Given, Given | None]]:
        used: dict[str, Any] = {name: value for name, value in options.items() if name in uses(source, of.form)}
        if corrupt is not None:
            yield from read_pairs(source, corrupt, form=of.form, allowed=allowed, **used)
        else:
            yield from ((found, None) for found in read(source, form=of.form, allowed=allowed, **used))

    return islice((found for source in sources for found in prompts_in(source)), of.limit)
