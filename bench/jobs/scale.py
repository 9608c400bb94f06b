"""What a million prompts take: the engine's plan of one prompt, the rates of a machine, and what a job adds.

    OMP_NUM_THREADS=1 python -m bench.jobs.scale             # the model, checked here, and its tables; 5 minutes
    OMP_NUM_THREADS=1 python -m bench.jobs.scale --check     # only the check

Seconds of a prompt are the sum, over the parts of its plan, of the larger of (operations / rate) and (bytes /
bandwidth), times what a part takes beyond that; and the passes of selection over the dense tile. The machine
here is measured; another is its data sheet, and the same factor. docs/scale.md says what follows.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import attrib
from attrib.attribution.planned import Plan
from attrib.core.types import TopK
from attrib.dictionaries.dictionary import Dictionary
from bench.engine.cases import Problem, latents, smollm2, tokens_to_latents
from bench.engine.weights import GEMMA2_2B, GPT2, Shape

KEPT = 32
"""Edges kept of each target."""
PASSES = 8
"""Times that selection reads or writes every entry of a dense tile: attribution, its size, its sum, the largest, their places."""
BYTES_OF_AN_EDGE = 12
BYTES_OF_A_NODE = 20
PROMPTS = 1_000_000
WRITER = 200e6
"""Bytes that one writer puts on a disk in a second of its own, checksum and fsync included: bench/jobs/cost.py."""


@dataclass(frozen=True)
class Machine:
    """The rates of one device."""

    name: str
    flops: float
    bandwidth: float
    link: float
    """Bytes per second from the device to the host."""
    beyond: float
    """Seconds taken over seconds that the rates ask for."""
    price: float = 0.0
    """Of an hour."""


H100 = [
    Machine("H100, float32", 67e12, 3.35e12, 50e9, 2.5, 2.5),
    Machine("H100, tf32", 495e12, 3.35e12, 50e9, 4.0, 2.5),
]
"""Rates of the data sheet (SXM, dense). What they take beyond is an assumption: nothing was measured on one."""


class Cost(NamedTuple):
    """Of one prompt."""

    sweep: float
    selection: float
    transfer: float
    writing: float
    """Seconds. Writing is beside the others."""
    bytes: float
    edges: float

    @property
    def seconds(self) -> float:
        return max(self.sweep + self.selection + self.transfer, self.writing)

    @property
    def bottleneck(self) -> str:
        parts = {"sweep": self.sweep, "selection": self.selection, "transfer": self.transfer}
        return "writing" if self.writing > sum(parts.values()) else max(parts, key=lambda name: parts[name])


def cost(problem: Problem, plan: Plan, machine: Machine) -> Cost:
    """What the model says of one prompt."""
    tokens, active = len(problem.tokens), problem.active()
    targets = tokens * active["target"]
    sources = tokens * active.get("source", 1.0)
    entries, edges = targets * sources / 2, targets * min(KEPT, sources / 2)
    parts = (max(plan.flops_by_part[part] / machine.flops, plan.bytes_by_part[part] / machine.bandwidth) for part in plan.flops_by_part)
    size = edges * BYTES_OF_AN_EDGE + (targets + sources) * BYTES_OF_A_NODE
    selection = PASSES * 4 * entries / machine.bandwidth
    return Cost(machine.beyond * sum(parts), machine.beyond * selection, size / machine.link, size / WRITER, size, edges)


def plan_of(problem: Problem) -> Plan:
    """The engine's plan of a case's prompt."""
    assert isinstance(problem.target, Dictionary)
    return attrib.plan(problem.model, problem.source, problem.target, [problem.tokens], policy=problem.policy, budget=problem.budget)


def seconds_of(problem: Problem) -> float:
    """CPU seconds of the public function, one thread, median of three."""
    assert isinstance(problem.target, Dictionary)
    keep, found = TopK(KEPT), []
    for _ in range(3):
        begun = time.process_time()
        if problem.source is None:
            attrib.token_to_latent(problem.model, problem.target, [problem.tokens], keep=keep)
        else:
            attrib.latent_to_latent(problem.model, problem.source, problem.target, [problem.tokens], policy=problem.policy, keep=keep)
        found.append(time.process_time() - begun)
    return median(found)


def here() -> Machine:
    """This machine, one thread: the rate of a large product, and the bandwidth of a copy."""
    a = torch.rand(1536, 1536)
    flops = 2 * 1536**3 / best(lambda: a @ a)
    column, into = torch.rand(1 << 25), torch.empty(1 << 25)
    return Machine("one thread here", flops, 2 * 4 * (1 << 25) / best(lambda: into.copy_(column)), 10e9, 1.5)


def best(step: Callable[[], object]) -> float:
    """CPU seconds, the least of seven."""
    found = []
    for _ in range(7):
        begun = time.process_time()
        step()
        found.append(time.process_time() - begun)
    return min(found)


CHECKED: dict[str, Callable[[], Problem]] = {
    "GPT-2's shape, 0 → 3, 32 tokens": partial(latents, GPT2, 0, 3),
    "GPT-2's shape, 6 → 8, 64 tokens": partial(latents, GPT2, 6, 8, 64),
    "tokens → layer 3, GPT-2's shape, 32 tokens": partial(tokens_to_latents, GPT2, 3),
    "SmolLM2, 6 → 9, 64 tokens": partial(smollm2, "6", "9"),
    "Gemma-2-2B's shape, 0 → 1, 32 tokens": partial(latents, GEMMA2_2B, 0, 1, d_sae=16384, active=(16, 16)),
}


def scaled(shape: Shape, first: int, stop: int, d_sae: int, active: int) -> Callable[[], Problem]:
    return partial(latents, shape, first, stop, 64, d_sae=d_sae, active=(active, active))


MILLION: dict[str, Callable[[], Problem]] = {
    "GPT-2, 6 → 8": scaled(GPT2, 6, 8, 24576, 60),
    "Gemma-2-2B, 12 → 13": scaled(GEMMA2_2B, 12, 13, 16384, 70),
}
"""64 tokens a prompt; as many latents active as published dictionaries of these models have."""


def check(console: Console) -> None:
    """The model's seconds beside measured ones."""
    machine = here()
    console.print(
        f"one thread: {machine.flops / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s; beyond these, times {machine.beyond}"
    )
    table = Table("prompt", "GFLOP", "model, s", "measured, CPU s", "measured / model")
    for name, build in CHECKED.items():
        problem = build()
        plan, measured = plan_of(problem), seconds_of(problem)
        said = cost(problem, plan, machine).seconds
        table.add_row(name, f"{plan.flops / 1e9:.1f}", f"{said:.2f}", f"{measured:.2f}", f"{measured / said:.2f}")
    console.print(table)


def million(console: Console) -> None:
    """A million prompts."""
    for name, build in MILLION.items():
        problem = build()
        plan = plan_of(problem)
        table = Table("machine", "GPUs", "ms a prompt", "bottleneck", "hours", "price", "MB/s to disk", title=name)
        for machine in H100:
            one = cost(problem, plan, machine)
            for count in (1, 8, 64):
                seconds = PROMPTS * one.seconds / count
                table.add_row(
                    machine.name, str(count), f"{1e3 * one.seconds:.2f}", one.bottleneck, f"{seconds / 3600:.2f}",
                    f"{seconds / 3600 * count * machine.price:.0f}", f"{PROMPTS * one.bytes / seconds / 1e6:.0f}",
                )  # fmt: skip
        console.print(table)
        weights = sum(leaf.numel() for leaf in torch.utils._pytree.tree_leaves(problem.model.params)) * 4
        console.print(
            f"{plan.flops / 1e9:.1f} GFLOP and {sum(plan.bytes_by_part.values()) / 1e9:.2f} GB of operands a prompt; working memory "
            f"{plan.peak / 1e6:.0f} MB beside {weights / 1e9:.1f} GB of layers up to the target's; {one.edges:,.0f} edges, "
            f"{one.bytes / 1e6:.2f} MB a prompt, {PROMPTS * one.bytes / 1e12:.2f} TB in all"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare the model with this machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)
    check(console)
    if not options.check:
        million(console)


if __name__ == "__main__":
    main()
