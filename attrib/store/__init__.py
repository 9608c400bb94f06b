"""Edges ↔ sparse HDF5: one shard file, one block per (kind, source site, target site); a folder of shards as one collection.

docs/format.md is the specification. A shard is written whole or not at all, and read in slices. The reader
trusts nothing.
"""

from attrib.store.collection import Collection, open_collection, open_store
from attrib.store.dataset import EdgeDataset
from attrib.store.layout import Block
from attrib.store.merged import merge
from attrib.store.select import select_latents
from attrib.store.shard import Store, open_shard
from attrib.store.write import save

__all__ = ["Block", "Collection", "EdgeDataset", "Store", "merge", "open_collection", "open_shard", "open_store", "save", "select_latents"]
