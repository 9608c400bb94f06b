"""Attribution graphs: which nodes a prompt's logits are made of, by direct effects between them. Each name brings its module with it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
