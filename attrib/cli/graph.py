"""`attrib graph`: build attribution graphs of prompts, look at them, and write them for other programs.

`attrib graph "PROMPT" ...` is short for `attrib graph build "PROMPT" ...`, whose options go by circuit-tracer's names too.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from attrib.cli.bars import counted
from attrib.cli.shared import ModelName
from attrib.cli.slug import EDGES, NODES, command, for_frontend
from attrib.cli.stored_graphs import File, Number, opened, read
from attrib.core.types import POLICIES, InputError
from attrib.view.terminal import plain, table
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.graph import Graph, LazyGraph, PathFilter


class _OrBuild(TyperGroup):
    """A group in which what is no command's name is a prompt, of which a graph is built."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["build", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_OrBuild, no_args_is_help=True, help="Attribution graphs: what a prompt's logits are made of, node by node.")

UNDERSCORES = {"token_normalize_func": lambda name: name.replace("_", "-")}
"""circuit-tracer writes its options with underscores: either is taken."""
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output")]
NodeShare = Annotated[
    float, typer.Option("--nodes", "--node-threshold", help="Share of the influence that the nodes left have", min=0, max=1)
]
EdgeShare = Annotated[float, typer.Option("--edges", "--edge-threshold", help="Share that the edges left have", min=0, max=1)]
PathKinds = Annotated[list[str] | None, typer.Option("--kind", help="Kinds of nodes that may lie on a path; may be repeated. Usually all")]
PathContribution = Annotated[str, typer.Option("--contribution", help="What an edge counts: raw, share or capped")]
TOP = 8


@app.command(context_settings=UNDERSCORES)
def build(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts")] = None,
    model: ModelName = "",
    dictionaries: Annotated[
        list[str] | None,
        typer.Option(
            "--dictionaries",
            "--dictionary",
            "--transcoder-set",
            "-t",
            help="Dictionary: shipped, folder, or release/id; neurons:LAYER; repeat it",
        ),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="The same as an option; may be repeated")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HDF5 file to write")] = None,
    keep: Annotated[str, typer.Option(help="mass:FRACTION of each row; topk:K, threshold:T or dense")] = "mass:0.98",
    policy: Annotated[str, typer.Option(help="linear, whose rows add up; relp, with relevance through MLPs; or exact")] = "linear",
    top_logits: Annotated[int, typer.Option("--top-logits", "--max-n-logits", help="Logits of the most probable tokens")] = 10,
    mass: Annotated[float, typer.Option("--mass", "--desired-logit-prob", help="Of those, the fewest that reach this probability")] = 0.95,
    logit_token: Annotated[list[str] | None, typer.Option(help="The logit of this token instead; may be repeated")] = None,
    span: Annotated[int | None, typer.Option(help="All tokens of the prompt from this position on instead; negative from the end")] = None,
    latent: Annotated[
        list[str] | None, typer.Option(help="A latent instead, as SITE[NUMBER]@POSITION or NAME[NUMBER]@POSITION; may be repeated")
    ] = None,
    max_nodes: Annotated[int | None, typer.Option("--max-nodes", "--max-feature-nodes", help="Latents that stay at most")] = None,
    skip_positions: Annotated[int, typer.Option(help="First positions without latents; circuit-tracer's graphs have 1")] = 0,
    mlps: Annotated[str, typer.Option(help="MLPs without a dictionary: exact, or leaf")] = "exact",
    demean: Annotated[bool, typer.Option(help="Read logits less their mean")] = True,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N; several that share the work as cuda:0,cuda:1, or all")] = "cpu",
    budget: Annotated[str | None, typer.Option(help="Working memory, as 512MiB; 1GiB, or half of what a GPU has free")] = None,
    slug: Annotated[str | None, typer.Option(help="Also write the graph, pruned, as SLUG.json for circuit-tracer's frontend")] = None,
    graph_file_dir: Annotated[Path | None, typer.Option(help="The folder of these files, with graph-metadata.json beside them")] = None,
    nodes: Annotated[
        float | None, typer.Option("--node-threshold", help=f"Share of the influence in SLUG.json, usually {NODES}", min=0, max=1)
    ] = None,
    edges: Annotated[float | None, typer.Option("--edge-threshold", help=f"The same of edges, usually {EDGES}", min=0, max=1)] = None,
    server: Annotated[bool, typer.Option("--server", help="Say how to open them in circuit-tracer's server")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Build the graphs of prompts, and write them to one file. `attrib graph "PROMPT" ...` does the same."""
    import attrib
    from attrib.core.devices import check_devices
    from attrib.core.keep import parse_keep
    from attrib.graph import Latents, Span

    texts = [*(prompts or []), *(prompt or [])]
    shown = for_frontend(slug, graph_file_dir, nodes, edges, server, overwrite)
    given = {"PROMPT": texts, "--model": model, "--dictionaries": dictionaries, "--out": out or shown}
    if missing := [name for name, value in given.items() if not value]:
        raise InputError(f"{missing[0]}: missing. For example: attrib graph 'The opposite of hot is' -m smollm2-135m -t NAME -o graph.h5")
    if policy not in POLICIES:
        raise InputError(f"--policy: {policy!r}; expected {' or '.join(POLICIES)}.")
    instead = {"--logit-token": logit_token, "--latent": latent, "--span": span}
    if len(several := [name for name, value in instead.items() if value not in (None, [])]) > 1:
        raise InputError(f"{several[-1]}: it has no effect beside {several[0]}; give one of them.")
    try:
        kept = parse_keep(keep)
    except ValueError as error:
        raise InputError(f"--keep: {error}.") from None
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"--out: {out} exists; give --overwrite to replace it.")
    if out is not None and out.suffix == ".pt":
        raise InputError(f"--out: {out}; this is attrib's HDF5. Name it {out.with_suffix('.h5')}; `attrib graph export` makes a .pt of it.")
    if shown is not None:
        shown.paths(len(texts))
    targets: Any = attrib.TopLogits(top_logits, mass) if span is None else Span(span)
    if logit_token or latent:
        targets = attrib.TokenLogits(logit_token) if logit_token else Latents(list(map(_latent, latent or [])))
    first, *others = check_devices(device)
    loaded = attrib.load_model(model, device=first)
    asked: dict[str, Any] = {
        "policy": POLICIES[policy], "targets": targets, "keep": kept, "mlps": mlps, "demean": demean, "skip_positions": skip_positions,
        "max_nodes": max_nodes, "dtype": dtype, "device": [first, *others],
    }  # fmt: skip
    asked |= {} if budget is None else {"budget": budget}
    nodes_of = [_given(name, first) for name in dictionaries or []]

    def told(graphs: "Sequence[Graph | LazyGraph]") -> list[Path]:
        for number, graph in enumerate(graphs):
            print(plain(f"{number}: Graph({graph.summary})"))
        return [] if shown is None else shown.write(graphs)

    with counted("building graphs") as progress:
        if out is not None:  # edges go there as they are found, so that memory need not hold them
            attrib.build_graphs(out, loaded, nodes_of, texts, progress=progress, overwrite=overwrite, **asked)
        else:
            graphs = attrib.graph.build(loaded, nodes_of, texts, progress=progress, **asked)
    if out is not None:
        with attrib.open_graphs(out) as stored:
            written = told([stored.lazy(number) for number in stored.numbers])
    else:
        written = told(graphs)
    for path in [out, *written] if out is not None else written:
        print(plain(f"{path}: {path.stat().st_size / 1e6:.1f} MB"))
    if shown is not None:
        print(plain(f"to see them, where circuit-tracer is installed: {command(shown.folder)}"))


def _given(name: str, device: Any) -> Any:
    """A dictionary by its name, or an MLP's own units by `neurons:LAYER`."""
    import attrib
    from attrib.graph.neurons import neurons_named

    return neurons_named(name) or attrib.load_dictionary(name).to(device=device)


def _latent(text: str) -> tuple[str, int, int]:
    """A latent by the site or name of its dictionary, its number, and its position."""
    if (found := re.fullmatch(r"(.+)\[(\d{1,18})\] ?@(-?\d{1,9})", text)) is None:
        raise InputError(f"--latent: {text!r}; expected SITE[NUMBER]@POSITION, as 'blocks.8.mlp.hook_in[355]@-1'.")
    return found[1], int(found[2]), int(found[3])


@app.command()
def show(
    file: File,
    number: Number = None,
    top: Annotated[int, typer.Option(help="Edges of each output, and nodes", min=1)] = TOP,
) -> None:
    """What a graph is made of: how far its rows add up, its scores, the strongest edges of its outputs, its most influential nodes."""
    with opened(file, number) as (_, graph):
        _show(graph, top)


def _show(graph: "LazyGraph", top: int) -> None:
    """Read the edges of outputs, and for scores and influence all, block by block."""
    from attrib.graph import influence, scores

    print(plain(f"Graph({graph.summary})"))
    of_errors = scores(graph)
    print(plain(f"replacement score {of_errors.replacement:.3f}, completeness {of_errors.completeness:.3f}"))
    for node in graph.nodes.of_kind("logit", "target").tolist():
        row = int(graph.row_of[node])
        of_row = graph.rows(row, row + 1)
        order = of_row.weight.abs().argsort(descending=True)[:top]
        title = f"{graph.nodes.label(node)}: value {graph.value[row]:.4g} = own {graph.own[row]:.4g} + total {graph.total[row]:.4g}"
        edges = [(plain(graph.nodes.label(int(of_row.indices[at]))), f"{of_row.weight[at]:+.4g}") for at in order.tolist()]
        print_table(table(plain(f"{title} + remainder {graph.remainder[row]:.1e}"), ("source",), ("attribution",), edges))
    found = influence(graph)
    strongest = [(plain(graph.nodes.label(node)), f"{found[node]:.4f}") for node in found.argsort(descending=True)[:top].tolist()]
    print_table(table("most influential nodes", ("node",), ("influence",), strongest))


@app.command(context_settings=UNDERSCORES)
def prune(
    file: File,
    out: Annotated[Path, typer.Argument(help="File to write")],
    nodes: NodeShare = 0.8,
    edges: EdgeShare = 0.98,
    overwrite: Overwrite = False,
) -> None:
    """Keep, of every graph of a file, the nodes and edges that carry most of the influence."""
    import attrib
    from attrib.store.graphs import save_graphs

    _check_apart(file, out)
    with attrib.open_graphs(file) as graphs:

        def pruned() -> Iterator["Graph"]:  # one after another: a folder may hold more than memory does, and so may a graph
            for number in graphs.numbers.tolist():
                smaller = attrib.graph.prune(graphs.lazy(number), nodes, edges).graph
                print(plain(f"{number}: {smaller}"))
                yield smaller

        save_graphs(out, pruned(), numbers=graphs.numbers if graphs.is_numbered else None, overwrite=overwrite)


@app.command()
def paths(
    file: File,
    number: Number = None,
    top: Annotated[int, typer.Option(help="Paths of each output", min=1)] = TOP,
    into: Annotated[int | None, typer.Option(help="Into the node of this number; usually into each logit and target")] = None,
    kind: PathKinds = None,
    contribution: PathContribution = "raw",
) -> None:
    """The strongest paths into the outputs of a graph, exactly."""
    from attrib.graph import strongest

    graph = read(file, number)
    ends = graph.nodes.of_kind("logit", "target").tolist() if into is None else [into]
    for node in ends:
        for path in strongest(graph, node, top, which=_through(kind), contribution=contribution):  # type: ignore[arg-type]
            print(plain(path.text(graph.nodes)))


@app.command()
def tree(
    file: File,
    number: Number = None,
    top: Annotated[int, typer.Option(help="Paths in the tree", min=1)] = TOP,
    into: Annotated[int | None, typer.Option(help="Into the node of this number; usually into the most important output")] = None,
    logit: Annotated[str | None, typer.Option(help="Into the output of this name, its space left out or not")] = None,
    kind: PathKinds = None,
    contribution: PathContribution = "raw",
) -> None:
    """The strongest paths into one output as a tree, in which what they share stands once. Usually of the most probable logit."""
    from attrib.graph import strongest
    from attrib.view.branches import tree as tree_of

    graph = read(file, number)
    if into is not None and logit is not None:
        raise InputError("--logit: it has no effect beside --into; give one of them.")
    node = into if into is not None else _output(graph, logit)
    found = strongest(graph, node, top, which=_through(kind), contribution=contribution)  # type: ignore[arg-type]
    if not found:
        print(plain(f"{graph.nodes.label(node)}: no path of that kind leads to it"))
        return
    row = int(graph.row_of[node])
    print_table(tree_of(graph, found, f": {graph.value[row]:.4g}, by its {len(found)} strongest paths"))


def _output(graph: "Graph", name: str | None) -> int:
    """The logit or target of this name, else the most important one."""
    outputs = graph.nodes.of_kind("logit", "target")
    if not len(outputs):
        raise InputError("file: the graph has no outputs; say with --into of which node.")
    labels = graph.nodes.labels[-len(outputs) :]
    if name is None:
        return int(outputs[graph.importance[graph.row_of[outputs]].argmax()])
    named = [node for node, label in zip(outputs.tolist(), labels, strict=True) if name in (label, label.strip())]
    if len(named) != 1:
        fault = "is none of the outputs" if not named else "is the name of several outputs; say with --into which. They are"
        raise InputError(f"--logit: {name!r} {fault} {', '.join(map(repr, labels))}.")
    return named[0]


def _through(kinds: list[str] | None) -> "PathFilter":
    """Paths through nodes of these kinds alone, or all."""
    from attrib.graph import PathFilter, Where

    return PathFilter(through=Where(kind=tuple(kinds))) if kinds else PathFilter()


@app.command()
def diff(
    first: File,
    second: Annotated[Path, typer.Argument(help="The other file, which may be the same")],
    number: Number = None,
    other: Annotated[int | None, typer.Option("--other", help="As --prompt, of the second file")] = None,
    positions: Annotated[bool, typer.Option(help="Nodes are the same only at the same position")] = True,
    top: Annotated[int, typer.Option(help="Edges in the table", min=1)] = TOP,
) -> None:
    """Which edges two graphs share, and where they differ most."""
    from attrib.graph import compare

    found = compare(read(first, number), read(second, other), positions=positions)
    print(plain(found))
    apart = (found.weight[:, 0] - found.weight[:, 1]).abs()
    rows = []
    for at in apart.argsort(descending=True)[:top].tolist():
        ends = (plain(found.nodes.label(int(found.source[at]))), plain(found.nodes.label(int(found.target[at]))))
        weights = [
            f"{weight:+.4g}" if there else "-" for weight, there in zip(found.weight[at].tolist(), found.is_in[at].tolist(), strict=True)
        ]
        rows.append((*ends, *weights))
    print_table(table("edges that differ most", ("source", "target"), ("first", "second"), rows))


FORMATS = ("circuit-tracer", "neuronpedia", "graphml")


@app.command()
def export(
    file: File,
    out: Annotated[Path, typer.Argument(help="File to write: NAME.pt, SLUG.json or NAME.graphml")],
    to: Annotated[str, typer.Option(help=f"{', '.join(FORMATS)}")],
    number: Number = None,
    others: Annotated[str, typer.Option(help="Of circuit-tracer: nodes that it has no kind for, error or drop")] = "error",
    overwrite: Overwrite = False,
) -> None:
    """Write a graph for another program."""
    import attrib

    if to not in FORMATS:
        raise InputError(f"to: {to!r}; expected {', '.join(FORMATS)}.")
    graph = read(file, number)
    if to == "circuit-tracer":
        attrib.graph.to_circuit_tracer(graph, out, others=others, overwrite=overwrite)  # type: ignore[arg-type]
    elif to == "neuronpedia":
        attrib.graph.to_neuronpedia(graph, out, influence=attrib.graph.influence(graph), overwrite=overwrite)
    else:
        attrib.graph.write_graphml(graph, out, overwrite=overwrite)
    print(plain(f"{out}: {out.stat().st_size / 1e6:.1f} MB"))


def _check_apart(file: Path, out: Path) -> None:
    from attrib.store.listing import folder_of

    if out.exists() and file.exists() and out.samefile(file):
        raise InputError(f"out: {out} is the file that is read; expected another.")
    if file.is_dir() and out.parent.resolve() == folder_of(file).resolve():
        raise InputError(f"out: {out} would lie among the graphs that are read, and be taken for some; expected a place elsewhere.")
