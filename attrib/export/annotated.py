"""Edges as AnnData, in HDF5 or Zarr: a block is a matrix [targets, sources] with a table for either side."""

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from attrib.core.edges import Edges, Nodes, Prompts
from attrib.core.types import Site
from attrib.export.folder import whole_folder
from attrib.export.stored import Stored, collected, file_name, fitting, import_needed, manifest, pieces, plain
from attrib.store import Block
from attrib.store.select import Selection

CHUNK = {"anndata": 1 << 15, "zarr": 1 << 18}
"""Values of a chunk. In HDF5 the last one is as long on the disk as the others; in Zarr each is a file, and compressed."""


def to_anndata(
    stored: Stored,
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    source: str | Site | None = None,
    target: str | Site | None = None,
    prompts: Selection = None,
    overwrite: bool = False,
) -> Path:
    """Write blocks with this kind and these sites (None: any) to a folder of .h5ad files, and return it.

    `X` is the attribution [targets, sources] as CSR and the layer `gradient` the gradient; `obs` are the targets, with
    `total` and `l1`, and `var` the sources. Memory: edges are streamed, but AnnData's tables are written at one
    time, so all nodes of a block are held, about 60 bytes for each.

    Raises:
        InputError: anndata is missing, no block fits, a prompt is not there, or the path cannot be used.
        FormatError: what is read is damaged.
    """
    return _write(stored, path, "anndata", (kind, source, target), prompts, overwrite)


def to_zarr(
    stored: Stored,
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    source: str | Site | None = None,
    target: str | Site | None = None,
    prompts: Selection = None,
    overwrite: bool = False,
) -> Path:
    """Write what `to_anndata` does as Zarr stores of version 3, which `anndata.read_zarr` and zarr open. Memory and errors as there."""
    import_needed("zarr")
    return _write(stored, path, "zarr", (kind, source, target), prompts, overwrite)


def _write(
    stored: Stored,
    path: str | os.PathLike[str],
    to: str,
    asked: tuple[str | None, str | Site | None, str | Site | None],
    prompts: Selection,
    overwrite: bool,
) -> Path:
    anndata = import_needed("anndata")
    opened, ending = {"anndata": (_new_h5ad, "h5ad"), "zarr": (_new_zarr, "zarr")}[to]
    with collected(stored) as collection:
        blocks = fitting(collection, *asked)
        with whole_folder(path, manifest(collection, blocks, to), overwrite) as folder:
            for block in blocks:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "zarr v3 autosharding")  # a later default, which makes no difference here
                    with opened(anndata, folder / f"{file_name(block)}.{ending}") as root:
                        _fill(anndata, root, block, pieces(collection, block, prompts), CHUNK[to])
    return Path(path)


@contextmanager
def _new_h5ad(anndata: Any, path: Path) -> Iterator[Any]:
    """The root group of a new .h5ad file."""
    anndata.AnnData(scipy.sparse.csr_matrix((0, 0), dtype=np.float32)).write_h5ad(path)
    file = anndata.read_h5ad(path, backed="r+").file
    try:
        yield file["X"].parent  # the HDF5 file itself is anndata's to open
    finally:
        file.close()


@contextmanager
def _new_zarr(anndata: Any, path: Path) -> Iterator[Any]:
    """The root group of a new Zarr store."""
    zarr = import_needed("zarr")
    root = zarr.open_group(path, mode="w", zarr_format=3)
    anndata.io.write_elem(root, "/", anndata.AnnData(scipy.sparse.csr_matrix((0, 0), dtype=np.float32)))
    yield root


def _fill(anndata: Any, root: Any, block: Block, parts: Iterable[Edges], chunk: int) -> None:
    """The matrices piece by piece, then the tables of their nodes."""
    obs, var = _Table(), _Table()
    for number, edges in enumerate(parts):
        columns = len(var)
        gap = {} if edges.gap is None else {"gap": edges.gap.numpy()}
        obs.add(edges.targets, edges.prompts, {"total": edges.total.numpy(), "l1": edges.l1.numpy(), **gap})
        var.add(edges.sources, edges.prompts, {} if edges.sources.change is None else {"change": edges.sources.change.numpy()})
        for name, value in (("X", "attribution"), ("layers/gradient", "gradient")):
            part = edges.to_scipy(value)  # type: ignore[arg-type]
            shape = (part.shape[0], columns + part.shape[1])
            matrix = scipy.sparse.csr_array((part.data, part.indices.astype(np.int64) + columns, part.indptr), shape=shape)
            if number == 0:
                _begin(anndata, root, name, matrix.dtype, chunk)
            _append(anndata, root[name], matrix)
    anndata.io.write_elem(root, "obs", obs.frame())
    anndata.io.write_elem(root, "var", var.frame())
    anndata.io.write_elem(root, "uns", {"attrib": {**block._asdict(), "call": json.dumps(edges.call)}})


def _begin(anndata: Any, root: Any, name: str, dtype: Any, chunk: int) -> None:
    """A matrix without rows, of the types and chunks that it will have."""
    empty = scipy.sparse.csr_array((0, 0), dtype=dtype)
    empty.indices = empty.indices.astype(np.int64)
    folder, _, key = name.rpartition("/")
    there = root[folder] if folder else root  # anndata 0.13 takes no path for a key; it has made the group of layers
    anndata.io.write_elem(there, key, empty, dataset_kwargs={"chunks": (chunk,), "indptr_dtype": np.dtype(np.int64)})


def _append(anndata: Any, group: Any, matrix: scipy.sparse.csr_array) -> None:
    """Rows below those that are there. Columns have become more, which anndata would refuse, so they are written first."""
    group.attrs["shape"] = (int(group.attrs["shape"][0]), matrix.shape[1])
    anndata.io.sparse_dataset(group).append(matrix)


class _Table:
    """A table of nodes that grows, with each different string held once."""

    def __init__(self) -> None:
        self.columns: dict[str, list[np.ndarray]] = {}
        self.codes: dict[str, dict[str, int]] = {"token": {}, "label": {}}
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def add(self, nodes: Nodes, prompts: Prompts, values: dict[str, np.ndarray]) -> None:
        """Nodes of further prompts, with columns of their own."""
        prompt = nodes.prompt
        token = (prompts.ptr[prompt] + nodes.position).tolist()
        columns = {
            "prompt": prompts.numbers[prompt].numpy(),
            "position": nodes.position.numpy(),
            "token": self._coded("token", [prompts.strings[i] for i in token]),
            "latent": nodes.latent.numpy(),
            "activation": nodes.activation.numpy(),
            **values,
        }
        if nodes.labels:
            columns["label"] = self._coded("label", nodes.labels)
        if nodes.probability is not None:
            columns["probability"] = nodes.probability.numpy()
        for name, column in columns.items():
            self.columns.setdefault(name, []).append(column)
        self.length += len(nodes)

    def _coded(self, name: str, strings: Iterable[str]) -> np.ndarray:
        codes = self.codes[name]
        return np.array([codes.setdefault(plain(string), len(codes)) for string in strings], np.int32)

    def frame(self) -> pd.DataFrame:
        """The table as AnnData takes it: strings as categories, rows named by their number."""
        columns: dict[str, Any] = {name: np.concatenate(parts) for name, parts in self.columns.items()}
        for name in columns.keys() & self.codes.keys():
            columns[name] = pd.Categorical.from_codes(columns[name], categories=[*self.codes[name]])
        return pd.DataFrame(columns, index=pd.RangeIndex(self.length).astype(str))
