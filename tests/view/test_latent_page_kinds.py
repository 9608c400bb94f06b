"""Pages of latents of dictionaries that write several layers, and of those with a skip connection: as the subject, by plain products."""

from dataclasses import replace
from functools import cache

import pytest
import torch

import attrib
from tests.graph.test_weights import made, norm_map, ov_map, read, written
from tests.support.attribution_cases import characters
from tests.support.builders import D_MODEL, build, normal
from tests.view.test_latent_pages import K, ends, section, tables

LATENTS = [3, 7]
LAYERS = ("0.hook_mlp_out", "1.hook_mlp_out", "2.hook_mlp_out")


@cache
def model() -> attrib.Model:
    return characters(build("llama", torch.float64))


@cache
def cross() -> attrib.Dictionary:
    return replace(made(model(), "0.mlp.hook_in", list(LAYERS), seed=11), name="cross")


@cache
def skipping() -> attrib.Dictionary:
    skip = normal(D_MODEL, D_MODEL, dtype=torch.float64, seed=12)
    return replace(made(model(), "1.mlp.hook_in", "1.hook_mlp_out", seed=13, W_skip=skip), name="skipping")


@cache
def page(kind: str) -> str:
    d = cross() if kind == "cross" else skipping()
    behind = replace(made(model(), "2.mlp.hook_in", "2.hook_mlp_out", seed=5), name="behind")
    return attrib.view.dashboard(d, LATENTS, model=model(), others=[behind], k=K).html


def all_written(kind: str) -> torch.Tensor:
    """What a latent writes to the stream in all, whichever layers it writes."""
    return sum(written(model(), cross(), layer) for layer in LAYERS) if kind == "cross" else written(model(), skipping())  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["cross", "skipping"])
def test_logits_and_tokens_are_of_latents_alone(kind: str) -> None:
    """A skip connection passes by them, and is nobody's."""
    params, d = model().params, cross() if kind == "cross" else skipping()
    W, D = read(model(), d), all_written(kind)
    for latent in LATENTS:
        found = tables(section(page(kind), latent))
        logits = D[latent] @ norm_map(model(), params.norm_final) @ params.W_U
        assert found["Logits"] == ends(logits - logits.mean())
        assert found["Tokens read"] == ends(params.W_E @ W[:, latent] * model().config.embedding_scale)


@pytest.mark.parametrize("kind", ["cross", "skipping"])
def test_what_reads_it_sees_what_was_written_below(kind: str) -> None:
    behind = replace(made(model(), "2.mlp.hook_in", "2.hook_mlp_out", seed=5), name="behind")
    D = sum(written(model(), cross(), layer) for layer in LAYERS[:2]) if kind == "cross" else written(model(), skipping())
    down = read(model(), behind).T @ D.T  # type: ignore[union-attr]
    for latent in LATENTS:
        found = tables(section(page(kind), latent))
        best = down[:, latent].abs().argsort(descending=True)[:K].tolist()
        assert [row[:2] for row in found["Children, behind"]] == [[str(n), f"{down[n, latent]:.3g}"] for n in best]


def test_heads_behind_see_the_layers_below_them() -> None:
    layers = [written(model(), cross(), layer) for layer in LAYERS]
    for latent in LATENTS:
        norms = {
            f"{layer}.{head}": float((sum(part[latent] for part in layers[:layer]) @ ov_map(model(), layer, head)).norm())
            for layer in (1, 2, 3)
            for head in range(4)
        }
        best = sorted(norms, key=lambda name: -norms[name])[:6]
        found = tables(section(page("cross"), latent))
        assert found["Heads that read it"] == [[name, f"{norms[name]:.3g}"] for name in best]


def test_the_page_says_what_is_written_where() -> None:
    assert "blocks.0.mlp.hook_in, writes blocks.0.hook_mlp_out, blocks.1.hook_mlp_out, blocks.2.hook_mlp_out" in page("cross")
