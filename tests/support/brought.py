"""What torch.func says that nodes bring to the stream: dense, by the plain pass with all dictionaries put in."""

from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev

import attrib
from attrib.core.types import Site
from attrib.engine.blocks.passing import place_of
from attrib.graph.constants import embeddings
from attrib.graph.nodes import Nodes
from attrib.models.transformer import Model
from tests.support.cut_cases import SETS, TOKENS, ours

PROMPT = TOKENS[:6]


def dictionaries(model: Model, which: str | None) -> list[attrib.Dictionary]:
    return ours(SETS[which](model)) if which else []


def brought(model: Model, which: str | None, nodes: Nodes, policy: Any) -> tuple[Tensor, dict[Site, Tensor]]:
    """The numbers of latents, errors and embeddings, and what torch.func says that each brings to every layer's stream [nodes, T, d]."""
    cuts = dictionaries(model, which)
    replaced = attrib.replace(model, cuts, policy=policy)
    leaves = replaced.leaves(PROMPT)
    token, position = embeddings(model, PROMPT)
    sizes = [len(each) for each in leaves.activations]
    sites = [Site(layer, "resid_pre") for layer in range(model.config.n_layers)]

    def function(activations: Tensor, errors: Tensor, embedded: Tensor) -> Tensor:
        parts = tuple(a * f for a, f in zip(leaves.activations, activations.split(sizes), strict=True)) if sizes else ()
        scaled = tuple(error * factor[:, None] for error, factor in zip(leaves.errors, errors, strict=True))
        whole = token * embedded[0][:, None] + (0 if position is None else position * embedded[1][:, None])
        there = leaves.with_activations(parts)._replace(errors=scaled, embedded=whole)
        return torch.stack([*replaced.values(there, sites).values()])

    count = len(PROMPT)
    ones = torch.ones(sum(sizes)).double(), torch.ones(len(leaves.errors), count).double(), torch.ones(2, count).double()
    by_latent, by_error, by_embedding = jacrev(function, (0, 1, 2))(*ones)
    sets = nodes.sets
    of = {(each.kind, each.site, each.name): torch.arange(nodes.first[n], nodes.first[n + 1]) for n, each in enumerate(sets)}
    numbers, columns = [], []
    for number, d in enumerate(cuts):
        numbers.append(of["latent", str(d.site), d.name])
        columns.append(by_latent[..., sum(sizes[:number]) : sum(sizes[: number + 1])])
    for number, site in enumerate(replaced.written):
        numbers.append(of["error", str(place_of(site)), ""])
        columns.append(by_error[..., number, :])
    for number, kind in enumerate(["token", "position"] if position is not None else ["token"]):
        numbers.append(nodes.of_kind(kind))
        columns.append(by_embedding[..., number, :])
    moved = torch.cat(columns, dim=-1)  # [layers, T, d, nodes]
    return torch.cat(numbers), {site: moved[n].movedim(-1, 0) for n, site in enumerate(sites)}
