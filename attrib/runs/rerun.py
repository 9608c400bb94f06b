"""Making a stored prompt's edges again, from what its file says of how they were made, and comparing."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, assert_never

from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.edges import Edges
from attrib.core.types import Dense, InputError, Keep, Mass, Threshold, TopK
from attrib.graph.graph import Graph
from attrib.runs.again import Parts, as_recorded, edges_again, graph_again, rule_of
from attrib.store import open_collection, open_shard
from attrib.store.graph_collection import open_graph_collection
from attrib.store.listing import SHARDS, folder_of, holds_graphs

TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
"""How far an edge may be off, as a share of the prompt's largest attribution: a prompt alone and a prompt in its shard are products of
different numbers of rows, which end in other digits.
"""
REDUCED = 5e-2
"""How far it may be off where products are in tf32 or bfloat16."""

Places = Mapping[str, str | Path]


class Compared(NamedTuple):
    """One block of a prompt, or its graph, as stored and as it comes out now."""

    kind: str
    source: str
    target: str
    """Both are empty for a graph."""
    edges: int
    """Stored ones."""
    apart: float
    """The largest difference of an attribution or of a row's sums, as a fraction of the largest attribution or sum."""
    only_one_keeps: int
    """Edges that only the stored or only the new result keeps: those at the very edge of what is kept."""
    is_same: bool
    """Whether all that is rounding."""
    instead: str = ""
    """Who multiplied now, where this torch is without the one that did when the file was made: last digits may then differ."""


def rerun(path: str | Path, prompt: int, *, places: Places | None = None) -> list[Compared]:
    """Make one prompt's edges again, block by block, and compare them with those of a file.

    Large products go to whom the file names, where this torch has that one (`Compared.instead`).

    Args:
        path: a shard, or a folder of shards.
        prompt: its number in the data set; in a file that has none, its place.
        places: where the model and the dictionaries lie that the file only names, by name or by sha256.

    Raises:
        InputError: where there is no such prompt, a model or dictionary is not found, or is not the one that the file was made with.
        UnsupportedError: where the file does not say enough: a direction's vector, or a metric, is not stored.
        FormatError: where what the file says of its making cannot be read.
    """
    parts = Parts(dict(places or {}))
    if holds_graphs(Path(path)):
        with open_graph_collection(path) as graphs, _left_out(Path(path)):
            graphs.place_of(prompt)
            graph = graphs[prompt]
        with as_recorded(graph.call) as instead:
            now = graph_again(graph, parts)
        return [_compared(("graph", "", ""), _rows_of_graph(graph), _rows_of_graph(now), graph.call)._replace(instead=instead)]
    with open_collection(path) as collection, _left_out(Path(path)):
        shard, place = collection.place_of(prompt)
    with open_shard(shard) as store:
        stored = [store.edges(*block, prompts=place) for block in store.blocks]
    return [_again(was, parts) for was in stored]


def _again(was: Edges, parts: Parts) -> Compared:
    with as_recorded(was.call) as instead:
        now = edges_again(was, parts)
    named = was.kind, was.sources.site, was.targets.site
    return _compared(named, _rows_of_edges(was), _rows_of_edges(now), was.call)._replace(instead=instead)


@contextmanager
def _left_out(path: Path) -> Iterator[None]:
    """Where a job has no such prompt, say what lists those that it left out."""
    try:
        yield
    except InputError as missing:
        if (folder := folder_of(path)).name != SHARDS:
            raise
        listing = f"`attrib job status {folder.parent} --refused` lists the prompts that the job left out, and why."
        raise InputError(f"{missing} {listing}") from missing


class _Rows(NamedTuple):
    """Sparse rows with their sums, and the nodes that rows and columns are of."""

    nodes: list[list[int]]
    columns: int
    row: Int[Tensor, " edges"]
    indices: Int[Tensor, " edges"]
    attribution: Float[Tensor, " edges"]
    total: Float[Tensor, " rows"]
    l1: Float[Tensor, " rows"]


def _rows_of_edges(edges: Edges) -> _Rows:
    nodes = [column.tolist() for end in (edges.sources, edges.targets) for column in (end.position, end.latent)]
    return _Rows(nodes, len(edges.sources), edges.row, edges.indices, edges.attribution, edges.total, edges.l1)


def _rows_of_graph(graph: Graph) -> _Rows:
    nodes = [column.tolist() for column in (graph.nodes.position, graph.nodes.latent, graph.targets)]
    return _Rows(nodes, len(graph.nodes), graph.row, graph.indices, graph.weight, graph.total, graph.l1)


def _compared(named: tuple[str, str, str], stored: _Rows, now: _Rows, call: Mapping[str, Any]) -> Compared:
    count = len(stored.indices)
    if stored.nodes != now.nodes:
        return Compared(*named, count, float("inf"), count + len(now.indices), False)
    columns = stored.columns
    was, new = (dict(zip((each.row * columns + each.indices).tolist(), each.attribution.tolist(), strict=True)) for each in (stored, now))
    both = was.keys() & new.keys()
    largest = max((abs(value) for value in was.values()), default=0.0) or 1.0
    sums = max(float(stored.l1.max()) if len(stored.l1) else 0.0, largest)
    apart = max((abs(was[at] - new[at]) for at in both), default=0.0) / largest
    for old, again in ((stored.total, now.total), (stored.l1, now.l1)):
        apart = max(apart, float((old - again).abs().max()) / sums if len(old) else 0.0)
    tolerance = TOLERANCES.get(str(call["dtype"]), REDUCED)
    slack = tolerance * largest
    limits = [_least(kept, columns, rule_of(call["keep"])) for kept in (was, new)]
    sides = (was, new.keys(), limits[1]), (new, was.keys(), limits[0])
    is_marginal = all(abs(kept[at]) <= limit(at) + slack for kept, other, limit in sides for at in kept.keys() - other)
    return Compared(*named, count, apart, len(was.keys() ^ new.keys()), apart <= tolerance and is_marginal)


def _least(kept: Mapping[int, float], columns: int, rule: Keep) -> Callable[[int], float]:
    """The least that a result keeps in the row of an edge: what only the other one keeps should not be larger.

    Where it keeps nothing in a row there is nothing to compare with, so nothing but rounding may be missing there. A threshold is told
    by the rule itself, whatever else its row keeps.
    """
    match rule:
        case Threshold(t):
            return lambda at: t
        case Dense() | TopK() | Mass():
            least: dict[int, float] = {}
            for at, value in kept.items():
                least[at // columns] = min(abs(value), least.get(at // columns, float("inf")))
            return lambda at: least.get(at // columns, 0.0)
    assert_never(rule)
