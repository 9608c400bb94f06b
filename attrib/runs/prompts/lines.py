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
    for where, text, fault in _texts(name, is_json):
        if fault:
            yield Given(where, None, fault)
        else:
            yield _of_json(text, where, field) if is_json else of_value(text, where)


def read_objects(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSONL, each with where it stands; what has a key twice has `TWICE` as its value.

    Raises:
        InputError: for a line that is no object.
    """
    for where, text, fault in _texts(name, is_json=True):
        value, wrong = (None, fault) if fault else _parsed(text)
        if wrong or not isinstance(value, dict):
            raise InputError(f"examples: {where} {wrong or 'is no object'}; expected an object of JSON on each line.")
        yield where, value


def _texts(name: str, is_json: bool) -> Iterator[tuple[str, str, str]]:
    """Each line: where it stands, its text, and what is wrong with it."""
    for number, line in enumerate(_lines(name), 1):
        where = f"{name}, line {number}"
        if line is None:
            yield where, "", f"is longer than {given.LONGEST_LINE:,} bytes"
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield where, "", f"is not UTF-8: {error.reason} at byte {error.start}"
            continue
        text = text.removeprefix("\ufeff") if number == 1 else text  # a mark of its encoding, and none of the prompt's
        if "\0" in text and not is_json:
            yield where, "", "holds NUL characters, as text in UTF-16 does; expected UTF-8"
            continue
        yield where, text, ""


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
    value, fault = _parsed(line)
    if fault:
        return Given(where, None, fault if line.strip() else "is an empty prompt")
    if isinstance(value, dict):
        return of_row(value, where, field)
    return of_value(value, where) if field is None else Given(where, None, f"is no object, so it has no key {field!r}")


def _parsed(line: str) -> tuple[Any, str]:
    """A line's value, or what is wrong with it."""
    if sum(map(line.count, _OPENS)) > MOST_PARTS and sum(found[0] in _OPENS for found in _PART.finditer(line)) > MOST_PARTS:
        return None, f"is JSON of more than {MOST_PARTS:,} lists, objects and keys"
    try:
        return json.loads(line, object_pairs_hook=_object), ""
    except (ValueError, RecursionError) as error:
        return None, f"is not JSON: {error}"


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
