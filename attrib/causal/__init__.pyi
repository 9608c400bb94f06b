from .agreement import Agreement
from .verifying import verify

__all__ = ["Agreement", "verify"]
