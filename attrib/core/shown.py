"""How objects that hold tensors are shown: one line, with shapes in place of numbers, in characters that every terminal has."""

from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)


def shown(value: Any) -> str:
    """A tensor as its dtype and shape, a run of alike objects as how many of what, a function by its name; else as Python does."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        kinds = {type(each).__name__ for each in value}
        if len(value) > 3 and len(kinds) == 1:
            return f"{len(value)} of {kinds.pop()}"
        return f"({', '.join(map(shown, value))})"
    if hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return repr(value)


def record(self: Any) -> str:
    """`__repr__` of a named tuple of tensors."""
    return f"{type(self).__name__}({', '.join(f'{name}={shown(value)}' for name, value in zip(self._fields, self, strict=True))})"


def in_one_line(kind: Kind) -> Kind:
    """A class of named tuples of tensors, each of which is shown in one line."""
    kind.__repr__ = record  # type: ignore[assignment]
    return kind
