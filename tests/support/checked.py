"""Shape and type checks of each function's first calls in each test.

A check takes longer than most functions do on tiny tensors, and to make one longer still: were every call checked, half of the
tests' time would go into it. What a test calls a hundred times in the same way is as well checked by the first five. A function
that is made within another's call is made anew each time, and so is its check: the first two are checked.
"""

from collections import Counter
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any, ClassVar

import jaxtyping
from beartype import beartype

CALLS = 5
"""So many calls of each function are checked, in all cases of a test together."""

MADE = 2
"""So many of each function that is made within another's call are checked, as often."""

_every_call = jaxtyping.jaxtyped


class _Checks:
    """What has been checked in the test that runs."""

    test = ""
    calls: ClassVar[Counter[str]] = Counter()
    made: ClassVar[Counter[str]] = Counter()


def install(*packages: str) -> None:
    """Have the functions of some packages checked. They must not have been imported."""
    # what the hook puts before each function is `@jaxtyping.jaxtyped(typechecker=...)`
    jaxtyping.jaxtyped = _first_calls  # type: ignore[assignment]
    jaxtyping.install_import_hook(packages, "beartype.beartype")


def _first_calls(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """In place of `jaxtyping.jaxtyped`: a check is made when the function is first called, and asked while there have been few calls."""
    every_call = _every_call(typechecker=beartype)

    def decorated(given: Any) -> Any:
        name = f"{given.__module__}:{given.__qualname__}"
        if isinstance(given, FunctionType):
            return _counted(given, name, lambda: every_call(given))
        plain = given.__dict__.get("__init__")
        made = every_call(given)  # which has a data class' fields checked as one is made
        if isinstance(plain, FunctionType) and (strict := made.__dict__["__init__"]) is not plain:
            made.__init__ = _counted(plain, name, lambda: strict)
        return made

    return decorated


def _counted(plain: FunctionType, name: str, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """A function, checked in its first calls by what `make` gives."""
    strict, is_made = None, "<locals>" in name

    @wraps(plain)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal strict
        if _Checks.calls[name] >= CALLS or (is_made and strict is None and _Checks.made[name] >= MADE):
            return plain(*args, **kwargs)
        _Checks.calls[name] += 1
        if strict is None:
            _Checks.made[name] += 1
            strict = make()
        return strict(*args, **kwargs)

    return checked


def begin(test: str) -> None:
    """Count anew, where another test begins."""
    if test != _Checks.test:
        _Checks.test = test
        _Checks.calls.clear()
        _Checks.made.clear()


__name__ = "jaxtyping.first_calls"  # by which attrib/core/warned.py knows that a frame is not the user's
