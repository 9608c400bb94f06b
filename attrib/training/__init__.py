"""Dictionaries are trained here: texts to contexts, contexts to activations on disk, and from there sae-lens' own trainer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
