"""What TransformerLens' own hooks and sae-lens' own modules compute with dictionaries in a model and edits on the way: the oracle of
interventions. Written with indices and loops, from what hooks see."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import attrib
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model
from tests.support.builders import D_MODEL, sae
from tests.support.hooked import hooked

Edit = Callable[[Tensor], Tensor]
"""From what a hook gives, of one prompt, to what stands there."""

READS_MLP = "ln2.hook_normalized"
"""What enters the MLP of a model whose norms are folded."""


@cache
def folded(family: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Model]:
    """A random HookedTransformer with its norms folded, and attrib's model of it."""
    lens = hooked(family, dtype, options="fold_ln")
    return lens, attrib.from_transformer_lens(lens)


def put_in(sites: Sequence[str], dtype: torch.dtype = torch.float64, kinds: Sequence[str] = ()) -> tuple[list[Any], list[Dictionary]]:
    """A random dictionary for each site, a transcoder where that is what enters an MLP, and attrib's view of each."""
    known = kinds or ["transcoder" if "mlp.hook_in" in site else ("standard", "topk", "jumprelu")[n % 3] for n, site in enumerate(sites)]
    foreign = [sae(kind, D_MODEL, dtype, site=site, d_sae=40, seed=5 + n) for n, (kind, site) in enumerate(zip(known, sites, strict=True))]
    return foreign, [attrib.from_sae_lens(one) for one in foreign]


def hooks_of(dictionary: Dictionary) -> tuple[str, str]:
    """The names of the hooks at which it reads and writes."""
    reads, (writes,) = dictionary.site, dictionary.writes
    return f"blocks.{reads.layer}.{READS_MLP}" if reads.kind == "mlp_in" else str(reads), str(writes)


@torch.no_grad()
def lens_run(
    lens: Any,
    ids: Tensor,
    foreign: Sequence[Any] = (),
    dictionaries: Sequence[Dictionary] = (),
    *,
    effect: Sequence[str] | str = "total",
    errors: Any = True,
    latents: Mapping[int, Edit] | None = None,
    of_errors: Mapping[str, Edit] | None = None,
    places: Mapping[str, Edit] | None = None,
    frozen: tuple[str, ...] = (),
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Logits of one prompt, and what stands at every hook in the end.

    Args:
        latents, of_errors, places: what becomes of each dictionary's latents, of the error at a hook, and of what stands there then.
        frozen: ends of the names of hooks whose values are those without edits.
    """
    _, clean = lens.run_with_cache(ids[None])
    kept = [name for name in clean if frozen and name.endswith(frozen)]
    hooks: list[tuple[str, Any]] = [(name, lambda value, hook: clean[hook.name]) for name in kept]
    stood: dict[str, Tensor] = {}
    for number, (module, dictionary) in enumerate(zip(foreign, dictionaries, strict=True)):
        hooks += _spliced(
            module, dictionary, clean, effect if isinstance(effect, str) else effect[number],
            errors if isinstance(errors, bool | str) else errors[number], (latents or {}).get(number, lambda a: a), of_errors or {},
        )  # fmt: skip
    hooks += [(name, lambda value, hook, edit=edit: edit(value[0])[None]) for name, edit in (places or {}).items()]
    hooks += [(name, lambda value, hook: stood.__setitem__(hook.name, value[0].clone())) for name in clean]
    return lens.run_with_hooks(ids[None], fwd_hooks=hooks)[0], stood


def _spliced(
    module: Any, dictionary: Dictionary, clean: Any, effect: str, errors: Any, edit: Edit, of_errors: Mapping[str, Edit]
) -> list[tuple[str, Any]]:
    reads, writes = hooks_of(dictionary)
    seen: dict[str, Tensor] = {}

    def read(value: Tensor, hook: Any) -> None:
        seen["x"] = value

    def write(value: Tensor, hook: Any) -> Tensor:
        x = seen["x"] if reads != writes else value
        own = module.encode(x)
        as_it_is = module.encode(clean[reads])
        error = {True: clean[writes] - module.decode(as_it_is), False: 0 * value, "live": value - module.decode(own)}[errors]
        if writes in of_errors:
            error = of_errors[writes](error[0])[None]
        return module.decode(edit((own if effect == "total" else as_it_is)[0])[None]) + error

    return [(reads, read), (writes, write)] if reads != writes else [(writes, write)]
