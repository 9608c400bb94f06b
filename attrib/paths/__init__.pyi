from . import cuts as cuts
from . import path as path
from . import targets as targets

__all__ = ["cuts", "path", "targets"]
