"""Rich tables of a result: one line for each prompt, then its strongest edges, cross-token edges apart."""

from collections.abc import Iterator
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from attrib.edges import Edges, Nodes


def tables(edges: Edges, prompts: list[int], top: int, first_position: int = 0) -> Iterator[Table]:
    """The summary of all prompts, then the strongest edges of the chosen ones, between positions from `first_position` on.

    Prompts go by their numbers in the data set.
    """
    yield summary(edges)
    places = {number: place for place, number in enumerate(edges.prompts.numbers.tolist())}
    for number in prompts:
        one = edges.prompt(places[number])
        text = escape("".join(one.prompts.strings))
        order = one.attribution.abs().argsort(descending=True, stable=True)
        source, target = one.sources.position[one.indices[order]], one.targets.position[one.row[order]]
        shown = (source >= first_position) & (target >= first_position)
        where = f" from position {first_position} on" if first_position else ""
        yield strongest(one, order[shown][:top], f'prompt {number}: "{text}"\n{len(order):,} edges stored; the strongest{where}')
        if edges.kind in ("token_to_latent", "latent_to_latent"):
            apart = order[shown & (source != target)]
            yield strongest(one, apart[:top], "the strongest between different tokens")


def summary(edges: Edges) -> Table:
    """One row for each prompt: sizes, the fraction of pairs that are active, L1 norms."""
    table = Table(title=f"{edges.kind}: {edges.sources.site} → {edges.targets.site}{put_in(edges)}", title_justify="left")
    for name in (
        "prompt",
        "tokens",
        "sources",
        "targets",
        "active pairs",
        "of all pairs",
        "edges kept",
        "Σ|source|",
        "Σ|attribution|",
        "kept",
    ):
        table.add_column(name, justify="right")
    for place, number in enumerate(edges.prompts.numbers.tolist()):
        one = edges.prompt(place)
        sources, targets = len(one.sources), len(one.targets)
        l1 = float(one.l1.sum())
        table.add_row(
            str(number), str(len(one.prompts.ids)), str(sources), str(targets), f"{sources * targets:,}",
            f"{sources * targets / possible_pairs(one):.2%}", f"{len(one):,}",
            f"{float(one.sources.activation.abs().sum()):.1f}", f"{l1:.1f}",
            f"{float(one.attribution.abs().sum()) / l1:.1%}" if l1 else "-",
        )  # fmt: skip
    return table


def put_in(edges: Edges) -> str:
    """A line of the title: which dictionaries were put in on the way, and whether derivatives pass them."""
    cuts: Any = edges.call.get("cuts")
    if not cuts:
        return ""
    return escape(f"\n{edges.call['effect']} effects, with cuts at {', '.join(cut['site'] for cut in cuts)}")


def possible_pairs(one: Edges) -> int:
    """Sources times targets as if every latent of the dictionaries were active once: tokens and logits count as they are."""

    def count(nodes: Nodes, end: str) -> int:
        described: Any = one.call.get(end)
        return described["d_sae"] if nodes.kind == "latent" and isinstance(described, dict) else len(nodes)

    return max(1, count(one.sources, "source") * count(one.targets, "target"))


def strongest(one: Edges, order: torch.Tensor, title: str) -> Table:
    """Chosen edges of one prompt, in the order given."""
    table = Table(title=title, title_justify="left")
    for name, justify in (("source", "left"), ("target", "left"), ("activation", "right"), ("gradient", "right"), ("attribution", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for entry in order.tolist():
        i, j = int(one.indices[entry]), int(one.row[entry])
        table.add_row(
            node_name(one, one.sources, i), node_name(one, one.targets, j), f"{float(one.sources.activation[i]):.3g}",
            f"{float(one.gradient[entry]):.3g}", f"{float(one.attribution[entry]):+.4g}",
        )  # fmt: skip
    return table


def node_name(one: Edges, nodes: Nodes, row: int) -> str:
    """How a table names a node: its latent or label, and the token it stands at."""
    position = int(nodes.position[row])
    token = escape(f"{one.prompts.strings[position]!r} ({position})")
    match nodes.kind:
        case "token":
            return token
        case "latent":
            return f"{int(nodes.latent[row])} at {token}"
    label = escape(nodes.labels[row]) if nodes.labels else str(int(nodes.latent[row]))
    if nodes.probability is None or nodes.probability[row].isnan():
        return f"{label} = {float(nodes.activation[row]):.3g}"
    return f"{escape(repr(nodes.labels[row]))} (p = {float(nodes.probability[row]):.3f})"
