"""What other programs read: Parquet, AnnData's .h5ad, and AnnData in Zarr. Each is a folder with one file or store for each block.

docs/reading.md says what they hold. Edges are streamed from the shards, and a folder appears only when it is complete.
"""

from attrib.export.annotated import to_anndata, to_zarr
from attrib.export.parquet import to_parquet

__all__ = ["to_anndata", "to_parquet", "to_zarr"]
