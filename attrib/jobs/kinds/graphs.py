"""Jobs of graphs: the attribution graph of every prompt. Each is well formed, of the job's prompt, model and dictionaries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attrib.core.keep import least_share
from attrib.graph.graph import Graph
from attrib.graph.wellformed import FEWEST
from attrib.jobs.kind import Of, Portion
from attrib.jobs.kinds.edges import Attributions
from attrib.runs.results import Counts, graphs_of
from attrib.runs.spec import Results
from attrib.store.graphs import open_graph_file


class GraphsKind(Attributions):
    """Graphs; a shard is a file of them, by their prompts' numbers."""

    name = "graph"

    def faults(self, path: Path, of: Of, kept: Portion) -> tuple[list[str], Counts]:
        """Other prompts, another model or dictionary than the job's, and rows that keep too little."""
        # which rows are whole, and not left without the latents that `max_nodes` leaves out, the graph does not say
        share = least_share(of.config.keep) if of.config.attribution[0].max_nodes is None else 0.0
        edges = tokens = 0
        found: list[str] = []
        with open_graph_file(path) as graphs:
            if graphs.numbers.tolist() != kept.numbers.tolist():
                return ["its prompts have other numbers than the job's"], Counts(0, 0, 0)
            for number, ids, graph in zip(kept.numbers.tolist(), kept.ids, graphs, strict=True):  # each is read, and let go
                edges, tokens = edges + len(graph), tokens + len(graph.tokens)
                if not torch.equal(graph.tokens, ids):
                    found.append("its prompts have other tokens than the job's")
                if not _hashes(graph.call) <= of.hashes:
                    found.append(f"its graph of prompt {number} does not say that it is of the job's model and dictionaries")
                if wrong := _too_little(graph, share):
                    found.append(f"its graph of prompt {number}: {wrong}")
            return found, Counts(len(graphs), tokens, edges)

    def difference(self, path: Path, again: Results) -> str:
        """The first graph that keeps other edges, or other values."""
        with open_graph_file(path) as graphs:
            for was, now in zip(graphs, graphs_of(again), strict=True):
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
