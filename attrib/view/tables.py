"""Tables of a result: one line for each prompt, then its strongest edges, cross-token edges apart."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.table import Table
from rich.text import Text
from torch import Tensor

from attrib.core.edges import Edges, Nodes
from attrib.core.types import BIAS, ERROR
from attrib.view.chosen import Chosen
from attrib.view.strip import strip
from attrib.view.terminal import columns, isolated, own, plain, table


def tables(edges: Edges, prompts: list[int], chosen: Chosen) -> Iterator[Table | Text | str]:
    """The summary of all prompts, then of some what their tokens are worth, and the strongest of the chosen edges.

    Prompts go by their numbers in the data set.
    """
    yield summary(edges)
    where = "at or before" if is_causal(edges) else "and"
    yield f"pairs: an active source {where} an active target; stored: of them; kept: of {own('Σ')}|attribution|\n"
    places = {number: place for place, number in enumerate(edges.prompts.numbers.tolist())}
    for number in prompts:
        one = edges.prompt(places[number])
        order = chosen.order(one)
        yield from of_tokens(one, order, chosen, number)
        text = plain("".join(one.prompts.strings))
        yield strongest(one, order[: chosen.top], f'prompt {number}: "{text}"\n{len(one):,} edges stored; the strongest{chosen.words}')
        if edges.targets.kind == "latent":
            apart = order[one.sources.position[one.indices[order]] != one.targets.position[one.row[order]]]
            yield strongest(one, apart[: chosen.top], "the strongest between different tokens")


def summary(edges: Edges) -> Table:
    """One row for each prompt: sizes, the pairs that there are and the share of them that is stored, L1 norms."""
    names = (
        "prompt", "tokens", "active\nsources", "active\ntargets", "pairs", "edges", "stored", own("Σ|source|"), own("Σ|attr.|"), "kept",
    )  # fmt: skip
    rows = []
    for place, number in enumerate(edges.prompts.numbers.tolist()):
        one = edges.prompt(place)
        l1, pairs = float(one.l1.sum()), possible_pairs(one)
        rows.append([
            str(number), str(len(one.prompts.ids)), str(len(one.sources)), str(len(one.targets)), f"{pairs:,}", f"{len(one):,}",
            f"{len(one) / pairs:.2%}" if pairs else "-", f"{float(one.sources.activation.abs().sum()):.1f}", f"{l1:.1f}",
            f"{float(one.attribution.abs().sum()) / l1:.1%}" if l1 else "-",
        ])  # fmt: skip
    title = f"{plain(edges.kind)}: {plain(edges.sources.site)} {own('→')} {plain(edges.targets.site)}{put_in(edges)}{of_rule(edges)}"
    return table(title, (), names, rows)


def of_tokens(one: Edges, order: Int[Tensor, " chosen"], chosen: Chosen, number: int) -> Iterator[Text | str]:
    """From which tokens of a prompt the chosen edges come, as its text with bars; nothing where no edge is chosen."""
    if not len(order):
        return
    sizes = by_token(one, order)
    most = int(sizes.argmax())
    largest = f"{float(sizes[most]):.4g} at {isolated(plain(repr(one.prompts.strings[most])))} ({most})"
    yield own(f"prompt {number}: Σ|attribution| of the stored edges from each token{chosen.words}\nthe largest: ") + largest
    yield strip(one.prompts.strings, sizes.tolist(), columns())


def by_token(one: Edges, order: Int[Tensor, " chosen"]) -> Float[Tensor, " tokens"]:
    """The sizes of the attributions of some edges of one prompt, summed by the token that their source stands at. Biases stand at none."""
    source = one.indices[order]
    if one.sources.kind == "latent":
        is_placed = one.sources.latent[source] != BIAS
        order, source = order[is_placed], source[is_placed]
    sums = torch.zeros(len(one.prompts.ids), dtype=torch.float64)
    return sums.index_add(0, one.sources.position[source], one.attribution[order].abs().double())


def put_in(edges: Edges) -> str:
    """A line of the title: which dictionaries were put in on the way, and whether derivatives pass them."""
    cuts: Any = edges.call.get("cuts")
    if not cuts:
        return ""
    return "\n" + plain(f"{edges.call['effect']} effects, with cuts at {', '.join(cut['site'] for cut in cuts)}")


def of_rule(edges: Edges) -> str:
    """A line of the title: by which rule, where it is not the usual one, and what it misses of all sources together."""
    if "rule" not in edges.call:
        return ""
    gap = "" if edges.gap is None or not len(edges.gap) else f"; gap up to {float(edges.gap.abs().max()):.3g}"
    return "\n" + plain(f"rule {edges.call['rule']}{gap}")


def is_causal(edges: Edges) -> bool:
    """Whether the model's attention looks back alone."""
    model: Any = edges.call.get("model")
    return not isinstance(model, dict) or bool(model.get("causal", True))


def possible_pairs(one: Edges) -> int:
    """Pairs of a prompt's active sources and targets: where attention looks back alone, a source cannot move an earlier target."""
    if not is_causal(one):
        return len(one.sources) * len(one.targets)
    before: Int[Tensor, " targets"] = torch.searchsorted(one.sources.position.sort().values, one.targets.position, right=True)
    return int(before.sum())


def strongest(one: Edges, order: torch.Tensor, title: str) -> Table:
    """Chosen edges of one prompt, in the order given."""
    rows = []
    for entry in order.tolist():
        i, j = int(one.indices[entry]), int(one.row[entry])
        rows.append([
            node_name(one, one.sources, i), node_name(one, one.targets, j), f"{float(one.sources.activation[i]):.3g}",
            *([] if one.sources.change is None else [f"{float(one.sources.change[i]):.3g}"]),
            f"{float(one.gradient[entry]):.3g}", f"{float(one.attribution[entry]):+.4g}",
        ])  # fmt: skip
    numbers = ("activation", *(() if one.sources.change is None else ("change",)), "gradient", "attribution")
    return table(title, ("source", "target"), numbers, rows)


def node_name(one: Edges, nodes: Nodes, row: int) -> str:
    """How a table names a node: its latent or label, and the token it stands at."""
    position = int(nodes.position[row])
    token = f"{isolated(plain(repr(one.prompts.strings[position])))} ({position})"
    match nodes.kind:
        case "token":
            return token
        case "latent":
            latent = int(nodes.latent[row])
            if latent == BIAS:
                return "bias"
            return f"{'error' if latent == ERROR else latent} at {token}"
        case "error":
            return f"error at {token}"
    label = nodes.labels[row] if nodes.labels else str(int(nodes.latent[row]))
    if nodes.probability is None or nodes.probability[row].isnan():
        return plain(f"{label} = {float(nodes.activation[row]):.3g}")
    return plain(f"{label!r} (p = {float(nodes.probability[row]):.3f})")
