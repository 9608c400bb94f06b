"""What a call will cost, told before it runs: `plan`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attrib.attribute import check
from attrib.between import Effect, station
from attrib.cone import pieces_of
from attrib.cost import Cost, Part
from attrib.dictionary import Dictionary
from attrib.jacobian import DEFAULT_BUDGET, task_of
from attrib.model import Model
from attrib.packing import PackPlan, packs
from attrib.paths import path_of, start_site, stop_site
from attrib.positions import Positions, PositionsLike, chosen_positions, plain_positions
from attrib.precision import precision_of
from attrib.reading import LogitsLike, as_logits
from attrib.sources.given import as_bytes, as_dictionaries, as_model, as_source, as_target, takes
from attrib.task import Task
from attrib.tokens import TokensLike, to_prompts
from attrib.types import EXACT, Difference, Direction, EdgeKind, InputError, Logits, Policy, TokenLogits, TopLogits


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
            f"{self.direction}: {self.flops / 1e9:.2f} GFLOP, {self.flops / self.floor:.2f} of the floor, peak {self.peak / 1e6:.0f} MB"
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
    target: Dictionary | LogitsLike,
    tokens: TokensLike,
    *,
    cuts: Sequence[Dictionary] = (),
    effect: Effect = "direct",
    policy: Policy = EXACT,
    positions: PositionsLike = None,
    error: bool = True,
    dtype: torch.dtype | str | None = None,
    budget: int = DEFAULT_BUDGET,
    active: int | None = None,
) -> Plan:
    """The plan of an attribution, without computing it.

    Args:
        source: a dictionary, or None for the tokens' scales (`token_to_latent`).
        target: a dictionary, or a choice of logits, as `latent_to_logit` takes it.
        active: how many latents are active at each position. None: k for dictionaries that have one; where a dictionary
            with another rule takes part, or there are cuts, active latents are counted, which costs a forward pass.

    The other options and errors are those of `attrib.latent_to_latent`.
    """
    kind: EdgeKind = "token_to_latent" if source is None else "latent_to_latent" if isinstance(target, Dictionary) else "latent_to_logit"
    target = target if isinstance(target, Dictionary) else as_logits(target)
    prompts = to_prompts(model, tokens)
    positions = plain_positions(positions, [len(ids) for ids in prompts])
    check(kind, model, source, target, prompts, cuts=cuts, effect=effect, policy=policy, positions=positions, dtype=dtype, budget=budget)
    if active is not None and active < 1:
        raise InputError(f"active: {active}; expected at least 1, or None to count.")
    itemsize = precision_of(model, dtype).path.itemsize
    is_cut = bool(cuts) or (source is not None and len(source.writes) > 1)
    if is_cut and active is not None:
        raise InputError(f"active: {active}, but where dictionaries are put in, active latents are counted. Leave it out.")
    known = active is not None or all(not isinstance(d, Dictionary) or d.config.k is not None for d in (source, target))
    options: dict[str, Any] = {"policy": policy, "positions": positions, "error": error, "cuts": cuts, "effect": effect}
    tasks = []
    for ids in prompts:
        if known and not is_cut:
            tasks.append(replace(_task(model, source, target, ids, policy, positions, itemsize, active), walks=not error))
        else:
            tasks.append(task_of([path_of(model, source, target, ids, **options)]))
    planned = [pack for _, pack in packs(tasks, lambda task: task, budget)]
    capture = Cost(itemsize)
    for task in tasks:
        encoders = [d for d in (source, target) if isinstance(d, Dictionary)]
        encoders += [cut for cut in cuts if any(passed.reads == station(cut.site) for passed in task.passed)]
        _capture(capture, model, encoders, target, task, positions)
    total = sum((pack.cost for pack in planned), capture)
    least = sum((pack.floor for pack in planned), capture)
    peak = max(pack.peak for pack in planned)
    return Plan(tuple(planned), dict(total.flops), dict(total.bytes), peak, least.total, sum(least.bytes.values()))


def _task(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits,
    ids: Tensor,
    policy: Policy,
    positions: Positions,
    itemsize: int,
    active: int | None,
) -> Task:
    """The work of a prompt whose counts are known beforehand."""
    length = len(ids)

    def count(dictionary: Dictionary) -> int:
        return min(active or dictionary.config.k or 0, dictionary.d_sae)

    if isinstance(target, Dictionary):
        rows, at = count(target), positions
    else:
        rows, at = _logits(target), -1 if positions is None else positions
    times = Counter(chosen_positions(at, length, ids.device).tolist())
    targets = tuple(rows * times[position] for position in range(length))
    sources = (1 if source is None else count(source),) * length
    ends = start_site(source), stop_site(model, target, (source,))
    return Task(model.config, policy, *ends, (targets,), (sources,), itemsize, pieces=pieces_of(model.device))


def _logits(what: Logits) -> int:
    match what:
        case TopLogits(k=k):
            return k
        case TokenLogits(tokens=tokens):
            return len(tokens)
        case Difference() | Direction():
            return 1


def _capture(
    cost: Cost, model: Model, encoders: Sequence[Dictionary], target: Dictionary | Logits, task: Task, positions: Positions
) -> None:
    """Count what is done before the Jacobian: the prompt's own pass, the encoders, the logits that are chosen from."""
    c = model.config
    (rows,) = task.targets
    tokens, d, d_kv, d_q = len(rows), c.d_model, c.n_kv_heads * c.d_head, c.n_heads * c.d_head
    last = task.stop.layer + (task.stop.kind in ("mlp_out", "resid_post"))
    attentions = task.stop.layer + (task.stop.kind != "resid_pre")
    cost.mm("capture", tokens, d, d_q + 2 * d_kv, batch=attentions)
    cost.mm("capture", tokens, d_q, d, batch=attentions)
    cost.mm("capture", tokens, c.d_head, tokens, batch=2 * c.n_heads * attentions)
    cost.mm("capture", tokens, d, task.d_hidden, batch=last)
    cost.mm("capture", tokens, c.d_mlp, d, batch=last)
    for dictionary in encoders:
        cost.mm("capture", tokens, dictionary.d_in, dictionary.d_sae)
    if isinstance(target, TopLogits | TokenLogits):
        read = len(chosen_positions(-1 if positions is None else positions, tokens, torch.device("cpu")))
        cost.mm("capture", read, d, c.d_vocab)
