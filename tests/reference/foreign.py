"""Attributions by transformers, sae-lens and torch.autograd: values are put into the model's own modules by hooks.

Nothing of attrib computes here; its table of module names says where the hooks go.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrib.adapters.models.families import family_of
from attrib.core.types import Site

Put = Callable[[Tensor], Tensor]
"""What stands at a site [positions, width], from what would stand there."""


def run(model: nn.Module, tokens: Tensor, put: dict[Site, Put]) -> Tensor:
    """Logits [positions, d_vocab] of a transformers model with other values at some of its sites; a `put` may also only look."""
    places = family_of(model.config).places(model.config)
    module_of = {
        "resid_pre": ("", True),
        "z": (places.z, True),
        "attn_out": (places.attn_out, False),
        "mlp_in": (places.mlp_in, True),
        "mlp_out": (places.mlp_out, False),
    }
    handles = []

    def changed(value: Tensor, function: Put) -> Tensor:
        return function(value.reshape(len(tokens), -1)).reshape(value.shape)

    def entering(function: Put) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (changed(args[0], function), *args[1:]), named
            return args, named | {"hidden_states": changed(named["hidden_states"], function)}

        return hook

    def leaving(function: Put) -> Callable[..., Any]:
        def hook(_: nn.Module, args: Any, out: Any) -> Any:
            return (changed(out[0], function), *out[1:]) if isinstance(out, tuple) else changed(out, function)

        return hook

    try:
        for site, function in put.items():
            name, enters = module_of[site.kind]
            module = model.get_submodule(f"{places.layers}.{site.layer}" + (f".{name}" if name else ""))
            if enters:
                handles.append(module.register_forward_pre_hook(entering(function), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(leaving(function)))
        return model(tokens[None], use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def jacobian(model: nn.Module, tokens: Tensor, start: Site, enter: Callable[[Tensor], Put], values: Tensor, read: "Read") -> Tensor:
    """[targets, sources], row by row by torch.autograd.

    Args:
        enter: the leaves' values → what stands at `start`.
    """
    leaves = values.clone().requires_grad_()
    seen: dict[Site, Tensor] = {}
    put: dict[Site, Put] = {} if read.site is None else {read.site: lambda value: seen.setdefault(read.site, value)}
    logits = run(model, tokens, put | {start: enter(leaves)})
    targets = read.function(logits if read.site is None else seen[read.site])
    rows = [torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True)[0] for target in targets]
    return torch.stack([torch.zeros_like(values) if row is None else row for row in rows])


class Read:
    """What is read of the logits, or of the value at a site."""

    def __init__(self, site: Site | None, function: Callable[[Tensor], Tensor]) -> None:
        self.site, self.function = site, function


def latents_enter(sae: Any, true: Tensor, position: Tensor, latent: Tensor) -> Callable[[Tensor], Put]:
    """A sae-lens SAE's decoding of sparse latents plus its constant error, at the site where it reads and writes."""
    with torch.no_grad():
        error = true - sae.decode(sae.encode(true))

    def enter(values: Tensor) -> Put:
        dense = values.new_zeros(len(true), sae.cfg.d_sae).index_put((position, latent), values)
        return lambda _: sae.decode(dense) + error

    return enter
