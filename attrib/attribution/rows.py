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
from attrib.engine.path import Path, Sources
from attrib.engine.sweep.cells import pieces_of
from attrib.engine.transforms import Tile
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model
from attrib.paths.path import metric_path


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
    targets = found.targets
    node_kind: NodeKind = "logit" if kind == "latent_to_logit" else "latent"
    site = "logits" if node_kind == "logit" and found.labels[:1] != ("direction",) else str(target_site)
    table = Nodes(
        node_kind, site, _ptr(len(targets.position)), targets.position.cpu(), targets.latent.cpu(), _wide(targets.value).cpu(),
        found.labels, None if found.probability is None else _wide(found.probability).cpu(),
    )  # fmt: skip
    return _edges(kind, _source_nodes(model, kind, source_site, found.sources), table, tiles, found.sources, ids, model, options, call)


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
        kind, _source_nodes(model, kind, source.site, found.sources), table, iter([tile]), found.sources, ids, model, options, call
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
    select = partial(compact, impl="triton") if options.impl == "triton" else _select
    value = _wide(sources.value)
    number, none = torch.zeros(0, dtype=torch.int64), source_table.activation.new_zeros(0)
    growing = [Growing() for _ in Compacted._fields]  # the first of how many each row keeps
    for tile in tiles:
        width = tile.gradient.shape[1]
        at_once = max(1, pieces_of(tile.gradient.device).select // max(1, width))
        for rows in tile.gradient.split(at_once):
            found = select(_wide(rows), value[:width], options.keep)
            for column, piece in zip(growing, found._replace(indptr=found.indptr.diff()), strict=True):
                column.add(piece.cpu())
        del tile, rows  # before the next is computed
    counts, indices = (column.whole(number) for column in growing[:2])
    gradient, attribution, total, l1 = (column.whole(none) for column in growing[2:])
    ends = counts.cumsum(0)
    indptr = torch.cat([ends.new_zeros(1), ends])
    # every gradient is a term of these, whatever is kept
    require_finite({f"the gradients of {target_table.site}": l1}, position=target_table.position)
    return Edges(
        kind, source_table, target_table, indptr, indices, gradient, attribution, total, l1, _prompts(model, ids), call
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


def _source_nodes(model: Model, kind: EdgeKind, start: Site, sources: Sources) -> Nodes:
    position, latent, value = (column.cpu() for column in sources[:3])
    value = _wide(value)
    if kind == "token_to_latent":
        return Nodes("token", "embed", _ptr(len(position)), position, latent, value, token_strings(model, latent))
    return Nodes("latent", str(start), _ptr(len(position)), position, latent, value)


def _ptr(count: int) -> Int[Tensor, " two"]:
    return torch.tensor([0, count])


def _prompts(model: Model, ids: Tensor) -> Prompts:
    return Prompts(_ptr(len(ids)), ids.cpu(), token_strings(model, ids))
