"""Searching a large attribution graph for paths: python -m bench.engine.paths

A random graph of 26 layers, 20,000 nodes and 2.1 million edges. That what is found is right is what tests/graph/test_search.py holds on
small graphs; here the strongest path is compared with the largest product that one pass up the graph finds.
"""

import torch

from attrib.graph import Graph, Nodes, NodeSet, PathFilter, Where, greedy, sources, strongest
from bench.measure import timed

LAYERS, LATENTS, EDGES, POSITIONS, LOGITS = 26, 770, 100, 16, 10


def large() -> Graph:
    """Each latent has edges from 100 nodes below, each logit from every latent."""
    rng = torch.Generator().manual_seed(0)
    layers = [NodeSet("latent", f"blocks.{layer}.mlp.hook_in", f"transcoder {layer}", LATENTS) for layer in range(LAYERS)]
    sets = (
        NodeSet("token", "embed", "", POSITIONS),
        *layers,
        NodeSet("logit", f"blocks.{LAYERS - 1}.hook_resid_post", "", LOGITS),
    )
    count = sum(each.size for each in sets)
    at = torch.cat([torch.arange(each.size) * POSITIONS // each.size for each in sets])
    number = torch.cat([torch.arange(each.size) for each in sets])
    strings, logits = (tuple(f"{name}{each}" for each in range(size)) for name, size in (("t", POSITIONS), ("w", LOGITS)))
    nodes = Nodes(sets, at, number, torch.rand(count, generator=rng) + 0.1, strings + logits)
    targets, rows = torch.arange(POSITIONS, count), []
    for target in targets.tolist():
        first = nodes.first[int(nodes.set_of[target])]
        is_logit = target >= count - LOGITS
        rows.append(torch.arange(POSITIONS, first) if is_logit else torch.randperm(first, generator=rng)[:EDGES].sort().values)
    indptr = torch.tensor([0, *map(len, rows)]).cumsum(0)
    weight = torch.randn(int(indptr[-1]), generator=rng) * torch.randn(int(indptr[-1]), generator=rng).exp() / 50
    total = torch.stack([part.sum() for part in weight.split(indptr.diff().tolist())])
    l1 = torch.stack([part.abs().sum() for part in weight.split(indptr.diff().tolist())])
    none = torch.zeros_like(total)
    return Graph(
        nodes, targets, indptr, torch.cat(rows), weight, total, none, total, l1, none, torch.arange(POSITIONS), strings
    )  # fmt: skip


def largest_product(graph: Graph, node: int) -> float:
    """The size of the strongest path into a node, row by row."""
    best = torch.zeros(len(graph.nodes), dtype=torch.float64)
    best[: graph.nodes.first[1]] = 1.0
    for row, target in enumerate(graph.targets.tolist()):
        edges = slice(int(graph.indptr[row]), int(graph.indptr[row + 1]))
        scale = 1.0 if target == node else float(graph.nodes.activation[target])
        best[target] = (graph.weight[edges].double().abs() / scale * best[graph.indices[edges]]).max()
    return float(best[node])


def main() -> None:
    """Print the CPU seconds of each question."""
    graph, device = large(), torch.device("cpu")
    node = len(graph.nodes) - 1
    print(graph)
    found, wanted = abs(strongest(graph, node, 1)[0].value), largest_product(graph, node)
    if abs(found - wanted) > 1e-9 * wanted:
        raise SystemExit(f"the strongest path has {found}, and {wanted} is the largest product")
    rules = PathFilter(containing=[Where(layer=20), Where(layer=range(5))], ending=[Where(layer=3), Where(kind="token")])
    for name, ask in {
        "10 strongest": lambda: strongest(graph, node, 10),
        "1,000 strongest": lambda: strongest(graph, node, 1000),
        "10 strongest, capped": lambda: strongest(graph, node, 10, contribution="capped"),
        "10 strongest of two patterns": lambda: strongest(graph, node, 10, which=rules),
        "greedy, 5 of 6 levels each": lambda: greedy(graph, node, (5,) * 6),
        "all sources": lambda: sources(graph, node),
    }.items():
        print(f"{name:<30} {min(timed(ask, device)[1].cpu for _ in range(3)):.2f} s", flush=True)


if __name__ == "__main__":
    main()
