"""Circuits of latents: what the weights alone say of who moves whom, in every prompt alike."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
