"""`python -m bench.kernels.roofline`: how fast the kernels could be on an H200, by bytes and operations. No GPU is asked.

Prints the tables that stand in the READMEs of kernels/attrib_kernels, which tests hold against what is computed here. A floor is the
longer of two times: that of the bytes at the memory's rate and that of the operations at the tensor cores' rate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MEMORY = 4.8e12
"""Bytes in a second, H200 SXM by its data sheet."""
TENSOR = {"tf32": 495e12, "tf32x3": 495e12 / 3, "bfloat16": 990e12}
"""Operations in a second, dense, by the same; of three TF32 products one counts."""
SIZE = {"tf32": 4, "tf32x3": 4, "bfloat16": 2}
"""Bytes of a number."""
KERNELS = Path(__file__).parents[2] / "kernels" / "attrib_kernels"
BEGIN, END = "<!-- python -m bench.kernels.roofline -->", "<!-- end -->"


@dataclass(frozen=True)
class Floor:
    """What a call must move and compute."""

    bytes: float
    flops: float
    rate: float
    """Of the operations, in a second."""

    @property
    def moving(self) -> float:
        """Seconds that the bytes take."""
        return self.bytes / MEMORY

    @property
    def computing(self) -> float:
        """Seconds that the operations take."""
        return self.flops / self.rate

    @property
    def bound(self) -> str:
        """Which of the two is longer."""
        return "memory" if self.moving >= self.computing else "tensor cores"


@dataclass(frozen=True)
class Shape:
    """Attention of one layer, with some cotangents."""

    model: str
    positions: int
    rows: int
    heads: int
    kv_heads: int
    d_head: int


SHAPES = (
    Shape("GPT-2", 128, 1600, 12, 12, 64),
    Shape("GPT-2", 512, 1600, 12, 12, 64),
    Shape("Llama-3.1-8B", 512, 1600, 32, 8, 128),
)


def attention(kind: Literal["adjoint", "frozen", "tangent"], shape: Shape, precision: str) -> Floor:
    """The floor of one map of attention.

    With n = rows · heads, n' = rows · kv_heads, P = T (T + 1) / 2 pairs of a query and a key that it sees, and b bytes a number:

        S = b n T d     K = b n' T d     x = 4 n T, the o·z in float32
        adjoint   o read by two kernels, dq, dk, dv written, x written and read    2S + S + 2K + 2x    6 n P d + 2 n T d² + 2 heads P d²
        frozen    o read, dv written                                               S + K               2 n P d
        tangent   q̇, k̇, v̇ read, ż written                                          2S + 2K             8 n P d

    The primal, which all rows share, is left out.
    """
    T, d, n, n_kv = shape.positions, shape.d_head, shape.rows * shape.heads, shape.rows * shape.kv_heads
    P = T * (T + 1) / 2
    S, K, x = SIZE[precision] * n * T * d, SIZE[precision] * n_kv * T * d, 4 * n * T
    moved, done = {
        "adjoint": (3 * S + 2 * K + 2 * x, 6 * n * P * d + 2 * n * T * d**2 + 2 * shape.heads * P * d**2),
        "frozen": (S + K, 2 * n * P * d),
        "tangent": (2 * S + 2 * K, 8 * n * P * d),
    }[kind]
    return Floor(moved, done, TENSOR[precision])


def attention_lines() -> Iterator[str]:
    """The table of attention."""
    yield "| shape | map | products | GB | GFLOP | FLOP/B | memory, µs | products, µs | bound by |"
    yield "|---|---|---|--:|--:|--:|--:|--:|---|"
    for shape in SHAPES:
        for kind in ("adjoint", "frozen", "tangent"):
            for precision in TENSOR:
                floor = attention(kind, shape, precision)
                figures = (floor.bytes / 1e9, floor.flops / 1e9, floor.flops / floor.bytes, floor.moving * 1e6, floor.computing * 1e6)
                cells = (f"{shape.model}, T={shape.positions}", kind, precision, *map(figure, figures), floor.bound)
                yield f"| {' | '.join(cells)} |"


def figure(x: float) -> str:
    """Three digits, or a whole number."""
    return f"{x:,.3g}" if x < 1000 else f"{x:,.0f}"


def compact_lines() -> Iterator[str]:
    """The table of compaction: it multiplies and adds three times an entry, which no memory waits for."""
    yield "| tile | kept | dtype | MB | memory, µs |"
    yield "|---|--:|---|--:|--:|"
    for side in (1600, 6400):
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            for share in (0.05, 0.5):
                entries = side * side
                moved = 2 * size * entries + share * entries * (8 + 2 * size)
                yield f"| {side} × {side} | {share:.0%} | {dtype} | {moved / 1e6:,.1f} | {moved / MEMORY * 1e6:,.1f} |"


TABLES = {"attention_adjoint": attention_lines, "compact": compact_lines}
"""The lines of each README's table, by the kernel's folder."""


def with_table(readme: str, lines: Iterator[str]) -> str:
    """A README with the table between its two marks made anew."""
    before, rest = readme.split(f"{BEGIN}\n")
    after = rest.split(f"{END}\n")[1]
    return "".join([before, BEGIN, "\n", *(f"{line}\n" for line in lines), END, "\n", after])


def main() -> None:
    """Write the tables into the READMEs, and print them."""
    for folder, lines in TABLES.items():
        path = KERNELS / folder / "README.md"
        path.write_text(with_table(path.read_text(), lines()))
        print(folder, *lines(), sep="\n")


if __name__ == "__main__":
    main()
