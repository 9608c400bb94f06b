"""What an original shows at every site: a transformers model by hooks on its modules, TransformerLens by its cache."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.models.families import Places, family_of
from attrib.core.types import SITE_KINDS, Site, SiteKind
from attrib.models.transformer import Model

Where = Site | Literal["logits"]
Values = Mapping[Where, Tensor]


class _Watch(NamedTuple):
    """One value of the original: what enters or leaves a module."""

    site: Site
    module: str
    enters: bool


def _watches(places: Places, n_layers: int) -> Iterator[_Watch]:
    for i in range(n_layers):
        at = f"{places.layers}.{i}"
        yield _Watch(Site(i, "resid_pre"), at, True)
        yield _Watch(Site(i, "z"), f"{at}.{places.z}", True)
        yield _Watch(Site(i, "attn_out"), f"{at}.{places.attn_out}", False)
        if places.resid_mid:
            yield _Watch(Site(i, "resid_mid"), f"{at}.{places.resid_mid}", True)
        yield _Watch(Site(i, "mlp_in"), f"{at}.{places.mlp_in}", True)
        yield _Watch(Site(i, "mlp_out"), f"{at}.{places.mlp_out}", False)
        yield _Watch(Site(i, "resid_post"), at, False)


def transformers_values(original: Any, model: Model, tokens: Int[Tensor, " positions"]) -> Values:
    """By hooks on the modules where the family's entry says that the sites are."""
    found: dict[Where, Tensor] = {}
    handles: list[Any] = []
    modules: dict[str, Any] = dict(original.named_modules())

    def keep(site: Site, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        found[site] = value.detach().reshape(len(tokens), -1).clone()  # cloned, for what follows may write into it

    def entering(site: Site) -> Callable[..., None]:
        return lambda module, args, named: keep(site, args if args else named["hidden_states"])

    def leaving(site: Site) -> Callable[..., None]:
        return lambda module, args, out: keep(site, out)

    try:
        for site, name, enters in _watches(family_of(original.config).places(original.config), model.config.n_layers):
            if (module := modules.get(name)) is None:
                continue  # then the site is not among the values, and the result says so
            if enters:
                handles.append(module.register_forward_pre_hook(entering(site), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(leaving(site)))
        device = original.get_input_embeddings().weight.device
        out: Float[Tensor, "1 positions d_vocab"] = original(tokens[None].to(device), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return found | {"logits": out[0]}


def transformer_lens_values(original: Any, model: Model, tokens: Int[Tensor, " positions"]) -> Values:
    """From its cache, under TransformerLens' names; heads that stand apart there are laid side by side.

    What enters an MLP has no name of its own in a HookedTransformer, whose `hook_mlp_in` fires before the norm: there
    a hook on the MLP sees it.
    """
    entered: dict[int, Tensor] = {}

    def entering(layer: int) -> Callable[..., None]:
        return lambda module, args: entered.__setitem__(layer, args[0].detach().clone())

    handles = [block.mlp.register_forward_pre_hook(entering(i)) for i, block in enumerate(original.blocks) if hasattr(block, "mlp")]
    try:
        out, cache = original.run_with_cache(tokens[None].to(next(original.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    found: dict[Where, Tensor] = {"logits": out[0]}
    for layer in range(model.config.n_layers):
        names: dict[SiteKind, tuple[str, ...]] = {kind: (str(Site(layer, kind)),) for kind in SITE_KINDS}
        names["mlp_in"] = (f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.mlp.in.hook_in")  # bridges; the second is OPT's
        if layer in entered:
            found[Site(layer, "mlp_in")] = entered[layer].reshape(len(tokens), -1)
        for kind, hooks in names.items():
            for hook in hooks:
                if hook in cache:
                    found[Site(layer, kind)] = cache[hook].reshape(len(tokens), -1)
    return found
