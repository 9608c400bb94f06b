"""Chosen edges as records for programs: CSV with one header, or a JSON object a line. Both have the same fields for every kind."""

import csv
import json
import math
from collections.abc import Iterator
from typing import Any

from attrib.core.edges import Edges, Nodes
from attrib.view.chosen import Chosen
from attrib.view.terminal import plain

FIELDS = (
    "kind", "source_site", "target_site", "prompt",
    "source_position", "source_token", "source_latent", "source_label", "source_activation",
    "target_position", "target_token", "target_latent", "target_label", "target_activation", "target_probability",
    "gradient", "attribution", "rule", "source_change", "target_gap",
)  # fmt: skip
"""The columns of `Edges.to_pandas`, and the block. `latent` of a token or logit is its vocabulary id."""


def records(edges: Edges, chosen: Chosen) -> Iterator[dict[str, Any]]:
    """The chosen edges of each prompt, strongest first; what an end has not is None."""
    for place, number in enumerate(edges.prompts.numbers.tolist()):
        one = edges.prompt(place)
        ends = (("source", one.sources, one.indices), ("target", one.targets, one.row))
        for entry in chosen.order(one)[: chosen.top].tolist():
            found = {"kind": one.kind, "source_site": one.sources.site, "target_site": one.targets.site, "prompt": number}
            for end, nodes, at in ends:
                found |= {f"{end}_{name}": value for name, value in _end(nodes, int(at[entry]), one.prompts.strings).items()}
            found |= {"gradient": _number(one.gradient[entry]), "attribution": _number(one.attribution[entry])}
            found |= {"rule": one.call["rule"]} if "rule" in one.call else {}
            if one.sources.change is not None:
                found["source_change"] = _number(one.sources.change[one.indices[entry]])
            if one.gap is not None:
                found["target_gap"] = _number(one.gap[one.row[entry]])
            yield found


def _end(nodes: Nodes, row: int, strings: tuple[str, ...]) -> dict[str, Any]:
    position = int(nodes.position[row])
    return {
        "position": position, "token": strings[position], "latent": int(nodes.latent[row]),
        "label": nodes.labels[row] if nodes.labels else None, "activation": _number(nodes.activation[row]),
        "probability": None if nodes.probability is None else _number(nodes.probability[row]),
    }  # fmt: skip


def _number(value: Any) -> float | None:
    """JSON has no NaN."""
    return found if math.isfinite(found := float(value)) else None


def write_json(edges: Edges, chosen: Chosen, out: Any, *, header: bool) -> None:
    """A line for each record into an open text file. ASCII alone, so that no terminal obeys it."""
    for record in records(edges, chosen):
        print(json.dumps({name: record.get(name) for name in FIELDS}), file=out)


def write_csv(edges: Edges, chosen: Chosen, out: Any, *, header: bool) -> None:
    """A line for each record into an open text file. Text is as it is, except on a terminal, which would obey what is in it."""
    writer = csv.writer(out, lineterminator="\n")
    if header:
        writer.writerow(FIELDS)
    for record in records(edges, chosen):
        row = [record.get(name) for name in FIELDS]
        writer.writerow([plain(cell) if isinstance(cell, str) and out.isatty() else cell for cell in row])
