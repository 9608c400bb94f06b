"""`attrib view` and `attrib serve`: graphs as pages that a browser shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.core.types import InputError
from attrib.view.terminal import plain

if TYPE_CHECKING:
    from attrib.latents.labels import Labels
    from attrib.view.explorer.payload import Most

File = Annotated[Path, typer.Argument(help="File of graphs that attrib wrote, or a folder of them, such as a job's")]
LabelFiles = Annotated[
    list[Path] | None, typer.Option("--labels", help="File of labels, as `attrib latents label` writes or Neuronpedia exports; repeat it")
]
Links = Annotated[
    list[str] | None,
    typer.Option("--neuronpedia", help="NAME=MODEL/ID, where Neuronpedia shows the latents of the dictionary of this name; repeat it"),
]


def view(
    file: File,
    html: Annotated[Path, typer.Option("--html", help="File to write")] = Path("graph.html"),
    prompt: Annotated[
        int | None, typer.Option(help="Its place in the file, in a folder its prompt's number; negative from the end. Else the first")
    ] = None,
    labels: LabelFiles = None,
    neuronpedia: Links = None,
    max_nodes: Annotated[int, typer.Option(help="Nodes in the page at most, those of largest influence", min=1)] = 5_000,
    max_edges: Annotated[int, typer.Option(help="Edges in the page at most", min=0)] = 100_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file")] = False,
) -> None:
    """Write the explorer of a graph: one page of HTML that holds all it needs, and opens without a network."""
    import attrib
    from attrib.core.files import check_free, whole
    from attrib.view.explorer.payload import Most

    check_free("--html", html, overwrite=overwrite)
    named, links = _labels(labels), _links(neuronpedia)
    with attrib.open_graphs(file) as graphs:
        if not len(graphs):
            raise InputError(f"file: {file} has no graphs yet; `attrib job run` makes them.")
        graph = next(iter(graphs)) if prompt is None else graphs[prompt]
        made = _page(graph, Most(max_nodes, max_edges), named, links)
    with whole(html) as partial:
        partial.write_text(made, encoding="utf-8")
    print(plain(f"{html}: {html.stat().st_size / 1e6:.1f} MB"))


def serve(
    file: File,
    port: Annotated[int, typer.Option(help="0 for any that is free", min=0, max=65535)] = 0,
    labels: LabelFiles = None,
    neuronpedia: Links = None,
    max_nodes: Annotated[int, typer.Option(help="Nodes in a page at most, those of largest influence", min=1)] = 50_000,
    max_edges: Annotated[int, typer.Option(help="Edges in a page at most", min=0)] = 500_000,
) -> None:
    """Serve the explorer of all graphs of a file or folder, to this machine alone, until Ctrl-C."""
    import attrib
    from attrib.view.explorer.payload import Most
    from attrib.view.explorer.server import Explorer

    named, links, most = _labels(labels), _links(neuronpedia), Most(max_nodes, max_edges)
    with attrib.open_graphs(file) as graphs:
        numbers: Sequence[int] = graphs.numbers.tolist()
        places = {number: number if file.is_dir() else place for place, number in enumerate(numbers)}
        with Explorer(
            numbers,
            lambda number: "".join(graphs.strings(places[number])),
            lambda number: _page(graphs[places[number]], most, named, links),
            port,
        ) as server:
            print(plain(f"{len(numbers):,} graphs at {server.address}"), flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("stopped")


def _page(graph: Any, most: "Most", labels: "Labels", links: dict[str, str]) -> str:
    from attrib.view.explorer.page import page
    from attrib.view.explorer.payload import packed

    return page("".join(graph.strings), packed(graph, most, labels, links))


def _labels(files: list[Path] | None) -> "Labels":
    from attrib.latents import Labels, read_labels

    found = Labels(())
    for file in files or []:
        found += read_labels(file)
    return found


def _links(given: list[str] | None) -> dict[str, str]:
    from attrib.latents.links import latents_at

    found = {}
    for each in given or []:
        name, equals, place = each.rpartition("=")
        if not (name and equals and "/" in place):
            raise InputError(f"--neuronpedia: {each!r}; expected NAME=MODEL/ID, as 'transcoder 8=gpt2-small/8-tres-dc'.")
        found[name] = latents_at(place)
    return found
