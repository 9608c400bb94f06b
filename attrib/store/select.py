"""Parts of a result that is in memory: some of its prompts in any order, or some of its latents."""

from collections.abc import Sequence
from dataclasses import replace
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from attrib.core.edges import Edges, Nodes, Prompts
from attrib.store.numbers import checked_latents

Several = SupportsIndex | Sequence[SupportsIndex] | Integer[Tensor, " _"] | Integer[np.ndarray, " _"]
"""A whole number, or several."""
Selection = slice | Several | None
"""Prompts by their numbers; None for all."""
Latents = Several | None
"""Numbers of latents; None for all of them."""


def take_prompts(edges: Edges, order: Int[Tensor, " taken"]) -> Edges:
    """These prompts, by their place in `edges`, in this order; one may be taken again."""
    sources, _ = _take_nodes(edges.sources, order)
    targets, rows = _take_nodes(edges.targets, order)
    counts = edges.indptr.diff()[rows]
    entries = ranges(edges.indptr[rows], counts)
    # a prompt's columns move together: by this much for each of its rows, and so for each of their entries
    moved = torch.repeat_interleave(sources.ptr[:-1] - edges.sources.ptr[order], targets.ptr.diff())
    return replace(
        edges,
        sources=sources,
        targets=targets,
        indptr=ptr_of(counts),
        indices=edges.indices[entries] + torch.repeat_interleave(moved, counts),
        gradient=edges.gradient[entries],
        attribution=edges.attribution[entries],
        total=edges.total[rows],
        l1=edges.l1[rows],
        prompts=pick_prompts(edges.prompts, order),
    )


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
    )


def is_among(nodes: Nodes, latents: list[int] | None) -> Bool[Tensor, " nodes"]:
    """Which nodes are of these latents; None for all of them."""
    if latents is None:
        return torch.ones(len(nodes), dtype=torch.bool)
    return torch.isin(nodes.latent, torch.tensor(latents, dtype=torch.int64))


def keep_nodes(nodes: Nodes, kept: Bool[Tensor, " nodes"]) -> Nodes:
    """The nodes that are kept, still in the order of their prompts."""
    return _pick(nodes, kept.nonzero()[:, 0], ptr_of(torch.bincount(nodes.prompt[kept], minlength=len(nodes.ptr) - 1)))


def ptr_of(counts: Int[Tensor, " parts"]) -> Int[Tensor, " parts_plus_1"]:
    """Where parts of these lengths begin when they lie one after another."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def ranges(starts: Int[Tensor, " parts"], counts: Int[Tensor, " parts"]) -> Int[Tensor, " total"]:
    """start, start + 1, … of every part, one part after another.

    >>> ranges(torch.tensor([7, 0]), torch.tensor([2, 3])).tolist()
    [7, 8, 0, 1, 2]
    """
    before = counts.cumsum(0) - counts
    return torch.repeat_interleave(starts - before, counts) + torch.arange(int(counts.sum()))


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


def _take_nodes(nodes: Nodes, order: Int[Tensor, " taken"]) -> tuple[Nodes, Int[Tensor, " rows"]]:
    counts = nodes.ptr.diff()[order]
    rows = ranges(nodes.ptr[order], counts)
    return _pick(nodes, rows, ptr_of(counts)), rows


def _pick(nodes: Nodes, rows: Int[Tensor, " picked"], ptr: Int[Tensor, " prompts_plus_1"]) -> Nodes:
    return replace(
        nodes,
        ptr=ptr,
        position=nodes.position[rows],
        latent=nodes.latent[rows],
        activation=nodes.activation[rows],
        labels=tuple(nodes.labels[row] for row in rows.tolist()) if nodes.labels else (),
        probability=None if nodes.probability is None else nodes.probability[rows],
    )


def pick_prompts(prompts: Prompts, order: Int[Tensor, " taken"]) -> Prompts:
    """These prompts, by their place in `prompts`, with the numbers that they have there."""
    counts = prompts.ptr.diff()[order]
    tokens = ranges(prompts.ptr[order], counts)
    strings = tuple(prompts.strings[token] for token in tokens.tolist())
    return Prompts(ptr_of(counts), prompts.ids[tokens], strings, prompts.numbers[order])
