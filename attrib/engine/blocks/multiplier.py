"""Who multiplies float32 matrices on this processor: torch's own library, or oneDNN beside it; measured once in a process, or said.

MKL, which most builds of torch have, takes the newest instructions of some makers' processors alone; oneDNN asks the processor. Where
both of them take the same ones neither is half as fast again as the other (0.9 to 1.2 on an AMD Zen 4), and where they do not oneDNN is
twice as fast (2.2 on a Zen 5). So what is measured lies far from `CLEARLY` on either kind of processor, however much else runs beside it:
two processes on one machine choose the same, and what they compute has the same bits. docs/engine.md has the figures.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from time import perf_counter
from typing import Any, Literal, get_args

import torch
from torch.utils._python_dispatch import _disable_current_modes

from attrib.core.types import InputError

Multiplier = Literal["torch", "onednn"]

VARIABLE = "ATTRIB_PRODUCT"

CLEARLY = 1.5
"""How many times as fast oneDNN has to be: the middle, by ratio, of what was measured on processors of both kinds."""

ROUNDS = 5
SIDE = 256


_pinned: ContextVar[Multiplier | None] = ContextVar("multiplied_by", default=None)


@contextmanager
def multiplied_by(who: Multiplier | None) -> Iterator[None]:
    """Have large products go to one of them, whatever the environment says or is measured. None leaves it as it is."""
    if who is None:
        yield
        return
    before = _pinned.set(who)
    try:
        yield
    finally:
        _pinned.reset(before)


def is_there(who: Multiplier) -> bool:
    """Whether this torch can give products to it."""
    return who == "torch" or operation() is not None


def recorded(call: Mapping[str, Any]) -> Multiplier | None:
    """Who multiplied what a result says of its making; None where it says nothing: on a GPU, in float64, and before it was written down.

    Raises:
        ValueError: for whom nobody knows.
    """
    who: Multiplier | None = call.get("products")
    if who is not None and who not in get_args(Multiplier):
        raise ValueError(f"products {who!r:.40}; expected 'torch' or 'onednn'")
    return who


def multiplier() -> Multiplier:
    """Whom large products go to: who was pinned, else whom the environment names, else who is measured to be clearly faster.

    Raises:
        InputError: where the environment says what is not known.
    """
    if (who := _pinned.get()) is not None:
        return who
    given = os.environ.get(VARIABLE, "auto")
    if given == "auto":
        return faster()
    if given not in get_args(Multiplier):
        raise InputError(f"{VARIABLE}: {given!r} in the environment; expected 'auto', 'torch' or 'onednn'. Set one of them, or unset it.")
    return "onednn" if given == "onednn" and is_there("onednn") else "torch"


@cache
def faster() -> Multiplier:
    """Who is, by a few products of a few milliseconds in all: of each the best of several, taken in turns."""
    op = operation()
    if op is None:
        return "torch"
    with _disable_current_modes(), torch.inference_mode():  # it is no part of what is being counted or followed
        a, w = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
        return chosen(lambda: torch.mm(a, w), lambda: op(a, w, None, "none", [], ""))


def chosen(by_torch: Callable[[], Any], by_onednn: Callable[[], Any], clock: Callable[[], float] = perf_counter) -> Multiplier:
    """Which of two ways to the same product is taken, by a clock that counts seconds."""
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS + 1):  # the first of each loads and compiles, and is never the best
        for number, run in enumerate((by_torch, by_onednn)):
            begun = clock()
            run()
            best[number] = min(best[number], clock() - begun)
    return "onednn" if best[0] > CLEARLY * best[1] else "torch"


@cache
def operation() -> Any:
    """Torch's operation for oneDNN's product; None in a torch that has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)
