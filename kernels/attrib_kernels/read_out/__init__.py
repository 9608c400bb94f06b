"""Products of rows with what is seeded at the position where each row stands, at all positions at once. README.md has the mathematics."""

from collections.abc import Sequence

from attrib_kernels.impl import Impl, Precision, check_precision, module_of
from attrib_kernels.read_out.arguments import check_arguments
from attrib_kernels.read_out.reference import Cells, Flat, Found, Seeds

__all__ = ["read_out"]


def read_out(
    rows: Flat,
    start: Cells,
    step: Cells,
    alive: Sequence[tuple[int, int]],
    begins: Sequence[int],
    seeds: Seeds,
    out: Found,
    *,
    impl: Impl,
    precision: Precision = "tf32",
) -> None:
    """Add rows[start[r] + step[r] · t] · seeds[c] to out[r, c], for every row r that lives at position t and every seed c that lies there.

    Args:
        rows: of all positions, one behind the other; a row's cells are evenly apart.
        start, step: int64. Where row r lies at position t is start[r] + step[r] · t.
        alive: the rows [first, end) that live at each position.
        begins: where the seeds of each position begin, and where the last end.
        seeds: in the order of their positions, in the dtype of `rows`.
        out: is added to, in its own dtype; entries of a row and a seed that do not meet are not touched.
        impl: "reference" (plain torch) or "triton" (CUDA, or CPU under TRITON_INTERPRET=1; no float64).
        precision: how the Triton kernel multiplies float32 numbers, as in attention_adjoint.

    It is not differentiable.

    Raises:
        ValueError: for shapes, dtypes, devices or positions that do not fit together, and where `impl` cannot run.
        ImportError: for impl="triton" without triton.
    """
    check_precision(precision)
    check_arguments(rows, start, step, alive, begins, seeds, out)
    how = {"precision": precision} if impl == "triton" else {}
    module_of("attrib_kernels.read_out", impl).read_out(rows, start, step, alive, begins, seeds, out, **how)
