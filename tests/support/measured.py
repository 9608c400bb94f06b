"""What a run costs: the operations of its products, and the most bytes of tensors that it has at once, from one run of it.

Torch's own `FlopCounterMode` asks of every operation whether it falls apart into others, and its profiler keeps every operation's
times: each makes a run of small tensors three times as long. Here operations are looked up once, and of the profiler's events
those of memory alone are taken, so that both come at a time, and what the run gives with them.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from attrib.engine.blocks.multiplier import multiplier

NOTHING = torch._C._profiler.RecordScope.STATIC_RUNTIME_MODEL
"""A scope in which no operation of these tests runs."""


class Measured(NamedTuple):
    """What a run gave, and what it took."""

    result: Any
    flops: int
    peak: int


def measured(run: Callable[[], object]) -> Measured:
    """A run, with its operations and its memory."""
    taken: list[tuple[Any, int]] = []

    def counted() -> None:
        with _Products() as products:
            result = run()
        taken.append((result, products.total))

    used = peak(counted)
    ((result, count),) = taken
    return Measured(result, count, used)


def flops(run: Callable[[], object]) -> int:
    """Operations of a run's products, as torch counts them."""
    with _Products() as products:
        run()
    return products.total


def peak(run: Callable[[], object]) -> int:
    """Bytes of tensors at the fullest moment of a run, beyond those there before it."""
    multiplier()  # what is measured once in a process is no part of any run
    plain = profile(profile_memory=True)
    config, activities = plain.config(), plain.kineto_activities
    _prepare_profiler(config, activities)
    _enable_profiler(config, activities, {NOTHING})
    try:
        run()
    finally:
        found = _disable_profiler()
    return max(accumulate((event.nbytes() for event in found.events() if event.name() == "[memory]"), initial=0))


Count = Callable[..., int]


class _Products(TorchDispatchMode):
    """Adds up the operations of what runs in it."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        falls_apart, count = _HOW[func] if func in _HOW else _HOW.setdefault(func, _how(func))
        if falls_apart:
            with self:
                return func.decompose(*args, **given)
        result = func(*args, **given)
        if count is not None:
            self.total += count(*args, **given, out_val=result)
        return result


def _linear(a: torch.Tensor, w: torch.Tensor, *_: Any, out_val: torch.Tensor) -> int:
    """Operations of `a @ w.T`."""
    return 2 * a.numel() * len(w)


_ONEDNN: dict[Any, Count] = {torch.ops.mkldnn._linear_pointwise: _linear}
"""What attrib/engine/blocks/product.py may multiply by, and torch's registry does not know."""

_HOW: dict[Any, tuple[bool, Count | None]] = {}


def _how(func: Any) -> tuple[bool, Count | None]:
    """Whether an operation is made of others, which are then counted; and what counts it where it is not."""
    count = flop_registry.get(func._overloadpacket, _ONEDNN.get(func._overloadpacket))
    return count is None and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"), count
