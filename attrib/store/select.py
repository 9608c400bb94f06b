"""Some latents of a result that is in memory, and what may be asked for of a stored one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from attrib.core.edges import Edges, Nodes
from attrib.core.slices import ptr_of
from attrib.store.numbers import checked_latents

Several = SupportsIndex | Sequence[SupportsIndex] | Integer[Tensor, " _"] | Integer[np.ndarray, " _"]
"""A whole number, or several."""
Selection = slice | Several | None
"""Prompts by their numbers; None for all."""
Latents = Several | None
"""Numbers of latents; None for all of them."""


def select_latents(edges: Edges, source_latents: Latents = None, target_latents: Latents = None) -> Edges:
    """The edges from these latents to those: a result whose tables hold these nodes alone, with edges or without.

    A latent is what the column `latent` of a node says: of a token or logit, its vocabulary id. `total` and `l1` of the
    targets stay what they were, sums over all sources; so `remainder` is what `keep` dropped and what is sliced away here.

    Raises InputError where `source_latents` or `target_latents` are not whole numbers from -1.
    """
    wanted = checked_latents("target_latents", target_latents), checked_latents("source_latents", source_latents)
    rows, columns = is_among(edges.targets, wanted[0]), is_among(edges.sources, wanted[1])
    row = edges.row
    entries = (rows[row] & columns[edges.indices]).nonzero()[:, 0]
    return replace(
        edges,
        sources=keep_nodes(edges.sources, columns),
        targets=keep_nodes(edges.targets, rows),
        indptr=ptr_of(torch.bincount(row[entries], minlength=len(edges.targets))[rows]),
        indices=(columns.cumsum(0) - 1)[edges.indices[entries]],
        gradient=edges.gradient[entries],
        attribution=edges.attribution[entries],
        total=edges.total[rows],
        l1=edges.l1[rows],
        gap=None if edges.gap is None else edges.gap[rows],
    )


def is_among(nodes: Nodes, latents: list[int] | None) -> Bool[Tensor, " nodes"]:
    """Which nodes are of these latents; None for all of them."""
    if latents is None:
        return torch.ones(len(nodes), dtype=torch.bool)
    return torch.isin(nodes.latent, torch.tensor(latents, dtype=torch.int64))


def keep_nodes(nodes: Nodes, kept: Bool[Tensor, " nodes"]) -> Nodes:
    """The nodes that are kept, still in the order of their prompts."""
    return nodes.take(kept.nonzero()[:, 0], torch.bincount(nodes.prompt[kept], minlength=len(nodes.ptr) - 1))


def lengths(sizes: list[int], most: int) -> list[int]:
    """How many successive prompts make up each piece of at most so many edges, or one prompt."""
    found, edges = [0], 0
    for size in sizes:
        if found[-1] and edges + size > most:
            found.append(0)
            edges = 0
        found[-1] += 1
        edges += size
    return found
