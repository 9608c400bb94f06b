"""What a call will cost, told before it runs: `plan`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch

from attrib.adapters.given import as_bytes, as_dictionaries, as_model, as_sources, as_target, takes
from attrib.attribution.each import is_shared, known_ends
from attrib.attribution.jacobian import plan_swept
from attrib.attribution.needs import Needs
from attrib.attribution.opening import Counts, counts_known, known_task, positions_read
from attrib.attribution.options import ErrorAs, Options, PlanOptions, check, with_options
from attrib.attribution.planned import Plan, copied_bytes, plan_of, together
from attrib.attribution.ruled import batches_of, chunked
from attrib.core.room import memory_named
from attrib.core.rules import Ablation, IntegratedGradients, rule_text
from attrib.core.types import BudgetError, EdgeKind, InputError, Logits
from attrib.dictionaries.dictionary import COMPETING, Dictionary
from attrib.engine.plan.choose import PackPlan, packs, plan_pack
from attrib.engine.plan.cost import Cost, model_pass
from attrib.engine.plan.result import result_bytes
from attrib.engine.plan.task import Task
from attrib.engine.precision import FLOAT64
from attrib.engine.tiles import LEAST_FOR_SAMPLES, sampled_task
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model
from attrib.paths.targets import LogitsLike, as_logits


@memory_named("planning")
@takes(model=as_model, source=as_sources, target=as_target, cuts=as_dictionaries, budget=as_bytes)
@with_options
def plan(
    model: Model,
    source: Dictionary | Sequence[Dictionary] | None,
    target: Dictionary | Sequence[Dictionary] | LogitsLike,
    tokens: TokensLike,
    *,
    error: ErrorAs = True,
    bias: bool = False,
    active: int | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """The plan of an attribution, without computing it.

    Args:
        source: a dictionary, or several; or None for the tokens' scales (`token_to_latent`).
        target: a dictionary, or a choice of logits, as `latent_to_logit` takes it. For the tokens' scales also several dictionaries.
        keep: for the size of the result. One that memory cannot hold is planned, and refused when it is run.
        precision_rows: how many rows of the first prompt are computed again in float64.
        active: how many latents are active at each position. None: k for dictionaries that have one; where a dictionary
            with another rule takes part, or there are cuts, active latents are counted, which costs a forward pass.

    The other options and errors are those of `attrib.latent_to_latent`.
    """
    sources = [source] if source is None or isinstance(source, Dictionary) else list(source)
    given: Any = target
    if source is None:
        targets: list[Any] = list(as_dictionaries(given, "target"))
    else:
        targets = [given if isinstance(given, Dictionary) else as_logits(given)]
    if len(sources) == len(targets) == 1:
        return _plan_of_one(model, sources[0], targets[0], tokens, error, bias, active, options)
    asked = Options(**options, result_fits=False)
    sources, targets = known_ends(model, sources, targets, asked)
    plans = [_plan_of_one(model, one, to, tokens, error, bias, active, options) for one in sources for to in targets]
    if is_shared(sources, asked, error):
        try:
            return plan_swept(model, [one or "tokens" for one in sources], targets, tokens, asked, error, bias)
        except BudgetError:
            pass  # it is too small for all together, which then go one after another
    return together(plans)


def _plan_of_one(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits,
    tokens: TokensLike,
    error: ErrorAs,
    bias: bool,
    active: int | None,
    options: PlanOptions,
) -> Plan:
    """The plan of one source and one target."""
    kind: EdgeKind = "token_to_latent" if source is None else "latent_to_latent" if isinstance(target, Dictionary) else "latent_to_logit"
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
        raise InputError(f"rule: {rule_text(needs.rule)} past cuts goes without a plan; expected no cuts here.")
    if opening.cuts is not None and active is not None:
        raise InputError(f"active: {active}, but where dictionaries are put in, active latents are counted. Leave it out.")
    tasks, opened = [], Cost(opening.itemsize)
    for ids, found in needs.opened_paths(prompts) if not known else ((ids, None) for ids in prompts):
        read = positions_read(target, needs.positions, len(ids))
        if found is None:
            counted = known_task(model, source, target, len(ids), needs.policy, needs.positions, needs.precision, active)
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
        else:
            moved.take(_ablating_cost(needs, task, length))
        moved.take(_times(one, (points or 1) + 1))  # all sources at once, for the gap; of ablations also the pass that they go beside
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


def _ablating_cost(needs: Needs, task: Task, length: int) -> Cost:
    """The passes of a prompt's ablations, each of the positions from its source on, and what is read behind them."""
    opening, total, config = needs.opening, Cost(needs.opening.itemsize), needs.model.config
    (counts,) = task.sources
    begins = torch.arange(length).repeat_interleave(torch.tensor(counts))
    if not config.causal:
        begins = torch.zeros_like(begins)
    for first, some in batches_of(begins, length, chunked(needs, task, length).at_once):
        one = Cost(total.itemsize)
        model_pass(one, "primal", config, [length - first], opening.start.depth, opening.stop.depth, before=first)
        if isinstance(needs.target, Dictionary) and needs.target.config.rule in COMPETING:
            one.mm("capture", length, needs.target.d_in, needs.target.d_sae)
        total.take(_times(one, len(some) + 1))
    return total


def _times(cost: Cost, times: int) -> Cost:
    """So many times the same."""
    found = Cost(cost.itemsize)
    for part in cost.flops:
        found.flops[part], found.bytes[part] = times * cost.flops[part], times * cost.bytes[part]
    return found


def _sampled(task: Task, needs: Needs) -> list[PackPlan]:
    """The sweeps over the first prompt's sampled rows: as the others, and in float64, where the primal is walked again."""
    if not needs.rows or not task.n_targets:
        return []
    as_others, exact = (sampled_task(task, needs.rows, each, needs.model.device) for each in (needs.precision, FLOAT64))
    tasks = as_others, replace(exact, walks=needs.opening.cuts is None)
    return [plan_pack(each, max(needs.budget, LEAST_FOR_SAMPLES)) for each in tasks]
