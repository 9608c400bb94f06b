"""The implementations that every operation has: a plain reference, and a Triton kernel. The caller chooses."""

from importlib import import_module
from typing import Any, Literal, get_args

Impl = Literal["reference", "triton"]


def check_impl(impl: str) -> None:
    """Raises ValueError for an unknown implementation."""
    if impl not in get_args(Impl):
        raise ValueError(f"impl: {impl!r}; expected 'reference' or 'triton'.")


def module_of(package: str, impl: Impl) -> Any:
    """`package.reference` or `package.triton`, imported on use.

    Raises:
        ValueError: for an unknown implementation.
        ImportError: for "triton" without the package triton.
    """
    check_impl(impl)
    try:
        return import_module(f"{package}.{impl}")
    except ImportError as error:
        raise ImportError("impl: 'triton' needs the package triton; pip install 'attrib[gpu]', or use impl='reference'.") from error
