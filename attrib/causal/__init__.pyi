from . import tasks as tasks

__all__ = ["tasks"]
