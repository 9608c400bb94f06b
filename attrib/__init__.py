"""attrib: which input of a sparse-dictionary view of a transformer moves which output, and by how much.

Pure functions of explicit arguments; see README.md for the first result and docs/ for the rest. With ATTRIB_TYPECHECK=1 in the
environment every call is held against the shapes and types of its signature, which takes time and finds a wrong shape where it begins.
"""

import os

import lazy_loader

from attrib.core.warned import renamed

if os.environ.get("ATTRIB_TYPECHECK", "0") not in ("", "0"):
    from jaxtyping import install_import_hook

    install_import_hook(["attrib", "attrib_kernels"], "beartype.beartype")  # of modules that are imported from here on: all but this

# `import attrib` loads nothing else: each name brings its module with it, and `attrib --help` need not wait for torch
_lazily, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = renamed(__name__, _lazily, Tokens="TokenLogits", logits="forward")
