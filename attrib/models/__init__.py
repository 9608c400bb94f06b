"""A transformer as a pure function, and what it is fed: text, chats and ids as prompts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
