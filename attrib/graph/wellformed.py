"""What makes an attribution graph well formed: one rule for the writer and the reader."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.graph import Graph
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
    if wrong := fault_of_sets(graph.nodes.sets, len(graph.nodes), len(graph.nodes.labels)) or fault(graph):
        raise InputError(f"{argument}: {wrong[0]}: {wrong[1]}; expected a graph as attrib's functions return it.")
    return graph


def fault(graph: Graph) -> tuple[str, str] | None:
    """The field at fault of a graph whose sets are right, and what is wrong with it. A later check relies on the ones before it."""
    return next(_faults(graph), None)


def _faults(graph: Graph) -> Iterator[tuple[str, str]]:
    nodes, count = graph.nodes, len(graph.nodes)
    floats = {
        "nodes/activation": nodes.activation, "edges/data": graph.weight, "rows/value": graph.value, "rows/own": graph.own,
        "rows/total": graph.total, "rows/l1": graph.l1, "rows/importance": graph.importance,
    }  # fmt: skip
    for name, column in floats.items():
        if column.dtype not in (torch.float32, torch.float64):
            yield name, f"it is {column.dtype}, and not float32 or float64"
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
    if len(graph) and (int(graph.indices.min()) < 0 or (graph.indices >= graph.target).any()):
        yield "edges/indices", "not all edges come from a node before their target"
    rises = graph.indices[1:] > graph.indices[:-1]
    rises[(starts := graph.indptr[1:-1])[(starts > 0) & (starts < len(graph))] - 1] = True  # from the last of a row to the next one's first
    if not rises.all():
        yield "edges/indices", "they do not ascend within each row"
    yield from _faults_of_numbers(graph, floats)


def _faults_of_numbers(graph: Graph, floats: dict[str, Float[Tensor, " n"]]) -> Iterator[tuple[str, str]]:
    for name, column in floats.items():
        # what a graph of another program's file does not say is NaN
        unsaid = column.isnan() if name in ("nodes/activation", "rows/value", "rows/own") else torch.zeros_like(column, dtype=torch.bool)
        if not (column.isfinite() | unsaid).all():
            yield name, "not all are finite numbers"
    stored, mass = (
        torch.zeros(len(graph.targets), dtype=torch.float64).index_add(0, graph.row, weight.double())
        for weight in (graph.weight, graph.weight.abs())
    )
    eps = max(torch.finfo(column.dtype).eps for column in (graph.weight, graph.total, graph.l1)) / 2
    terms = max(FEWEST, len(graph.nodes)) * eps
    bound = terms / (1 - terms) if terms < 1 else torch.inf
    l1, tiny = graph.l1.double(), torch.finfo(torch.float32).tiny
    if (mass > l1 * (1 + 2 * bound) + tiny).any():
        yield "rows/l1", "it is less than the sum of the sizes of what is stored"
    if ((graph.total - stored).abs() > (l1 - mass).clamp_min(0) + 3 * bound * l1 + tiny).any():
        yield "rows/total", "it is further from the sum of what is stored than the rest of l1"
