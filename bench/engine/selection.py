"""Selecting edges of a tile, beside sorting every row of it: python -m bench.engine.selection

Values are heavy-tailed, as attributions are. Both ways are compared entry by entry before they are timed, in float64, where both sum so.
"""

import argparse

import torch
from attrib_kernels.compact.reference import keep_mask
from attrib_kernels.compact.rules import Rule
from torch import Tensor

from attrib.core.keep import kept
from attrib.core.types import Keep, Mass, TopK
from bench.measure import medians, timed

SHAPES = ((300, 7444), (2000, 17000))
RULES: tuple[tuple[Keep, Rule, float], ...] = (
    (Mass(0.98), "mass", 0.98), (Mass(0.9), "mass", 0.9), (TopK(100), "topk", 100), (TopK(64), "topk", 64),
)  # fmt: skip
"""Each rule, and as the reference takes it."""

CPU = torch.device("cpu")


def heavy(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Numbers of a normal distribution times those of a log-normal one."""
    rng = torch.Generator().manual_seed(0)
    return (torch.randn(rows, columns, generator=rng) * torch.randn(rows, columns, generator=rng).mul(2).exp()).to(dtype)


def main() -> None:
    """Print a row for each shape, dtype and rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first shape alone")
    shapes = SHAPES[:1] if parser.parse_args().quick else SHAPES
    print("rows    columns  dtype    rule                 sorted s    ours s     ratio")
    for rows, columns in shapes:
        for dtype in (torch.float32, torch.float64):
            tile = heavy(rows, columns, dtype)
            for keep, rule, amount in RULES:
                slow, fast = compared(tile, keep, rule, amount)
                print(f"{rows:<7} {columns:<8} {str(dtype)[6:]:<8} {keep!s:<20} {slow:<11.3f} {fast:<10.3f} {slow / fast:.1f}", flush=True)


def compared(tile: Tensor, keep: Keep, rule: Rule, amount: float) -> tuple[float, float]:
    """CPU seconds of sorting and of attrib's way, which keep the same."""

    def by_sorting() -> Tensor:
        return keep_mask(tile, tile, rule, amount)

    def ours() -> Tensor:
        return kept(keep, tile, tile)

    differ = int((by_sorting() != ours()).sum())
    if differ:
        raise SystemExit(f"{keep}: {differ} entries differ from what sorting keeps")
    slow, fast = (medians([timed(run, CPU)[1] for _ in range(3)]).cpu for run in (by_sorting, ours))
    return slow, fast


if __name__ == "__main__":
    main()
