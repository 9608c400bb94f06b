from .agreement import Agreement
from .stored import verify_stored
from .verifying import verify

__all__ = ["Agreement", "verify", "verify_stored"]
