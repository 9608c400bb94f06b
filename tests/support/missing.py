"""Tests without the packages that attrib reads foreign models and dictionaries with: those that need one are skipped, and say which.

`ATTRIB_WITHOUT=sae_lens,transformer_lens,transformers pytest` takes packages for missing that are there, to see that the rest does
without them.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

FOREIGN = ("sae_lens", "transformer_lens", "transformers")
"""The packages whose tests are skipped where they are missing. Of any other one a test fails."""


class _Blocked:
    """A finder that finds none of some packages."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Nothing, or an error as of a package that is not installed."""
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}, which ATTRIB_WITHOUT takes away", name=name)
        return None


def block() -> None:
    """Take the packages away that the environment names."""
    names = [name.strip() for name in os.environ.get("ATTRIB_WITHOUT", "").split(",") if name.strip()]
    if strange := set(names) - set(FOREIGN):
        raise ValueError(f"ATTRIB_WITHOUT: {', '.join(sorted(strange))}; expected some of {', '.join(FOREIGN)}.")
    if names:
        sys.meta_path.insert(0, _Blocked(names))  # type: ignore[arg-type]


def foreign_of(error: BaseException | None) -> str | None:
    """The name of the foreign package that an error says is missing, itself or as its cause; None for other errors."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in FOREIGN:
            return error.name
        error = error.__cause__
    return None
