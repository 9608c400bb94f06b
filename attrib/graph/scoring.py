"""Influence: through which nodes the outputs of a graph are reached, along all paths at once; and how much of it errors bring.

Let A[t, s] = |weight of s → t| / (sum of the sizes of row t), zero where there is no edge, and w[t] the importance of row t: the
probability of a logit. A path's share is the product of A along it, so the influence of node s is

    v[s] = Σ_t w[t] Σ_{paths s → … → t} Π A      that is      v = wᵀA + wᵀA² + … = wᵀ((I - A)⁻¹ - I)

An edge leads from a set of nodes to a later one, so v[t] is known before any edge out of row t is asked: one pass over the edges, last
set first, solves v = (v + w)ᵀA. No power of A is ever formed, and nothing of size [nodes, nodes].
"""

from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.lazy import LazyGraph
from attrib.graph.nodes import KINDS, TARGET_KINDS, NodeKind

NORMALISE = ("all", "kept")
"""What a row's edges are divided by: the sizes of all its attributions (`l1`), or of those that were kept."""

CONSTANTS: tuple[NodeKind, ...] = ("position", "bias")
"""Kinds that are the same whatever the prompt says: a share of what is read, but nothing that is explained."""


class Scores(NamedTuple):
    """How much of a graph's outputs is explained: both between 0 and 1, or NaN where nothing arrives."""

    replacement: float
    """Of the influence that reaches leaves, the share of those that are explained: tokens, and not errors."""
    completeness: float
    """Of what nodes are made of, the share that is known not to come from errors, each node counted by its influence."""


def influence(graph: Graph | LazyGraph, *, normalise: str = "all", without: Collection[str] = ()) -> Float[Tensor, " nodes"]:
    """How much of the outputs is reached through each node, in float64. An output's own importance is not part of its influence.

    Args:
        graph: of a lazy one a block of rows is read at a time, each once.
        normalise: "all" divides a row by all that it is made of, so that what `keep` dropped reaches nothing; "kept" by its edges.
        without: kinds of nodes whose edges do not count, neither as paths nor in what a row is divided by. With "all" that
            cannot be known of edges which `keep` dropped: those count.

    Raises:
        InputError: for NaN, for a negative importance, and for an edge that leads to its own set or an earlier one.
    """
    if isinstance(graph, Graph):
        return spread(graph, shares(graph, normalise=normalise, without=without))
    return _walked(graph, normalise, without, ())[0]


def _walked(
    graph: LazyGraph, normalise: str, without: Collection[str], unexplained: Collection[str]
) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " targets"]]:
    """Influence, and of each row the share of what is not known to be explained, by one pass over the edges of a file."""
    found, unknown = torch.zeros(len(graph.nodes), dtype=torch.float64), torch.zeros(len(graph.targets), dtype=torch.float64)
    is_unexplained = of_kinds(graph, "unexplained", unexplained)
    for of_set in reversed(graph.sets()):
        for first, end in graph.blocks(*of_set):  # of one set: no row of it is asked before all rows that lead to it
            block, rows = graph.rows(first, end), slice(first, end)
            counted, whole = _parts(block, normalise, without)
            share, reached = _of_rows(block, counted, whole), found[block.targets] + block.importance.double()
            found.index_add_(0, block.indices, share * reached[block.row])
            unknown[rows] = _unknown(block, share, whole, is_unexplained)
    return found, unknown


def shares(graph: Graph, *, normalise: str = "all", without: Collection[str] = ()) -> Float[Tensor, " edges"]:
    """The size of each edge as a share of its row: A above. Arguments and errors are those of `influence`."""
    counted, whole = _parts(graph, normalise, without)
    return _of_rows(graph, counted, whole)


def spread(graph: Graph, share: Float[Tensor, " edges"]) -> Float[Tensor, " nodes"]:
    """Influence, from the share that each edge has of its row."""
    found, importance = share.new_zeros(len(graph.nodes)), graph.importance.double()
    rows = torch.searchsorted(graph.targets, torch.tensor(graph.nodes.first))  # where the rows of each set begin
    for first, last in reversed(list(pairwise(rows.tolist()))):
        edges = slice(int(graph.indptr[first]), int(graph.indptr[last]))
        reached = found[graph.targets[first:last]] + importance[first:last]
        found.index_add_(0, graph.indices[edges], share[edges] * reached[graph.row[edges] - first])
    return found


def edge_influence(graph: Graph, share: Float[Tensor, " edges"]) -> Float[Tensor, " edges"]:
    """The influence that goes along each edge, from the share that each has of its row."""
    reached = spread(graph, share)[graph.targets] + graph.importance
    return share * reached[graph.row]


def scores(
    graph: Graph | LazyGraph,
    *,
    normalise: str = "all",
    without: Collection[str] = CONSTANTS,
    unexplained: Collection[str] = ("error", "mlp"),
) -> Scores:
    """The replacement score and the completeness score of circuit-tracer, on a graph that may have dropped edges.

    Args:
        graph: see `influence`.
        normalise: see `influence`. With "all", what was dropped counts in `completeness` as not known to be explained.
        without: kinds that are left out, as if they were not there. circuit-tracer has no nodes for constants; with an empty
            `without` they count as explained.
        unexplained: kinds that count as errors. What an MLP without a dictionary writes is explained by nothing.

    Raises:
        InputError: for a kind in `unexplained` that edges go to, and as `influence`.
    """
    is_unexplained, is_leaf = of_kinds(graph, "unexplained", unexplained), ~of_kinds(graph, "TARGET_KINDS", TARGET_KINDS)
    if wrong := [kind for kind in unexplained if kind in TARGET_KINDS]:
        raise InputError(f"unexplained: {wrong[0]!r}, which other nodes explain; expected kinds that edges only come from.")
    if isinstance(graph, Graph):
        counted, whole = _parts(graph, normalise, without)
        share = _of_rows(graph, counted, whole)
        found, unknown = spread(graph, share), _unknown(graph, share, whole, is_unexplained)
    else:
        found, unknown = _walked(graph, normalise, without, unexplained)
    of_errors, of_leaves = (float(found[chosen].sum()) for chosen in (is_unexplained, is_leaf))
    reached, importance = found[graph.targets] + graph.importance, float(graph.importance.sum())
    everything = float(found.sum()) + importance  # leaves are what they are, so they count as complete
    return Scores(1 - _ratio(of_errors, of_leaves), 1 - _ratio(float((unknown * reached).sum()), everything))


def _unknown(
    graph: Graph, share: Float[Tensor, " edges"], whole: Float[Tensor, " targets"], is_unexplained: Bool[Tensor, " nodes"]
) -> Float[Tensor, " targets"]:
    """Of each row the share of what it is made of that is not known to be explained."""
    return (whole > 0).double() - _per_row(graph, share * ~is_unexplained[graph.indices])


def of_kinds(graph: Graph | LazyGraph, argument: str, kinds: Collection[str]) -> Bool[Tensor, " nodes"]:
    """Which nodes are of these kinds. Raises InputError, by the argument's name, for a word that is no kind."""
    if wrong := [kind for kind in kinds if kind not in KINDS] if not isinstance(kinds, str) else [kinds]:
        raise InputError(f"{argument}: {wrong[0]!r}; expected kinds in a list, each among {', '.join(KINDS)}.")
    found = torch.zeros(len(graph.nodes), dtype=torch.bool)
    found[graph.nodes.of_kind(*cast(Collection[NodeKind], kinds))] = True
    return found


def _parts(graph: Graph, normalise: str, without: Collection[str]) -> tuple[Float[Tensor, " edges"], Float[Tensor, " targets"]]:
    """The size of each edge that counts, zero for the others, and for each row the size of all that it is divided by."""
    _check(graph, normalise)
    size = graph.weight.double().abs()
    counted = size * ~of_kinds(graph, "without", without)[graph.indices]
    whole, l1 = _per_row(graph, counted), graph.l1.double()
    if normalise == "kept":
        return counted, whole
    # what `keep` dropped; of a row that has all its edges the two sums differ by their rounding, which is no attribution
    dropped = l1 - _per_row(graph, size)
    return counted, whole + dropped.where(dropped > 64 * torch.finfo(graph.l1.dtype).eps * l1, torch.zeros_like(l1))


def _of_rows(graph: Graph, value: Float[Tensor, " edges"], whole: Float[Tensor, " targets"]) -> Float[Tensor, " edges"]:
    # where a whole is zero so are the row's edges, and what they are divided by does not matter
    return value / whole.clamp_min(torch.finfo(torch.float64).tiny)[graph.row]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _per_row(graph: Graph, value: Float[Tensor, " edges"]) -> Float[Tensor, " targets"]:
    return value.new_zeros(len(graph.targets)).index_add(0, graph.row, value)


ROUNDING = 1e-3
"""By what share a row's kept edges may exceed its `l1`: sums of millions of float32 numbers, made in different orders."""


def _check(graph: Graph, normalise: str) -> None:
    if normalise not in NORMALISE:
        raise InputError(f"normalise: {normalise!r}; expected one of {', '.join(NORMALISE)}.")
    for name in ("l1", "importance"):
        column = getattr(graph, name)
        if len(wrong := (~(column.isfinite() & (column >= 0))).nonzero()):
            row = int(wrong[0, 0])
            raise InputError(f"{name}: {float(column[row])} of {row_named(graph, row)}; expected finite numbers of at least 0.")
    if len(wrong := (~graph.weight.isfinite()).nonzero()):
        edge = int(wrong[0, 0])
        raise InputError(f"weight: {float(graph.weight[edge])} of the edge {edge_named(graph, edge)}; expected finite numbers.")
    set_of = graph.nodes.set_of
    if len(wrong := (set_of[graph.indices] >= set_of[graph.target]).nonzero()):
        raise InputError(
            f"indices: the edge {edge_named(graph, int(wrong[0, 0]))} leads to its own set of nodes or an earlier one; expected sets in "
            "order of computation, so that there are no cycles."
        )
    kept = _per_row(graph, graph.weight.double().abs())
    if len(wrong := (kept > graph.l1.double() * (1 + ROUNDING)).nonzero()):
        row = int(wrong[0, 0])
        raise InputError(
            f"l1: {float(graph.l1[row]):.6g} of {row_named(graph, row)}, whose edges have sizes of {float(kept[row]):.6g} in all; "
            "expected at least as much, since it counts every edge, kept or not."
        )


def row_named(graph: Graph, row: int) -> str:
    """A row in words, for an error."""
    return f"row {row}, {graph.nodes.label(int(graph.targets[row]))}"


def edge_named(graph: Graph, edge: int) -> str:
    """An edge in words, for an error."""
    source, target = int(graph.indices[edge]), int(graph.target[edge])
    return f"{graph.nodes.label(source)} -> {graph.nodes.label(target)} (nodes {source} and {target})"
