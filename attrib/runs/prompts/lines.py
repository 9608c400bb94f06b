"""Prompts of text and JSONL, a line each, from files, gzip and standard input."""

import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from attrib.core.types import FormatError, InputError
from attrib.runs.prompts import given
from attrib.runs.prompts.given import TWICE, Given, of_row, of_value

MOST_PARTS = 1 << 17
"""Lists, objects and keys of a line of JSON, at most: in Python each takes up to a hundred times the bytes that it takes there."""

_OPENS = "[{:"
_PART = re.compile(rf'"(?:[^"\\]++|\\.)*+"?|[{re.escape(_OPENS)}]', re.DOTALL)
"""A string, in which brackets are text, or a bracket or colon."""


def read_lines(name: str, is_json: bool, field: str | None) -> Iterator[Given]:
    """The prompts of a file, or of "-", standard input."""
    for number, line in enumerate(_lines(name), 1):
        where = f"{name}, line {number}"
        if line is None:
            yield Given(where, None, f"is longer than {given.LONGEST_LINE:,} bytes")
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield Given(where, None, f"is not UTF-8: {error.reason} at byte {error.start}")
            continue
        text = text.removeprefix("\ufeff") if number == 1 else text  # a mark of its encoding, and none of the prompt's
        if "\0" in text and not is_json:
            yield Given(where, None, "holds NUL characters, as text in UTF-16 does; expected UTF-8")
            continue
        yield _of_json(text, where, field) if is_json else of_value(text, where)


def _lines(name: str) -> Iterator[bytes | None]:
    """Lines without their ends; None for one that is too long to hold."""
    most = given.LONGEST_LINE + 1  # with its end
    with _opened(name) as file:
        while line := file.readline(most):
            if line.endswith(b"\n") or len(line) < most:
                yield line.removesuffix(b"\n").removesuffix(b"\r")
                continue
            while (rest := file.readline(most)) and not rest.endswith(b"\n"):
                pass
            yield None


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        if sys.stdin is None:
            raise InputError("prompts: -, standard input, is closed; give a file, or text by a pipe.")
        yield sys.stdin.buffer
        return
    try:
        with gzip.open(name) if name.lower().endswith(".gz") else Path(name).open("rb") as file:
            yield cast(BinaryIO, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FormatError(f"prompts: {name} is not gzip, or damaged: {error}.") from error


def _of_json(line: str, where: str, field: str | None) -> Given:
    if sum(map(line.count, _OPENS)) > MOST_PARTS and sum(found[0] in _OPENS for found in _PART.finditer(line)) > MOST_PARTS:
        return Given(where, None, f"is JSON of more than {MOST_PARTS:,} lists, objects and keys")
    try:
        value = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return Given(where, None, f"is not JSON: {error}" if line.strip() else "is an empty prompt")
    if isinstance(value, dict):
        return of_row(value, where, field)
    return of_value(value, where) if field is None else Given(where, None, f"is no object, so it has no key {field!r}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a key that it has twice nobody knows which value is meant."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                made[key] = TWICE
            seen.add(key)
    return made
