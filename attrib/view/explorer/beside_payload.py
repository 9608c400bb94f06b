"""What the page of two graphs beside each other is given: both, which of their nodes are the same, and which of their edges differ most.

Nodes are the same where `attrib.graph.compare` says so: by kind, site, dictionary, number and position. For prompts of different lengths
positions can go by columns instead, in which the tokens that both prompts have stand together; nodes then match by these.
Edges are compared as the whole graphs have them, whatever of these the page holds: what a page leaves out is not what a graph lacks.
"""

from collections.abc import Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.graph.comparing import Comparison, compare
from attrib.graph.graph import Graph
from attrib.graph.keys import KeyTable, align
from attrib.latents.labels import Labels
from attrib.view.explorer.details import Columns, Details
from attrib.view.explorer.fitting import Most, fitted
from attrib.view.explorer.graph_payload import NOTHING, columns_of, last_layer
from attrib.view.explorer.limits import DIFFERENCES
from attrib.view.explorer.payload import pack

FORMAT = "attrib graphs beside"


def packed_beside(
    graphs: tuple[Graph, Graph],
    names: tuple[str, str],
    most: Most,
    labels: Labels | None = None,
    links: Mapping[str, str] | None = None,
    details: tuple[Details, Details] = (NOTHING, NOTHING),
    *,
    aligned: bool = False,
) -> bytes:
    """Two graphs for a page.

    Args:
        names: what they are called.
        most: how much of each the page holds at most.
        details: what is known of each.
        aligned: whether positions go by the tokens that both prompts have, and not by their numbers.

    The other arguments, and the errors, are those of `packed` and `attrib.graph.compare`. Where `aligned`, the position of a node that the
    comparison is of is its column.
    """
    columns = _columns(*graphs) if aligned else [list(range(len(graph.tokens))) for graph in graphs]
    width = 1 + max((at for each in columns for at in each), default=-1)
    placed = [_at(graph, each) for graph, each in zip(graphs, columns, strict=True)]
    table, keys = align(placed)
    alone = [~torch.isin(keys[number], keys[1 - number]) for number in range(2)]
    found, headers, shown, last = Columns({}, {}, {}), list[dict[str, Any]](), list[Tensor](), last_layer(*graphs)
    for number, (graph, at, known) in enumerate(zip(graphs, columns, details, strict=True)):
        part = fitted(graph, most)
        shown.append(keys[number][part.nodes])
        here = columns_of(part, labels, links, known, last)
        here |= Columns({"columns": at, "width": width}, {"key": shown[number], "alone": alone[number][part.nodes].long()}, {})
        headers.append(here.header)
        found |= here.named(f"{number} ")
    found |= _differences(compare(*placed), table, torch.cat(shown))
    title = " | ".join(header["title"] for header in headers)
    counts = {"keys": len(table), "nodes_alone": [int(mask.sum()) for mask in alone]}
    header = found.header | counts | {"title": title, "names": names, "graphs": headers}
    return pack(FORMAT, header, found.integers, found.floats)


def _differences(found: Comparison, nodes: KeyTable, shown: Int[Tensor, " nodes"]) -> Columns:
    """The edges that differ most, the most first, by the keys of their ends."""
    order = found.change.abs().sort(descending=True, stable=True).indices[:DIFFERENCES]
    integers = {"source": found.source[order], "target": found.target[order], "in": (found.is_in[order] * torch.tensor([1, 2])).sum(1)}
    floats = {"first": found.weight[order, 0], "second": found.weight[order, 1]}
    ends = torch.cat([found.source[order], found.target[order]]).unique()
    counts = {"both": int(found.both.sum()), "alone": [int(found.only_first.sum()), int(found.only_second.sum())]}
    header = {
        "edges": counts, "differences_left_out": len(found) - len(order),
        "others": {key: nodes.label(key) for key in ends[~torch.isin(ends, shown)].tolist()},
    }  # fmt: skip
    return Columns(header, {}, {}) | Columns({}, integers, floats).named("differences ")


def _at(graph: Graph, columns: list[int]) -> Graph:
    """The graph with its nodes at other positions, in the same order."""
    return replace(graph, nodes=replace(graph.nodes, position=torch.tensor(columns, dtype=torch.int64)[graph.nodes.position]))


def _columns(first: Graph, second: Graph) -> tuple[list[int], list[int]]:
    """A column for each token of both prompts, in order: one for both where they have the same token, or another in its place."""
    ids = first.tokens.tolist(), second.tokens.tolist()
    found: tuple[list[int], list[int]] = ([], [])
    column = 0
    for _, *ends in SequenceMatcher(None, *ids, autojunk=False).get_opcodes():
        lengths = ends[1] - ends[0], ends[3] - ends[2]
        for side, length in zip(found, lengths, strict=True):
            side.extend(range(column, column + length))
        column += max(lengths)
    return found
