"""What a call will cost, told before it runs: `plan`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from attrib.attribute import TokensLike, check, to_prompts
from attrib.between import Effect
from attrib.cost import Cost, Part
from attrib.dictionary import Dictionary
from attrib.jacobian import DEFAULT_BUDGET, task_of
from attrib.model import Model
from attrib.opening_cost import Counts, counts_known, known_task, opening_of, positions_read
from attrib.packing import PackPlan, packs
from attrib.paths import path
from attrib.precision import precision_of
from attrib.reading import Positions
from attrib.result import result_bytes, size_of
from attrib.types import EXACT, Dense, EdgeKind, InputError, Keep, Logits, Policy


@dataclass(frozen=True, repr=False)
class Plan:
    """What an attribution will do and cost. Operations are those of matrix products, 2 m k n each."""

    packs: tuple[PackPlan, ...]
    """The sweeps, pack of prompts by pack of prompts: way, where both sides meet, bands, runs of targets."""
    flops_by_part: Mapping[Part, int]
    bytes_by_part: Mapping[Part, int]
    """Operands and results of every product, once each."""
    peak: int
    """Bytes of working memory at the fullest moment, beside the parameters and the result."""
    floor: int
    """The least operations that the answer needs, as far as is known; docs/engine.md derives it."""
    floor_bytes: int
    result: int
    """Bytes of the result at most, which lies beside the working memory: exact for Dense() and TopK(k) but for gradients that are zero."""

    @property
    def flops(self) -> int:
        """Operations of all parts."""
        return sum(self.flops_by_part.values())

    @property
    def direction(self) -> str:
        """The ways taken, the same for all packs or joined by commas: local, reverse, forward, both."""
        return ", ".join(sorted({pack.way for pack in self.packs}))

    def __repr__(self) -> str:
        return (
            f"Plan({self.direction}: {self.flops / 1e9:.2f} GFLOP, {self.flops / self.floor:.2f} of the floor, "
            f"peak {size_of(self.peak)}, result up to {size_of(self.result)}, {len(self.packs)} pack(s))"
        )

    def __str__(self) -> str:
        lines = [
            f"{self.direction}: {self.flops / 1e9:.2f} GFLOP, {self.flops / self.floor:.2f} of the floor, peak {self.peak / 1e6:.0f} MB, "
            f"result up to {size_of(self.result)}"
        ]
        lines += [f"  {part:<10}{flops / 1e9:>10.3f} GFLOP {size / 1e6:>10.1f} MB" for part, flops, size in self._parts]
        return "\n".join([*lines, *(f"  {line}" for line in self._pack_lines)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{part}</td><td>{flops / 1e9:,.3f}</td><td>{size / 1e6:,.1f}</td></tr>" for part, flops, size in self._parts
        )
        head = "<tr><th>part</th><th>GFLOP</th><th>MB moved</th></tr>"
        packs = "<br>".join(self._pack_lines[:10]) + ("<br>…" if len(self.packs) > 10 else "")
        return f"<div><p>{str(self).splitlines()[0]}</p><table>{head}{rows}</table><p>{packs}</p></div>"

    @property
    def _parts(self) -> list[tuple[Part, int, int]]:
        return [(part, flops, self.bytes_by_part[part]) for part, flops in self.flops_by_part.items()]

    @property
    def _pack_lines(self) -> list[str]:
        lines = []
        for pack in self.packs:
            met = "" if pack.layer is None else f" at the MLP of layer {pack.layer}"
            prompts, sweeps = len(pack.task.targets), len(pack.sweeps)
            size = f"{pack.task.n_targets} × {pack.task.n_sources}"
            lines.append(f"{prompts} prompt(s), {size}: {pack.way}{met}, {sweeps} sweep(s), {pack.bands} bands")
        return lines


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
        keep: for the size of the result. One that memory cannot hold is planned, and refused when it is run.
        active: how many latents are active at each position. None: k for dictionaries that have one; where a dictionary
            with another rule takes part, or there are cuts, active latents are counted, which costs a forward pass.

    The other options and errors are those of `attrib.latent_to_latent`.
    """
    kind: EdgeKind = "token_to_latent" if source is None else "latent_to_latent" if isinstance(target, Dictionary) else "latent_to_logit"
    check(
        kind,
        model,
        source,
        target,
        tokens,
        cuts=cuts,
        effect=effect,
        policy=policy,
        keep=keep,
        positions=positions,
        error=error,
        dtype=dtype,
        budget=budget,
        result_fits=False,
    )
    if active is not None and active < 1:
        raise InputError(f"active: {active}; expected at least 1, or None to count.")
    error = error or source is None  # tokens have none
    itemsize = precision_of(model, dtype).path.itemsize
    opening = opening_of(model, source, target, cuts, effect, policy, error, itemsize)
    is_cut = opening.cuts is not None
    if is_cut and active is not None:
        raise InputError(f"active: {active}, but where dictionaries are put in, active latents are counted. Leave it out.")
    is_known = not is_cut and counts_known(source, target, active)
    options: dict[str, Any] = {"policy": policy, "positions": positions, "error": error, "cuts": cuts, "effect": effect}
    tasks, opened = [], Cost(itemsize)
    for ids in to_prompts(model, tokens):
        read = positions_read(target, positions, ids)
        counted: tuple[int, ...] = ()
        if is_known:
            task = known_task(model, source, target, ids, policy, positions, itemsize, active)
        else:
            found = path(model, source, target, ids, **options)
            task, counted = replace(task_of([found]), itemsize=itemsize), found.active
        tasks.append(opening.opened(task, read, counted))
        opened = opened + opening.cost(Counts(task.tokens, task.n_sources, task.n_targets, read, counted))
    planned = [pack for _, pack in packs(tasks, lambda task: task, budget)]
    total = sum((pack.cost for pack in planned), opened)
    least = sum((pack.floor for pack in planned), opened)
    peak = max(pack.peak for pack in planned)
    size = sum(result_bytes(task, keep) for task in tasks)
    return Plan(tuple(planned), dict(total.flops), dict(total.bytes), peak, least.total, sum(least.bytes.values()), size)
