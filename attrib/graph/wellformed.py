"""What makes an attribution graph well formed: one rule for the writer and the reader."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.lazy import LazyGraph
from attrib.graph.nodes import KINDS, NAMED_KINDS, TARGET_KINDS, NodeSet

FEWEST = 512
"""Terms of a sum, at least, of which the rounding is bounded: more than the longest way through sums that add in blocks."""


def fault_of_sets(sets: Sequence[NodeSet], nodes: int, labels: int | None) -> tuple[str, str] | None:
    """The field at fault, and what is wrong with it, of a table of sets beside so many nodes and labels; labels None are not looked at."""
    if wrong := [each for each in sets if each.kind not in KINDS]:
        return "sets/kind", f"{wrong[0].kind[:40]!r}, and not {', '.join(KINDS)}"
    if wrong := [each for each in sets if each.size < 0]:
        return "sets/size", f"{wrong[0].size} is below 0"
    if (count := sum(each.size for each in sets)) != nodes:
        return "sets/size", f"they sum to {count}, and there are {nodes} nodes"
    named = sum(each.size for each in sets if each.kind in NAMED_KINDS)
    if labels is not None and labels != named:
        return "nodes/labels", f"{labels} of them for {named} tokens, logits and targets"
    return None


def checked(argument: str, graph: Graph) -> Graph:
    """The graph itself. Raises InputError, beginning with `argument`, where it is malformed."""
    refuse(argument, fault_of_sets(graph.nodes.sets, len(graph.nodes), len(graph.nodes.labels)) or fault(graph))
    return graph


def refuse(argument: str, wrong: tuple[str, str] | None) -> None:
    """Raises InputError, beginning with `argument`, where a graph has a fault."""
    if wrong:
        raise InputError(f"{argument}: {wrong[0]}: {wrong[1]}; expected a graph as attrib's functions return it.")


def fault(graph: Graph) -> tuple[str, str] | None:
    """The field at fault of a graph whose sets are right, and what is wrong with it. A later check relies on the ones before it."""
    every = slice(0, len(graph.targets))
    return fault_of_rows(graph) or fault_of_sources(graph, every, graph.indices) or fault_of_weights(graph, every, graph.weight)


def fault_of_rows(graph: Graph | LazyGraph) -> tuple[str, str] | None:
    """The same of all but its edges."""
    return next(_faults_of_rows(graph), None)


def fault_of_sources(graph: Graph | LazyGraph, rows: slice, indices: Int[Tensor, " edges"]) -> tuple[str, str] | None:
    """The same of where the edges of some rows come from, where the rest is right."""
    return next(_faults_of_sources(graph.targets[rows], _ptr(graph, rows), indices), None)


def fault_of_weights(graph: Graph | LazyGraph, rows: slice, weight: Float[Tensor, " edges"]) -> tuple[str, str] | None:
    """The same of the weights of some rows, and of what they have to do with totals."""
    return next(_faults_of_weights(len(graph.nodes), graph.total[rows], graph.l1[rows], _ptr(graph, rows), weight), None)


def _ptr(graph: Graph | LazyGraph, rows: slice) -> Int[Tensor, " rows_plus_1"]:
    return graph.indptr[rows.start : rows.stop + 1] - graph.indptr[rows.start]


def _faults_of_rows(graph: Graph | LazyGraph) -> Iterator[tuple[str, str]]:
    nodes, count = graph.nodes, len(graph.nodes)
    floats = {
        "nodes/activation": nodes.activation, "rows/value": graph.value, "rows/own": graph.own, "rows/total": graph.total,
        "rows/l1": graph.l1, "rows/importance": graph.importance,
    }  # fmt: skip
    for name, dtype in ({name: column.dtype for name, column in floats.items()} | {"edges/data": graph.dtype}).items():
        if dtype not in (torch.float32, torch.float64):
            yield name, f"it is {dtype}, and not float32 or float64"
    if (graph.tokens < -1).any():
        yield "tokens/ids", f"{int(graph.tokens.min())}, and token ids are numbers from 0, or -1 where one is not known"
    if ((nodes.position < 0) | (nodes.position >= len(graph.tokens))).any():
        yield "nodes/position", f"not all lie in the prompt of {len(graph.tokens)} tokens"
    if (nodes.latent < -1).any():
        yield "nodes/latent", f"{int(nodes.latent.min())} is below -1"
    if len(graph.targets) and (int(graph.targets.min()) < 0 or int(graph.targets.max()) >= count or (graph.targets.diff() <= 0).any()):
        yield "rows/target", f"they do not ascend below the {count} nodes"
    is_target = torch.zeros(count, dtype=torch.bool)
    is_target[nodes.of_kind(*TARGET_KINDS)] = True
    if not is_target[graph.targets].all():
        yield "rows/target", f"not all are of the kinds that edges go to: {', '.join(TARGET_KINDS)}"
    if graph.indptr[:1].tolist() != [0] or (graph.indptr.diff() < 0).any():
        yield "edges/indptr", f"it does not rise from 0 to {len(graph)}"
    for name, column in floats.items():
        # what a graph of another program's file does not say is NaN
        unsaid = column.isnan() if name in ("nodes/activation", "rows/value", "rows/own") else torch.zeros_like(column, dtype=torch.bool)
        if not (column.isfinite() | unsaid).all():
            yield name, "not all are finite numbers"


def _faults_of_sources(
    targets: Int[Tensor, " rows"], indptr: Int[Tensor, " rows_plus_1"], indices: Int[Tensor, " edges"]
) -> Iterator[tuple[str, str]]:
    if len(indices) and (int(indices.min()) < 0 or (indices >= targets.repeat_interleave(indptr.diff())).any()):
        yield "edges/indices", "not all edges come from a node before their target"
    rises = indices[1:] > indices[:-1]
    rises[(starts := indptr[1:-1])[(starts > 0) & (starts < len(indices))] - 1] = True  # from the last of a row to the next one's first
    if not rises.all():
        yield "edges/indices", "they do not ascend within each row"


def _faults_of_weights(
    nodes: int, total: Float[Tensor, " rows"], l1: Float[Tensor, " rows"], indptr: Int[Tensor, " rows_plus_1"], weight: Tensor
) -> Iterator[tuple[str, str]]:
    if not weight.isfinite().all():
        yield "edges/data", "not all are finite numbers"
    row = torch.arange(len(total)).repeat_interleave(indptr.diff())
    stored, mass = (torch.zeros(len(total), dtype=torch.float64).index_add(0, row, part.double()) for part in (weight, weight.abs()))
    eps = max(torch.finfo(column.dtype).eps for column in (weight, total, l1)) / 2
    terms = max(FEWEST, nodes) * eps
    bound = terms / (1 - terms) if terms < 1 else torch.inf
    l1, tiny = l1.double(), torch.finfo(torch.float32).tiny
    if (mass > l1 * (1 + 2 * bound) + tiny).any():
        yield "rows/l1", "it is less than the sum of the sizes of what is stored"
    if ((total - stored).abs() > (l1 - mass).clamp_min(0) + 3 * bound * l1 + tiny).any():
        yield "rows/total", "it is further from the sum of what is stored than the rest of l1"
