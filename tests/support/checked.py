"""Shape and type checks of each function's first calls in each test.

A check takes longer than most functions do on tiny tensors: were every call checked, half of the tests' time would go into it.
What a test calls a hundred times in the same way is as well checked by the first twenty. A function that is made within
another's call is made anew each time, and so is its check: the first two are checked.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from functools import cached_property, wraps
from types import FunctionType
from typing import Any, ClassVar

from beartype import beartype

CALLS = 20
"""So many calls of each function are checked, in all cases of a test together."""

MADE = 2
"""So many of each function that is made within another's call are checked, as often: to make a check takes longer than most calls."""


class _Checks:
    """What has been checked in the test that runs."""

    test = ""
    made: ClassVar[Counter[str]] = Counter()
    """Of each function; jaxtyping makes two for a call: of its arguments, and of these with its result."""
    within: ClassVar[Counter[str]] = Counter()
    """How many were made of each function within another; jaxtyping makes two checks for each."""
    enough: ClassVar[list[FunctionType]] = []
    """Functions that are not checked any more."""


def first_calls(function: FunctionType) -> Callable[..., Any]:
    """Beartype, for jaxtyping's import hook."""
    name = f"{function.__module__}:{function.__qualname__}"
    if "<locals>" in name:
        _Checks.within[name] += 1
        if _Checks.within[name] > 2 * MADE:
            return function
    checked = beartype(function)

    @wraps(checked)
    def counted(*args: Any, **kwargs: Any) -> Any:
        _Checks.made[name] += 1
        if _Checks.made[name] == 2 * CALLS and (found := _function(function.__module__, function.__qualname__)) is not None:
            found.__no_type_check__ = True  # type: ignore[attr-defined]  # which jaxtyping looks for in each call
            _Checks.enough.append(found)
        return checked(*args, **kwargs)

    return counted


def begin(test: str) -> None:
    """Count anew, where another test begins."""
    if test == _Checks.test:
        return
    _Checks.test = test
    _Checks.made.clear()
    _Checks.within.clear()
    while _Checks.enough:
        vars(_Checks.enough.pop()).pop("__no_type_check__", None)


def _function(module: str, qualname: str) -> FunctionType | None:
    """What stands in a module by a name, without its decorators; None for what is made within a function."""
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    match found:
        case property():
            found = found.fget
        case cached_property():
            found = found.func
        case classmethod() | staticmethod():
            found = found.__func__
    found = inspect.unwrap(found) if callable(found) else None
    return found if isinstance(found, FunctionType) else None
