"""What one attribution would ask of a GPU: launches, waits, copies, bytes and FLOPs by the line that asks, on a device that is not there.

    python -m bench.engine.launches                  the small cases, which tests/engine/test_pretend.py holds to ceilings
    python -m bench.engine.launches --case gpt2-linear --case gpt2-exact
    python -m bench.engine.launches --lines 40 --budget 16 --case gpt2-exact
    python -m bench.engine.launches --case gpt2-topk --prompts 6 --budget 64 --replay

Counts are no times. `ms` is what a line takes an H200 at the least: its FLOPs at the rate of TF32 or its bytes at the rate of memory,
whichever is longer. Asking, about 5 µs for each launch, goes on beside it.
The device, and what is counted, is described in tests/support/pretend.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import typer

import attrib
from attrib.core.edges import Edges
from attrib.core.rates import RATES
from attrib.core.types import EXACT, LINEAR, TopK
from bench.engine.cases import GIB, Problem, latents
from bench.engine.weights import GPT2, Shape
from tests.support.pretend import NAME, Count, Counts, pretending

SMALL = Shape("small", 48, 4, 4, 12, 96, "layer", "gelu_tanh", False, "learned", d_vocab=100, n_ctx=128)
"""GPT-2's parts, small enough that a test can count them."""


@dataclass(frozen=True)
class Counted:
    """A problem whose counts are known."""

    build: Callable[[], Problem]
    what: str


def built_of_k(build: Callable[..., Problem], k: int) -> Problem:
    """`of_k` of a problem that is yet to be built."""
    return of_k(build(policy=LINEAR), k)


def of_k(problem: Problem, k: int) -> Problem:
    """The problem with k active latents of TopK at each position of every prompt."""
    assert problem.source is not None
    assert isinstance(problem.target, attrib.Dictionary)

    def competing(one: attrib.Dictionary) -> attrib.Dictionary:
        return replace(one, config=replace(one.config, rule="topk", k=k), params=one.params._replace(b_enc=one.params.b_enc * 0))

    return replace(problem, source=competing(problem.source), target=competing(problem.target))


SIZES: dict[str, tuple[Callable[..., Problem], int, str]] = {
    "small": (partial(latents, SMALL, 0, 3, 32, d_sae=4096, active=(8, 8)), 8, "small shape, 0→3, 32 positions, 8 active"),
    "gpt2": (partial(latents, GPT2, 0, 3, 128, active=(50, 50)), 50, "GPT-2's shape, 0→3, 128 positions, 50 active"),
}
CASES: dict[str, Counted] = {
    f"{size}-{named}": Counted(partial(build, policy=policy), what)
    for named, policy in (("linear", LINEAR), ("exact", EXACT))
    for size, (build, _, what) in SIZES.items()
}
OF_K: dict[str, Counted] = {
    f"{size}-topk": Counted(partial(built_of_k, build, k), f"{what} by TopK, LINEAR") for size, (build, k, what) in SIZES.items()
}
"""Whose prompts have one shape, for `--replay`."""


ENGINE = "attrib/engine/"
"""Where nothing that the host does hangs on floating numbers: counts are the same without the arithmetic, which a test holds."""


def counted(problem: Problem, budget: int, *, computes: bool = True, prompts: int = 1, replay: bool = False) -> tuple[Edges, Counts]:
    """The result on the device that is not there, and what was asked of it once all weights were there.

    Args:
        prompts: how many there are: the problem's own, its tokens moved on by one for each other.
        replay: whether sweeps are captured and replayed.
        computes: whether the engine's arithmetic is done: without, counts are the same in a fraction of the time, and edges are zeros.
    """
    assert problem.source is not None
    assert isinstance(problem.target, attrib.Dictionary)
    with pretending() as device:
        model, source, target = problem.model.to(device=NAME), problem.source.to(device=NAME), problem.target.to(device=NAME)
        device.begin()
        device.is_left_out = None if computes else lambda line: line.startswith(ENGINE)
        tokens = [problem.tokens.roll(number) for number in range(prompts)]
        found = attrib.latent_to_latent(model, source, target, tokens, policy=problem.policy, keep=TopK(20), budget=budget, replay=replay)
        return found, device.counts


def least(count: Count) -> float:
    """Seconds of a line on an H200, by its data sheet, where neither products nor memory wait for anything."""
    rates = RATES["NVIDIA H200"]
    return max(count.flops / rates.tf32, count.bytes / rates.bytes)


def main(
    case: Annotated[list[str] | None, typer.Option(help="Which, of " + ", ".join([*CASES, *OF_K]) + "; the small ones.")] = None,
    budget: Annotated[float, typer.Option(help="Working memory in GiB.")] = 16,
    prompts: Annotated[int, typer.Option(help="How many prompts of that kind.")] = 1,
    replay: Annotated[bool, typer.Option("--replay", help="Capture sweeps and replay them.")] = False,
    lines: Annotated[int, typer.Option(help="How many lines are shown.")] = 20,
    by_time: Annotated[bool, typer.Option("--by-time", help="Those that take longest, in place of those that ask for most.")] = False,
) -> None:
    """Count, and print a table for each case."""
    for name in case or [name for name in CASES if name.startswith("small")]:
        which = (CASES | OF_K)[name]
        _, counts = counted(which.build(), int(budget * GIB), computes=False, prompts=prompts, replay=replay)
        table = counts.table(lines, least, seconds=least) if by_time else counts.table(lines, seconds=least)
        print(f"{name}: {which.what}, budget {budget:g} GiB\n{table}\n{counts.peak / 1e6:.0f} MB at the fullest\n")


if __name__ == "__main__":
    typer.run(main)
