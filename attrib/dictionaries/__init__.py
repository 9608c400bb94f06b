"""Sparse dictionaries as pure functions, and whether one belongs to a model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
