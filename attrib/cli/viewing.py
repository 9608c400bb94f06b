"""`attrib view` and `attrib serve`: graphs as pages that a browser shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attrib.cli.details import Asked, Heads, ModelName, Places, Scores, Surveys, Verify
from attrib.cli.stored_graphs import NUMBER, File, opened, read
from attrib.core.types import InputError
from attrib.view.explorer.limits import EDGES, NODES
from attrib.view.terminal import plain, so_many

if TYPE_CHECKING:
    from attrib.graph import Graph
    from attrib.latents.labels import Labels
    from attrib.view.explorer.fitting import Most

LabelFiles = Annotated[
    list[Path] | None, typer.Option("--labels", help="File of labels, as `attrib latents label` writes or Neuronpedia exports; repeat it")
]
Links = Annotated[
    list[str] | None,
    typer.Option("--neuronpedia", help="NAME=MODEL/ID, where Neuronpedia shows the latents of the dictionary of this name; repeat it"),
]


def view(
    file: Annotated[Path, typer.Argument(help="File of graphs or of edges that attrib wrote, or a folder of them, such as a job's")],
    html: Annotated[Path, typer.Option("--html", help="File to write")] = Path("attrib.html"),
    prompt: Annotated[
        list[int] | None,
        typer.Option(help=f"{NUMBER}. Of edges it may be repeated, so that prompts are compared"),
    ] = None,
    beside: Annotated[Path | None, typer.Option("--beside", help="Another file of graphs, one of which is shown beside this one")] = None,
    beside_prompt: Annotated[
        int | None, typer.Option("--beside-prompt", help="As --prompt, of the graph beside; without it the same prompt of --beside")
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="Match positions of both prompts by the tokens that they share, not by their numbers")
    ] = False,
    labels: LabelFiles = None,
    neuronpedia: Links = None,
    survey: Surveys = None,
    model: ModelName = None,
    at: Places = None,
    heads: Heads = None,
    qk: Scores = None,
    verify: Verify = None,
    max_nodes: Annotated[int | None, typer.Option(help=f"Nodes in a graph's page at most, usually {NODES:,}", min=1)] = None,
    max_edges: Annotated[int, typer.Option(help="Edges in a page at most, of edges in each matrix", min=0)] = EDGES,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file")] = False,
) -> None:
    """Write the explorer of a graph, or of a prompt's edges: one page of HTML that holds all it needs, and opens without a network."""
    from attrib.core.files import check_free, whole
    from attrib.store.listing import holds_graphs
    from attrib.view.explorer.fitting import Most

    check_free("--html", html, overwrite=overwrite)
    if holds_graphs(file):
        asked = Asked(file, tuple(survey or ()), model, tuple(at or ()), heads, qk, verify)
        asked.check()
        told = _Told(Most(NODES if max_nodes is None else max_nodes, max_edges), labels_from(labels), links_from(neuronpedia), asked)
        if len(prompt or []) > 1:
            raise InputError(f"--prompt: {len(prompt or [])} of them; expected one, and another as --beside-prompt.")
        if beside is None and beside_prompt is None:
            if align:
                raise InputError("--align: it has no effect on one graph; give another by --beside or --beside-prompt.")
            graph = read(file, prompt[0] if prompt else None)
            told.check(graph)
            made = told.page(graph)
        else:
            other = beside or file
            numbers = prompt[0] if prompt else None, beside_prompt if beside_prompt is not None else prompt[0] if prompt else None
            with opened(file, numbers[0]) as (first, one), opened(other, numbers[1]) as (second, another):
                graphs = one.whole(), another.whole()
                told.check(*graphs)
                made = told.beside(*graphs, _names((file, other), (first, second)), align)
    else:
        of_graphs = {
            "--beside": beside, "--beside-prompt": beside_prompt, "--align": align or None, "--labels": labels,
            "--neuronpedia": neuronpedia, "--survey": survey, "--model": model, "--at": at, "--heads": heads, "--qk": qk,
            "--verify": verify, "--max-nodes": max_nodes,
        }  # fmt: skip
        if given := [name for name, value in of_graphs.items() if value is not None]:
            raise InputError(f"{given[0]}: it has no effect on edges, which {file} holds; leave it out.")
        made = _of_edges(file, prompt, max_edges)
    with whole(html) as partial:
        partial.write_text(made, encoding="utf-8")
    print(plain(f"{html}: {html.stat().st_size / 1e6:.1f} MB"))


def _names(files: tuple[Path, Path], numbers: tuple[int, int]) -> tuple[str, str]:
    """What two graphs are called: by what tells them apart."""
    first, second = (f"prompt {number}" for number in numbers)
    if files[0] == files[1]:
        return first, second
    names = [file.name for file in files] if files[0].name != files[1].name else [str(file) for file in files]
    return f"{names[0]}, {first}", f"{names[1]}, {second}"


@dataclass(frozen=True)
class _Told:
    """How graphs are shown, whichever they are."""

    most: "Most"
    labels: "Labels"
    links: dict[str, str]
    asked: Asked

    def check(self, *graphs: "Graph") -> None:
        """Raises InputError for addresses of a dictionary that none of these graphs has."""
        from attrib.view.pages import check_names, set_names

        check_names("--neuronpedia", self.links, *set_names(*graphs))

    def page(self, graph: "Graph") -> str:
        """The page of a graph."""
        from attrib.view.explorer.graph_payload import packed
        from attrib.view.explorer.page import page

        details = self.asked.of(graph, self.most)
        return page("".join(graph.strings), packed(graph, self.most, self.labels, self.links, details))

    def beside(self, first: "Graph", second: "Graph", names: tuple[str, str], align: bool) -> str:
        """The page of two graphs."""
        from attrib.view.explorer.beside_payload import packed_beside
        from attrib.view.explorer.page import page

        details = self.asked.of(first, self.most), self.asked.of(second, self.most)
        data = packed_beside((first, second), names, self.most, self.labels, self.links, details, aligned=align)
        return page(" | ".join(names), data)


def _of_edges(file: Path, prompts: list[int] | None, max_edges: int) -> str:
    from attrib.store import open_collection
    from attrib.view.explorer.matrix_payload import packed_edges
    from attrib.view.explorer.page import page

    with open_collection(file) as result:
        if not len(result.numbers):
            raise InputError(f"file: {file} has no prompts yet; `attrib job run` makes them.")
        numbers = list(dict.fromkeys(prompts or result.numbers[:1].tolist()))
        edges = [result.edges(*block, prompts=[number]) for number in numbers for block in result.blocks]
    return page("".join(edges[0].prompts.strings), packed_edges(edges, max_edges))


def serve(
    file: File,
    port: Annotated[int, typer.Option(help="0 for any that is free", min=0, max=65535)] = 0,
    labels: LabelFiles = None,
    neuronpedia: Links = None,
    survey: Surveys = None,
    model: ModelName = None,
    at: Places = None,
    heads: Heads = None,
    qk: Scores = None,
    verify: Verify = None,
    max_nodes: Annotated[int, typer.Option(help="Nodes in a page at most, those of largest influence", min=1)] = 10 * NODES,
    max_edges: Annotated[int, typer.Option(help="Edges in a page at most", min=0)] = 5 * EDGES,
) -> None:
    """Serve the explorer of all graphs of a file or folder, to this machine alone, until Ctrl-C."""
    import attrib
    from attrib.view.explorer.fitting import Most
    from attrib.view.explorer.server import Explorer

    asked = Asked(file, tuple(survey or ()), model, tuple(at or ()), heads, qk, verify)
    asked.check()
    told = _Told(Most(max_nodes, max_edges), labels_from(labels), links_from(neuronpedia), asked)
    with attrib.open_graphs(file) as graphs:
        numbers: Sequence[int] = graphs.numbers.tolist()
        with Explorer(
            numbers,
            lambda number: "".join(graphs.strings(number)),
            lambda number: told.page(graphs.lazy(number).whole()),
            port,
        ) as server:
            print(plain(f"{so_many(len(numbers), 'graph')} at {server.address}"), flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("stopped")


def labels_from(files: list[Path] | None) -> "Labels":
    """The labels of all files."""
    from attrib.latents import Labels, read_labels

    found = Labels(())
    for file in files or []:
        found += read_labels(file)
    return found


def links_from(given: list[str] | None) -> dict[str, str]:
    """By a dictionary's name, the address of its latents, from NAME=MODEL/ID. Raises InputError."""
    from attrib.latents.links import latents_at

    found = {}
    for each in given or []:
        name, equals, place = each.rpartition("=")
        if not (name and equals and "/" in place):
            raise InputError(f"--neuronpedia: {each!r}; expected NAME=MODEL/ID, as 'transcoder 8=gpt2-small/8-tres-dc'.")
        found[name] = latents_at(place)
    return found
