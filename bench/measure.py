"""Time, memory and arithmetic of a run, and the rate at which this machine multiplies matrices.

Time is the process's own CPU time (all threads) beside the wall clock, so that a busy machine does not
count; on a GPU it is what CUDA events say. Memory is what tensors hold at the fullest moment beyond what
was there before, event by event (on a GPU, what its allocator says). FLOPs are torch's count of matrix
products, two for each multiply-add.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import accumulate
from statistics import median
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")

PRODUCTS = ((2048, 768, 3072), (2048, 3072, 768), (1536, 1536, 1536))
"""[n, k] @ [k, m]: many cotangents through an MLP's matrices, and a square."""


ON_GPU = 16
"""Products of one sample on a GPU: the time of a single one would hold its launch."""


def device_name(device: torch.device) -> str:
    """The GPU's name, or how many cores there are."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()}-core CPU"


class Time(NamedTuple):
    """Seconds."""

    cpu: float
    wall: float
    gpu: float | None = None

    @property
    def seconds(self) -> float:
        """What ratios are made of: the GPU's time where it did the work, CPU time else."""
        return self.cpu if self.gpu is None else self.gpu

    def scaled(self, factor: float) -> "Time":
        """The time of `factor` times the work."""
        return Time(self.cpu * factor, self.wall * factor, None if self.gpu is None else self.gpu * factor)

    def plus(self, other: "Time") -> "Time":
        """The time of one after the other."""
        return Time(self.cpu + other.cpu, self.wall + other.wall, None if self.gpu is None or other.gpu is None else self.gpu + other.gpu)


def timed(run: Callable[[], T], device: torch.device) -> tuple[T, Time]:
    """The result of a run and how long it took."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    if on_gpu:
        end.record()
        torch.cuda.synchronize(device)
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return result, Time(*spent, begin.elapsed_time(end) / 1e3 if on_gpu else None)


def medians(times: Sequence[Time]) -> Time:
    """The median of each part by itself."""
    on_gpu = [part.gpu for part in times if part.gpu is not None]
    return Time(median(part.cpu for part in times), median(part.wall for part in times), median(on_gpu) if on_gpu else None)


def peak(run: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """The result of a run and the bytes of tensors at its fullest moment, beyond those there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        result = run()
    changes = (event.nbytes() for event in events.profiler.kineto_results.events() if event.name() == "[memory]")
    return result, max(accumulate(changes, initial=0))


def flops(run: Callable[[], T]) -> tuple[T, int]:
    """The result of a run and the FLOPs of its matrix products, as far as they are torch's own."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


class ProductRate:
    """FLOPs per second of this machine's matrix product, sampled between other runs.

    The best of PRODUCTS, each at its median over the samples.

    Args:
        operands: what both factors are made of.
        within: makes the context in which they are multiplied, such as one that allows TF32.
    """

    def __init__(
        self,
        device: torch.device,
        operands: torch.dtype = torch.float32,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.device, self.within = device, within
        self.calls = ON_GPU if device.type == "cuda" else 1
        self.pairs = [tuple(torch.randn(*size, device=device, dtype=operands) for size in ((n, k), (k, m))) for n, k, m in PRODUCTS]
        self.samples: list[list[float]] = [[] for _ in PRODUCTS]
        self.sample()
        self.samples = [[] for _ in PRODUCTS]  # the first was a warm-up

    def sample(self) -> None:
        """Time each product once, or on a GPU a few in a row."""

        def multiply(a: Tensor, b: Tensor) -> None:
            for _ in range(self.calls):
                a @ b

        for (a, b), (n, k, m), found in zip(self.pairs, PRODUCTS, self.samples, strict=True):
            with self.within():
                _, spent = timed(partial(multiply, a, b), self.device)
            found.append(2 * n * k * m * self.calls / (spent.wall if spent.gpu is None else spent.gpu))

    @property
    def rate(self) -> float:
        """FLOPs per second."""
        return max(median(found) for found in self.samples)
