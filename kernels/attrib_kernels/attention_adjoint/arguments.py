"""What the arguments of the attention kernels must be; a kernel given anything else would read outside them."""

from torch import Tensor

SHAPES = {
    "cotangent": ("positions", "rows", "heads", "d_head"),
    "tangents.q": ("positions", "rows", "heads", "d_head"),
    "tangents.k": ("positions", "rows", "kv_heads", "d_head"),
    "tangents.v": ("positions", "rows", "kv_heads", "d_head"),
    "pattern": ("heads", "positions", "positions"),
    "q": ("heads", "positions", "d_head"),
    "k": ("kv_heads", "positions", "d_head"),
    "v": ("kv_heads", "positions", "d_head"),
    "z": ("heads", "positions", "d_head"),
}
"""The dimensions of every argument. `q` says how many heads and positions there are, `k` how many key heads."""


def check_arguments(**given: Tensor) -> None:
    """Raise ValueError for the first argument that does not fit to the ones before it.

    Args:
        given: tensors by the names of SHAPES, with __ for a dot, in the order in which they are checked.
    """
    sizes: dict[str, int] = {}
    model = given["q"]
    for argument, x in given.items():
        name = argument.replace("__", ".")
        axes = SHAPES[name]
        known = [sizes.get(axis) for axis in axes]
        if x.ndim != len(axes) or any(size not in (None, found) for size, found in zip(known, x.shape, strict=True)):
            expected = ", ".join(axis if size is None else f"{axis}={size}" for axis, size in zip(axes, known, strict=True))
            raise ValueError(f"{name}: shape {tuple(x.shape)} came, expected [{expected}], the sizes that q, k and v set.")
        sizes |= zip(axes, x.shape, strict=True)
        if x.dtype != model.dtype or x.device != model.device:
            raise ValueError(f"{name}: {x.dtype} on {x.device} came, and q is {model.dtype} on {model.device}. Convert all to one.")
    if sizes["heads"] % sizes["kv_heads"]:
        raise ValueError(f"k: {sizes['kv_heads']} key heads came for {sizes['heads']} query heads of q; expected a divisor of it.")
