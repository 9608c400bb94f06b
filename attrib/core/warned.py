"""Warnings at the line of the user's program, however deep inside they arise, and the one that a changed name gives."""

import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

_WRAPPERS = ("attrib", "torch", "jaxtyping", "beartype", "contextlib", "functools")
"""Packages whose lines are not the user's."""


def warn_at_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's program that called attrib."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_within(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def renamed(module: str, otherwise: Callable[[str], Any] | None = None, /, **now: str) -> Callable[[str], Any]:
    """`__getattr__` of a module some of whose names have changed: the old ones go on working, with a DeprecationWarning.

    Args:
        module: its `__name__`.
        otherwise: what finds the names that are not among these; None where there are no others.
        now: the new name of each old one, both of this module.
    """

    def find(name: str) -> Any:
        if name in now:
            found = getattr(sys.modules[module], now[name])
            if not _only_asks(sys._getframe()):
                message = f"{module}.{name} is now called {module}.{now[name]}; the old name will go in a later version."
                warn_at_caller(message, DeprecationWarning)
            return found
        if otherwise is not None:
            return otherwise(name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name, obj=sys.modules[module])

    return find


def _only_asks(frame: FrameType) -> bool:
    """Whether it is the import system that looks for a name: for `from package import name` it asks whether the name is there, and
    then takes it, of which the second alone is to be warned of."""
    while frame.f_back is not None and _is_within(frame):
        frame = frame.f_back
    return frame.f_globals.get("__name__") == "importlib._bootstrap"


def _is_within(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in _WRAPPERS
