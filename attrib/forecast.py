"""What a call will cost, told before it runs: `plan`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from attrib.attribute import TokensLike, check, sampled_rows, to_prompts
from attrib.between import Effect
from attrib.cost import Cost, Part
from attrib.dictionary import Dictionary
from attrib.jacobian import DEFAULT_BUDGET, LEAST_FOR_SAMPLES, sampled_task, task_of
from attrib.model import Model
from attrib.opening_cost import Counts, Opening, counts_known, known_task, opening_of, positions_read
from attrib.packing import PackPlan, packs, plan_pack
from attrib.paths import path
from attrib.precision import Precision, precision_of
from attrib.reading import Positions
from attrib.result import result_bytes, size_of
from attrib.task import Task
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
    copies: int
    """Bytes of parameters in another precision than they are given in, beside the working memory."""

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
            f"result up to {size_of(self.result)}" + (f", {size_of(self.copies)} of parameters in another precision" if self.copies else "")
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
    precision_rows: int | None = None,
    active: int | None = None,
) -> Plan:
    """The plan of an attribution, without computing it.

    Args:
        source: a dictionary, or None for the tokens' scales (`token_to_latent`).
        target: a dictionary, or a choice of logits (`latent_to_logit`).
        keep: for the size of the result. One that memory cannot hold is planned, and refused when it is run.
        precision_rows: how many rows of the first prompt are computed again in float64.
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
        precision_rows=precision_rows,
        result_fits=False,
    )
    if active is not None and active < 1:
        raise InputError(f"active: {active}; expected at least 1, or None to count.")
    error = error or source is None  # tokens have none
    precision = precision_of(model, dtype)
    itemsize, rows = precision.path.itemsize, sampled_rows(precision_rows, precision)
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
    again = _sampled(tasks[0], rows, itemsize, is_cut, budget)
    total = sum((part.cost for part in (*planned, *again)), opened)
    least = sum((pack.floor for pack in planned), opened)
    peak = max(part.peak for part in (*planned, *again))
    size = sum(result_bytes(task, keep) for task in tasks)
    copies = _copies(model, [d for d in (source, target, *cuts) if isinstance(d, Dictionary)], opening, precision, rows)
    return Plan(tuple(planned), dict(total.flops), dict(total.bytes), peak, least.total, sum(least.bytes.values()), size, copies)


def _sampled(task: Task, rows: int, itemsize: int, is_cut: bool, budget: int) -> list[PackPlan]:
    """The sweeps over the first prompt's sampled rows: as the others, and in float64, where the primal is walked again."""
    if not rows or not task.n_targets:
        return []
    sampled = sampled_task(task, rows, itemsize)
    tasks = sampled, replace(sampled, itemsize=8, walks=not is_cut)
    return [plan_pack(each, max(budget, LEAST_FOR_SAMPLES)) for each in tasks]


def _copies(model: Model, dictionaries: Sequence[Dictionary], opening: Opening, precision: Precision, rows: int) -> int:
    """Bytes of parameters that are converted: all to the path's precision, the blocks between its ends to the sweep's, and to float64."""

    def numbers(params: Any) -> int:
        return sum(leaf.numel() for leaf in pytree.tree_leaves(params) if isinstance(leaf, torch.Tensor))

    given: list[Any] = [model.params] if model.dtype != precision.path else []
    given += [d.params for d in dictionaries if d.params.W_dec.dtype != precision.path]
    blocks = numbers(model.params.blocks[opening.start.layer : opening.stop.layer + 1])
    swept = blocks * (precision.sweep.itemsize if precision.sweep != precision.path else 0)
    return numbers(given) * precision.path.itemsize + swept + (8 * blocks if rows else 0)
