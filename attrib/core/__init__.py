"""The words that every room uses: sites, policies, errors, sparse containers, edges; and what is asked of numbers, names and memory."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
