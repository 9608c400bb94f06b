"""Edges of an attribution graph taken out, and curves of how much of its outputs the first edges, or nodes, of a ranking carry.

A graph is a linear model of its prompt: with patterns and norms held, a row is affine in what its nodes write. With a_s the activation of
a source and w_ts the attribution along an edge, where only some edges are kept and others carry r_s in the place of a_s, row t reads

    p'_t  =  value_t + Σ_s w_ts (c_ts - 1),      c_ts = a'_s / a_s on a kept edge,   r_s / a_s on one that is taken out
    a'_s  =  a_s + p'_s - p_s  of a latent,      a_s  of what has no row

set by set, in order of computation, so that what an edge took away goes on along the kept ones (path patching, Goldowsky-Dill et al. 2023).
Which latents are active is held: their slope is 1, and those that the graph has not stay out. What rows have beside their edges (their
own, what `keep` dropped) stays. So it is exact for the model that is held like this, where nothing but latents bends between two nodes;
an MLP that derivatives pass, and units of an MLP, are their tangents at the prompt.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.causal.faithfulness_curves import Faithfulness, checked_counts, faithfulness_of
from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.scoring import CONSTANTS, edge_influence, influence, of_kinds, row_named, shares

RANKINGS = ("weight", "influence", "random")
UNITS = ("edges", "nodes")


def values_with(
    graph: Graph, kept: Bool[Tensor, "*sets edges"], reference: Float[Tensor, " nodes"] | None = None
) -> Float[Tensor, "*sets targets"]:
    """The value of every row where some edges alone are kept, in float64; see the module.

    Args:
        graph: of `attrib.graph.build` with its policy LINEAR, or a part of one.
        kept: which edges are kept, one set of them or several. To take a node out, take out all edges that come from it.
        reference: what an edge that is taken out carries: an activation for each node, such as its mean over prompts; None is 0.

    Raises:
        InputError: for a graph that is not linear or in which a row is no activation, and for masks and references of another shape.
    """
    _check_linear(graph)
    if kept.shape[-1] != len(graph):
        raise InputError(f"kept: {list(kept.shape)}; expected one entry for each of {len(graph):,} edges.")
    if reference is not None and reference.shape != (len(graph.nodes),):
        raise InputError(f"reference: {list(reference.shape)}; expected an activation for each of {len(graph.nodes):,} nodes.")
    sets, active = kept.view(-1, len(graph)), graph.nodes.activation.double()
    is_source = torch.zeros(len(active), dtype=torch.bool).index_fill(0, graph.indices, True)
    if bool((active[is_source] == 0).any()):
        raise InputError("graph: a node that edges come from has an activation of 0, so that no share of it can be told.")
    safe = active.where(active != 0, 1.0)
    of_reference = torch.zeros_like(active) if reference is None else reference.double() / safe
    share, moved = active.new_ones(len(sets), len(active)), active.new_zeros(len(sets), len(graph.targets))
    weight, is_latent = graph.weight.double(), of_kinds(graph, "kinds", ("latent",))
    rows = torch.searchsorted(graph.targets, torch.tensor(graph.nodes.first))  # where the rows of each set begin
    for first, last in pairwise(rows.tolist()):
        edges, nodes = slice(int(graph.indptr[first]), int(graph.indptr[last])), graph.targets[first:last]
        source = graph.indices[edges]
        carried = torch.where(sets[:, edges], share[:, source], of_reference[source]) - 1
        moved[:, first:last].index_add_(1, graph.row[edges] - first, carried * weight[edges])
        here = is_latent[nodes]
        share[:, nodes[here]] += moved[:, first:last][:, here] / safe[nodes[here]]
    return (graph.value.double() + moved).view(*kept.shape[:-1], len(graph.targets))


def graph_faithfulness(
    graphs: Graph | Sequence[Graph],
    ranking: str | Sequence[Float[Tensor, " _"]] = "influence",
    *,
    units: str = "edges",
    outputs: Sequence[Mapping[int, float]] | None = None,
    always: Collection[str] = CONSTANTS,
    references: Sequence[Float[Tensor, " _"]] | None = None,
    keep: Sequence[int] | None = None,
    seed: int = 0,
) -> Faithfulness:
    """Curves of graphs' outputs against the number of edges, or nodes, that are kept in each, with intervals over the graphs.

    *Completeness* keeps the first n of the ranking, *necessity* all but them. Each graph's ranking is its own: no part is held out.

    Args:
        graphs: of `attrib.graph.build`, one for each prompt, with its policy LINEAR.
        ranking: "weight", the size of edges (of nodes: of all that comes from them); "influence", which goes along all paths
            to the outputs; "random"; or scores of each graph's edges (or nodes), the larger, the sooner kept.
        units: "edges", or "nodes", of which each stands for all edges that come from it.
        outputs: of each graph what is measured: its nodes and what each counts. None is every output by its importance.
        always: kinds whose edges are always kept and no units: by default constants, which are the same whatever the prompt says. With
            "error" among them, errors stay.
        references: see `values_with`.
        keep: how many; 0 and all are always among them, and a graph that has fewer keeps all. None is powers of 4.
        seed: of a random ranking, and of the draws of graphs that intervals are made from.

    Raises:
        InputError: as `values_with` and `attrib.graph.influence`, and for rankings, outputs and options that cannot be.
    """
    several = [graphs] if isinstance(graphs, Graph) else list(graphs)
    if not several or any(not isinstance(one, Graph) for one in several):
        raise InputError(f"graphs: {'none' if not several else type(several[0]).__name__}; expected graphs of attrib.graph.build.")
    if units not in UNITS:
        raise InputError(f"units: {units!r}; expected 'edges' or 'nodes'.")
    if isinstance(ranking, str) and ranking not in RANKINGS:
        raise InputError(f"ranking: {ranking!r}; expected one of {', '.join(RANKINGS)}, or scores of each graph's {units}.")
    for name, each in (("ranking", ranking), ("outputs", outputs), ("references", references)):
        if each is not None and not isinstance(each, str) and len(each) != len(several):
            raise InputError(f"{name}: {len(each)} of them for {len(several)} graphs; expected one for each.")
    orders = [_order(one, units, always, ranking if isinstance(ranking, str) else ranking[n], seed + n) for n, one in enumerate(several)]
    largest = max(map(len, orders))
    counts, found = checked_counts(keep, largest), dict[str, list[Tensor]](completeness=[], necessity=[])
    for number, (graph, order) in enumerate(zip(several, orders, strict=True)):
        weights = _counted(graph, None if outputs is None else outputs[number])
        for curve, is_kept in (("completeness", True), ("necessity", False)):
            kept = _masks(graph, units, order, counts, is_kept)
            values = values_with(graph, kept, None if references is None else references[number])
            found[curve].append(values @ weights)
    call = {"units": units, "always": sorted(always), "seed": seed}
    name = ranking if isinstance(ranking, str) else "scores"
    return faithfulness_of(name, counts, {curve: torch.stack(each) for curve, each in found.items()}, call, "graphs")


def _order(graph: Graph, units: str, always: Collection[str], ranking: str | Float[Tensor, " _"], seed: int) -> Int[Tensor, " units"]:
    """The numbers of a graph's edges or nodes that are units, first those that are kept first."""
    stays = of_kinds(graph, "always", always)
    is_node = units == "nodes"
    if isinstance(ranking, Tensor):
        if ranking.shape != (len(graph.nodes) if is_node else len(graph),) or bool(ranking.isnan().any()):
            raise InputError(
                f"ranking: {list(ranking.shape)}; expected a number for each of the {units} of its graph, and none that is NaN."
            )
        score = ranking
    elif ranking == "random":
        score = torch.rand(len(graph.nodes) if is_node else len(graph), generator=torch.Generator().manual_seed(seed))
    elif ranking == "influence":
        score = influence(graph) if is_node else edge_influence(graph, shares(graph))
    else:
        size = graph.weight.double().abs()
        score = size.new_zeros(len(graph.nodes)).index_add(0, graph.indices, size) if is_node else size
    among = (
        torch.zeros(len(graph.nodes), dtype=torch.bool).index_fill(0, graph.indices, True) & ~stays if is_node else ~stays[graph.indices]
    )
    chosen = among.nonzero()[:, 0]
    return chosen[score[chosen].argsort(descending=True, stable=True)]


def _masks(graph: Graph, units: str, order: Int[Tensor, " units"], counts: Sequence[int], is_kept: bool) -> Bool[Tensor, "counts edges"]:
    """Which edges are kept, where the first so many units are, or all but them."""
    size = len(graph.nodes) if units == "nodes" else len(graph)
    masks = torch.ones(len(counts), size, dtype=torch.bool)
    for mask, n in zip(masks, counts, strict=True):
        mask[order[n:] if is_kept else order[:n]] = False
    return masks[:, graph.indices] if units == "nodes" else masks


def _counted(graph: Graph, outputs: Mapping[int, float] | None) -> Float[Tensor, " targets"]:
    """What each row counts."""
    if outputs is None:
        if not bool((graph.importance != 0).any()):
            raise InputError("graphs: no row of one of them has importance; give `outputs`, its nodes and what each counts.")
        return graph.importance.double()
    row_of, found = graph.row_of, torch.zeros(len(graph.targets), dtype=torch.float64)
    for node, counts in outputs.items():
        if isinstance(node, bool) or not isinstance(node, int) or not 0 <= node < len(row_of) or int(row_of[node]) < 0:
            raise InputError(f"outputs: {node!r}; expected the number of a node that has a row.")
        found[row_of[node]] = counts
    return found


ROUNDING = 1e-3
"""By what share of its scale a row may differ from what it is made of, and a latent's from its activation, in float32."""


def _check_linear(graph: Graph) -> None:
    policy: Any = graph.call.get("policy", {})
    if moves := [part for part in ("attention", "norm") if policy.get(part) == "exact"]:
        raise InputError(
            f"graph: built with {' and '.join(moves)} exact, so that its rows are not affine in their nodes; expected policy=attrib.LINEAR."
        )
    if not bool(graph.weight.isfinite().all()):
        raise InputError("graph: a weight is NaN or infinite; `attrib verify-file` says what is wrong with a file.")
    if len(graph.nodes.of_kind("head")):
        raise InputError(
            "graph: has heads as nodes, each of which is on the way to one target; give the graph that `with_heads` was given."
        )
    is_latent = of_kinds(graph, "kinds", ("latent",))[graph.targets]
    activation = graph.nodes.activation[graph.targets].to(graph.value)
    for what, apart in (("made of its nodes but for", graph.remainder), ("its activation but for", (graph.value - activation) * is_latent)):
        wrong = apart.abs() > ROUNDING * graph.scale.clamp_min(torch.finfo(graph.scale.dtype).tiny)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise InputError(
                f"graph: {row_named(graph, row)} is {what} {float(apart[row]):.3g} of {float(graph.value[row]):.6g}, so it is not linear "
                "in its nodes; expected a graph of attrib.graph.build with policy=attrib.LINEAR."
            )
