"""What it costs to see that all values are numbers (attrib/core/finite.py): the checks' own share of a call.

    python -m bench.engine.finite [REPEATS]

CPU time that this process spends inside the checks, over the CPU time of the call that they are in, median over repeats in
one thread: a difference of two calls would drown a hundredth in what a busy machine does. And the bytes that the checks
read, beside the call's floating-point operations, which do not depend on the machine at all. Needs the fetched SmolLM2.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import attrib
from attrib.attribution import rows
from attrib.dictionaries import dictionary
from attrib.paths import path as paths
from attrib.paths import targets as reading

CHECKS = (
    (dictionary, "total"), (dictionary, "_require_numbers"), (dictionary, "require_finite"), (paths, "require_finite"),
    (reading, "require_finite"), (rows, "require_finite"),
)  # fmt: skip
"""Where the checks are called. None of these calls another."""

TEXT = "When Mary and John went to the store, John gave a drink to Mary. The Eiffel tower is in the city of Paris, which is in"


class Spent:
    """CPU time and bytes read within the checks of one call."""

    def __init__(self) -> None:
        self.seconds, self.bytes = 0.0, 0

    def counted(self, check: Callable[..., Any], reads: bool) -> Callable[..., Any]:
        @wraps(check)
        def counting(*args: Any, **options: Any) -> Any:
            begun = time.process_time()
            try:
                return check(*args, **options)
            finally:
                self.seconds += time.process_time() - begun
                if reads:
                    self.bytes += sum(part.nbytes for part in pytree.tree_leaves(args) if isinstance(part, Tensor))

        return counting


def measured(call: Callable[[], object]) -> tuple[float, float, int]:
    """Seconds in the checks, seconds in all, and bytes that the checks read."""
    spent, patches = Spent(), []
    for module, name in CHECKS:
        patches.append(patch.object(module, name, spent.counted(getattr(module, name), reads=name != "_require_numbers")))
        patches[-1].start()
    try:
        begun = time.process_time()
        call()
        return spent.seconds, time.process_time() - begun, spent.bytes
    finally:
        for one in patches:
            one.stop()


def main(repeats: int) -> None:
    torch.set_num_threads(1)
    model = attrib.load_model("smollm2-135m")
    early, middle, late = (attrib.load_dictionary(f"smollm2-135m/blocks.{layer}.hook_resid_pre") for layer in (6, 9, 27))
    cases: dict[str, Callable[[], object]] = {
        "token to latent, layer 6": partial(attrib.token_to_latent, model, early, TEXT),
        "latent to latent, 6 to 9": partial(attrib.latent_to_latent, model, early, middle, TEXT),
        "latent to logit, 27": partial(attrib.latent_to_logit, model, late, TEXT),
    }
    for name, call in cases.items():
        with FlopCounterMode(display=False) as counter:
            call()
        found = [measured(call) for _ in range(repeats)]
        share, whole, read = [checks / all_ for checks, all_, _ in found], statistics.median(all_ for _, all_, _ in found), found[0][2]
        print(
            f"{name:26} checks {statistics.median(share):6.2%} of {whole:6.2f} s ({min(share):.2%} to {max(share):.2%}); "
            f"they read {read / 1e6:.1f} MB beside {counter.get_total_flops() / 1e9:.1f} GFLOP"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
