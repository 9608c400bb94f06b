"""A survey of a data set that may be ended at any time and goes on where it was: blocks of prompts, each a survey file of its own.

A folder holds `survey.json`, which says what is surveyed, and a file for each block that is done, which is there whole or not at all.
What a block holds follows from the data set alone, so the survey that they are merged to is the same, byte for byte, however often
the work was ended, and however many processes shared it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.core.files import PARTIAL, kind_of_file, whole
from attrib.core.types import FormatError, InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.latents.files import open as open_survey
from attrib.latents.files import save
from attrib.latents.surveyed import Survey
from attrib.latents.surveying import DEFAULT_BUDGET, gathered, merge
from attrib.models.tokens import PromptIds, check_ids, to_ids
from attrib.models.transformer import Model
from attrib.runs.prompts import Given, read

PLAN, VERSION = "survey.json", 1
USUAL = {
    "score": "activation", "latents": None, "together": False, "ignore": None, "special": True, "skip": 0, "top": 20, "per_band": 4,
    "context": (16, 8), "seed": 0,
}  # fmt: skip
"""The options of `survey`."""


@dataclass(frozen=True)
class Progressed:
    """How far the blocks of a folder are."""

    blocks: int
    """Of the whole data set."""
    done: int
    """Of these, those that are there."""
    refused: int
    """Prompts of this call's blocks that could not be used."""
    reason: str
    """What was wrong with the first of them."""
    survey: Survey | None
    """All blocks merged; None while some are missing."""


@takes(model=as_model, dictionaries=as_dictionaries)
def survey_blocks(
    folder: str | Path,
    model: Model,
    dictionaries: Dictionary | Sequence[Dictionary],
    source: str | Path,
    *,
    block: int = 256,
    share: tuple[int, int] = (0, 1),
    length: int | None = None,
    form: Any = None,
    field: str | None = None,
    split: str | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Progressed:
    """Survey a file of prompts block by block; blocks that a folder has already are not made again.

    Args:
        folder: is made where it does not exist.
        source: a file of prompts, as `attrib.runs.prompts.read` takes it; with `form`, `field` and `split`.
        block: prompts of a block.
        share: (i, n): make every n-th block from the i-th on, so that n processes may share the work.
        length: tokens after which a prompt is cut off; None refuses one that is longer than the model's context.
        progress: called with (prompts read, -1).
        options: those of `survey`.

    Raises:
        InputError: where the folder is of another survey, and as `survey`. A prompt that is none is passed over and counted.
        FormatError: where a block of the folder is damaged.
    """
    if unknown := options.keys() - USUAL.keys():
        raise InputError(f"{sorted(unknown)[0]}: no option of a survey; expected one of {', '.join(USUAL)}.")
    for name, value, least in (("block", block, 1), ("length", 1 if length is None else length, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}: {value!r}; expected a whole number from {least} on.")
    mine, of = share
    if not 0 <= mine < of:
        raise InputError(f"share: {mine}/{of}; expected a number from 0 to below the number of shares.")
    folder, chosen = Path(folder), USUAL | options
    several = (dictionaries,) if isinstance(dictionaries, Dictionary) else dictionaries
    gathered(model, several, PromptIds(), (), None, chosen, budget)  # of nothing: what makes no sense is said before anything is written
    _begin(
        folder,
        _plan(model, several, Path(source), chosen, {"block": block, "length": length, "form": form, "field": field, "split": split}),
    )
    found, number, refused, reason = read(source, form=form, field=field, split=split), 0, 0, ""
    while some := list(islice(found, block)):
        path = _block(folder, number)
        if number % of == mine and not path.exists():
            prompts, faults = _usable(model, some, number * block, length)
            if faults and not refused:
                reason = faults[0]
            refused += len(faults)
            found_here = gathered(model, several, PromptIds(prompts.values()), prompts.keys(), None, chosen, budget)
            save(path, found_here, compression="gzip", overwrite=True)
        number += 1
        if progress is not None:
            progress(number * block - block + len(some), -1)
    done = [path for path in (_block(folder, each) for each in range(number)) if path.exists()]
    whole_survey = reduce(merge, map(open_survey, done)) if number and len(done) == number else None  # two at a time are in memory
    return Progressed(number, len(done), refused, reason, whole_survey)


def _block(folder: Path, number: int) -> Path:
    return folder / f"block-{number:06d}.h5"


def _usable(model: Model, given: list[Given], first: int, length: int | None) -> tuple[dict[int, Tensor], list[str]]:
    """The prompts that can be used, by number, and what is wrong with the others."""
    found, faults = {}, []
    for number, one in enumerate(given, first):
        try:
            if one.prompt is None:
                raise InputError(f"{one.where} {one.fault}")
            ids = to_ids(model, number, one.prompt)[:length]
            check_ids(model, number, ids)
            found[number] = ids.to(model.device)
        except InputError as error:
            faults.append(str(error))
    return found, faults


def _plan(
    model: Model, dictionaries: Sequence[Dictionary], source: Path, options: Mapping[str, Any], reading: Mapping[str, Any]
) -> dict[str, Any]:
    """What a survey is of, as JSON has it."""
    if (kind := kind_of_file(source)) != "a file":
        what = f"there is no file {source}" if kind is None else f"{source} is {kind}"
        raise InputError(f"prompts: {what}; expected a file of prompts, which can be read anew when the work goes on.")
    digest = hashlib.sha256()
    with source.open("rb") as file:
        for part in _parts(file):
            digest.update(part)
    named = {
        "version": VERSION, "model": [model.name, model.fingerprint], "source_sha256": digest.hexdigest(),
        "dictionaries": [[d.name, d.fingerprint] for d in dictionaries],
    }  # fmt: skip
    table: dict[str, Any] = json.loads(json.dumps(named | dict(reading) | dict(options), default=_as_json))
    return table


def _as_json(value: Any) -> Any:
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    if hasattr(value, "tolist"):
        return value.tolist()
    raise InputError(f"options: a {type(value).__name__}; expected numbers, texts and lists of them.")


def _parts(file: Any) -> Iterator[bytes]:
    while part := file.read(1 << 20):
        yield part


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Make the folder, or see that it is of the same survey."""
    path = folder / PLAN
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FormatError(f"{path}: damaged ({error}); remove the folder to begin anew.") from error
        other = next((name for name in plan if not isinstance(known, dict) or known.get(name) != plan[name]), None)
        if other is not None:
            raise InputError(f"folder: {folder} is of a survey with another {other}; expected the same, or a folder of its own.")
        return
    if folder.exists() and any(not inside.name.endswith(PARTIAL) for inside in folder.iterdir()):
        raise InputError(f"folder: {folder} holds other things and no {PLAN}; expected one that is empty or of this survey.")
    folder.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(json.dumps(plan, indent=1), encoding="utf-8")
