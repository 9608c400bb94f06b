"""Where the steps run: a CUDA device, or one that is not there (tests/support/pretend.py), with sizes that a CPU computes at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from attrib.core.types import EXACT, LINEAR, Policy
from bench.engine.cases import GIB, Problem, latents
from bench.engine.launches import SMALL
from bench.engine.ours import Dtype, Engine
from bench.engine.weights import GPT2
from bench.measure import device_name

NOT_MEASURED = "not measured"
"""What stands where only a GPU has a figure, and there is none."""
POLICIES: dict[str, Policy] = {"linear": LINEAR, "exact": EXACT}


@dataclass(frozen=True)
class Place:
    """A device, and what is worth computing there."""

    device: torch.device
    pretended: Any = None
    """The device that is not there; None is a real one."""

    @property
    def is_real(self) -> bool:
        """Whether there is a GPU."""
        return self.pretended is None

    @property
    def name(self) -> str:
        """The GPU's name."""
        return device_name(self.device) if self.is_real else "pretend"

    @property
    def methods(self) -> tuple[Engine, ...]:
        """Kernels cannot be run where there is no GPU."""
        return ("adjoint", "adjoint-triton") if self.is_real else ("adjoint",)

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """Precisions of products."""
        return "float32", "tf32", "bfloat16"

    @property
    def budgets(self) -> tuple[int, ...]:
        """Bytes; 1, 16 and 64 GiB, or as much less as the sizes are smaller."""
        return (GIB, 16 * GIB, 64 * GIB) if self.is_real else (1 << 20, 1 << 24, 1 << 26)

    def latents(self, policy: Policy) -> Problem:
        """The named case: GPT-2's shape, layers 0 → 3, 128 positions, 50 active a token; or a small one."""
        return self._problems[policy]

    @cached_property
    def _problems(self) -> dict[Policy, Problem]:
        named = partial(latents, GPT2, 0, 3, 128, active=(50, 50))
        make = named if self.is_real else partial(latents, SMALL, 0, 2, 6, d_sae=64, active=(3, 3))
        return {policy: make(policy=policy) for policy in POLICIES.values()}

    def small(self, policy: Policy) -> Problem:
        """One that a CPU computes at once."""
        return latents(SMALL, 0, 3, 32, policy, d_sae=4096, active=(8, 8)) if self.is_real else self.latents(policy)

    def synchronize(self) -> None:
        """Wait until the device is done."""
        if self.is_real:
            torch.cuda.synchronize(self.device)


@contextmanager
def place(pretend: bool) -> Iterator[Place]:
    """The device of a run. Raises RuntimeError where there is no GPU."""
    if not pretend:
        if not torch.cuda.is_available():
            raise RuntimeError("there is no CUDA device here; --pretend tries the steps on one that is not there")
        yield Place(torch.device("cuda", 0))
        return
    from tests.support.pretend import NAME, pretending

    with pretending() as device:
        yield Place(torch.device(NAME, 0), device)
