"""Tiles of a Jacobian to edges: attribution is gradient × source activation, or what a rule says.

What is kept is selected where a tile lies.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.attribution.needs import Needs
from attrib.attribution.options import Options
from attrib.attribution.ruled import change_by, gradient_of_metric, together_of
from attrib.core.devices import Copies, to_host
from attrib.core.edges import Edges, Growing, Nodes, Prompts
from attrib.core.finite import require_finite
from attrib.core.keep import kept
from attrib.core.sparse import to_csr
from attrib.core.types import BIAS, EdgeKind, Keep, NodeKind, Site, TopK
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.blocks.kernels import Compacted, compact
from attrib.engine.outgoing import Outgoing
from attrib.engine.path import Path, Sources, Targets
from attrib.engine.sweep.cells import pieces_of
from attrib.engine.transforms import Tile
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model
from attrib.paths.path import metric_path

NOTHING_HERE = Copies()
"""No tensor has a copy on the host."""

SOURCE_KINDS: dict[EdgeKind, NodeKind] = {
    "token_to_latent": "token", "latent_to_latent": "latent", "latent_to_logit": "latent", "latent_to_metric": "latent",
    "token_to_logit": "token", "error_to_latent": "error", "error_to_logit": "error",
}  # fmt: skip


def path_edges(
    kind: EdgeKind,
    model: Model,
    source_site: Site,
    target_site: Site,
    found: Path,
    tiles: Iterator[Tile],
    ids: Tensor,
    options: Options,
    call: dict[str, Any],
    other: Tensor | None = None,
    is_with_bias: bool = False,
    outgoing: Outgoing | None = None,
) -> Edges:
    """One prompt's rows by the engine's tiles, or those of a rule."""
    is_logit = kind == "latent_to_logit"
    table = target_nodes(is_logit, target_site, found.targets, found.labels, found.probability, found.copies)
    change = change_by(options.rule, found.sources, found.other)
    nodes = source_nodes(model, SOURCE_KINDS[kind], source_site, found.sources, change, found.copies)
    rows = EdgeRows(kind, nodes, table, found.sources, options, change, found.targets.value if is_with_bias else None, outgoing)
    together = together_of(options.rule, found)
    return _edges(rows, tiles, ids, model, call, other, together)


def target_nodes(
    is_logit: bool,
    site: Site,
    targets: Targets,
    labels: tuple[str, ...],
    probability: Float[Tensor, " targets"] | None,
    copies: Copies = NOTHING_HERE,
) -> Nodes:
    """The table of one prompt's targets.

    Args:
        copies: what of them is on the host.
    """
    named = "logits" if is_logit and labels[:1] != ("direction",) else str(site)
    position, latent, value = copies.of(targets[:3])
    value = _wide(value)
    probability = None if probability is None else _wide(probability).cpu()
    return Nodes("logit" if is_logit else "latent", named, _ptr(len(position)), position, latent, value, labels, probability)


def metric_edges(
    kind: EdgeKind,
    model: Model,
    source: Dictionary,
    metric: Callable[..., Tensor],
    ids: Tensor,
    *,
    options: Options,
    needs: Needs,
    number: int,
    put_in: dict[str, Any],
    call: dict[str, Any],
) -> Edges:
    """One prompt's row of a metric, whose gradient is one backward pass; or that of a rule."""
    asked = needs.asked(number)
    found = metric_path(model, source, ids, metric, policy=options.policy, error=needs.error, **put_in, asked=asked)
    name = getattr(metric, "__name__", "metric")
    last = torch.tensor([len(ids) - 1])
    table = Nodes("metric", "logits", _ptr(1), last, torch.tensor([-1]), _wide(found.value).reshape(1).cpu(), (name,))
    change = change_by(options.rule, found.sources, found.other)
    nodes = source_nodes(model, "latent", source.site, found.sources, change)
    tile = Tile(0, gradient_of_metric(found, needs, len(ids), number)[None])
    rows = EdgeRows(kind, nodes, table, found.sources, options, change)
    return _edges(rows, iter([tile]), ids, model, call, asked.other, together_of(options.rule, found))


def _edges(
    rows: "EdgeRows",
    tiles: Iterator[Tile],
    ids: Tensor,
    model: Model,
    call: dict[str, Any],
    other: Tensor | None,
    together: Float[Tensor, " targets"] | None,
) -> Edges:
    """Select from each tile where it lies, and move only what is kept.

    Args:
        other: the ids of the prompt that the rule compares with.
        together: what all sources do together.
    """
    for tile in tiles:
        rows.add(tile.gradient)
        del tile  # before the next is computed
    found = rows.edges(model, ids, call)
    prompts = found.prompts if other is None else replace(found.prompts, corrupt=other.cpu())
    return replace(found, prompts=prompts, gap=None if together is None else _wide(together).cpu() - found.total)


class EdgeRows:
    """One prompt's edges, as rows of its Jacobian come."""

    def __init__(
        self,
        kind: EdgeKind,
        source_table: Nodes,
        target_table: Nodes,
        sources: Sources,
        options: Options,
        change: Float[Tensor, " sources"] | None = None,
        of_bias: Float[Tensor, " targets"] | None = None,
        outgoing: Outgoing | None = None,
    ) -> None:
        """Begin without rows.

        Args:
            change: what gradients are multiplied by; None is the sources' values.
            of_bias: the targets' values, where a first source is to hold what the others leave of each.
            outgoing: on what way edges come to the host; by default each piece is waited for.
        """
        self.kind, self.source_table, self.target_table, self.keep = kind, source_table, target_table, options.keep
        self.budget = options.budget
        self.select = partial(compact, impl="triton") if options.impl == "triton" else _select
        self.value = _wide(sources.value if change is None else change)
        self.of_bias, self.rows = of_bias, 0
        if of_bias is not None:
            self.source_table = _with_bias(source_table)
        self.growing = [Growing() for _ in Compacted._fields]  # the first of how many each row keeps
        self.outgoing = outgoing or Outgoing()

    def add(self, gradient: Float[Tensor, "rows columns"]) -> None:
        """Select from the next rows where they lie, and send only what is kept; sources beyond their width have no gradient."""
        width = gradient.shape[1]
        at_once = max(1, pieces_of(gradient.device).within(self.budget).select // max(1, width))
        for rows in gradient.split(at_once):
            wide, value = _wide(rows), self.value[:width].to(gradient.device)
            if self.of_bias is not None:
                left = _wide(self.of_bias[self.rows : self.rows + len(wide)]).to(wide.device) - wide @ value
                wide, value = torch.cat([left[:, None], wide], dim=1), torch.cat([value.new_ones(1), value])
            self.rows += len(wide)
            found = self.select(wide, value, self.keep)
            self.outgoing.send(found._replace(indptr=found.indptr.diff()), self._take)

    def _take(self, found: list[Tensor]) -> None:
        """Put what is kept of some rows behind those before."""
        counts, *of_edges, total, l1 = found
        count = int(counts.sum())  # what lies behind that means nothing; see `to_csr`
        for column, piece in zip(self.growing, (counts, *(each[:count] for each in of_edges), total, l1), strict=True):
            column.add(piece)

    def edges(self, model: Model, ids: Tensor, call: dict[str, Any]) -> Edges:
        """All rows that have come.

        Raises:
            NotFiniteError: where a gradient is NaN or infinite.
        """
        self.outgoing.finish()
        number, none = torch.zeros(0, dtype=torch.int64), self.source_table.activation.new_zeros(0)
        counts, indices = (column.whole(number) for column in self.growing[:2])
        gradient, attribution, total, l1 = (column.whole(none) for column in self.growing[2:])
        ends = counts.cumsum(0)
        indptr = torch.cat([ends.new_zeros(1), ends])
        # every gradient is a term of these, whatever is kept
        require_finite({f"the gradients of {self.target_table.site}": l1}, position=self.target_table.position)
        return Edges(
            self.kind, self.source_table, self.target_table, indptr, indices, gradient, attribution, total, l1, _prompts(model, ids), call
        )  # fmt: skip


def _select(gradient: Float[Tensor, "rows columns"], activation: Float[Tensor, " columns"], keep: Keep) -> Compacted:
    """What is kept of a tile."""
    attribution = gradient * activation
    indptr, indices, place = to_csr(kept(keep, gradient, attribution), keep.k if isinstance(keep, TopK) else None)
    chosen, share = (part.flatten().index_select(0, place) for part in (gradient, attribution))
    return Compacted(indptr, indices, chosen, share, attribution.sum(-1), attribution.abs().sum(-1))


def _wide(column: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Halves as float32, which holds them exactly: results are float32 or float64, since numpy, scipy and HDF5 know no bfloat16."""
    return column.float() if column.dtype in (torch.bfloat16, torch.float16) else column


def source_nodes(
    model: Model,
    kind: NodeKind,
    site: Site,
    sources: Sources,
    change: Float[Tensor, " sources"] | None = None,
    copies: Copies = NOTHING_HERE,
) -> Nodes:
    """The table of one prompt's sources.

    Args:
        site: where latents are read, or errors stand.
        change: what gradients are multiplied by, where that is not the sources' values.
        copies: what of the sources is on the host.
    """
    position, latent, value = copies.of(sources[:3])
    value, step = _wide(value), None if change is None else _wide(change).cpu()
    if kind == "token":
        return Nodes(kind, "embed", _ptr(len(position)), position, latent, value, token_strings(model, latent), change=step)
    labels = ("error",) * len(position) if kind == "error" else ()
    return Nodes(kind, str(site), _ptr(len(position)), position, latent, value, labels, change=step)


def _with_bias(nodes: Nodes) -> Nodes:
    """One prompt's sources behind a first one, at its first position: all that no source brings."""
    position, latent, activation = (
        torch.cat([column.new_full((1,), first), column])
        for column, first in ((nodes.position, 0), (nodes.latent, BIAS), (nodes.activation, 1))
    )
    return replace(nodes, ptr=_ptr(len(position)), position=position, latent=latent, activation=activation)


def _ptr(count: int) -> Int[Tensor, " two"]:
    return torch.tensor([0, count])


def _prompts(model: Model, ids: Tensor) -> Prompts:
    (here,) = to_host([ids])
    return Prompts(_ptr(len(ids)), here, token_strings(model, here))
