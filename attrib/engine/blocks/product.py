"""The one door to products of rows by a matrix: torch's own, or on a CPU oneDNN's where that is much the faster (multiplier.py).

Both are the same float32, added up in another order, so that last bits differ. What goes to oneDNN follows from dtype, shape and layout
alone, never from what was multiplied before: what is computed again has the same bits.

oneDNN compiles a kernel for every shape that it has not met, which takes about a millisecond and 0.6 MB, and keeps the last 1,024 of them.
So rows go there in blocks of few sizes (`ROWS`), and columns in blocks whose widths are multiples of `COLUMNS`, but for a matrix that
cannot be cut, which is a weight of the model. What is left over is torch's. A block lies in a processor's own cache when it is put where it
belongs, so that a copy of it costs little.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from attrib.engine.blocks.multiplier import multiplier, operation

ROWS = (256, 64, 16)
"""How many rows are multiplied at once: as many as the largest of these, then the next."""

WIDEST, COLUMNS = 256, 16
"""The most columns at once of a matrix that can be cut, and what their number is a multiple of."""

MOST = 1 << 16
"""Numbers of a block at most, but for those of fewer rows than the largest."""

PACKED = 256 * 129
"""Numbers of the memory in which oneDNN packs what it multiplies into a block."""

LEAST_FLOPS = 1 << 21
"""Operations of the least block that is faster by oneDNN, of which each call takes about ten microseconds."""

LEAST_WIDTH = 128
"""From how many columns on it pays to copy rows that do not lie one behind the other."""


def product(a: Float[Tensor, "*rows inner"], w: Float[Tensor, "inner width"]) -> Float[Tensor, "*rows width"]:
    """`a @ w`."""
    if _is_small(a, w) or not (a.ndim == 2 or a.is_contiguous()) or not (sizes := _sizes(a, w)):
        return a @ w
    rows = a.view(-1, w.shape[0])
    if rows.shape[0] in sizes and next(_blocks(w)) == (slice(0, w.shape[1]), True):
        return _by_onednn(rows.contiguous(), w).view(*a.shape[:-1], w.shape[1])
    out = rows.new_empty(rows.shape[0], w.shape[1])
    _in_blocks(rows, w, out, sizes, adds=False)
    return out.view(*a.shape[:-1], w.shape[1])


def product_into(a: Float[Tensor, "rows inner"], w: Float[Tensor, "inner width"], out: Float[Tensor, "rows width"]) -> None:
    """`a @ w` into `out`."""
    _into(a, w, out, adds=False)


def add_product(a: Float[Tensor, "rows inner"], w: Float[Tensor, "inner width"], out: Float[Tensor, "rows width"]) -> None:
    """Add `a @ w` to `out`."""
    _into(a, w, out, adds=True)


def dots(rows: Float[Tensor, "*positions rows width"], vectors: Float[Tensor, "*positions width"]) -> Float[Tensor, "*positions rows"]:
    """Each row times its position's vector.

    A CPU finds in its cache what it has just multiplied, and sums it up sooner than it multiplies matrices of one column. A GPU would write
    all of it to memory and read it again: there it is a product, which reads rows once.
    """
    return torch.linalg.vecdot(rows, vectors[..., None, :]) if rows.device.type == "cpu" else (rows @ vectors[..., None])[..., 0]


def beside_products(itemsize: int) -> int:
    """Numbers that a large product takes beside its factors and what it makes: a block, and what oneDNN packs it in. Torch takes none."""
    return MOST + PACKED if itemsize == torch.float32.itemsize and multiplier() == "onednn" else 0


def _is_small(a: Tensor, w: Tensor) -> bool:
    """Whether all of it has too little to do for any block of it: asked first, since a graph has thousands of such products."""
    return 2 * a.numel() * w.shape[1] < LEAST_FLOPS


def _into(a: Tensor, w: Tensor, out: Tensor, adds: bool) -> None:
    if _is_small(a, w):
        _by_torch(a, w, out, adds)
        return
    ways = [(a, w, out), (w.T, a.T, out.T)]  # (a w)^T = w^T a^T
    # best where rows that are read lie one behind the other, or they are copied; and then where those that are written do
    for rows, matrix, into in sorted(ways, key=lambda way: (not way[0].is_contiguous(), way[2].stride(1) != 1)):
        if sizes := _sizes(rows, matrix):
            _in_blocks(rows, matrix, into, sizes, adds)
            return
    _by_torch(a, w, out, adds)


def _sizes(a: Tensor, w: Tensor) -> tuple[int, ...]:
    """In blocks of how many rows oneDNN multiplies; in none where it is not taken, does not know how these lie, or has too little to do."""
    inner, width = w.shape
    count, at_once = a.numel() // max(1, inner), width if w.is_contiguous() else min(width, WIDEST)
    most = ROWS[0] if ROWS[0] * at_once <= MOST else ROWS[1]
    sizes = tuple(rows for rows in ROWS if rows <= min(count, most) and 2 * rows * inner * at_once >= LEAST_FLOPS)
    # a part of a wider matrix goes to plain loops in oneDNN, a thousand times slower: rows are copied, a matrix is not
    lies = (width >= LEAST_WIDTH or a.is_contiguous()) and (w.is_contiguous() or w.T.is_contiguous())
    if not sizes or not lies or width < COLUMNS or not (_is_plain(a) and _is_plain(w)):
        return ()
    return sizes if multiplier() == "onednn" else ()


def _is_plain(x: Tensor) -> bool:
    """Whether it is a float32 tensor on a CPU, which no transform and no tape looks through."""
    is_followed = (x.requires_grad and torch.is_grad_enabled()) or is_functorch_wrapped_tensor(x)
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.layout == torch.strided and not is_followed


def _in_blocks(a: Tensor, w: Tensor, out: Tensor, sizes: tuple[int, ...], adds: bool) -> None:
    """Block by block, and by torch what is left over."""
    first, count, inner, blocks = 0, a.shape[0], w.shape[0], list(_blocks(w))
    for size in sizes:
        while count - first >= size:
            rows, into = a[first : first + size].contiguous(), out[first : first + size]
            for columns, is_even in blocks:
                if is_even and 2 * size * inner * (columns.stop - columns.start) >= LEAST_FLOPS:
                    found = _by_onednn(rows, w[:, columns])
                    into[:, columns].add_(found) if adds else into[:, columns].copy_(found)
                    del found  # before the next is made
                else:
                    _by_torch(rows, w[:, columns], into[:, columns], adds)
            first += size
    if first < count:
        _by_torch(a[first:], w, out[first:], adds)


def _blocks(w: Tensor) -> Iterator[tuple[slice, bool]]:
    """The columns of a matrix, and whether there are as many as kernels are made for. One whose rows lie one behind the other is whole."""
    width, first = w.shape[1], 0
    if w.is_contiguous():
        yield slice(0, width), True
        return
    for end in (*range(WIDEST, width + 1, WIDEST), width - width % COLUMNS):
        if first < end:
            yield slice(first, end), True
        first = max(first, end)
    if first < width:
        yield slice(first, width), False


def _by_onednn(a: Float[Tensor, "rows inner"], w: Float[Tensor, "inner width"]) -> Float[Tensor, "rows width"]:
    found: Tensor = operation()(a, w.T, None, "none", [], "")
    return found


def _by_torch(a: Tensor, w: Tensor, out: Tensor, adds: bool) -> None:
    torch.addmm(out, a, w, out=out) if adds else torch.mm(a, w, out=out)
