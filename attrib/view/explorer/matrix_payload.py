"""What the page of edges is given: matrices of targets × sources, each the edges of one prompt by one call."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attrib.core.edges import Edges, Nodes
from attrib.core.types import InputError
from attrib.view.explorer.limits import EDGES
from attrib.view.explorer.payload import left_out, pack

FORMAT = "attrib matrices"


def packed_edges(edges: Sequence[Edges], max_edges: int = EDGES) -> bytes:
    """Matrices for a page.

    Args:
        edges: each of one prompt. They are named by what they lead from and to, and by their prompt.
        max_edges: of each, at most; those of the largest attributions stay, and the page says so.

    Raises:
        InputError: where there are none, some are of several prompts, or some have numbers that float32 cannot hold.
    """
    if not edges:
        raise InputError("edges: none; expected those of at least one prompt.")
    integers: dict[str, Tensor] = {}
    floats: dict[str, Tensor] = {}
    matrices = []
    for number, whole in enumerate(edges):
        if len(whole.prompts) != 1:
            raise InputError(f"edges: number {number} is of {len(whole.prompts)} prompts; expected one. Take it by `edges.prompt(k)`.")
        small = fitted(whole, max_edges)
        columns = {"attributions": small.attribution, "gradients": small.gradient}
        columns |= {"activations of sources": small.sources.activation, "activations of targets": small.targets.activation}
        for what, column in columns.items():
            if not column.float().isfinite().all():
                raise InputError(f"edges: {_name(whole)}: {what} that float32, which a page has, cannot hold; expected finite ones.")
        for name, nodes in (("target", small.targets), ("source", small.sources)):
            integers |= {f"{number} {name}_position": nodes.position, f"{number} {name}_latent": nodes.latent}
            floats[f"{number} {name}_activation"] = nodes.activation
        integers |= {f"{number} indptr": small.indptr, f"{number} indices": small.indices}
        floats |= {f"{number} attribution": small.attribution, f"{number} gradient": small.gradient}
        matrices.append({
            "name": _name(whole), "tokens": whole.prompts.strings, "targets": _side(small.targets), "sources": _side(small.sources),
            "facts": _facts(whole),
            "left_out": left_out("matrix", "those of the largest attributions", ("edges", len(whole), len(small))),
        })  # fmt: skip
    return pack(FORMAT, {"title": "".join(edges[0].prompts.strings), "matrices": matrices}, integers, floats)


def fitted(edges: Edges, most: int) -> Edges:
    """The edges, or of more than `most` those of the largest attributions."""
    if most < 0:
        raise InputError(f"max_edges: {most}; expected at least 0.")
    if len(edges) <= most:
        return edges
    kept = torch.zeros(len(edges), dtype=torch.bool)
    kept[edges.attribution.abs().sort(descending=True, stable=True).indices[:most]] = True
    counts = torch.bincount(edges.row[kept], minlength=len(edges.targets))
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return replace(edges, indptr=indptr, indices=edges.indices[kept], gradient=edges.gradient[kept], attribution=edges.attribution[kept])


def _name(edges: Edges) -> str:
    """What a list has room for first: by what one matrix of a page differs from the others."""
    rule = edges.call.get("rule")
    by = "" if rule is None else f", {rule}"
    return f"prompt {int(edges.prompts.numbers[0])}{by}: {edges.sources.site} → {edges.targets.site}"


def _side(nodes: Nodes) -> dict[str, Any]:
    return {"kind": nodes.kind, "site": nodes.site, "labels": nodes.labels}


def _facts(edges: Edges) -> list[tuple[str, str]]:
    l1 = float(edges.l1.sum())
    kept = f"{float(edges.attribution.abs().sum()) / l1:.1%}" if l1 else "-"
    facts = [("kind", edges.kind), ("targets", f"{len(edges.targets):,}"), ("sources", f"{len(edges.sources):,}")]
    return [*facts, ("edges", f"{len(edges):,}"), ("kept of Σ|attribution|", kept)]
