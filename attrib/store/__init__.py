"""Edges ↔ sparse HDF5: one shard file, one block per (kind, source site, target site); a folder of shards as one collection.

docs/format.md is the specification. A shard is written whole or not at all, and read in slices. The reader
trusts nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
