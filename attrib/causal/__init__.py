"""What a change does: interventions on a model, generation under them, and attributions held against what they predict."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
