"""Tasks: data sets of prompts with labels, what a model answers, and which latents of dictionaries it owes that to.

`examples` are prompts with answers; `answering` reads the answers off a pass and `effects` asks what each latent does for them; `running`
goes through a data set in blocks that can be resumed, and `tables` sums up what comes out. docs/tasks.md tells it to users.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
