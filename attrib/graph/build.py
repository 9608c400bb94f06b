"""`build`: the attribution graphs of prompts, by one joined sweep for each pack of them (engine/bundle.py)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_dictionaries, as_model, takes
from attrib.attribution.loop import of_prompt_number, track
from attrib.attribution.needs import constant
from attrib.attribution.options import Options, with_options
from attrib.core.edges import Growing
from attrib.core.fingerprints import seal, sha256_of
from attrib.core.finite import require_finite
from attrib.core.keep import kept
from attrib.core.positions import Positions, plain_positions
from attrib.core.room import free_memory, memory_named
from attrib.core.sparse import to_csr
from attrib.core.types import BudgetError, Keep
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import fitted, known_to
from attrib.engine.bundle import Piece, jacobians, joint_of
from attrib.engine.plan.choose import packs, refusing
from attrib.engine.plan.joint import Joint, least_joint_memory, plan_joint
from attrib.engine.plan.result import check_fits, result_bytes
from attrib.engine.precision import Precision, precision_of
from attrib.engine.sweep.cells import pieces_of
from attrib.graph.ends import GraphEnds, Opened, opened_bytes
from attrib.graph.graph import Graph
from attrib.graph.options import GraphAsked, GraphOptions
from attrib.models.tokens import TokensLike, to_prompts, token_strings
from attrib.models.transformer import Model


@takes(model=as_model, dictionaries=as_dictionaries, budget=as_bytes)
@partial(with_options, asked=GraphAsked)
def build(
    model: Model, dictionaries: Dictionary | Sequence[Dictionary], tokens: TokensLike, **options: Unpack[GraphOptions]
) -> list[Graph]:
    """The attribution graph of each prompt: direct effects from every node to every active latent and to the targets.

    Nodes are the active latents of the dictionaries, the errors of the places that they write, the embeddings of tokens and positions,
    every constant that reaches a target (biases of attention, norms and decoders, at each position), and the targets. All dictionaries
    are put in together, so that an edge passes none of their latents. Each row says how far it adds up; see `Graph`.

    Args:
        dictionaries: any that go together (`attrib.replace`): SAEs, transcoders with and without skip connections, cross-layer ones.
        tokens: prompts, as the attributions take them.
        targets: one choice or several: logits as `latent_to_logit` takes them, `Span(first)`, the tokens of an answer, `Custom(label,
            vector)`.
        policy: which of the model's nonlinearities are differentiated. LINEAR holds patterns and norms, so that rows add up.
        keep: which edges of each row are stored; totals are of all.
        positions: at which logits and directions are read; None is the last.
        mlps: "exact": derivatives pass an MLP that no dictionary replaces, and what that misses of it is a constant; "leaf": what such an
            MLP writes is a node at each position.
        demean: whether a logit is read less the mean of all logits, and before a cap on logits. Differences and directions never are.
        skip_positions: how many first positions have no latents: all that stands there at written places is error.
        dtype, budget, method, progress: as of `latent_to_latent`; method is "adjoint" or "adjoint-triton".

    Raises:
        InputError: where dictionaries do not fit the model or each other, or an option is none of its kind.
        BudgetError: where a prompt does not fit into the budget, or the result into memory.
        NotFiniteError: where a value is NaN or infinite.
    """
    asked = GraphAsked(**options)
    prompts = to_prompts(model, tokens)
    asked = asked.at(plain_positions(asked.positions, [len(ids) for ids in prompts]))
    several: Any = dictionaries
    named = [seal(known_to(model, d, f"dictionaries[{number}]")) for number, d in enumerate(several)]
    return _Call(seal(model), named, prompts, asked).run()


Prompted = tuple[Tensor, Opened]
"""A prompt's tokens and its nodes."""


class _Call:
    """One call whose arguments were found good."""

    def __init__(self, model: Model, dictionaries: Sequence[Dictionary], prompts: list[Tensor], asked: GraphAsked) -> None:
        self.prompts, self.options, self.precision = prompts, asked.common, precision_of(model, asked.dtype)
        there = constant(model.to(dtype=self.precision.path))
        put_in = tuple(
            constant(fitted(there, d.to(dtype=there.dtype, device=there.device), f"dictionaries[{number}]"))
            for number, d in enumerate(dictionaries)
        )
        positions: Positions = asked.positions
        self.ends = GraphEnds(there, put_in, asked.outputs, asked.policy, positions, asked.mlps, asked.demean, asked.skip_positions)
        self.call = graph_record(model, dictionaries, asked, self.precision)
        self.free, self.needed = free_memory(), 0

    def run(self) -> list[Graph]:
        """Pack by pack."""
        doing = f"building graphs of {len(self.prompts)} prompt(s) of up to {max(map(len, self.prompts))} tokens"
        with memory_named(doing, "Give a smaller budget, keep fewer edges (keep=TopK(k), Mass(0.9)), or give fewer or shorter prompts."):
            found: list[Graph] = []
            opened = (
                (ids, of_prompt_number(number, self.ends.open, ids))
                for number, ids in enumerate(track(self.prompts, self.options.progress))
            )
            planned = packs(opened, self._joint, self.options.budget, plan_joint)
            for pack, plan in refusing(planned, self._refuse):
                self._grow(plan.joint)
                growing = [GraphRows(each, self.options) for _, each in pack]
                for number, piece in jacobians([each.bundle for _, each in pack], plan, self.precision, self.options.impl):
                    growing[number].add(piece)
                    del piece  # before the next is computed
                for (ids, _), rows in zip(pack, growing, strict=True):
                    found.append(of_prompt_number(len(found), rows.graph, self.ends.model, ids, self.call))
                del pack, plan, growing
            return found

    def _joint(self, prompted: Prompted) -> Joint:
        """The work of a prompt whose nodes are known."""
        joint = replace(joint_of([prompted[1].bundle]), itemsize=self.precision.path.itemsize)
        return replace(joint, opened=opened_bytes(self.ends, prompted[1], joint.itemsize))

    def _refuse(self) -> None:
        """Raises BudgetError with what is enough for all prompts."""
        least = [least_joint_memory(self._joint((ids, self.ends.open(ids)))) for ids in self.prompts]
        number = max(range(len(least)), key=least.__getitem__)
        raise BudgetError.of(self.options.budget, number, least[number])

    def _grow(self, joint: Joint) -> None:
        """Raises BudgetError where the result so far would be too large for the memory that is free."""
        self.needed += result_bytes(joint.whole, self.options.keep)
        check_fits(self.needed, self.options.keep, joint.n_targets, joint.itemsize, self.free)


def graph_record(model: Model, dictionaries: Sequence[Dictionary], asked: GraphAsked, precision: Precision) -> dict[str, Any]:
    """What was asked for, and hashes of what it was asked of, as JSON can hold it."""
    positions: Any = asked.positions
    return {
        "kind": "graph", "model": {"name": model.name, "sha256": model.fingerprint},
        "tokenizer": {"sha256": model.tokenizer.sha256 if model.tokenizer else None},
        "dictionaries": [{"name": d.name, "site": str(d.site), "d_sae": d.d_sae, "sha256": d.fingerprint} for d in dictionaries],
        "policy": asked.policy._asdict(), "targets": [repr(what) for what in asked.outputs], "keep": repr(asked.keep),
        "positions": list(positions) if isinstance(positions, tuple) else positions, "mlps": asked.mlps, "demean": asked.demean,
        "skip_positions": asked.skip_positions, "dtype": precision.name, "method": asked.method, "budget": asked.budget,
    }  # fmt: skip


class GraphRows:
    """One prompt's rows, as pieces of them come. A row is selected as soon as it has been read out for all sources."""

    def __init__(self, opened: Opened, options: Options) -> None:
        self.opened, self.options = opened, options
        self.waiting: dict[tuple[int, int], list[Piece]] = {}
        ends = opened.bundle.sources
        self.node = torch.cat(opened.columns)
        self.activation = torch.cat([end.sources.value for end in ends])
        self.selected = Selected(self.activation.dtype)

    def add(self, piece: Piece) -> None:
        """Take some rows of one set of targets by one set of sources."""
        key = piece.target, int(piece.place[0])
        there = self.waiting.setdefault(key, [])
        there.append(piece)
        if len(there) == len(self.opened.columns):
            there.sort(key=lambda each: each.source)
            self._select(piece.target, piece.place, [each.gradient for each in self.waiting.pop(key)])

    def _select(self, target: int, place: Int[Tensor, " rows"], gradients: list[Float[Tensor, "rows _"]]) -> None:
        rows = self.opened.rows[target][place]
        width = sum(gradient.shape[1] for gradient in gradients)
        at_once = max(1, pieces_of(gradients[0].device).select // max(1, width))
        for first in range(0, len(rows), at_once):
            whole = torch.cat([gradient[first : first + at_once] for gradient in gradients], dim=1)
            self.selected.add(rows[first : first + at_once], whole, self.activation, self.node, self.options.keep)

    def graph(self, model: Model, ids: Tensor, call: dict[str, Any]) -> Graph:
        """All of them."""
        opened = self.opened
        assert not self.waiting  # every sweep reads out every source
        targets, indptr, indices, weight, total, l1 = self.selected.in_order()
        require_finite({"the gradients of a graph": l1}, position=opened.nodes.position[targets])
        call = call | {"tokens": {"sha256": sha256_of([ids])}}
        value, own, importance = (column[targets] for column in (opened.value, opened.own, opened.importance))
        return Graph(
            opened.nodes, targets, indptr, indices, weight, value, own, total, l1, importance, ids.cpu(), token_strings(model, ids), call
        )  # fmt: skip


class Selected:
    """What is kept of rows, in the order in which they come."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.node, self.counts, self.indices = Growing(), Growing(), Growing()
        self.weight, self.total, self.l1 = Growing(), Growing(), Growing()
        self.dtype = dtype

    def add(
        self,
        rows: Int[Tensor, " rows"],
        gradient: Float[Tensor, "rows columns"],
        activation: Float[Tensor, " columns"],
        node: Int[Tensor, " columns"],
        keep: Keep,
    ) -> None:
        """Select from complete rows, whose columns are these nodes."""
        weight = gradient.mul_(activation)
        mask = kept(keep, weight, weight)
        indptr, column, place = to_csr(mask)
        found = node[column.cpu()]
        row = torch.arange(len(rows)).repeat_interleave(indptr.diff().cpu())
        order = (row * (int(node.max()) + 1 if len(node) else 1) + found).argsort()
        self.node.add(rows)
        self.counts.add(indptr.diff().cpu())
        self.indices.add(found[order])
        self.weight.add(weight.flatten().index_select(0, place).cpu()[order])
        self.total.add(weight.sum(1).cpu())
        self.l1.add(weight.abs().sum(1).cpu())

    def in_order(self) -> Iterator[Tensor]:
        """Nodes of the rows, ascending; where the edges of each begin; their sources and weights; the totals."""
        whole, none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=self.dtype)
        node, counts, indices = (column.whole(whole) for column in (self.node, self.counts, self.indices))
        weight, total, l1 = (column.whole(none) for column in (self.weight, self.total, self.l1))
        order = node.argsort()
        begins = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        new = counts[order]
        indptr = torch.cat([new.new_zeros(1), new.cumsum(0)])
        entry = torch.arange(len(indices)) + (begins[order] - indptr[:-1]).repeat_interleave(new)
        yield from (node[order], indptr, indices[entry], weight[entry], total[order], l1[order])
