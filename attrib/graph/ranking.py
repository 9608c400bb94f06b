"""All that a node, or a sum of nodes, is made of: what each source does directly, and what it does along all paths together."""

from collections.abc import Mapping
from numbers import Real
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.factors import factors
from attrib.graph.graph import Graph
from attrib.graph.levels import check_node, levels
from attrib.graph.nodes import Nodes
from attrib.graph.patterns import PathFilter, may_pass
from attrib.graph.where import NodeFilter


class Ranking(NamedTuple):
    """Sources, those of the largest total first."""

    node: Int[Tensor, " sources"]
    direct: Float[Tensor, " sources"]
    """By the one edge to what was asked about."""
    total: Float[Tensor, " sources"]
    """By all paths, the direct edge among them: the signed sum of their values."""

    def text(self, nodes: Nodes, most: int = 20) -> str:
        """The first of them, a line for each: total, direct, the node."""
        rows = zip(*(column[:most].tolist() for column in self), strict=True)
        return "\n".join(f"{total:+10.3g} {direct:+10.3g}  {nodes.label(node)}" for node, direct, total in rows)


def sources(
    graph: Graph, of: int | Mapping[int, float], *, through: NodeFilter | None = None, contribution: Literal["raw", "share"] = "raw"
) -> Ranking:
    """Every source of a node, or of a linear combination of nodes, in one ranking: embeddings, latents, errors and biases.

    Args:
        of: a node's number, or numbers with coefficients: `{paris: 1.0, rome: -1.0}` is a difference of logits.
        through: which nodes count as sources, and paths may lead through; None is all.
        contribution: what edges count; see `attrib.graph.Contribution`. With "raw", totals are total effects times activations as far
            as the graph's edges carry them. Values of capped paths do not add up, so there is no such total of them.

    Raises:
        InputError: where a node has no row, or an argument makes no sense.
    """
    coefficient, every_target = _coefficients(graph, of), graph.target
    if contribution not in ("raw", "share"):
        raise InputError(f"contribution: {contribution!r}; expected 'raw' or 'share', whose paths add up.")
    between = factors(graph, contribution)
    last = (between if contribution == "share" else graph.weight.double()) * coefficient[every_target]
    passes = may_pass(PathFilter(through=through), graph.nodes)
    direct = torch.zeros_like(coefficient).index_add(0, graph.indices, last)
    total = torch.zeros_like(coefficient)
    for edges in reversed(levels(graph, len(graph.nodes) - 1)):
        target = every_target[edges]  # of which all is known: edges from it go to higher sets
        carried = total[target].where(passes[target], 0.0)
        total.index_add_(0, graph.indices[edges], carried * between[edges] + last[edges])
    found = (passes & ((direct != 0) | (total != 0))).nonzero()[:, 0]
    found = found[total[found].abs().argsort(descending=True, stable=True)]
    return Ranking(found, direct[found], total[found])


def _coefficients(graph: Graph, of: int | Mapping[int, float]) -> Float[Tensor, " nodes"]:
    """How much of each node is asked for."""
    found = torch.zeros(len(graph.nodes), dtype=torch.float64)
    asked = of if isinstance(of, Mapping) else {of: 1.0}
    if not asked:
        raise InputError("of: no node; expected a node's number, or several with their coefficients.")
    for node, number in asked.items():
        check_node(graph, node, "of")
        if isinstance(number, bool) or not isinstance(number, Real) or not torch.isfinite(torch.tensor(float(number))):
            raise InputError(f"of: the coefficient of node {node} is {number!r}; expected a finite number.")
        found[node] = float(number)
    return found
