"""Triton's interpreter, which puts its own functions into `triton.language` anew for every function that a kernel calls.

To find them it goes through all members of four modules, which takes longer than what most functions of a kernel do. Within one
kernel nothing takes them out again, so once for each set of modules is enough.
"""

from collections.abc import Callable
from functools import cache
from typing import Any


def quicken() -> None:
    """Have it do so once in each kernel, in this process from now on."""
    from triton.runtime import interpreter

    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    done: set[frozenset[int]] = set()

    @cache
    def languages(fn: Callable[..., Any]) -> frozenset[int]:
        known = (interpreter.tl, interpreter.tl.core)
        return frozenset(id(value) for value in [*fn.__globals__.values()] if any(value is one for one in known))

    def patch_once(fn: Callable[..., Any]) -> Any:
        if languages(fn) in done:
            return interpreter._LangPatchScope()
        done.add(languages(fn))
        return patch(fn)

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        done.clear()
        launch(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launched
