"""Surveys ↔ HDF5; docs/latents.md is the specification. What is read is held against what a survey can be."""

import os
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Int64, Shaped

from attrib.core.room import free_memory
from attrib.core.types import AttribError, FormatError, InputError
from attrib.latents.bins import BINS
from attrib.latents.places import Places
from attrib.latents.spans import Spans
from attrib.latents.surveyed import Asked, LatentSurvey, Survey
from attrib.latents.surveying import merge
from attrib.latents.tally import Limits, Tally
from attrib.latents.wellformed import fault
from attrib.stats.fixed import Fixed
from attrib.stats.scoring import Score
from attrib.store.listing import folder_of, listed
from attrib.store.reading import FLOAT, INTEGER, Fault
from attrib.store.surveys import SurveyPart, damaged_survey, read_survey, write_survey

_PLACES: dict[str, tuple[str, ...]] = {
    "ptr": INTEGER,
    "prompt": INTEGER,
    "position": INTEGER,
    "value": FLOAT,
    "tokens": INTEGER,
    "values": FLOAT,
}
_SUMS = ("sum_high", "sum_low", "squares_high", "squares_low")
_SCHEMA: dict[str, dict[str, tuple[str, ...]]] = {
    "corpus": {"first": INTEGER, "last": INTEGER},
    "latents": {"latent": INTEGER, "count": INTEGER, "prompts": INTEGER, **dict.fromkeys(_SUMS, INTEGER)},
    "histogram": {"ptr": INTEGER, "bin": INTEGER, "count": INTEGER},
    "top": _PLACES,
    "sample": _PLACES,
    "together": {"latent": INTEGER, "ptr": INTEGER, "indices": INTEGER, "count": INTEGER},
    "strings": {"id": INTEGER},
}
_TYPES: dict[str, type] = {
    "dictionary": str, "site": str, "d_sae": int, "dictionary_sha256": str, "model": str, "model_sha256": str, "score": str,
    "skip": int, "dtype": str, "details": dict,
}  # fmt: skip


def save(path: str | os.PathLike[str], survey: Survey, *, compression: str | None = None, overwrite: bool = False) -> Path:
    """Write a survey to one file and return its path. Equal surveys are equal files, byte by byte.

    Args:
        compression: None, "gzip", "lzf", "blosc-lz4" or "zstd".

    Raises:
        InputError: the path exists and `overwrite` is false, or its folder does not exist; what is given is no survey.
    """
    if not isinstance(survey, Survey):
        raise InputError(f"survey: a {type(survey).__name__}; expected what attrib.latents.survey gives.")
    path = Path(path)
    write_survey(path, map(_written, survey.parts), compression=compression, overwrite=overwrite)
    return path


def open(path: str | os.PathLike[str]) -> Survey:
    """Read a survey; all of it is checked. A folder of surveys, such as a job's, is those that are there now, merged.

    Raises:
        InputError: there is no such file, or no survey in the folder.
        FormatError: it is no survey, of another version, truncated or damaged.
    """
    path = Path(path)
    if path.is_dir():
        if not (files := [folder_of(path) / one.name for one in sorted(listed(path))]):
            raise InputError(f"path: {path} has no surveys yet; expected at least one.")
        return reduce(merge, map(open, files))  # two at a time are in memory
    return Survey(tuple(_checked(path, number, part) for number, part in enumerate(read_survey(path, _SCHEMA))))


def faults(path: str | os.PathLike[str]) -> Iterator[Fault]:
    """What is wrong with a survey file: its first fault. Raises InputError where there is none."""
    try:
        open(path)
    except FormatError as error:
        yield Fault.of_error(Path(path), error)


# -------------------------------------------------------------------------------------- writing


def _written(part: LatentSurvey) -> SurveyPart:
    tally, size = part.tally, len(part.latents)
    at, bins = np.nonzero(tally.histogram)
    row, column = np.nonzero(np.triu(tally.together))
    ids = sorted(part.strings)
    columns = {
        "corpus": {"first": _whole([first for first, _ in part.prompts]), "last": _whole([last for _, last in part.prompts])},
        "latents": {
            "latent": part.latents, "count": tally.places, "prompts": tally.prompts,
            **dict(zip(_SUMS, (*tally.sum, *tally.squares), strict=True)),
        },
        "histogram": {"ptr": _ptr(at, size), "bin": bins, "count": tally.histogram[at, bins]},
        "top": _of_places(tally.top, size),
        "sample": _of_places(tally.sample, size),
        "together": {"latent": part.chosen, "ptr": _ptr(row, len(part.chosen)), "indices": column, "count": tally.together[row, column]},
        "strings": {"id": _whole(ids)},
    }  # fmt: skip
    asked = {name: getattr(part.asked, name) for name in _TYPES}
    facts = asked | {"ignore": list(part.asked.ignore), "limits": part.asked.limits._asdict(), "tokens": part.tokens, "places": part.places}
    return SurveyPart(facts, columns, [part.strings[number] for number in ids])


def _of_places(places: Places, latents: int) -> dict[str, Shaped[np.ndarray, " length"]]:
    flat = {name: getattr(places, name).ravel() for name in Places._fields if name != "at"}
    return {"ptr": _ptr(places.at, latents), **flat}


def _ptr(at: Int64[np.ndarray, " rows"], groups: int) -> Int64[np.ndarray, " pointers"]:
    """Where the rows of each group begin."""
    return np.searchsorted(at, np.arange(groups + 1)).astype(np.int64)


def _whole(numbers: list[int]) -> Int64[np.ndarray, " numbers"]:
    return np.array(numbers, np.int64)


# -------------------------------------------------------------------------------------- reading


def _checked(path: Path, number: int, stored: SurveyPart) -> LatentSurvey:
    try:
        part = _read(stored)
        wrong = fault(part)
    except (AttribError, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        wrong = str(error)
    if wrong:
        raise damaged_survey(path, number, wrong)
    return part


def _read(stored: SurveyPart) -> LatentSurvey:
    """A part whose columns fit each other, so that all else can be looked at. Raises ValueError where they do not."""
    facts, columns = stored.facts, stored.columns
    asked, latents, together = _asked(facts), columns["latents"], columns["together"]
    size, chosen = len(latents["latent"]), len(together["latent"])
    if (needed := 8 * (size * BINS + 2 * chosen**2)) > free_memory():  # zeros take no room in a file
        raise ValueError(f"{size:,} latents, {chosen:,} of them together, take {needed:,} bytes, more than there are")
    for group in columns:
        wanted = {"latents": size, "corpus": len(columns["corpus"]["first"])}.get(group)
        if wanted is not None and any(len(column) != wanted for column in columns[group].values()):
            raise ValueError(f"the columns of {group} differ in length")
    tally = Tally(
        latents["count"],
        latents["prompts"],
        Fixed(latents["sum_high"], latents["sum_low"]),
        Fixed(latents["squares_high"], latents["squares_low"]),
        _dense(columns["histogram"], "bin", size, BINS),
        _places(columns["top"], "top", size, asked),
        _places(columns["sample"], "sample", size, asked),
        _symmetric(_dense(together, "indices", chosen, chosen)),
    )
    prompts: Spans = tuple(zip(columns["corpus"]["first"].tolist(), columns["corpus"]["last"].tolist(), strict=True))
    strings = dict(zip(columns["strings"]["id"].tolist(), stored.strings, strict=True))
    return LatentSurvey(
        asked, latents["latent"], together["latent"], prompts, _integer(facts, "tokens"), _integer(facts, "places"), tally, strings
    )


def _asked(facts: dict[str, Any]) -> Asked:
    for name, wanted in _TYPES.items():
        if type(facts.get(name)) is not wanted:
            raise ValueError(f"the fact {name} is {facts.get(name)!r:.60}, and not of type {wanted.__name__}")
    if facts["score"] not in get_args(Score) or facts["dtype"] not in ("float32", "float64"):
        raise ValueError(f"the score {facts['score']!r:.60} or the dtype {facts['dtype']!r:.60} is none that attrib writes")
    if not all(type(value) in (str, int, bool) for value in facts["details"].values()):
        raise ValueError("the fact details has more than texts and numbers")
    ignore, limits = facts.get("ignore"), facts.get("limits")
    if not isinstance(ignore, list) or not all(type(token) is int and token >= 0 for token in ignore):
        raise ValueError("the fact ignore is not a list of token ids")
    if not isinstance(limits, dict) or limits.keys() != {*Limits._fields}:
        raise ValueError("the fact limits has not the numbers that attrib writes")
    kept = Limits(**{name: _integer(limits, name) for name in Limits._fields})
    return Asked(**{name: facts[name] for name in _TYPES}, ignore=tuple(ignore), limits=kept)


def _integer(facts: dict[str, Any], name: str) -> int:
    if type(value := facts.get(name)) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"the fact {name} is {value!r:.60}, and not a number from 0")
    return value


def _spread(ptr: Int64[np.ndarray, " pointers"], groups: int, rows: int, what: str) -> Int64[np.ndarray, " rows"]:
    """The group of each row. Raises ValueError where pointers are none."""
    if len(ptr) != groups + 1 or ptr[0] != 0 or ptr[-1] != rows or (np.diff(ptr) < 0).any():
        raise ValueError(f"{what}/ptr does not rise from 0 to {rows} in {groups} steps")
    return np.repeat(np.arange(groups), np.diff(ptr))


def _dense(columns: dict[str, np.ndarray], name: str, rows: int, width: int) -> Int64[np.ndarray, "rows width"]:
    """A matrix of counts from its rows of those that are not zero."""
    at = _spread(columns["ptr"], rows, len(columns[name]), "histogram" if name == "bin" else "together")
    inner, counts = columns[name], columns["count"]
    if len(counts) != len(inner) or (counts < 1).any() or (inner < 0).any() or (inner >= width).any():
        raise ValueError(f"a {name} or its count is outside of what there is")
    if (np.diff(at * width + inner) <= 0).any():
        raise ValueError(f"the columns {name} do not ascend")
    found = np.zeros((rows, width), np.int64)
    found[at, inner] = counts
    return found


def _symmetric(upper: Int64[np.ndarray, "n n"]) -> Int64[np.ndarray, "n n"]:
    if np.tril(upper, -1).any():
        raise ValueError("together has counts below the diagonal")
    return upper + np.triu(upper, 1).T


def _places(columns: dict[str, np.ndarray], what: str, latents: int, asked: Asked) -> Places:
    rows, window = len(columns["prompt"]), asked.limits.window
    at = _spread(columns["ptr"], latents, rows, what)
    lengths = {name: rows * (window if name in ("tokens", "values") else 1) for name in _PLACES if name != "ptr"}
    if any(len(columns[name]) != length for name, length in lengths.items()):
        raise ValueError(f"the columns of {what} differ in length from {rows} rows of {window} tokens")
    if any(columns[name].dtype != asked.dtype for name in ("value", "values")):
        raise ValueError(f"the scores of {what} are not in {asked.dtype}")
    if (np.abs(columns["tokens"]) >= 1 << 31).any():
        raise ValueError(f"a token of {what} is no id")
    tokens = columns["tokens"].astype(np.int32).reshape(rows, window)
    return Places(at, columns["prompt"], columns["position"], columns["value"], tokens, columns["values"].reshape(rows, window))
