"""Edges ↔ sparse HDF5: one shard file, one block per (kind, source site, target site).

docs/format.md is the specification. A shard is written whole or not at all, and read in slices. The reader
trusts nothing.
"""

from attrib.store.layout import Block
from attrib.store.shard import Store, open_store
from attrib.store.write import save

__all__ = ["Block", "Store", "open_store", "save"]
