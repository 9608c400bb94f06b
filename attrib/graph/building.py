"""`build` and its `plan`: the attribution graphs of prompts, by one joined sweep for each pack of them (engine/bundle.py)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import disk_usage
from typing import Any, Unpack, cast

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_model, takes
from attrib.attribution.loop import of_prompt_number, track
from attrib.attribution.options import with_options
from attrib.attribution.planned import Plan, copied_bytes, plan_of
from attrib.attribution.record import products_record
from attrib.core.fingerprints import seal
from attrib.core.positions import plain_positions
from attrib.core.room import KEEP_LESS, free_memory, memory_named
from attrib.core.scratch import Scratch
from attrib.core.types import BudgetError
from attrib.engine.bundle import joint_of
from attrib.engine.on_demand import OnDemand
from attrib.engine.outgoing import Outgoing
from attrib.engine.plan.choose import packs, refusing
from attrib.engine.plan.choose_joint import JointPlan, plan_joint, refuse
from attrib.engine.plan.cost import Cost
from attrib.engine.plan.joint import Joint
from attrib.engine.plan.result import check_disk, check_fits, disk_bytes, no_room, result_bytes, size_of
from attrib.engine.precision import Precision, precision_of
from attrib.engine.sweep.primal import remembered_bytes
from attrib.graph.ends import FIRST, Opened
from attrib.graph.expand import Reach, expand, reach_bytes
from attrib.graph.given import as_given, as_sealed, ends_of, record_of
from attrib.graph.graph import Graph
from attrib.graph.latents import Given
from attrib.graph.lazy import LazyGraph
from attrib.graph.opening import opened_bytes, opening_cost
from attrib.graph.options import GraphAsked, GraphOptions, GraphPlanOptions
from attrib.graph.rows import GraphRows
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model


@takes(model=as_model, dictionaries=as_given, budget=as_bytes)
@partial(with_options, asked=GraphAsked)
def build(model: Model, dictionaries: Given | Sequence[Given], tokens: TokensLike, **options: Unpack[GraphOptions]) -> list[Graph]:
    """The attribution graph of each prompt: direct effects from every node to every active latent and to the targets.

    Nodes are the active latents of the dictionaries, the errors of the places that they write, the embeddings of tokens and positions,
    every constant that reaches a target (biases of attention, norms and decoders, at each position), and the targets. All dictionaries
    are put in together, so that an edge passes none of their latents. Each row says how far it adds up; see `Graph`.

    Args:
        dictionaries: any that go together (`attrib.replace`): SAEs, transcoders with and without skip connections, cross-layer ones; and
            `Neurons(layer)`, an MLP's own hidden units.
        tokens: prompts, as the attributions take them.
        targets: one choice or several: logits as `latent_to_logit` takes them, `Span(first)`, the tokens of an answer, `Custom(label,
            vector)`, `Latents([(dictionary, latent, position), ...])`.
        policy: which of the model's nonlinearities are differentiated. LINEAR holds patterns and norms, so that rows add up; RELP sends
            relevance through the MLPs that no dictionary replaces, and what that leaves of each is its biases alone.
        keep: which edges of each row are stored; totals are of all.
        positions: at which logits and directions are read; None is the last.
        mlps: "exact": derivatives pass an MLP that no dictionary replaces, and what that misses of it is a constant; "leaf": what such an
            MLP writes is a node at each position.
        demean: whether a logit is read less the mean of all logits, and before a cap on logits. Differences and directions never are.
        skip_positions: how many first positions have no latents: all that stands there at written places is error.
        max_nodes: how many latents stay at most, those through which most of the targets is reached; None is all. Rows of others are not
            computed where that takes fewer products, and edges from them count as dropped.
        block: with `max_nodes`, how many rows are computed before it is asked again which ones matter.
        dtype, budget, method, progress, device: as of `latent_to_latent`; method is "adjoint" or "adjoint-triton", and several devices
            take all rows (`max_nodes` None).
        rule: gradient times activation alone, which makes rows add up.

    Raises:
        InputError: where dictionaries do not fit the model or each other, or an option is none of its kind.
        BudgetError: where a prompt does not fit into the budget, or the result into memory.
        NotFiniteError: where a value is NaN or infinite.
    """
    return cast(list[Graph], list(_call(model, dictionaries, tokens, options).graphs()))


@memory_named("planning")
@takes(model=as_model, dictionaries=as_given, budget=as_bytes)
@partial(with_options, asked=GraphAsked)
def plan(model: Model, dictionaries: Given | Sequence[Given], tokens: TokensLike, **options: Unpack[GraphPlanOptions]) -> Plan:
    """What `build` will do and cost. The nodes of each prompt are found, and nothing is swept.

    With `max_nodes` it is known how many rows are computed at most, and not which: those that are planned lie evenly among all latents.
    A result that memory cannot hold is planned, and refused when it is made. No floor is known for sweeps that many targets join, so the
    plan has none. The arguments and errors are those of `build`.
    """
    return _call(model, dictionaries, tokens, options).plan()


def stream(
    model: Model, given: Given | Sequence[Given], tokens: TokensLike, folder: Path, copies: int, options: GraphOptions
) -> Iterator[Graph | LazyGraph]:
    """The graphs that `build` gives, one after another, with their edges on the disk: each is to be used before the next is asked for.

    Where rows are chosen (`max_nodes`) it is by whole rows of those chosen before, which memory holds, and so it does their edges: such
    graphs are as `build` gives them.

    Args:
        folder: on whose disk edges lie, in a file without a name.
        copies: how many times the bytes of a graph's edges the disk takes before the next is asked for: 2 where they are copied to a file.

    Raises:
        BudgetError: also where the disk does not suffice.
    """
    call = _call(model, given, tokens, options)

    def room(taken: int, free: int) -> None:
        if (copies - 1) * taken > free:
            raise BudgetError(no_room(f"the edges so far take {size_of(taken)}, and need {size_of(copies * taken)}", folder, free))

    def found() -> Iterator[Graph | LazyGraph]:
        with Scratch(folder, room) as scratch:
            yield from call.graphs(scratch, copies)

    return found()


def check(model: Model, dictionaries: Given | Sequence[Given], tokens: TokensLike, **options: Unpack[GraphOptions]) -> None:
    """Raises what `build` raises of its arguments. Whether the prompts fit into the budget is seen when they are built."""
    list(_call(model, dictionaries, tokens, options).ends.stops)  # to find them, targets are looked at


def _call(model: Model, dictionaries: Any, tokens: TokensLike, options: Any) -> "_Call":
    asked = GraphAsked(**options)
    model = asked.common.there(model)
    prompts = to_prompts(model, tokens)
    asked = asked.at(plain_positions(asked.positions, [len(ids) for ids in prompts]))
    return _Call(seal(model), as_sealed(model, dictionaries), prompts, asked)


Prompted = tuple[Tensor, Opened]
"""A prompt's tokens and its nodes."""


class _Call:
    """One call whose arguments were found good."""

    def __init__(self, model: Model, given: Sequence[Given], prompts: list[Tensor], asked: GraphAsked) -> None:
        self.model, self.given = model, given
        self.prompts, self.asked, self.options, self.precision = prompts, asked, asked.common, precision_of(model, asked.dtype)
        self.team = self.options.team(model)
        self.ends = ends_of(model, given, asked, self.precision, prompts)
        self.call = graph_record(model, given, asked, self.precision)
        self.free, self.needed = free_memory(), 0

    def graphs(self, scratch: Scratch | None = None, copies: int = 0) -> Iterator[Graph | LazyGraph]:
        """Pack by pack.

        Args:
            scratch, copies: where edges are, and how much of the disk they take; see `stream`. None is memory, which holds all graphs.
        """
        doing = f"building graphs of {len(self.prompts)} prompt(s) of up to {max(map(len, self.prompts))} tokens"
        with memory_named(doing, KEEP_LESS), self.team:
            numbered = enumerate(track(self.prompts, self.options.progress))
            opened = ((ids, of_prompt_number(number, self.ends.open, ids)) for number, ids in numbered)
            if self.asked.max_nodes is not None:
                yield from self._expanded(opened, is_alone=scratch is not None)
            elif scratch is None:
                yield from self._whole(opened)
            else:
                yield from self._on_disk(opened, scratch, copies)

    def plan(self) -> Plan:
        """The same, counted."""
        budget, cost, joints, some, result = self.options.budget, Cost(self.precision.path.itemsize), list[Joint](), list[JointPlan](), 0
        for number, ids in enumerate(self.prompts):
            opened = of_prompt_number(number, self.ends.open, ids)
            cost = cost + opening_cost(self.ends, opened, cost.itemsize)
            if self.asked.max_nodes is None:
                joints.append(self._joint((ids, opened)))
            else:
                part = self._mattering(ids, opened)
                some.append(self._planned(ids, opened, part))
                result += result_bytes(part.whole, self.options.keep)
            del opened
        packed = refusing(packs(joints, lambda joint: joint, budget, plan_joint), self._refuse)
        planned = [*some, *(each for _, each in packed)]
        result += sum(result_bytes(joint.whole, self.options.keep) for joint in joints)
        return plan_of(planned, [], cost, result, copied_bytes(self.model, self.given, self.precision, 0, FIRST, self.ends.stop))

    def _mattering(self, ids: Tensor, opened: Opened) -> Joint:
        """The work of the outputs' rows and of `max_nodes` latents' from all over: which ones matter is not known before."""
        latents = torch.isin(opened.node_of_row, opened.nodes.of_kind("latent"))
        rows = opened.node_of_row[~latents], evenly(opened.node_of_row[latents], self.asked.max_nodes)
        return self._joint((ids, opened.only(torch.cat(rows))))

    def _planned(self, ids: Tensor, opened: Opened, some: Joint) -> JointPlan:
        """The plan of some rows of a prompt. Raises BudgetError with what is enough for all prompts."""
        [plan] = refusing((plan_joint(each, self.options.budget, every=self._joint((ids, opened))) for each in [some]), self._refuse)
        return plan

    def _whole(self, opened: Iterator[Prompted]) -> Iterator[Graph]:
        """All rows, pack by pack."""
        first = 0
        for pack, plan in self._packs(opened):
            self._grow(plan.joint)
            growing = self._filled(pack, plan, None)
            for (ids, _), rows in zip(pack, growing, strict=True):
                yield of_prompt_number(first, rows.graph, self.ends.model, ids, self.call)
                first += 1
            del pack, plan, growing

    def _on_disk(self, opened: Iterator[Prompted], scratch: Scratch, copies: int) -> Iterator[LazyGraph]:
        """The same with edges that are on the disk until the next pack."""
        first = 0
        for pack, plan in self._packs(opened):
            needed = copies * disk_bytes(plan.joint.whole, self.options.keep)
            check_disk(needed, self.options.keep, scratch.folder, disk_usage(scratch.folder).free)
            growing = self._filled(pack, plan, scratch)
            scratch.check()
            for (ids, _), rows in zip(pack, growing, strict=True):
                yield of_prompt_number(first, rows.lazy, self.ends.model, ids, self.call)
                first += 1
            del pack, plan, growing
            scratch.clear()

    def _packs(self, opened: Iterator[Prompted]) -> Iterator[tuple[list[Prompted], JointPlan]]:
        """Prompts in packs. Raises BudgetError with what is enough for all prompts."""
        return refusing(packs(opened, self._joint, self.options.budget, plan_joint), self._refuse)

    def _filled(self, pack: Sequence[Prompted], plan: JointPlan, scratch: Scratch | None) -> list[GraphRows]:
        """The rows of a pack."""
        outgoing = Outgoing(self.team.left(len(pack), plan.peak))
        growing = [GraphRows(each, self.options.keep, scratch=scratch, outgoing=outgoing) for _, each in pack]
        bundles = [each.bundle for _, each in pack]
        for number, found, chosen in self.team.found_rows(bundles, plan, self.precision, self.options.impl):
            growing[number].add(found, chosen)
            del found  # before the next is computed
        outgoing.finish()
        return growing

    def _expanded(self, opened: Iterator[Prompted], *, is_alone: bool) -> Iterator[Graph]:
        """The rows that matter, prompt by prompt.

        Args:
            is_alone: whether each graph is let go of before the next.
        """
        for number, prompted in enumerate(opened):
            if is_alone:
                self.needed, self.free = 0, free_memory()
            yield of_prompt_number(number, self._expand, *prompted)
            del prompted

    def _expand(self, ids: Tensor, opened: Opened) -> Graph:
        asked, reach = self.asked, Reach(opened.nodes, opened.importance)
        some = self._mattering(ids, opened)
        plan = self._planned(ids, opened, some)
        self._grow(some)
        there = OnDemand(opened.bundle, plan, self.precision, self.options.impl, self.options.budget)
        rows = GraphRows(opened, self.options.keep, reach.add)

        def more(nodes: Int[Tensor, " nodes"]) -> None:
            is_asked = torch.zeros(len(opened.nodes), dtype=torch.bool).index_fill(0, nodes, True)
            for found, chosen in there.rows([is_asked[own].nonzero()[:, 0] for own in opened.rows]):
                rows.add(found, chosen)
                del found  # before the next is computed

        more(opened.nodes.of_kind("logit", "target"))
        left = torch.ones(len(opened.nodes), dtype=torch.bool).index_fill(0, reach.latents, False)
        left[expand(reach, more, asked.max_nodes, asked.block)] = True
        return rows.graph(self.ends.model, ids, self.call).take(left.nonzero()[:, 0])

    def _joint(self, prompted: Prompted) -> Joint:
        """The work of a prompt whose nodes are known."""
        opened = prompted[1]
        joint = replace(joint_of([opened.bundle], self.precision), itemsize=self.precision.path.itemsize)
        held = opened_bytes(self.ends, opened, joint.itemsize)
        if self.asked.max_nodes is not None:
            kept = reach_bytes(opened.nodes, self.asked.max_nodes, joint.itemsize)
            kept += remembered_bytes(self.ends.model.config, [opened.bundle.length], joint.itemsize)
            held = held._replace(held=held.held + kept, whole=held.whole + kept)
        return replace(joint, opened=held)

    def _refuse(self) -> None:
        """Raises BudgetError with what is enough for all prompts."""
        refuse((self._least(ids, self.ends.open(ids)) for ids in self.prompts), self.options.budget)

    def _least(self, ids: Tensor, opened: Opened) -> Joint:
        """The work that has to fit: all rows, or as many as are computed."""
        return self._joint((ids, opened)) if self.asked.max_nodes is None else self._mattering(ids, opened)

    def _grow(self, joint: Joint) -> None:
        """Raises BudgetError where the result so far would be too large for the memory that is free."""
        self.needed += result_bytes(joint.whole, self.options.keep)
        check_fits(self.needed, self.options.keep, joint.n_targets, joint.itemsize, self.free)


def graph_record(model: Model, given: Sequence[Given], asked: GraphAsked, precision: Precision) -> dict[str, Any]:
    """What was asked for, and hashes of what it was asked of, as JSON can hold it."""
    positions: Any = asked.positions
    return {
        "kind": "graph", "model": {"name": model.name, "sha256": model.fingerprint},
        "tokenizer": {"sha256": model.tokenizer.sha256 if model.tokenizer else None},
        "dictionaries": list(map(record_of, given)),
        "policy": asked.policy._asdict(), "targets": [repr(what) for what in asked.outputs], "keep": repr(asked.keep),
        "positions": list(positions) if isinstance(positions, tuple) else positions, "mlps": asked.mlps, "demean": asked.demean,
        "skip_positions": asked.skip_positions, "max_nodes": asked.max_nodes, "block": asked.block,
        "dtype": precision.name, "method": asked.method, "budget": asked.budget,
    } | products_record(model, precision)  # fmt: skip


def evenly(nodes: Int[Tensor, " rows"], count: int) -> Int[Tensor, " chosen"]:
    """So many of them, from all over."""
    count = min(count, len(nodes))
    return nodes[torch.arange(count) * len(nodes) // max(1, count)]
