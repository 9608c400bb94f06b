"""attrib: which input of a sparse-dictionary view of a transformer moves which output, and by how much.

Pure functions of explicit arguments; see README.md for the first result and docs/ for the rest.
"""

import lazy_loader

# `import attrib` loads nothing else: each name brings its module with it, and `attrib --help` need not wait for torch
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
