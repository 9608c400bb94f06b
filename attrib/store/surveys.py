"""Survey files: parts of plain columns, written whole and read whole.

docs/latents.md is the specification; what the columns mean is for attrib.latents to know. As in a shard, types, lengths and
storage are checked before anything is allocated.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import Shaped

from attrib.core.types import FormatError
from attrib.store.columns import filters_of, json_text, narrow, packages, text, write_columns, write_strings
from attrib.store.layout import REMEDY, SURVEY
from attrib.store.reading import BYTE, FLOAT, Checked, check_kind, child, damaged, dataset, open_file, read_json, translated
from attrib.store.rows import read_strings
from attrib.store.writing import check_output, check_size, created

VERSION = 1

Column = Shaped[np.ndarray, " length"]
Schema = Mapping[str, Mapping[str, tuple[str, ...]]]
"""The dtypes that each column of each group may have."""


class SurveyPart(NamedTuple):
    """What a file holds of one dictionary."""

    facts: dict[str, Any]
    columns: dict[str, dict[str, Column]]
    strings: Sequence[str]
    """Beside the column `strings/id`."""


def check_survey_output(path: Path, *, overwrite: bool) -> None:
    """Raises InputError where a survey cannot be written there."""
    check_output("path", path, SURVEY, overwrite=overwrite)


def write_survey(path: Path, parts: Iterable[SurveyPart], *, compression: str | None, overwrite: bool) -> None:
    """Write a survey file, whole or not at all. Raises InputError where the path or the compression cannot be used."""
    check_survey_output(path, overwrite=overwrite)
    filters = filters_of(compression)
    with created(path) as file:
        file.attrs.update({"format": text(SURVEY), "format_version": VERSION, "packages": json_text(packages())})
        listing, longest = file.create_group("parts"), 0
        for number, part in enumerate(parts):
            group = listing.create_group(str(number))
            group.attrs["facts"] = json_text(part.facts)
            for name, columns in part.columns.items():
                narrowed = {key: narrow(column) if column.dtype.kind == "i" else column for key, column in columns.items()}
                write_columns(group.create_group(name), narrowed, filters)
                longest = max(longest, *map(len, columns.values()))
            write_strings(group["strings"].create_group("text"), part.strings)
        if filters:
            check_size(file, longest, compression)


def read_survey(path: Path, schema: Schema) -> list[SurveyPart]:
    """The parts of a survey file; whole numbers as int64.

    Raises:
        InputError: there is no such file.
        FormatError: it is no survey, of another version, truncated or damaged.
    """
    with translated(path), open_file(path) as file:
        check_kind(file, SURVEY, VERSION, "surveys of latents", "attrib.latents.save or `attrib latents survey` wrote")
        listing = child(Checked(file["/"].id), "parts", h5py.Group)
        if sorted(listing) != sorted(map(str, range(len(listing)))) or not len(listing):
            raise damaged(listing, "its parts are not numbered from 0")
        return [_read_part(child(listing, str(number), h5py.Group), schema) for number in range(len(listing))]


def damaged_survey(path: Path, part: int, fault: str) -> FormatError:
    """The error for what is wrong with a part that was read."""
    return FormatError(f"{path}: damaged: /parts/{part}: {fault}; {REMEDY}")


def _read_part(group: Checked, schema: Schema) -> SurveyPart:
    columns = {}
    for name, wanted in schema.items():
        held = child(group, name, h5py.Group)
        columns[name] = {key: _read(held, key, dtypes) for key, dtypes in wanted.items()}
    strings = child(child(group, "strings", h5py.Group), "text", h5py.Group)
    dataset(strings, "bytes", BYTE)
    count = len(columns["strings"]["id"])
    return SurveyPart(read_json(group, "facts"), columns, read_strings(strings, count, slice(0, count)))


def _read(group: Checked, name: str, dtypes: tuple[str, ...]) -> Column:
    column = dataset(group, name, dtypes)
    values = column[slice(0, len(column))]
    return values if dtypes is FLOAT else values.astype(np.int64)
