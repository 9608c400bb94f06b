"""Tiles of a Jacobian to edges: attribution is gradient × source activation, and what is kept is selected where a tile lies."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.attribution.options import Options
from attrib.core.edges import Edges, Growing, Nodes, Prompts
from attrib.core.finite import require_finite
from attrib.core.keep import kept
from attrib.core.sparse import to_csr
from attrib.core.types import EdgeKind, Keep, NodeKind, Site
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.blocks.kernels import Compacted, compact
from attrib.engine.path import Path, Sources, Targets
from attrib.engine.sweep.cells import pieces_of
from attrib.engine.transforms import Tile
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model
from attrib.paths.path import metric_path

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
) -> Edges:
    """One prompt's rows by the engine's tiles."""
    is_logit = kind == "latent_to_logit"
    table = target_nodes(is_logit, target_site, found.targets, found.labels, found.probability)
    return _edges(
        kind, source_nodes(model, SOURCE_KINDS[kind], source_site, found.sources), table, tiles, found.sources, ids, model, options, call
    )


def target_nodes(
    is_logit: bool, site: Site, targets: Targets, labels: tuple[str, ...], probability: Float[Tensor, " targets"] | None
) -> Nodes:
    """The table of one prompt's targets."""
    named = "logits" if is_logit and labels[:1] != ("direction",) else str(site)
    return Nodes(
        "logit" if is_logit else "latent", named, _ptr(len(targets.position)), targets.position.cpu(), targets.latent.cpu(),
        _wide(targets.value).cpu(), labels, None if probability is None else _wide(probability).cpu(),
    )  # fmt: skip


def metric_edges(
    kind: EdgeKind,
    model: Model,
    source: Dictionary,
    metric: Callable[..., Tensor],
    ids: Tensor,
    *,
    options: Options,
    error: bool,
    put_in: dict[str, Any],
    call: dict[str, Any],
) -> Edges:
    """One prompt's row of a metric, whose gradient is one backward pass."""
    found = metric_path(model, source, ids, metric, policy=options.policy, error=error, **put_in)
    name = getattr(metric, "__name__", "metric")
    last = torch.tensor([len(ids) - 1])
    table = Nodes("metric", "logits", _ptr(1), last, torch.tensor([-1]), _wide(found.value).reshape(1).cpu(), (name,))
    tile = Tile(0, found.gradient[None])
    return _edges(
        kind, source_nodes(model, "latent", source.site, found.sources), table, iter([tile]), found.sources, ids, model, options, call
    )


def _edges(
    kind: EdgeKind,
    source_table: Nodes,
    target_table: Nodes,
    tiles: Iterator[Tile],
    sources: Sources,
    ids: Tensor,
    model: Model,
    options: Options,
    call: dict[str, Any],
) -> Edges:
    """Select from each tile where it lies, and move only what is kept."""
    rows = EdgeRows(kind, source_table, target_table, sources, options)
    for tile in tiles:
        rows.add(tile.gradient)
        del tile  # before the next is computed
    return rows.edges(model, ids, call)


class EdgeRows:
    """One prompt's edges, as rows of its Jacobian come."""

    def __init__(self, kind: EdgeKind, source_table: Nodes, target_table: Nodes, sources: Sources, options: Options) -> None:
        self.kind, self.source_table, self.target_table, self.keep = kind, source_table, target_table, options.keep
        self.select = partial(compact, impl="triton") if options.impl == "triton" else _select
        self.value = _wide(sources.value)
        self.growing = [Growing() for _ in Compacted._fields]  # the first of how many each row keeps

    def add(self, gradient: Float[Tensor, "rows columns"]) -> None:
        """Select from the next rows where they lie, and move only what is kept; sources beyond their width have no gradient."""
        width = gradient.shape[1]
        at_once = max(1, pieces_of(gradient.device).select // max(1, width))
        for rows in gradient.split(at_once):
            found = self.select(_wide(rows), self.value[:width], self.keep)
            for column, piece in zip(self.growing, found._replace(indptr=found.indptr.diff()), strict=True):
                column.add(piece.cpu())

    def edges(self, model: Model, ids: Tensor, call: dict[str, Any]) -> Edges:
        """All rows that have come.

        Raises:
            NotFiniteError: where a gradient is NaN or infinite.
        """
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
    indptr, indices, place = to_csr(kept(keep, gradient, attribution))
    chosen, share = (part.flatten().index_select(0, place) for part in (gradient, attribution))
    return Compacted(indptr, indices, chosen, share, attribution.sum(-1), attribution.abs().sum(-1))


def _wide(column: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Halves as float32, which holds them exactly: results are float32 or float64, since numpy, scipy and HDF5 know no bfloat16."""
    return column.float() if column.dtype in (torch.bfloat16, torch.float16) else column


def source_nodes(model: Model, kind: NodeKind, site: Site, sources: Sources) -> Nodes:
    """The table of one prompt's sources.

    Args:
        site: where latents are read, or errors stand.
    """
    position, latent, value = (column.cpu() for column in sources[:3])
    value = _wide(value)
    if kind == "token":
        return Nodes(kind, "embed", _ptr(len(position)), position, latent, value, token_strings(model, latent))
    return Nodes(kind, str(site), _ptr(len(position)), position, latent, value, ("error",) * len(position) if kind == "error" else ())


def _ptr(count: int) -> Int[Tensor, " two"]:
    return torch.tensor([0, count])


def _prompts(model: Model, ids: Tensor) -> Prompts:
    return Prompts(_ptr(len(ids)), ids.cpu(), token_strings(model, ids))
