"""Whether a shard of graphs is what it should be: each graph well formed, of the job's prompt, model and dictionaries."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.keep import least_share
from attrib.graph.graph import Graph
from attrib.graph.wellformed import FEWEST
from attrib.jobs.folder import Job
from attrib.jobs.records import Record, faults_of_counts
from attrib.store.graphs import open_graph_file


def faults_of_graphs(job: Job, path: Path, record: Record, kept: Mapping[int, Int[Tensor, " _"]]) -> Iterator[str]:
    """What is wrong with a shard whose checksum is right.

    Args:
        kept: the tokens of the prompts that it should hold, by their numbers.

    Raises:
        FormatError: where a graph cannot be read.
    """
    hashes = {job.fixed.model, *job.fixed.dictionaries.values()}
    # which rows are whole, and not left without the latents that `max_nodes` leaves out, the graph does not say
    share = least_share(job.config.keep) if job.config.attribution[0].max_nodes is None else 0.0
    edges = tokens = 0
    with open_graph_file(path) as graphs:
        if graphs.numbers.tolist() != list(kept):
            yield "its prompts have other numbers than the job's"
            return
        for number, graph in zip(kept, graphs, strict=True):  # each is read, and let go
            edges, tokens = edges + len(graph), tokens + len(graph.tokens)
            if not torch.equal(graph.tokens, kept[number]):
                yield "its prompts have other tokens than the job's"
            if not _hashes(graph.call) <= hashes:
                yield f"its graph of prompt {number} does not say that it is of the job's model and dictionaries"
            if wrong := _too_little(graph, share):
                yield f"its graph of prompt {number}: {wrong}"
        yield from faults_of_counts(record, {"prompts": len(graphs), "tokens": tokens, "edges": edges})


def difference_of_graphs(path: Path, again: Sequence[Graph]) -> str:
    """How far a shard is from what comes out now."""
    with open_graph_file(path) as graphs:
        for was, now in zip(graphs, again, strict=True):
            of = f"computed again, its graph of {len(was.tokens)} tokens"
            if not (
                torch.equal(was.targets, now.targets) and torch.equal(was.indptr, now.indptr) and torch.equal(was.indices, now.indices)
            ):
                return f"{of} keeps other edges"
            largest = was.weight.abs().max().clamp(min=1e-30) if len(was) else torch.ones(())
            if apart := float((was.weight - now.weight).abs().max() / largest) if len(was) else 0.0:
                return f"{of} differs by {apart:.1e} of the largest attribution"
    return "computed again, its values are the same, but not its bytes"


def _hashes(call: Mapping[str, Any]) -> set[str | None]:
    """The checksums of the model and the dictionaries that a graph names; None where it does not say."""
    try:
        return {call["model"]["sha256"], *(each["sha256"] for each in call["dictionaries"] if "sha256" in each)}
    except (KeyError, TypeError):
        return {None}


def _too_little(graph: Graph, share: float) -> str:
    """Which row stores less of its l1 than the keep rule does, up to the rounding of a sum."""
    stored = torch.zeros_like(graph.l1).index_add(0, graph.row, graph.weight.abs())
    rounding = 4 * max(FEWEST, len(graph.nodes)) * torch.finfo(graph.l1.dtype).eps
    wrong = (stored < graph.l1 * (share - rounding)).nonzero()[:, 0]
    if not len(wrong):
        return ""
    row = int(wrong[0])
    return (
        f"rows/l1: row {row}: it is {graph.l1[row]:.6g}, of which the keep rule stores {share:g} at least, and {stored[row]:.6g} is stored"
    )
