"""attrib: which input of a sparse-dictionary view of a transformer moves which output, and by how much.

Pure functions of explicit arguments; see README.md for the first result and docs/ for the rest.
"""

import os

import lazy_loader

if os.environ.get("ATTRIB_TYPECHECK", "0") not in ("", "0"):
    # before any other module of ours: it checks the shapes and types of those that are imported from now on. It imports no torch either
    from jaxtyping import install_import_hook

    install_import_hook(["attrib", "attrib_kernels"], "beartype.beartype")

# `import attrib` loads nothing else: each name brings its module with it, and `attrib --help` need not wait for torch
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
