"""From leaves to targets as one pure function: where it starts, where it ends, what is put in between."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
