"""Pages of HTML that hold all they need, for notebooks and for files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from attrib.core.edges import Edges
from attrib.core.files import check_free, whole
from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.latents.labels import Labels
from attrib.view.explorer.graph_payload import Most, packed
from attrib.view.explorer.limits import EDGES, NODES
from attrib.view.explorer.matrix_payload import packed_edges
from attrib.view.explorer.page import page


@dataclass(frozen=True, repr=False)
class Page:
    """A page of HTML. A notebook shows it where it stands, in a frame that reaches nothing outside itself."""

    html: str
    height: int = 720
    """Pixels of the frame in a notebook."""

    def __repr__(self) -> str:
        return f"Page({len(self.html.encode('utf-8', 'replace')) / 1e6:.1f} MB)"

    def _repr_html_(self) -> str:
        style = f"width:100%;height:{self.height}px;border:1px solid #ccc"
        return f'<iframe sandbox="allow-scripts allow-downloads allow-popups" style="{style}" srcdoc="{escape(self.html)}"></iframe>'

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as a file, whole or not at all. Raises InputError where something is there that is not to be replaced."""
        path = Path(path)
        check_free("path", path, overwrite=overwrite)
        with whole(path) as partial:
            partial.write_text(self.html, encoding="utf-8", errors="replace")
        return path


def graph(
    graph: Graph,
    *,
    labels: Labels | None = None,
    links: Mapping[str, str] | None = None,
    max_nodes: int = NODES,
    max_edges: int = EDGES,
) -> Page:
    """The explorer of a graph; see docs/explorer.md.

    Args:
        labels: what latents are called, as `attrib.latents.read_labels` reads or `token_labels` makes them.
        links: by a dictionary's name, the address of its latents up to a latent's number.
        max_nodes, max_edges: of a larger graph, those of largest influence are there.

    Raises:
        InputError: for limits below what cannot be left out, and as `attrib.graph.influence`.
    """
    return Page(page("".join(graph.strings), packed(graph, Most(max_nodes, max_edges), labels, links)))


def matrix(edges: Edges | Sequence[Edges], *, max_edges: int = EDGES) -> Page:
    """The explorer of edges: a matrix for each prompt and each result, and any of them less another.

    Args:
        edges: a result, or several.
        max_edges: of each prompt of each; those of the largest attributions are there.

    Raises:
        InputError: where there are none.
    """
    several = [edges] if isinstance(edges, Edges) else list(edges)
    apart = [each.prompt(number) for each in several for number in range(len(each.prompts))]
    if not apart:
        raise InputError("edges: none; expected those of at least one prompt.")
    return Page(page("".join(apart[0].prompts.strings), packed_edges(apart, max_edges)))
