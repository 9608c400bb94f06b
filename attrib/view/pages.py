"""Pages of HTML that hold all they need, for notebooks and for files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from attrib.adapters.given import as_dictionaries, as_model, only, takes
from attrib.causal.agreement import Agreement
from attrib.core.edges import Edges
from attrib.core.files import check_free, whole
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.graph.graph import Graph
from attrib.graph.heads import HeadLoadings
from attrib.graph.qk import QKAttribution
from attrib.latents.labels import Labels
from attrib.latents.surveyed import Survey
from attrib.models.transformer import Model
from attrib.view.columns import is_whole
from attrib.view.explorer.beside_payload import packed_beside
from attrib.view.explorer.details import Details, made_with
from attrib.view.explorer.fitting import Most
from attrib.view.explorer.graph_payload import packed
from attrib.view.explorer.limits import EDGES, NODES
from attrib.view.explorer.matrix_payload import packed_edges
from attrib.view.explorer.page import page
from attrib.view.figures import AS_EDGES

AS_LABELS = only(Labels, "labels, as `attrib.latents.read_labels` reads them", or_none=True)
AS_LINKS = only(Mapping, "a dict of addresses by the dictionary's name", or_none=True)
_AS_GRAPH = only(Graph, "a graph, as `attrib.graph.build` gives it; `attrib.open_graphs(path)[0]` is the first of a file")
_AS_SURVEY = only(Survey, "a survey, as `attrib.latents.survey` gives it, and `attrib.latents.open` of a file", or_none=True)


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


def check_names(argument: str, given: Iterable[str], *names: str) -> None:
    """Raises InputError for what is told of a dictionary that a page does not have, of which it would show nothing."""
    if strange := [each for each in given if each not in names]:
        raise InputError(f"{argument}: {strange[0]!r} is no dictionary of the page; expected one of {', '.join(dict.fromkeys(names))}.")


def set_names(*graphs: Graph) -> list[str]:
    """The names of the dictionaries of graphs."""
    return [each.name for graph in graphs for each in graph.nodes.sets]


def _as_model(given: Any, argument: str) -> Model | None:
    return None if given is None else as_model(given, argument)


def _as_count(given: Any, argument: str) -> int:
    if not is_whole(given):
        raise InputError(f"{argument}: {given!r}; expected a whole number.")
    return int(given)


_OF_BOTH: dict[str, Any] = {
    "labels": AS_LABELS, "links": AS_LINKS, "survey": _AS_SURVEY, "model": _as_model, "dictionaries": as_dictionaries,
    "max_nodes": _as_count, "max_edges": _as_count,
}  # fmt: skip


@takes(
    graph=_AS_GRAPH,
    heads=only(HeadLoadings, "what `attrib.graph.head_loadings` gives", or_none=True),
    scores=only(QKAttribution, "what `attrib.graph.qk_attribution` gives", or_none=True),
    verified=only(Agreement, "what `attrib.causal.verify` gives", or_none=True),
    **_OF_BOTH,
)
def graph(
    graph: Graph,
    *,
    labels: Labels | None = None,
    links: Mapping[str, str] | None = None,
    max_nodes: int = NODES,
    max_edges: int = EDGES,
    survey: Survey | None = None,
    model: Model | None = None,
    dictionaries: Sequence[Dictionary] = (),
    heads: HeadLoadings | None = None,
    scores: QKAttribution | None = None,
    verified: Agreement | None = None,
) -> Page:
    """The explorer of a graph; see docs/explorer.md.

    Args:
        labels: what latents are called, as `attrib.latents.read_labels` reads or `token_labels` makes them.
        links: by a dictionary's name, the address of its latents up to a latent's number.
        max_nodes, max_edges: of a larger graph, those of largest influence are there.
        survey: where the graph's latents are active in a corpus, as `attrib.latents.survey` gives and `attrib.latents.open` reads.
        model: that the graph was built with: a latent's panel then has the tokens that it raises and lowers most by the weights alone.
        dictionaries: that the graph was built with, for this; those that are missing are loaded by the names that the graph tells.
        heads: edges of the graph by heads, as `attrib.graph.head_loadings` gives them.
        scores: why heads look where they look, as `attrib.graph.qk_attribution` gives it.
        verified: edges against interventions, as `attrib.causal.verify` gives them of this graph alone.

    Raises:
        InputError: for limits below what cannot be left out, for what was made of another graph, model or dictionary, and as
            `attrib.graph.influence`.
    """
    check_names("links", links or (), *set_names(graph))
    given = () if model is None else made_with(graph, model, dictionaries, {})
    details = Details(survey, model, given, heads, scores, verified)
    return Page(page("".join(graph.strings), packed(graph, Most(max_nodes, max_edges), labels, links, details)))


def _as_names(given: Any, argument: str) -> tuple[str, str]:
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2 or not all(isinstance(name, str) for name in given):
        raise InputError(f"{argument}: {given!r}; expected two strings, what the first graph and the second are called.")
    return given[0], given[1]


@takes(first=_AS_GRAPH, second=_AS_GRAPH, names=_as_names, **_OF_BOTH)
def beside(
    first: Graph,
    second: Graph,
    *,
    names: tuple[str, str] = ("first", "second"),
    aligned: bool = False,
    labels: Labels | None = None,
    links: Mapping[str, str] | None = None,
    max_nodes: int = NODES,
    max_edges: int = EDGES,
    survey: Survey | None = None,
    model: Model | None = None,
    dictionaries: Sequence[Dictionary] = (),
) -> Page:
    """The explorer of two graphs beside each other, with what differs between them: of two prompts, or of one prompt in two ways.

    Args:
        names: what the graphs are called.
        aligned: match positions by the tokens that both prompts have, for prompts of different lengths; else by their numbers.

    The other arguments, and the errors, are those of `graph`, for both; and those of `attrib.graph.compare`, which says what differs.
    """
    check_names("links", links or (), *set_names(first, second))
    details = [Details(survey, model, () if model is None else made_with(one, model, dictionaries, {})) for one in (first, second)]
    most = Most(max_nodes, max_edges)
    return Page(
        page(" | ".join(names), packed_beside((first, second), names, most, labels, links, (details[0], details[1]), aligned=aligned))
    )


def _as_several(given: Any, argument: str) -> tuple[Edges, ...]:
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    return tuple(AS_EDGES(each, f"{argument}[{place}]") for place, each in enumerate(given)) if is_list else (AS_EDGES(given, argument),)


@takes(edges=_as_several, max_edges=_as_count)
def matrix(edges: Edges | Sequence[Edges], *, max_edges: int = EDGES) -> Page:
    """The explorer of edges: a matrix for each prompt and each result, and any of them less another.

    Args:
        edges: a result, or several.
        max_edges: of each prompt of each; those of the largest attributions are there.

    Raises:
        InputError: where there are none, and for numbers that float32, which a page has, cannot hold.
    """
    several = (edges,) if isinstance(edges, Edges) else edges
    apart = [each.prompt(number) for each in several for number in range(len(each.prompts))]
    if not apart:
        raise InputError("edges: none; expected those of at least one prompt.")
    return Page(page("".join(apart[0].prompts.strings), packed_edges(apart, max_edges)))
