"""Edges to one shard file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int
from torch import Tensor

from attrib.core.edges import Edges, Nodes
from attrib.core.types import InputError
from attrib.store.columns import filters_of, json_text, name_as_csr, packages, text, write_columns, write_strings
from attrib.store.layout import FORMAT, VERSION, Block
from attrib.store.reading import FEW
from attrib.store.wellformed import fault
from attrib.store.writing import check_output, created


def save(path: str | os.PathLike[str], edges: Edges | Sequence[Edges], *, compression: str | None = None, overwrite: bool = False) -> Path:
    """Write one shard: a block for each Edges, all of the same prompts. Returns its path.

    `compression` is None, "gzip", "lzf", or with hdf5plugin "blosc-lz4" or "zstd". The shard appears
    under its name only when it is complete and on the disk; a write that fails leaves nothing behind.

    Raises:
        InputError: the path exists and `overwrite` is false, or its folder does not exist; two Edges are
            one block, or have different prompts, or are malformed; the compression is not to be had, or leaves less than a byte of
            each row.
    """
    path, filters = Path(path), filters_of(compression)
    check_output("path", path, None, overwrite=overwrite)
    blocks = _check_blocks([edges] if isinstance(edges, Edges) else edges)
    with created(path) as file:
        _write(file, blocks, filters)
        if filters:
            _check_size(file, blocks, compression)
    return path


def _check_size(file: h5py.File, blocks: dict[Block, Edges], compression: str | None) -> None:
    """What no reader would take is not written: see `FEW`."""
    file.flush()
    rows = max(
        len(column) for edges in blocks.values() for column in (edges.prompts.ptr, edges.indptr, edges.indices, edges.sources.latent)
    )
    if rows > max(size := file.id.get_filesize(), FEW):
        raise InputError(
            f"compression: {compression!r} makes {size:,} bytes of columns of {rows:,} rows, and no reader believes a file that is so "
            "much smaller than what it stands for; expected results that are not all alike. Save them without compression."
        )


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
    file.attrs.update({"format": text(FORMAT), "format_version": VERSION, "call": json_text(shared), "packages": json_text(packages())})
    prompts = next(iter(blocks.values())).prompts
    group = file.create_group("prompts")
    write_columns(group, {"ptr": _array(prompts.ptr, np.int64), "ids": _integers(prompts.ids)}, filters)
    if prompts.number is not None:
        write_columns(group, {"number": _integers(prompts.number)}, filters)
    write_strings(group.create_group("strings"), prompts.strings)
    listing = file.create_group("blocks", track_order=True)  # blocks are listed in the order they were given in
    for block, edges in blocks.items():
        group = listing.create_group(block.group)
        group.attrs.update({name: text(part) for name, part in block._asdict().items()} | {"call": json_text(edges.call)})
        _write_edges(group, edges, filters)


def _write_edges(group: h5py.Group, edges: Edges, filters: dict[str, Any]) -> None:
    write_columns(group, {name: _array(getattr(edges, name)) for name in ("total", "l1", "remainder")}, filters)
    _write_nodes(group.create_group("sources"), edges.sources, filters)
    _write_nodes(group.create_group("targets"), edges.targets, filters)
    gradient, attribution = group.create_group("gradient"), group.create_group("attribution")
    write_columns(gradient, {"indptr": _array(edges.indptr, np.int64), "indices": _integers(edges.indices)}, filters)
    attribution["indptr"], attribution["indices"] = gradient["indptr"], gradient["indices"]
    for csr, values in ((gradient, edges.gradient), (attribution, edges.attribution)):
        write_columns(csr, {"data": _array(values)}, filters)
        name_as_csr(csr, edges.shape)


def _write_nodes(group: h5py.Group, nodes: Nodes, filters: dict[str, Any]) -> None:
    group.attrs["kind"] = text(nodes.kind)
    whole_numbers = {"ptr": _array(nodes.ptr, np.int64), "position": _integers(nodes.position), "latent": _integers(nodes.latent)}
    write_columns(group, whole_numbers | {"activation": _array(nodes.activation)}, filters)
    if nodes.probability is not None:
        write_columns(group, {"probability": _array(nodes.probability)}, filters)
    if nodes.labels:
        write_strings(group.create_group("labels"), nodes.labels)


def _array(column: Tensor, dtype: type[np.generic] | None = None) -> np.ndarray:
    """A tensor as numpy has it."""
    return np.asarray(column.detach().cpu().numpy(), dtype)


def _integers(column: Int[Tensor, " n"]) -> np.ndarray:
    """Give the numbers as int32 where every value fits, else as int64."""
    values, limits = _array(column, np.int64), np.iinfo(np.int32)
    fits = limits.min <= values.min(initial=0) and values.max(initial=0) <= limits.max
    return values.astype(np.int32) if fits else values
