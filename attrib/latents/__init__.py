"""What the latents of a dictionary are: where each fires over a corpus, what it writes, and how good the dictionary is."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
