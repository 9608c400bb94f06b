"""Edges to one shard file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from attrib.core.edges import Edges, Nodes
from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.store.columns import array, filters_of, integers, json_text, name_as_csr, packages, text, write_columns, write_strings
from attrib.store.graphs import save_graphs
from attrib.store.layout import FORMAT, RULED, VERSION, Block
from attrib.store.wellformed import fault
from attrib.store.writing import check_output, check_size, created


def save(
    path: str | os.PathLike[str],
    edges: Edges | Sequence[Edges] | Graph | Sequence[Graph],
    *,
    compression: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one shard: a block for each Edges, all of the same prompts. Returns its path.

    Graphs are written to a file of graphs, one of each prompt, which `attrib.open_graphs` reads.

    `compression` is None, "gzip", "lzf", or with hdf5plugin "blosc-lz4" or "zstd". The shard appears
    under its name only when it is complete and on the disk; a write that fails leaves nothing behind.

    Raises:
        InputError: the path exists and `overwrite` is false, or its folder does not exist; two Edges are
            one block, or have different prompts, or are malformed; edges and graphs come together; the compression is not to
            be had, or leaves less than a byte of each row.
    """
    parts = [edges] if isinstance(edges, Edges | Graph) else list(edges)
    if len({isinstance(part, Graph) for part in parts}) > 1:
        raise InputError("edges: both Edges and Graphs; expected one of them. Save them to two files.")
    if any(isinstance(part, Graph) for part in parts):
        return save_graphs(path, parts, compression=compression, overwrite=overwrite)  # type: ignore[arg-type]
    path, filters = Path(path), filters_of(compression)
    check_output("path", path, None, overwrite=overwrite)
    blocks = _check_blocks(parts)  # type: ignore[arg-type]
    with created(path) as file:
        _write(file, blocks, filters)
        if filters:
            check_size(file, max(_rows(edges) for edges in blocks.values()), compression)
    return path


def _rows(edges: Edges) -> int:
    """The rows of the longest column."""
    return max(len(column) for column in (edges.prompts.ptr, edges.indptr, edges.indices, edges.sources.latent))


def _check_blocks(edges: Sequence[Edges]) -> dict[Block, Edges]:
    if not edges:
        raise InputError("edges: got an empty sequence; expected at least one Edges.")
    blocks: dict[Block, Edges] = {}
    for part in edges:
        block, first = _block_of(part), edges[0].prompts
        if block in blocks:
            raise InputError(f"edges: two of them are the block '{block}'; expected one. Join them first with attrib.core.edges.join.")
        if wrong := fault(part):
            raise InputError(f"edges: in '{block}', {wrong}; expected a result as attrib's functions return it.")
        if not part.prompts.equals(first):
            raise InputError(f"edges: '{block}' has other prompts than '{_block_of(edges[0])}'; expected the same. Save them to two files.")
        blocks[block] = part
    return blocks


def _block_of(edges: Edges) -> Block:
    """The block that a result is written as."""
    return Block(edges.kind, edges.sources.site, edges.targets.site)


def _write(file: h5py.File, blocks: dict[Block, Edges], filters: dict[str, Any]) -> None:
    calls, absent = [edges.call for edges in blocks.values()], object()
    shared = {key: value for key, value in calls[0].items() if all(call.get(key, absent) == value for call in calls)}
    version = RULED if any(map(_is_ruled, blocks.values())) else VERSION
    file.attrs.update({"format": text(FORMAT), "format_version": version, "call": json_text(shared), "packages": json_text(packages())})
    prompts = next(iter(blocks.values())).prompts
    group = file.create_group("prompts")
    write_columns(group, {"ptr": array(prompts.ptr, np.int64), "ids": integers(prompts.ids)}, filters)
    if prompts.number is not None:
        write_columns(group, {"number": integers(prompts.number)}, filters)
    if prompts.corrupt is not None:
        write_columns(group, {"corrupt": integers(prompts.corrupt)}, filters)
    write_strings(group.create_group("strings"), prompts.strings)
    listing = file.create_group("blocks", track_order=True)  # blocks are listed in the order they were given in
    for block, edges in blocks.items():
        group = listing.create_group(block.group)
        group.attrs.update({name: text(part) for name, part in block._asdict().items()} | {"call": json_text(edges.call)})
        _write_edges(group, edges, filters)


def _is_ruled(edges: Edges) -> bool:
    """Whether a reader of version 1 would misread a result."""
    sources = edges.sources
    return "rule" in edges.call or (sources.kind == "latent" and bool((sources.latent < 0).any()))


def _write_edges(group: h5py.Group, edges: Edges, filters: dict[str, Any]) -> None:
    write_columns(group, {name: array(getattr(edges, name)) for name in ("total", "l1", "remainder")}, filters)
    if edges.gap is not None:
        write_columns(group, {"gap": array(edges.gap)}, filters)
    _write_nodes(group.create_group("sources"), edges.sources, filters)
    _write_nodes(group.create_group("targets"), edges.targets, filters)
    gradient, attribution = group.create_group("gradient"), group.create_group("attribution")
    write_columns(gradient, {"indptr": array(edges.indptr, np.int64), "indices": integers(edges.indices)}, filters)
    attribution["indptr"], attribution["indices"] = gradient["indptr"], gradient["indices"]
    for csr, values in ((gradient, edges.gradient), (attribution, edges.attribution)):
        write_columns(csr, {"data": array(values)}, filters)
        name_as_csr(csr, edges.shape)


def _write_nodes(group: h5py.Group, nodes: Nodes, filters: dict[str, Any]) -> None:
    group.attrs["kind"] = text(nodes.kind)
    whole_numbers = {"ptr": array(nodes.ptr, np.int64), "position": integers(nodes.position), "latent": integers(nodes.latent)}
    write_columns(group, whole_numbers | {"activation": array(nodes.activation)}, filters)
    if nodes.probability is not None:
        write_columns(group, {"probability": array(nodes.probability)}, filters)
    if nodes.change is not None:
        write_columns(group, {"change": array(nodes.change)}, filters)
    if nodes.labels:
        write_strings(group.create_group("labels"), nodes.labels)
