"""Graphs as circuit-tracer's command writes them for its frontend: pruned, `SLUG.json` with `graph-metadata.json` beside it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attrib.core.types import InputError

if TYPE_CHECKING:
    from attrib.graph import Graph, LazyGraph

NODES, EDGES = 0.8, 0.98
"""Shares of the influence that nodes and edges have together which are written, where nobody says. circuit-tracer's are these."""


class ForFrontend(NamedTuple):
    """Where graphs are written, under which name, and how much of them."""

    folder: Path
    slug: str
    nodes: float
    edges: float
    overwrite: bool

    def paths(self, count: int) -> list[Path]:
        """A file for each graph. Raises InputError where one is there already."""
        names = [self.slug] if count == 1 else [f"{self.slug}-{number}" for number in range(count)]
        found = [self.folder / f"{name}.json" for name in names]
        if there := [path for path in found if path.exists() and not self.overwrite]:
            raise InputError(f"--slug: {there[0]} exists; give --overwrite to replace it.")
        return found

    def write(self, graphs: "Sequence[Graph | LazyGraph]") -> list[Path]:
        """Write the graphs, pruned; nodes carry their share of the whole graph's influence, by which the frontend prunes further."""
        from attrib.graph import cumulative_influence, influence, prune, to_neuronpedia

        self.folder.mkdir(parents=True, exist_ok=True)
        paths = self.paths(len(graphs))
        for graph, path in zip(graphs, paths, strict=True):
            pruned = prune(graph, self.nodes, self.edges)
            shares = cumulative_influence(influence(graph))[pruned.nodes]
            to_neuronpedia(pruned.graph, path, cumulative=shares, threshold=self.nodes, overwrite=self.overwrite)
        return paths


def for_frontend(
    slug: str | None, folder: Path | None, nodes: float | None, edges: float | None, server: bool, overwrite: bool
) -> ForFrontend | None:
    """What the options ask for; None where none is given. Raises InputError where one is missing, or has no effect."""
    given = {"--slug": slug, "--graph-file-dir": folder, "--node-threshold": nodes, "--edge-threshold": edges, "--server": server or None}
    asked = [name for name, value in given.items() if value is not None]
    if asked and (missing := [name for name in ("--slug", "--graph-file-dir") if name not in asked]):
        raise InputError(f"{missing[0]}: missing beside {asked[0]}; graphs are written to GRAPH_FILE_DIR/SLUG.json. Give both, or neither.")
    if slug is None or folder is None:
        return None
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", slug) or slug == "graph-metadata":
        raise InputError(f"--slug: {slug[:60]!r}; expected letters, digits, '.', '_' and '-', other than graph-metadata.")
    if server:
        raise InputError(
            f"--server: the page that shows graphs is circuit-tracer's, which cannot be installed beside attrib, since it needs "
            f"transformers below 5. Leave it out, and open what is written where circuit-tracer is installed: {command(folder)}"
        )
    return ForFrontend(folder, slug, NODES if nodes is None else nodes, EDGES if edges is None else edges, overwrite)


def command(folder: Path) -> str:
    """What shows a folder's graphs, typed where circuit-tracer is installed."""
    return f"circuit-tracer start-server --graph_file_dir {folder}"
