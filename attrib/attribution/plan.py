"""What a call will cost, told before it runs: `plan`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch.utils import _pytree as pytree

from attrib.adapters.given import as_bytes, as_dictionaries, as_model, as_source, as_target, takes
from attrib.attribution.needs import Needs
from attrib.attribution.opening import Counts, counts_known, known_task, positions_read
from attrib.attribution.options import ErrorAs, PlanOptions, with_options
from attrib.attribution.questions import check
from attrib.attribution.ruled import chunked
from attrib.core.room import memory_named
from attrib.core.rules import USUAL, Ablation, IntegratedGradients, rule_text
from attrib.core.types import EdgeKind, InputError, Site
from attrib.dictionaries.dictionary import COMPETING, Dictionary
from attrib.engine.plan.choose import PackPlan, packs, plan_pack
from attrib.engine.plan.choose_joint import JointPlan
from attrib.engine.plan.cost import Cost, Part, model_pass
from attrib.engine.plan.result import result_bytes, size_of
from attrib.engine.plan.task import Task
from attrib.engine.precision import Precision
from attrib.engine.tiles import LEAST_FOR_SAMPLES, sampled_task
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model
from attrib.paths.targets import LogitsLike, as_logits


@dataclass(frozen=True, repr=False)
class Plan:
    """What an attribution will do and cost. Operations are those of matrix products, 2 m k n each."""

    packs: tuple[PackPlan | JointPlan, ...]
    """The sweeps, pack of prompts by pack of prompts: way, where both sides meet, bands, runs of targets."""
    flops_by_part: Mapping[Part, int]
    bytes_by_part: Mapping[Part, int]
    """Operands and results of every product, once each."""
    peak: int
    """Bytes of working memory at the fullest moment, beside the parameters and the result."""
    floor: int | None
    """The least operations that the answer needs, as far as is known; docs/engine.md derives it. None of sweeps that many targets join."""
    floor_bytes: int | None
    result: int
    """Bytes of the result at most, which lies beside the working memory: exact for Dense() and TopK(k) but for gradients that are zero."""
    copies: int
    """Bytes of parameters in another precision than they are given in, beside the working memory."""
    rule: str = rule_text(USUAL)
    """The rule of attribution, as text."""
    points: int = 1
    """At how many points each prompt is swept; 0 where no sweep computes the rule, but forward passes."""

    @property
    def flops(self) -> int:
        """Operations of all parts."""
        return sum(self.flops_by_part.values())

    @property
    def direction(self) -> str:
        """The ways taken, the same for all packs or put together by commas: local, reverse, forward, both, through, joined, or passes."""
        if not self.points:
            return "passes"
        return ", ".join(sorted({pack.way for pack in self.packs}))

    def __repr__(self) -> str:
        return (
            f"Plan({self.direction}: {self.flops / 1e9:.2f} GFLOP{self._of_floor}, "
            f"peak {size_of(self.peak)}, result up to {size_of(self.result)}, {len(self.packs)} pack(s))"
        )

    def __str__(self) -> str:
        lines = [
            f"{self.direction}: {self.flops / 1e9:.2f} GFLOP{self._of_floor}, peak {self.peak / 1e6:.0f} MB, "
            f"result up to {size_of(self.result)}" + (f", {size_of(self.copies)} of parameters in another precision" if self.copies else "")
        ]
        if self.rule != rule_text(USUAL):
            what = f"{self.points} points of each prompt are swept" if self.points != 1 else "one point of each prompt is swept"
            lines.append(f"  rule {self.rule}: " + (what if self.points else "one forward pass for each source"))
        lines += [f"  {part:<10}{flops / 1e9:>10.3f} GFLOP {size / 1e6:>10.1f} MB" for part, flops, size in self._parts]
        return "\n".join([*lines, *(f"  {pack}" for pack in self.packs)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{part}</td><td>{flops / 1e9:,.3f}</td><td>{size / 1e6:,.1f}</td></tr>" for part, flops, size in self._parts
        )
        head = "<tr><th>part</th><th>GFLOP</th><th>MB moved</th></tr>"
        packs = "<br>".join(map(str, self.packs[:10])) + ("<br>…" if len(self.packs) > 10 else "")
        return f"<div><p>{str(self).splitlines()[0]}</p><table>{head}{rows}</table><p>{packs}</p></div>"

    @property
    def _parts(self) -> list[tuple[Part, int, int]]:
        return [(part, flops, self.bytes_by_part[part]) for part, flops in self.flops_by_part.items()]

    @property
    def _of_floor(self) -> str:
        return "" if self.floor is None else f", {self.flops / self.floor:.2f} of the floor"


@memory_named("planning")
@takes(model=as_model, source=as_source, target=as_target, cuts=as_dictionaries, budget=as_bytes)
@with_options
def plan(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | LogitsLike,
    tokens: TokensLike,
    *,
    error: ErrorAs = True,
    bias: bool = False,
    active: int | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """The plan of an attribution, without computing it.

    Args:
        source: a dictionary, or None for the tokens' scales (`token_to_latent`).
        target: a dictionary, or a choice of logits, as `latent_to_logit` takes it.
        keep: for the size of the result. One that memory cannot hold is planned, and refused when it is run.
        precision_rows: how many rows of the first prompt are computed again in float64.
        active: how many latents are active at each position. None: k for dictionaries that have one; where a dictionary
            with another rule takes part, or there are cuts, active latents are counted, which costs a forward pass.

    The other options and errors are those of `attrib.latent_to_latent`.
    """
    kind: EdgeKind = "token_to_latent" if source is None else "latent_to_latent" if isinstance(target, Dictionary) else "latent_to_logit"
    target = target if isinstance(target, Dictionary) else as_logits(target)
    prompts = to_prompts(model, tokens)
    needs = check(kind, model, source, target, prompts, error=error, bias=bias, **options, result_fits=False)
    if active is not None and active < 1:
        raise InputError(f"active: {active}; expected at least 1, or None to count.")
    opening, is_plain = needs.opening, needs.others is None and not needs.is_error_source
    if not is_plain and active is not None:
        raise InputError(f"active: {active}, but with other prompts, or errors as sources, sources are counted. Leave it out.")
    known = is_plain and opening.cuts is None and counts_known(source, target, active)
    by_rule = isinstance(needs.rule, IntegratedGradients | Ablation)
    if by_rule and opening.cuts is not None:
        raise InputError(f"rule: {rule_text(needs.rule)} past cuts goes by torch.func, row by row, without a plan; expected no cuts here.")
    if opening.cuts is not None and active is not None:
        raise InputError(f"active: {active}, but where dictionaries are put in, active latents are counted. Leave it out.")
    tasks, opened = [], Cost(opening.itemsize)
    for ids, found in needs.opened_paths(prompts) if not known else ((ids, None) for ids in prompts):
        read = positions_read(target, needs.positions, len(ids))
        if found is None:
            counted = known_task(model, source, target, len(ids), needs.policy, needs.positions, opening.itemsize, active)
            task = opening.opened(counted, read)
        else:
            task = needs.opened(ids, found)
        tasks.append(task)
        opened = opened + opening.cost(Counts(task.tokens, task.n_sources, task.n_targets, read))
    if by_rule:
        result = sum(result_bytes(task, needs.keep) for task in tasks)
        given = needs.source, needs.target
        copies = copied_bytes(needs.model, given, needs.precision, needs.rows, opening.start, opening.stop)
        return _plan_of_rule(needs, tasks, opened, result, copies, [len(ids) for ids in prompts])
    planned = [pack for _, pack in packs(tasks, lambda task: task, needs.budget, plan_pack)]
    again = _sampled(tasks[0], needs)
    least = sum((pack.floor for pack in planned), opened)
    result = sum(result_bytes(task, needs.keep) for task in tasks)
    ends = opening.start, opening.stop
    copies = copied_bytes(needs.model, (needs.source, needs.target, *needs.cuts), needs.precision, needs.rows, *ends)
    return replace(plan_of(planned, again, opened, result, copies, least), rule=rule_text(needs.rule))


def _plan_of_rule(needs: Needs, tasks: Sequence[Task], opened: Cost, result: int, copies: int, lengths: Sequence[int]) -> Plan:
    """The plan of a rule that looks at more points than one, prompt by prompt; no floor is known for it."""
    opening, rule, whole = needs.opening, needs.rule, opened
    moved = Cost(opening.itemsize)
    points = int(rule.steps) if isinstance(rule, IntegratedGradients) else 0
    for task, length in zip(tasks, lengths, strict=True):
        read = positions_read(needs.target, needs.positions, length)
        one = Cost(opening.itemsize)
        model_pass(one, "primal", needs.model.config, [length], opening.start.depth, opening.stop.depth)
        if points:  # where targets are read anew, and their cotangents
            opening.reading_cost(one, Counts(length, task.n_sources, task.n_targets, read))
        elif isinstance(needs.target, Dictionary) and needs.target.config.rule in COMPETING:
            one.mm("capture", length, needs.target.d_in, needs.target.d_sae)
        moved.take(_times(one, (points or task.n_sources) + 1))  # all sources at once, for the gap
    planned = [plan_pack(task, needs.budget) for task in tasks] if points else []
    for pack in planned:
        whole = whole + _times(pack.cost, points)
    whole = whole + moved
    matrices = max(task.n_targets * task.n_sources for task in tasks) * opening.itemsize
    held = [pack.peak + min(matrices, needs.budget // 2) for pack in planned]
    if not points:
        passes = [chunked(needs, task, length) for task, length in zip(tasks, lengths, strict=True)]
        held = [fixed + at_once * row for fixed, row, at_once in passes]
    return Plan(
        tuple(planned), dict(whole.flops), dict(whole.bytes), max(held), None, None, result, copies, rule_text(rule), points,
    )  # fmt: skip


def _times(cost: Cost, times: int) -> Cost:
    """So many times the same."""
    found = Cost(cost.itemsize)
    for part in cost.flops:
        found.flops[part], found.bytes[part] = times * cost.flops[part], times * cost.bytes[part]
    return found


def plan_of(
    packs: Sequence[PackPlan | JointPlan],
    again: Sequence[PackPlan | JointPlan],
    opened: Cost,
    result: int,
    copies: int,
    floor: Cost | None = None,
) -> Plan:
    """All of a call together.

    Args:
        again: the sweeps over sampled rows.
        opened: what opening the prompts costs.
        result, copies: bytes, as `Plan` has them.
    """
    total = sum((part.cost for part in (*packs, *again)), opened)
    peak = max(part.peak for part in (*packs, *again))
    least, least_bytes = (None, None) if floor is None else (floor.total, sum(floor.bytes.values()))
    return Plan(tuple(packs), dict(total.flops), dict(total.bytes), peak, least, least_bytes, result, copies)


def _sampled(task: Task, needs: Needs) -> list[PackPlan]:
    """The sweeps over the first prompt's sampled rows: as the others, and in float64, where the primal is walked again."""
    if not needs.rows or not task.n_targets:
        return []
    sampled = sampled_task(task, needs.rows, task.itemsize)
    tasks = sampled, replace(sampled, itemsize=8, walks=needs.opening.cuts is None)
    return [plan_pack(each, max(needs.budget, LEAST_FOR_SAMPLES)) for each in tasks]


def copied_bytes(model: Model, ends: Iterable[Any], precision: Precision, rows: int, start: Site, stop: Site) -> int:
    """Bytes of parameters that are converted: all to the path's precision, the blocks between its ends to the sweep's, and to float64.

    Args:
        ends: dictionaries, and whatever else is at an end, which has no parameters.
        rows: how many rows are computed again in float64.
    """

    def numbers(params: Any) -> int:
        return sum(leaf.numel() for leaf in pytree.tree_leaves(params) if isinstance(leaf, torch.Tensor))

    path, sweep = precision.path, precision.sweep
    given: list[Any] = [model.params] if model.dtype != path else []
    dictionaries = {id(d): d for d in ends if isinstance(d, Dictionary) and not d.config.lazy}.values()
    given += [d.params for d in dictionaries if d.params.W_dec.dtype != path]
    blocks = numbers(model.params.blocks[start.layer : stop.layer + 1])
    swept = [sweep] if sweep != path else []
    swept += [torch.float64] if rows and path != torch.float64 else []
    return numbers(given) * path.itemsize + blocks * sum(dtype.itemsize for dtype in swept)
