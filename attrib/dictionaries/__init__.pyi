from . import dictionary as dictionary
from . import fit as fit

__all__ = ["dictionary", "fit"]
