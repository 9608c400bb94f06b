"""Attribution graphs: what a prompt's logits are made of, by direct effects; and what the weights alone say of who moves whom."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
