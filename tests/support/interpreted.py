"""Triton's interpreter without what it does anew at every call of a function within a kernel.

Before each call, of a kernel or of a function that a kernel calls, the interpreter goes through all names of `triton.language` for
the few that it replaces. The names are always the same, and going through them takes half of the time of kernels as small as the
tests'. Here they are looked for once; what is replaced, and by what, is Triton's own doing as before.
"""

import inspect
from functools import cache
from typing import Any

from triton.runtime import interpreter

_is_builtin = interpreter.tl.core.is_builtin


@cache
def _builtins(of: Any) -> tuple[str, ...]:
    """Names of what stands for an instruction, in a module or class of the language."""
    return tuple(name for name, member in inspect.getmembers(of) if _is_builtin(member))


def _patch_builtin(of: Any, builder: Any, scope: Any) -> None:
    for name in _builtins(of):
        if _is_builtin(member := getattr(of, name)):
            interpreter._patch_attr(of, name, member, builder, scope)


def hasten() -> None:
    """Look names up once from now on. To be called while no kernel runs: within one, some names are replaced already."""
    interpreter._patch_builtin = _patch_builtin
