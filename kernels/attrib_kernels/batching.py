"""A batch dimension of vmap as more of a dimension that an operation has."""

from torch import Tensor


def fold(x: Tensor, dim: int | None, to: int, size: int) -> Tensor:
    """Batch dimension `dim` put before dimension `to` and merged with it; what has none is repeated `size` times."""
    batched = x.unsqueeze(to).expand(*x.shape[:to], size, *x.shape[to:]) if dim is None else x.movedim(dim, to)
    return batched.flatten(to, to + 1)


def unfold(x: Tensor, at: int, size: int) -> Tensor:
    """The inverse of `fold`; the batch dimension is at `at`."""
    return x.unflatten(at, (size, x.shape[at] // size))
