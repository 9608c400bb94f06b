"""Influence, pruning and scores beside circuit-tracer's, on the same random graphs, in circuit-tracer's own environment:

    python -m venv ct && ct/bin/pip install circuit-tracer==0.5.0 -r bench/peers/requirements.txt
    ct/bin/python -m bench.peers.scores        # exits 1 where anything differs that should not

Its adjacency is [latents by layer, errors by layer and position, tokens, logits], rows targets, and dense; here the same edges are
the sparse rows of a `Graph` that dropped nothing. In float64 both must choose the same nodes and edges; in float32, which is what it
computes in, a choice at the threshold may fall otherwise, and is counted.
"""

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.graph import Graph, Nodes, NodeSet, influence, prune, scores
from bench.measure import timed

SHARES = [(0.8, 0.98), (0.5, 0.9), (0.95, 0.995), (0.2, 0.5)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclass(frozen=True)
class Case:
    """A graph's size, and how many of the edges that causality allows it has."""

    layers: int
    positions: int
    active: int
    share: float
    logits: int = 10


CASES = [Case(6, 8, 4, 1.0), Case(12, 12, 8, 0.5), Case(12, 20, 20, 0.2)]


class Pair(NamedTuple):
    """A graph, and the place in circuit-tracer's adjacency of each of its nodes."""

    graph: Graph
    theirs: Int[Tensor, " nodes"]


def made(case: Case, dtype: torch.dtype) -> Pair:
    """Weights of all sizes, as those of real graphs are."""
    rng = torch.Generator().manual_seed(0)
    T, every = case.positions, torch.arange(case.positions)
    at_latents = every.repeat_interleave(case.active)
    sets, position, latent = [NodeSet("token", "embed", "", T)], [every], [every]
    theirs = [case.layers * (len(at_latents) + T) + every]
    for layer in range(case.layers):
        sets.append(NodeSet("latent", f"blocks.{layer}.hook_resid_mid", str(layer), len(at_latents)))
        sets.append(NodeSet("error", f"blocks.{layer}.hook_mlp_out", "", T))
        position += [at_latents, every]
        latent += [torch.arange(case.active).repeat(T), torch.full((T,), -1)]
        theirs += [layer * len(at_latents) + torch.arange(len(at_latents)), case.layers * len(at_latents) + layer * T + every]
    sets.append(NodeSet("logit", "blocks.resid_post", "", case.logits))
    position.append(torch.full((case.logits,), T - 1))
    latent.append(torch.arange(case.logits))
    theirs.append(case.layers * (len(at_latents) + T) + T + torch.arange(case.logits))
    at, labels = torch.cat(position), tuple(str(n) for n in range(T + case.logits))
    nodes = Nodes(tuple(sets), at, torch.cat(latent), torch.ones(len(at)), labels)
    targets, first = nodes.of_kind("latent", "logit"), torch.tensor(nodes.first)
    seen = (torch.arange(len(at)) < first[nodes.set_of[targets]][:, None]) & (at <= at[targets][:, None])
    seen &= torch.rand(seen.shape, generator=rng) < case.share
    dense = (torch.randn(seen.shape, generator=rng) * torch.randn(seen.shape, generator=rng).exp() * seen).to(dtype)
    probability = torch.rand(case.logits, generator=rng).to(dtype)
    importance = torch.zeros(len(targets), dtype=dtype)
    importance[-case.logits :] = probability / probability.sum() * 0.95
    row, source = seen.nonzero().T
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), seen.sum(1).cumsum(0)])
    total, none = dense.sum(1), torch.zeros(len(targets), dtype=dtype)
    graph = Graph(nodes, targets, indptr, source, dense[row, source], total, none, total, dense.abs().sum(1), importance, every, labels[:T])
    return Pair(graph, torch.cat(theirs))


def as_theirs(case: Case, pair: Pair) -> Any:
    """As much of circuit-tracer's graph as its functions read."""
    graph, place, count = pair.graph, pair.theirs, len(pair.theirs)
    dense = torch.zeros(count, count, dtype=graph.weight.dtype)
    dense[place[graph.target], place[graph.indices]] = graph.weight
    return SimpleNamespace(
        adjacency_matrix=dense, input_tokens=graph.tokens, logit_targets=range(case.logits),
        selected_features=range(case.layers * case.positions * case.active), logit_probabilities=graph.importance[-case.logits :],
        cfg=SimpleNamespace(n_layers=case.layers),
    )  # fmt: skip


def distance(a: Float[Tensor, " nodes"], b: Float[Tensor, " nodes"]) -> float:
    """The largest difference, of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def compared(case: Case, dtype: torch.dtype) -> bool:
    """Print how far both are apart, and say whether that is within bounds."""
    theirs: Any = import_module("circuit_tracer.graph")
    torch.set_default_dtype(dtype)  # it makes its weights of logits in the default
    pair = made(case, dtype)
    other = as_theirs(case, pair)
    weights = torch.zeros(len(pair.theirs)).index_copy(0, pair.theirs[-case.logits :], other.logit_probabilities)
    found, time = timed(lambda: influence(pair.graph), torch.device("cpu"))
    wanted, their_time = timed(lambda: theirs.compute_node_influence(other.adjacency_matrix, weights), torch.device("cpu"))
    apart = distance(found, wanted[pair.theirs].double())
    score = max(abs(a - b) for a, b in zip(scores(pair.graph), theirs.compute_graph_scores(other), strict=True))
    print(f"{case} {dtype}: {len(pair.theirs):,} nodes, {len(pair.graph):,} edges")
    print(f"  influence {apart:.1e} apart, scores {score:.1e}; {time.cpu:.3f} s of CPU time, circuit-tracer {their_time.cpu:.3f} s")
    same = apart <= TOLERANCE[dtype] and score <= TOLERANCE[dtype]
    for nodes, edges in SHARES:
        mine, time = timed(partial(prune, pair.graph, nodes, edges), torch.device("cpu"))
        mask, time_of_theirs = timed(partial(theirs.prune_graph, other, nodes, edges), torch.device("cpu"))
        kept = torch.zeros_like(mask.node_mask).index_fill(0, pair.theirs[mine.nodes], True)
        place, edge = pair.theirs[mine.nodes], torch.zeros_like(mask.edge_mask)
        edge[place[mine.graph.target], place[mine.graph.indices]] = True
        wrong = int((kept != mask.node_mask).sum()), int((edge != mask.edge_mask).sum())
        stay = f"{len(mine.nodes):,} nodes and {len(mine.graph):,} edges stay; {wrong[0]} nodes and {wrong[1]} edges differ"
        print(f"  prune({nodes}, {edges}): {stay}; {time.cpu:.3f} s, circuit-tracer {time_of_theirs.cpu:.3f} s")
        same &= dtype == torch.float32 or wrong == (0, 0)
    return same


def main() -> bool:
    """All cases, in both dtypes."""
    passed = [compared(case, dtype) for case in CASES for dtype in TOLERANCE]
    return all(passed)


if __name__ == "__main__":
    raise SystemExit(not main())
