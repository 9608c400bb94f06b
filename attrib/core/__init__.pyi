from . import devices as devices
from . import edges as edges
from . import fingerprints as fingerprints
from . import finite as finite
from . import keep as keep
from . import labels as labels
from . import names as names
from . import optional as optional
from . import positions as positions
from . import room as room
from . import shown as shown
from . import slices as slices
from . import sparse as sparse
from . import types as types
from . import version as version
from . import warned as warned
from . import weights as weights

__all__ = [
    "devices",
    "edges",
    "fingerprints",
    "finite",
    "keep",
    "labels",
    "names",
    "optional",
    "positions",
    "room",
    "shown",
    "slices",
    "sparse",
    "types",
    "version",
    "warned",
    "weights",
]
