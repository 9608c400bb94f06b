"""Plain loops over transformers' own model with sae-lens' own dictionaries hooked into it: what tasks are held against."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attrib.causal.tasks import Example
from tests.support.builders import prompt, sae

LAYERS = (1, 2)
LENGTHS = (5, 9, 1, 7)
ANSWERS = ((3, 11), (11, 3), (40, (7, 8)), (2, 59, 30))
LABELS = (0, 1, 1, 2)

Latents = Callable[[int, Tensor], Tensor]
"""What becomes of the latents of a layer's dictionary."""


def examples() -> list[Example]:
    """Ragged prompts, one of a single token; answers of several tokens, and more than two of them; every label."""
    prompts = [prompt(length, seed=length) for length in LENGTHS]
    return [Example(ids, answers, label) for ids, answers, label in zip(prompts, ANSWERS, LABELS, strict=True)]


def saes(kind: str, dtype: torch.dtype, hook: str = "hook_resid_pre", **options: Any) -> dict[int, Any]:
    """sae-lens' own, of the stream before two layers, or of another hook in them."""
    return {layer: sae(kind, dtype=dtype, site=f"blocks.{layer}.{hook}", seed=layer, **options) for layer in LAYERS}


@contextmanager
def hooked(
    model: nn.Module, put_in: dict[int, Any], become: Latents = lambda layer, latents: latents, errors: bool = False
) -> Iterator[None]:
    """transformers' model with SAEs in place of what goes into their layers, or into the layers' output projection."""

    def splice(own: Any, layer: int, _: nn.Module, args: Any, kwargs: Any) -> Any:
        latents = become(layer, own.encode(args[0] if args else kwargs["hidden_states"]))
        out = own.decode(latents)
        return ((out, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": out})

    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    places = {
        layer: layers[layer].attn.c_proj if own.cfg.metadata.hook_name.endswith("hook_z") else layers[layer]
        for layer, own in put_in.items()
    }
    handles = [places[layer].register_forward_pre_hook(partial(splice, own, layer), with_kwargs=True) for layer, own in put_in.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def difference(logits: Tensor, example: Example) -> Tensor:
    """Mean right minus mean wrong, by the words of docs/tasks.md."""
    tokens = [[answer] if isinstance(answer, int) else list(answer) for answer in example.answers]
    wrong = [token for number, answer in enumerate(tokens) if number != example.label for token in answer]
    return logits[tokens[example.label]].mean() - logits[wrong].mean()


def last_logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids[None], use_cache=False).logits[0, -1]


def each_latent(
    model: nn.Module, put_in: dict[int, Any], example: Example, positions: Sequence[int], by: str
) -> list[tuple[int, int, float, float]]:
    """(number of the dictionary, latent, summed activation, effect), with one pass for each latent or each dictionary."""
    ids, latents = example.prompt, {}

    def keep(layer: int, values: Tensor) -> Tensor:
        latents[layer] = values
        return values

    with torch.no_grad(), hooked(model, put_in, keep):
        whole = difference(last_logits(model, ids), example)
    values = {layer: value[0].detach() for layer, value in latents.items()}
    if by == "gradient":

        def tracked(layer: int, now: Tensor) -> Tensor:
            now = now.clone()
            now.retain_grad() if now.requires_grad else now.requires_grad_()
            latents[layer] = now
            return now

        with torch.enable_grad(), hooked(model, put_in, tracked):
            difference(last_logits(model, ids), example).backward()
    rows = []
    for number, (layer, value) in enumerate(values.items()):
        for latent in value[list(positions)].any(0).nonzero().flatten().tolist():
            if by == "gradient":
                products = latents[layer].grad[0] * value
                effect = float(products[list(positions), latent].sum())
            else:

                def without(at: int, now: Tensor, layer: int = layer, latent: int = latent) -> Tensor:
                    if at == layer:
                        now = now.clone()
                        now[0, list(positions), latent] = 0
                    return now

                with torch.no_grad(), hooked(model, put_in, without):
                    effect = float(whole - difference(last_logits(model, ids), example))
            rows.append((number, latent, float(value[list(positions), latent].sum()), effect))
    return rows
