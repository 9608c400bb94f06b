"""A small graph with numbers drawn at random, for tests of what is done with graphs."""

import torch

from attrib.graph.graph import Graph
from attrib.graph.nodes import Nodes, NodeSet


def random_graph(seed: int = 0, positions: int = 4, latents: int = 6, layers: int = 3, logits: int = 3, share: float = 0.5) -> Graph:
    """Tokens, position embeddings, and per layer constants of attention, latents, errors and decoder biases; then logits and a direction.

    Each latent sees about `share` of what lies below it at its own position and before; every row adds up, and some of each was dropped.
    """
    rng = torch.Generator().manual_seed(seed)
    every = torch.arange(positions)
    sets, position, latent = (
        [NodeSet("token", "embed", "", positions), NodeSet("position", "pos_embed", "", positions)],
        [every] * 2,
        [every + 7, every],
    )
    for layer in range(layers):
        sets.append(NodeSet("bias", f"blocks.{layer}.hook_attn_out", "", positions))
        sets.append(NodeSet("latent", f"blocks.{layer}.mlp.hook_in", f"transcoder {layer}", latents))
        sets += [NodeSet(kind, f"blocks.{layer}.hook_mlp_out", "", positions) for kind in ("error", "bias")]
        chosen = torch.randperm(positions * 9, generator=rng)[:latents].sort().values
        position += [every, chosen // 9, every, every]
        latent += [torch.full_like(every, -1), chosen % 9, *[torch.full_like(every, -1)] * 2]
    last = torch.full((logits,), positions - 1)
    sets += [
        NodeSet("logit", f"blocks.{layers - 1}.hook_resid_post", "", logits),
        NodeSet("target", f"blocks.{layers - 1}.hook_resid_post", "", 1),
    ]
    position += [last, last[:1]]
    latent += [torch.randperm(50, generator=rng)[:logits], torch.tensor([-1])]
    labels = (*(f" t{n}" for n in range(positions)), *(f" w{n}" for n in range(logits)), "direction")
    at, kinds = torch.cat(position), [each.kind for each in sets for _ in range(each.size)]
    activation = torch.tensor(
        [float(torch.rand((), generator=rng)) + 0.1 if kind == "latent" else 1.0 for kind in kinds], dtype=torch.float64
    )
    nodes = Nodes(tuple(sets), at, torch.cat(latent), activation, labels)
    targets = nodes.of_kind("latent", "logit", "target")
    indptr, indices, weight = [0], [], []
    for node in targets.tolist():
        first = nodes.first[int(nodes.set_of[node])]  # a set is not before itself
        seen = ((at[:first] <= at[node]) & ~torch.isin(torch.arange(first), nodes.of_kind("logit", "target"))).nonzero()[:, 0]
        seen = seen[torch.rand(len(seen), generator=rng) < share]
        indices.append(seen)
        weight.append(torch.randn(len(seen), generator=rng, dtype=torch.float64))
        indptr.append(indptr[-1] + len(seen))
    kept = [column.sum() for column in weight], [column.abs().sum() for column in weight]
    dropped, own = (
        torch.rand(len(targets), generator=rng, dtype=torch.float64) / 4,
        torch.randn(len(targets), generator=rng, dtype=torch.float64),
    )
    total, l1 = torch.stack(kept[0]) + dropped, torch.stack(kept[1]) + dropped
    is_logit = torch.isin(targets, nodes.of_kind("logit"))
    probability = torch.rand(len(targets), generator=rng, dtype=torch.float64).where(is_logit, torch.zeros(()).double())
    return Graph(
        nodes, targets, torch.tensor(indptr), torch.cat(indices), torch.cat(weight), own + total, own, total, l1,
        probability / probability.sum() * 0.8, every + 7, labels[:positions],
    )  # fmt: skip
