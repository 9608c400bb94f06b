"""Corpus statistics: aggregates of edges per pair of latents, streaming, mergeable in any order, within a memory bound; scores of latents.

docs/statistics.md defines every number and the guarantees, and specifies the file.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
