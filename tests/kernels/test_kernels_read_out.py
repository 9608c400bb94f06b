"""Reading out: the reference by hand, and the Triton kernel against the reference."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attrib_kernels.read_out import read_out
from torch import Tensor

from tests.support.builders import normal
from tests.support.kernel_device import DEVICE

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
EXACTLY = "ieee" if DEVICE == "cuda" else "tf32"
BOUNDS = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}

Problem = tuple[Tensor, Tensor, Tensor, list[tuple[int, int]], list[int], Tensor, Tensor]

SHAPES = {
    "one": ([(1, 0, 1)], [1], 16),
    "bands of other lengths": ([(1, 0, 3), (2, 0, 4), (5, 1, 7)], [3, 0, 5, 1, 1, 0, 2], 20),
    "more than a tile": ([(70, 0, 2), (150, 0, 3)], [70, 3, 129], 48),
    "no seeds": ([(3, 0, 2)], [0, 0], 16),
    "positions without rows": ([(3, 2, 4)], [2, 2, 2, 2], 40),
}
"""Bands (rows, first position, one past the last), seeds of each position, width. A row is alive where its band is."""


def problem(bands: Sequence[tuple[int, int, int]], counts: Sequence[int], width: int, dtype: torch.dtype) -> Problem:
    """Bands lie one behind the other, each position by position, as in attrib.engine.sweep.cells."""
    alive: list[tuple[int, int]] = []
    for t in range(len(counts)):
        # bands that live at a position must follow one another among the rows
        there = [number for number, (_, begin, end) in enumerate(bands) if begin <= t < end]
        assert there == list(range(there[0], there[-1] + 1) if there else [])
        before = [sum(rows for rows, _, _ in bands[:number]) for number in range(len(bands) + 1)]
        alive.append((before[there[0]], before[there[-1] + 1]) if there else (0, 0))
    start, step, offset = [], [], 0
    for rows, begin, end in bands:
        start += [offset - begin * rows + row for row in range(rows)]
        step += [rows] * rows
        offset += rows * (end - begin)
    begins = [sum(counts[:t]) for t in range(len(counts) + 1)]
    flat, seeds, out = (
        normal(*shape, dtype=torch.float64, seed=seed).to(DEVICE, dtype)
        for seed, shape in enumerate([(offset, width), (begins[-1], width), (len(start), begins[-1])])
    )
    return flat, torch.tensor(start).to(DEVICE), torch.tensor(step).to(DEVICE), alive, begins, seeds, out


def by_hand(flat: Tensor, start: Tensor, step: Tensor, alive: Any, begins: Any, seeds: Tensor, out: Tensor) -> Tensor:
    """Entry by entry, in float64."""
    want = out.double().clone()
    for t, (first, end) in enumerate(alive):
        for r in range(first, end):
            for c in range(begins[t], begins[t + 1]):
                want[r, c] += flat[start[r] + step[r] * t].double() @ seeds[c].double()
    return want


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "more than a tile"])
def test_the_reference_by_hand(name: str):
    given = problem(*SHAPES[name], dtype=torch.float64)
    want = by_hand(*given)
    read_out(*given, impl="reference")
    assert (given[-1] - want).norm() <= 1e-12 * max(1.0, float(want.norm()))


@needs_triton
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=["float32", "float16", "bfloat16"])
def test_triton_is_the_reference(name: str, dtype: torch.dtype):
    *given, out = problem(*SHAPES[name], dtype=dtype)
    want = out.double()
    flat, start, step, alive, begins, seeds = given
    read_out(flat.double(), start, step, alive, begins, seeds.double(), want, impl="reference")
    before = out.clone()
    read_out(*given, out, impl="triton", precision=EXACTLY)
    assert (out.double() - want).norm() <= BOUNDS[dtype] * want.norm()
    met = torch.zeros_like(out, dtype=torch.bool)
    for t, (first, end) in enumerate(alive):
        met[first:end, begins[t] : begins[t + 1]] = True
    assert torch.equal(out[~met], before[~met])  # what does not meet is not touched, to the bit


@needs_triton
def test_sums_go_into_wider_numbers_and_into_a_part_of_a_table():
    """Rows of 16 bits are added up in float32, and neither `out` nor `rows` need be contiguous."""
    *given, out = problem(*SHAPES["bands of other lengths"], dtype=torch.bfloat16)
    wide = torch.full((out.shape[1] + 3, len(out) + 2), torch.nan, device=DEVICE).T
    into = wide[1:-1, 2:-1]
    into.copy_(out)
    want = out.double()
    flat, start, step, alive, begins, seeds = given
    read_out(flat.double(), start, step, alive, begins, seeds.double(), want, impl="reference")
    apart = torch.stack([flat, flat], 2)[..., 0]
    assert not apart.is_contiguous()
    read_out(apart, *given[1:], into, impl="triton")
    assert (into.double() - want).norm() <= 5e-6 * want.norm()
    assert int(wide.isnan().sum()) == wide.numel() - into.numel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": lambda x: x[:, :-1]}, r"seeds: torch\.float32 of shape \(12, 19\) came, expected torch\.float32 of \[12, 20\]"),
        ({"seeds": lambda x: x.double()}, r"seeds: torch\.float64 of shape"),
        ({"start": lambda x: x.int()}, r"start: torch\.int32 of shape \(8,\) came, expected torch\.int64 of \[8\]"),
        ({"step": lambda x: x[1:]}, r"step: torch\.int64 of shape \(7,\) came"),
        ({"begins": lambda x: x[:-1]}, "begins: expected 8 numbers that rise from 0 up to 12"),
        ({"begins": lambda x: [*x[:-1], 13]}, "begins: expected 8 numbers"),
        ({"begins": lambda x: [x[0], 5, *x[2:]]}, "begins: expected 8 numbers"),
        ({"alive": lambda x: [*x[:-1], (3, 9)]}, r"alive: rows \[3, 9\) of 8"),
        ({"alive": lambda x: [*x[:-1], (3, 2)]}, r"alive: rows \[3, 2\) of 8"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str):
    names = ("rows", "start", "step", "alive", "begins", "seeds", "out")
    given: dict[str, Any] = dict(zip(names, problem(*SHAPES["bands of other lengths"], dtype=torch.float32), strict=True))
    ((name, changed),) = change.items()
    from attrib_kernels.read_out.arguments import check_arguments

    with pytest.raises(ValueError, match=message):
        check_arguments(**given | {name: changed(given[name])})


@needs_triton
def test_what_triton_cannot_run_is_refused():
    given = problem(*SHAPES["one"], dtype=torch.float64)
    with pytest.raises(ValueError, match=r'impl: "triton" sums in float32, and float64 came'):
        read_out(*given, impl="triton")
