"""The implementations that every operation has, a plain reference and a Triton kernel, and how a kernel multiplies. The caller chooses."""

from importlib import import_module
from typing import Any, Literal, get_args

Impl = Literal["reference", "triton"]

Precision = Literal["tf32", "tf32x3", "ieee"]
"""How a kernel multiplies float32 numbers; it sums them in float32 whatever this says.

    tf32     one product on tensor cores, of operands rounded to 11 bits
    tf32x3   three of them, of each operand's upper and lower bits: float32 but for a bit or two
    ieee     fused multiply-adds without tensor cores

Other numbers, and the plain reference, multiply as they do anyway. Triton's interpreter, which runs kernels without a GPU, rounds
nothing: there the three are one.
"""

Loads = Literal["pointers", "descriptors"]
"""How a kernel loads its tiles; the values are the same.

    pointers     each thread computes addresses and masks
    descriptors  the tensor memory accelerator copies whole tiles, on compute capability 9.0 and later, of tensors that 16 bytes divide;
                 pointers for all others
"""


def check_impl(impl: str) -> None:
    """Raises ValueError for an unknown implementation."""
    if impl not in get_args(Impl):
        raise ValueError(f"impl: {impl!r}; expected 'reference' or 'triton'.")


def check_precision(precision: str) -> None:
    """Raises ValueError for an unknown way to multiply."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision: {precision!r}; expected one of {', '.join(get_args(Precision))}.")


def check_loads(loads: str) -> None:
    """Raises ValueError for an unknown way to load."""
    if loads not in get_args(Loads):
        raise ValueError(f"loads: {loads!r}; expected one of {', '.join(get_args(Loads))}.")


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
