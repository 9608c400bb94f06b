"""Models in bfloat16 and float16: results are float32, close to the float32 model's, and every tool takes them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import attrib
from attrib.core.edges import Edges
from tests.support.builders import build, dictionary, prompt

KINDS: dict[str, Callable[..., Edges]] = {
    "latent_to_latent": attrib.latent_to_latent,
    "token_to_latent": lambda model, source, target, ids, **options: attrib.token_to_latent(model, target, ids, **options),
    "latent_to_logit": lambda model, source, target, ids, **options: attrib.latent_to_logit(model, source, ids, **options),
    "latent_to_metric": lambda model, source, target, ids, **options: attrib.latent_to_metric(model, source, ids, total, **options),
}
DIGITS = {torch.bfloat16: 0.08, torch.float16: 0.02}
"""How far targets' totals may be off, as a part of the sizes that they are sums of."""


def total(logits: torch.Tensor) -> torch.Tensor:
    return logits[-1].logsumexp(-1)


@pytest.mark.few
@pytest.mark.parametrize("method", ["adjoint", "torch.func"])
@pytest.mark.parametrize("dtype", DIGITS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_results_of_halves_are_float32_and_every_tool_takes_them(kind: str, dtype: torch.dtype, method: str, tmp_path: Path) -> None:
    model, ids = build("llama", torch.float32), [prompt(7)]
    source, target = (dictionary("topk", f"blocks.{layer}.hook_resid_pre", torch.float32) for layer in (0, 2))
    whole = KINDS[kind](model, source, target, ids, method=method)
    half = KINDS[kind](model.to(dtype=dtype), source, target, ids, method=method)
    columns = (half.gradient, half.attribution, half.total, half.l1, half.sources.activation, half.targets.activation)
    assert {column.dtype for column in columns} == {torch.float32}
    assert half.call["dtype"] == f"{str(dtype).removeprefix('torch.')} throughout"
    assert len(half.top(3)) == 3
    assert half.to_scipy().nnz == len(half.to_pandas()) == len(half)
    with attrib.open(attrib.save(tmp_path / "half.h5", half)) as file:
        assert torch.equal(file.edges().attribution, half.attribution)
    # rows of latents that both find; a few at the limit may be active in one alone
    found, true = by_row(half), by_row(whole)
    common = found.keys() & true.keys()
    assert len(common) >= 0.7 * len(true)
    off = sum(abs(found[row][0] - true[row][0]) for row in common) / sum(true[row][1] for row in common)
    assert off < DIGITS[dtype]


def by_row(edges: Edges) -> dict[tuple[int, int], tuple[float, float]]:
    """Sum of attributions and of their sizes, of each target."""
    ends = zip(edges.targets.position.tolist(), edges.targets.latent.tolist(), strict=True)
    return dict(zip(ends, zip(edges.total.tolist(), edges.l1.tolist(), strict=True), strict=True))


def test_the_error_of_halves_is_measured_unasked() -> None:
    model = build("llama", torch.float32).to(dtype=torch.bfloat16)
    edges = attrib.token_to_latent(model, dictionary("topk", "blocks.2.hook_resid_pre", torch.float32), [prompt(7)])
    assert 1e-4 < edges.call["precision_error"]["relative_frobenius"] < 0.2
