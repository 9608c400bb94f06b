"""What is asked of results whatever they are: the edges of each attribution, of all prompts, or the graph of each prompt."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from attrib.core.edges import Edges
from attrib.graph.graph import Graph
from attrib.runs.spec import Results
from attrib.store import save
from attrib.store.graphs import save_graphs


class Counts(NamedTuple):
    """How much a result holds."""

    prompts: int
    tokens: int
    edges: int


def edges_of(results: Results) -> list[Edges]:
    """The results, where they are edges; else none."""
    return [one for one in results if isinstance(one, Edges)]


def graphs_of(results: Results) -> list[Graph]:
    """The results, where they are graphs; else none."""
    return [one for one in results if isinstance(one, Graph)]


def counts(results: Results) -> Counts:
    """Prompts, tokens and edges."""
    edges = sum(map(len, results))
    if blocks := edges_of(results):
        return Counts(len(blocks[0].prompts), len(blocks[0].prompts.ids), edges)
    graphs = graphs_of(results)
    return Counts(len(graphs), sum(len(graph.tokens) for graph in graphs), edges)


def not_finite(results: Results) -> list[int]:
    """The prompts with an edge or total that is not finite, by their place."""
    found = {place for place, graph in enumerate(graphs_of(results)) if not _is_finite(graph)}
    for one in edges_of(results):
        bad = ~one.total.isfinite()
        bad[one.row[~one.gradient.isfinite()]] = True
        found |= set(one.targets.prompt[bad].tolist())
    return sorted(found)


def _is_finite(graph: Graph) -> bool:
    return all(bool(column.isfinite().all()) for column in (graph.weight, graph.total, graph.l1, graph.value, graph.own))


def write(
    path: Path, results: Results, numbers: Int[Tensor, " prompts"], *, compression: str | None = None, overwrite: bool = False
) -> Path:
    """Save results with the numbers of their prompts in the data set. Raises what `attrib.save` raises."""
    if graphs := graphs_of(results):
        return save_graphs(path, graphs, numbers=numbers, compression=compression, overwrite=overwrite)
    numbered = [replace(one, prompts=replace(one.prompts, number=numbers)) for one in edges_of(results)]
    return save(path, numbered, compression=compression, overwrite=overwrite)
