"""What a call will cost, told before it runs: `plan`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attrib.attribute import TokensLike, check, to_prompts
from attrib.between import Effect
from attrib.cost import Cost, Part
from attrib.cuts import apart_from
from attrib.dictionary import Dictionary
from attrib.jacobian import DEFAULT_BUDGET, task_of
from attrib.known import is_known, known_task
from attrib.model import Model
from attrib.opening import Opening
from attrib.packing import PackPlan, packs
from attrib.paths import path
from attrib.precision import precision_of
from attrib.reading import Positions
from attrib.size import result_bytes
from attrib.sources.given import as_bytes, as_dictionaries, as_model, as_source, as_target, takes
from attrib.types import EXACT, Dense, EdgeKind, InputError, Keep, Logits, Policy


@dataclass(frozen=True)
class Plan:
    """What an attribution will do and cost. Operations are those of matrix products, 2 m k n each."""

    packs: tuple[PackPlan, ...]
    """The sweeps, pack of prompts by pack of prompts: way, where both sides meet, bands, runs of targets."""
    flops_by_part: Mapping[Part, int]
    bytes_by_part: Mapping[Part, int]
    """Operands and results of every product, once each."""
    peak: int
    """Bytes of working memory at the fullest moment, beside the parameters and the result."""
    result: int
    """Bytes of the result at most: edges whose gradient is zero are not kept, and what Threshold and Mass keep is in the numbers."""
    floor: int
    """The least operations that the answer needs, as far as is known; docs/engine.md derives it."""
    floor_bytes: int

    @property
    def flops(self) -> int:
        """Operations of all parts."""
        return sum(self.flops_by_part.values())

    @property
    def direction(self) -> str:
        """The ways taken, the same for all packs or joined by commas: local, reverse, forward, both."""
        return ", ".join(sorted({pack.way for pack in self.packs}))

    def __str__(self) -> str:
        lines = [
            f"{self.direction}: {self.flops / 1e9:.2f} GFLOP, {self.flops / self.floor:.2f} of the floor, peak {self.peak / 1e6:.0f} MB, "
            f"result up to {self.result / 1e6:.1f} MB"
        ]
        lines += [
            f"  {part:<10}{self.flops_by_part[part] / 1e9:>10.3f} GFLOP {self.bytes_by_part[part] / 1e6:>10.1f} MB"
            for part in self.flops_by_part
        ]
        for pack in self.packs:
            met = "" if pack.layer is None else f" at the MLP of layer {pack.layer}"
            prompts, sweeps = len(pack.task.targets), len(pack.sweeps)
            size = f"{pack.task.n_targets} × {pack.task.n_sources}"
            lines.append(f"  {prompts} prompt(s), {size}: {pack.way}{met}, {sweeps} sweep(s), {pack.bands} bands")
        return "\n".join(lines)


@takes(model=as_model, source=as_source, target=as_target, cuts=as_dictionaries, budget=as_bytes)
def plan(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits,
    tokens: TokensLike,
    *,
    cuts: Sequence[Dictionary] = (),
    effect: Effect = "direct",
    policy: Policy = EXACT,
    keep: Keep = Dense(),  # noqa: B008 - an immutable value
    positions: Positions = None,
    error: bool = True,
    dtype: torch.dtype | str | None = None,
    budget: int = DEFAULT_BUDGET,
    active: int | None = None,
) -> Plan:
    """The plan of an attribution, without computing it.

    Args:
        source: a dictionary, or None for the tokens' scales (`token_to_latent`).
        target: a dictionary, or a choice of logits (`latent_to_logit`).
        active: how many latents are active at each position. None: k for dictionaries that have one; where a dictionary
            with another rule takes part, or there are cuts, active latents are counted, which costs a forward pass.

    The other options and errors are those of `attrib.latent_to_latent`.
    """
    kind: EdgeKind = "token_to_latent" if source is None else "latent_to_latent" if isinstance(target, Dictionary) else "latent_to_logit"
    asked: dict[str, Any] = {"policy": policy, "keep": keep, "positions": positions, "dtype": dtype, "budget": budget}
    check(kind, model, source, target, tokens, cuts=cuts, effect=effect, **asked)
    if active is not None and active < 1:
        raise InputError(f"active: {active}; expected at least 1, or None to count.")
    in_dtype = precision_of(model, dtype).path
    is_cut = bool(cuts) or (source is not None and len(source.writes) > 1)
    if is_cut and active is not None:
        raise InputError(f"active: {active}, but where dictionaries are put in, active latents are counted. Leave it out.")
    known = (active is not None and not is_cut) or is_known(source, target, is_cut)
    options: dict[str, Any] = {"policy": policy, "positions": positions, "error": error, "cuts": cuts, "effect": effect}
    tasks = []
    if not known:  # then they are counted where the call would count them
        model, source, target, *options["cuts"] = (_in(part, in_dtype) for part in (model, source, target, *cuts))
    for ids in to_prompts(model, tokens):
        if known:
            tasks.append(known_task(model, source, target, ids, policy, positions, in_dtype.itemsize, active))
        else:
            tasks.append(task_of([path(model, source, target, ids, **options)]))
    planned = [pack for _, pack in packs(tasks, lambda task: task, budget)]
    beside = apart_from(cuts, source, target)
    openings = [Opening(task, source, target, beside, effect, error, positions) for task in tasks]
    opened = sum((opening.cost() for opening in openings), Cost(in_dtype.itemsize))
    total = sum((pack.cost for pack in planned), opened)
    least = sum((pack.floor for pack in planned), opened)
    result = sum(result_bytes(task, keep) for task in tasks)
    return Plan(
        tuple(planned), dict(total.flops), dict(total.bytes), _peak(planned, openings), result, least.total, sum(least.bytes.values())
    )  # fmt: skip


def _peak(packs: Sequence[PackPlan], openings: Sequence[Opening]) -> int:
    """Bytes at the fullest moment of a call. The path that ends a pack, by not fitting into it, is there while it runs."""
    fullest, first = 0, 0
    for pack in packs:
        end = first + len(pack.task.targets)
        held = 0
        for opening in openings[first:end]:
            fullest = max(fullest, held + opening.peak)
            held += opening.held
        after = openings[end : end + 1]
        fullest = max([fullest, pack.peak + sum(next.held for next in after), *(held + next.peak for next in after)])
        first = end
    return fullest


def _in(part: Any, dtype: torch.dtype) -> Any:
    """A model or dictionary in a dtype; anything else as it is."""
    return part.to(dtype=dtype) if isinstance(part, Model | Dictionary) else part
