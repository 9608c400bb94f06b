"""Prompts of Hugging Face's data sets, as they come over the network."""

import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attrib.core.types import AttribError, FetchError, InputError, first_line
from attrib.runs.prompts.columns import columns
from attrib.runs.prompts.given import Given, library, of_row


def hub(name: str, split: str) -> Iterable[dict[str, Any]]:
    """The rows of "hf:NAME" or "hf:NAME:CONFIG"."""
    datasets = library("datasets")
    dataset, _, config = name.removeprefix("hf:").partition(":")
    reads_files = getattr(importlib.import_module("datasets.packaged_modules"), "_PACKAGED_DATASETS_MODULES", {})
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*(/[\w.-]*\w[\w.-]*)?", dataset, re.ASCII) or dataset in reads_files or Path(dataset).exists():
        # `datasets` would read such a folder, and for "text" the one we are in; a job's config must not reach the user's files this way
        raise InputError(f"prompts: {name} names no data set of the hub but files; expected hf:NAME or hf:OWNER/NAME, or the path itself.")
    try:
        return datasets.load_dataset(dataset, config or None, split=split, streaming=True)  # type: ignore[no-any-return]
    except Exception as error:  # the hub's own errors are of many kinds
        raise InputError(f"prompts: the data set {name} could not be opened: {first_line(error)}.") from error


def read_rows(rows: Iterable[dict[str, Any]], name: str, field: str | None) -> Iterator[Given]:
    """The prompts of a data set that comes over the network, as it comes."""
    try:
        for number, row in enumerate(rows, 1):
            columns(list(row), field, name)
            yield of_row(row, f"{name}, row {number}", field)
    except AttribError:
        raise
    except Exception as error:  # of the network, of the hub, of whatever reads the data set's files
        raise FetchError(f"prompts: {name} could not be read on: {first_line(error)}.") from error
