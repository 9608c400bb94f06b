"""Some cases of a test that has many, in which each value of each of its arguments still is.

A test is asked of every family, every policy, every kind of dictionary, both precisions: a hundred cases, most of which fail together or
not at all. Before each change it is enough that every family, every policy, every kind and either precision was tried in one of them
(`make test`), and of tests whose cases take long, two: one test has some of the families, another has others. That every combination
was is looked at before a release, and where the engine itself changes (`make thorough`).
Which are kept does not depend on chance, so that a case has the same fate on every machine and in every process.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import groupby
from zlib import crc32

import pytest
import torch

LONG = "long"
"""The mark of a test that takes long, where others that are quicker run through the same code."""

FEW = "few"
"""The mark of a test of which a case takes more than a tenth of a second, and of which there are many."""

TWO = 2

Value = tuple[str, str | int]
"""An argument's name, and what tells its value from others."""


def some(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Tests that are kept, and those that are left out."""
    kept = {id(item) for name, cases in _tests(items) for item in _kept(name, covering([*cases]))}
    return [item for item in items if id(item) in kept], [item for item in items if id(item) not in kept]


def _tests(items: Iterable[pytest.Item]) -> Iterator[tuple[str, Iterator[pytest.Item]]]:
    """The cases of each test that is not long; those of a test follow each other, as they are collected."""
    return groupby((item for item in items if item.get_closest_marker(LONG) is None), key=lambda item: item.nodeid.partition("[")[0])


def _kept(name: str, cases: list[pytest.Item]) -> list[pytest.Item]:
    """All of them; of a test of whose cases few are wanted two, far from each other, and which hangs on the test's name."""
    if len(cases) <= TWO or cases[0].get_closest_marker(FEW) is None:
        return cases
    first, apart = crc32(name.encode()) % len(cases), len(cases) // TWO
    return [cases[at] for at in sorted((first + n * apart) % len(cases) for n in range(TWO))]


def covering(cases: Sequence[pytest.Item]) -> list[pytest.Item]:
    """A few cases of one test in which each value is that is in any: always the one that brings most, of several the first."""
    values = [values_of(case) for case in cases]
    left, kept = set[Value]().union(*values), {0: values[0]}
    left -= values[0]
    while left:
        best = max(range(len(cases)), key=lambda at: (len(values[at] & left), -at))
        kept[best] = values[best]
        left -= values[best]
    return [cases[at] for at in sorted(kept)]


def values_of(case: pytest.Item) -> set[Value]:
    """The values of a case's arguments: by their text, or as the object that they are where their text does not tell."""
    spec = getattr(case, "callspec", None)
    return set() if spec is None else {(name, repr(value) if _is_plain(value) else id(value)) for name, value in spec.params.items()}


def _is_plain(value: object) -> bool:
    """Whether equal values, and those alone, have the same text."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(entry) for entry in value.items())
    if is_dataclass(value) and not isinstance(value, type):
        return all(_is_plain(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, int) and value.bit_length() > 64:  # of which Python writes no digits
        return False
    return value is None or isinstance(value, str | bool | int | float | Enum | torch.dtype)
