"""A cross-layer transcoder constrained to some layers: against TransformerLens' hooks, by the formula that circuit-tracer computes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.causal import Latents, PreActivations, Set, intervene
from attrib.core.types import InputError, Policy
from tests.support.builders import normal, prompt
from tests.support.hooked import hooked
from tests.support.lens_splice import READS_MLP

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:HookedTransformer is deprecated")

F64, LAYERS, WIDTH, LATENTS, TOKENS = torch.float64, 4, 32, 40, prompt(7)
EDITS = [(0, 3, 5, 2.5), (0, 3, 9, 0.0), (1, 4, 7, 4.0), (2, 2, 11, 3.0)]
"""Layer, position, latent, value."""


def cross() -> list[attrib.Dictionary]:
    """Each layer writes at its own and all later ones."""
    found = []
    for layer in range(LAYERS):
        writes = [f"blocks.{later}.hook_mlp_out" for later in range(layer, LAYERS)]
        W_enc, W_dec = (
            normal(*shape, dtype=F64, seed=40 + 2 * layer + n) / 5
            for n, shape in enumerate([(WIDTH, LATENTS), (LATENTS, WIDTH * len(writes))])
        )
        b_enc, b_dec = normal(LATENTS, dtype=F64, seed=60 + layer) / 5, normal(WIDTH * len(writes), dtype=F64, seed=70 + layer) / 5
        found.append(from_tensors(site=f"blocks.{layer}.mlp.hook_in", writes=writes, W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=b_dec))
    return found


def by_hooks(lens: Any, given: list[attrib.Dictionary], layers: list[int], is_whole: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits and later pre-activations: patterns held, MLPs of some layers held, and what latents are moved by written there alone."""
    _, clean = lens.run_with_cache(TOKENS[None])
    moved, read = torch.zeros(LAYERS, len(TOKENS), WIDTH, dtype=F64), dict[int, Tensor]()
    for layer, position, latent, value in EDITS:
        p = given[layer].params
        was = (clean[f"blocks.{layer}.{READS_MLP}"][0, position] @ p.W_enc[:, latent] + p.b_enc[latent]).relu()
        for number, later in enumerate(range(layer, LAYERS)):
            moved[later, position] += (value - was) * p.W_dec[latent, number * WIDTH : (number + 1) * WIDTH]
    held = [name for name in clean if name.endswith("hook_pattern") or (is_whole and name.endswith("hook_scale"))]
    hooks: list[Any] = [(name, lambda value, hook: clean[hook.name]) for name in held]
    for layer in layers:
        hooks.append((f"blocks.{layer}.hook_mlp_out", lambda value, hook, layer=layer: clean[hook.name] + moved[layer]))
    for layer in range(LAYERS):
        hooks.append((f"blocks.{layer}.{READS_MLP}", lambda value, hook, layer=layer: read.__setitem__(layer, value[0].clone())))
    logits = lens.run_with_hooks(TOKENS[None], fwd_hooks=hooks)[0]
    return logits, [read[layer] @ one.params.W_enc + one.params.b_enc for layer, one in enumerate(given)]


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "llama-2"])
@pytest.mark.parametrize("layers", [[0, 1], [1, 2], [1, 3], [0, 1, 2, 3]])
def test_edits_work_in_the_layers_that_they_are_constrained_to(family: str, layers: list[int]) -> None:
    lens, given, is_whole = hooked(family, F64, n_layers=LAYERS, options="fold_ln"), cross(), len(layers) == LAYERS
    model = attrib.from_transformer_lens(lens)
    inside = [any(site.layer in layers for site in one.writes) and one.site.layer <= max(layers) for one in given]
    parts = [attrib.writing_at(one, layers) if is_in else None for one, is_in in zip(given, inside, strict=True)]
    if layers == [0, 1]:  # the others may be there as they are, to be read
        put_in: list[Any] = [one if part is None else part for one, part in zip(given, parts, strict=True)]
        options: dict[str, Any] = {
            "effect": ["direct" if part else "total" for part in parts],
            "errors": [True if part else "live" for part in parts],
        }
    else:
        put_in, options = [part for part in parts if part is not None], {"effect": "direct"}
    numbers = {one.site.layer: number for number, one in enumerate(put_in)}
    edits = [Set(Latents(numbers[layer], latent), value, position) for layer, position, latent, value in EDITS if parts[layer] is not None]
    options["policy"] = attrib.LINEAR if is_whole else Policy(attention="frozen")
    got = intervene(model, put_in, TOKENS, edits, **options)
    with torch.no_grad():
        want, latents = by_hooks(lens, given, layers, is_whole)
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-9)
        assert (got - lens(TOKENS[None])[0]).abs().max() > 1e-2
    asked = [PreActivations(number) for number in numbers.values()]
    found = intervene(model, put_in, TOKENS, edits, values=[*asked, f"blocks.{LAYERS - 1}.hook_resid_post"], **options)
    for one, number in zip(asked, numbers, strict=True):
        assert torch.allclose(found[one], latents[number], rtol=1e-9, atol=1e-9)


def test_parts_write_what_the_whole_writes_there_and_others_are_refused() -> None:
    layer_0, *_, last = cross()
    x = normal(6, WIDTH, dtype=F64, seed=1)
    whole = attrib.reconstruct(layer_0, x).unflatten(-1, (LAYERS, WIDTH))
    for layers in ([1], [2, 1], [0, 3], range(9)):
        part = attrib.writing_at(layer_0, layers)
        kept = [layer for layer in range(LAYERS) if layer in layers]
        assert torch.allclose(attrib.reconstruct(part, x).unflatten(-1, (len(kept), WIDTH)), whole[:, kept], rtol=1e-12)
        assert [site.layer for site in part.writes] == kept
        assert torch.equal(attrib.encode(part, x), attrib.encode(layer_0, x))
    assert attrib.writing_at(layer_0, range(9)) is layer_0
    skip = from_tensors(site="blocks.0.mlp.hook_in", writes=layer_0.writes, **{
        name: getattr(layer_0.params, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")
    }, W_skip=normal(WIDTH, LAYERS * WIDTH, dtype=F64, seed=3))  # fmt: skip
    both = attrib.reconstruct(skip, x).unflatten(-1, (LAYERS, WIDTH))[:, [1, 3]]
    assert torch.allclose(attrib.reconstruct(attrib.writing_at(skip, [1, 3]), x).unflatten(-1, (2, WIDTH)), both, rtol=1e-12)
    lazy = replace(layer_0, config=replace(layer_0.config, lazy=True))
    assert attrib.writing_at(lazy, [1, 2]).d_out == 2 * WIDTH
    cases: list[tuple[Any, Any, str]] = [
        (last, [0, 1], r"layers: \[0, 1\], and .* writes blocks.3.hook_mlp_out"),
        (layer_0, ["1"], "layers: '1'; expected numbers of layers"),
        (lazy, [0, 2], "is read from its file as it is used, of which layers side by side can be taken"),
    ]
    for one, layers, said in cases:
        with pytest.raises(InputError, match=said):
            attrib.writing_at(one, layers)
