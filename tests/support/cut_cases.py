"""Sets of dictionaries that are put into a model together, and transformers' model with the same ones hooked in."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import EXACT, Policy, Site, SparseLatents
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model, width
from attrib.passes.replacement import CutLeaves, Replacement
from tests.support.builders import D_MODEL, Family, build, normal, prompt, sae

TOKENS = prompt(10)
SOME = 9
"""How many logits are differentiated where each takes a pass of its own."""

# ------------------------------------------------------------------------------- sets of dictionaries


@dataclass(frozen=True)
class Foreign:
    """One dictionary as its own library (or, for a cross-layer one, its formula) computes it."""

    reads: Site
    writes: tuple[Site, ...]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, Tensor], Tensor]
    """The input and the latents, to what is written at all sites side by side: without a skip connection."""
    whole: Callable[[Tensor], Tensor]
    ours: Dictionary


def lens(model: Model, kind: str, site: str, seed: int = 3, **options: Any) -> Foreign:
    """One of sae-lens' own, with flat vectors where it wants heads apart."""
    reads = Site.parse(site)
    return _lens(kind, reads, model.config.n_heads, width(model.config, reads), model.dtype, seed, tuple(options.items()))


@cache
def _lens(kind: str, reads: Site, heads: int, size: int, dtype: torch.dtype, seed: int, given: tuple[tuple[str, Any], ...]) -> Foreign:
    options = dict(given)
    if reads.kind == "z":
        options["reshape_activations"] = "hook_z"
    made = sae(kind, size, dtype, site=reads, seed=seed, d_sae=48, **options).requires_grad_(False)
    ours = attrib.from_sae_lens(made)

    def apart(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)) if reads.kind == "z" else x

    def flat(x: Tensor) -> Tensor:
        return x.flatten(-2) if reads.kind == "z" else x

    def decode(x: Tensor, latents: Tensor) -> Tensor:
        made.encode(apart(x))  # keeps the input's norm for decode, once
        return flat(made.decode(latents))

    return Foreign(reads, ours.writes, lambda x: made.encode(apart(x)), decode, lambda x: flat(made(apart(x))), ours)


def cross(model: Model, layers: range, reads: str = "mlp_in", d_sae: int = 40) -> list[Foreign]:
    """A cross-layer transcoder, written out."""
    found = []
    for layer in layers:
        writes = tuple(Site(later, "mlp_out") for later in range(layer, layers.stop))
        W_enc = normal(D_MODEL, d_sae, dtype=model.dtype, seed=50 + layer) * D_MODEL**-0.5
        W_dec = normal(d_sae, len(writes) * D_MODEL, dtype=model.dtype, seed=60 + layer) / 4
        b_enc, b_dec = normal(d_sae, dtype=model.dtype, seed=70 + layer) / 4, normal(W_dec.shape[1], dtype=model.dtype, seed=80 + layer) / 4
        site = Site(layer, reads)
        ours = from_tensors(site=site, writes=writes, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec)

        def encoded(x: Tensor, W: Tensor = W_enc, b: Tensor = b_enc) -> Tensor:
            return (x @ W + b).relu()

        def decoded(x: Tensor, f: Tensor, W: Tensor = W_dec, b: Tensor = b_dec) -> Tensor:
            return f @ W + b

        found.append(Foreign(site, writes, encoded, decoded, lambda x, e=encoded, d=decoded: d(x, e(x)), ours))
    return found


SETS: dict[str, Callable[[Model], list[Foreign]]] = {
    "residual": lambda m: [
        lens(m, "topk", "blocks.1.hook_resid_pre"),
        lens(m, "jumprelu", "blocks.3.hook_resid_pre", seed=4, normalize_activations="layer_norm"),
    ],
    "transcoders": lambda m: [
        lens(m, "jumprelu_skip_transcoder", "blocks.1.mlp.hook_in"),
        lens(m, "transcoder", "blocks.2.mlp.hook_in", seed=4),
    ],
    "attn_out": lambda m: [lens(m, "gated", "blocks.1.hook_attn_out")],
    "z": lambda m: [lens(m, "standard", "blocks.2.attn.hook_z", normalize_activations="constant_norm_rescale")],
    "cross": lambda m: cross(m, range(1, 4)),
    "all": lambda m: [
        lens(m, "skip_transcoder", "blocks.0.mlp.hook_in", seed=5),
        lens(m, "gated", "blocks.1.hook_attn_out", seed=6),
        *cross(m, range(1, 4)),
        lens(m, "topk", "blocks.2.hook_resid_pre", seed=7, rescale_acts_by_decoder_norm=True),
        lens(m, "abstopk", "blocks.2.attn.hook_z", seed=8, k=9),
        lens(m, "standard", "blocks.2.hook_attn_out", seed=9, normalize_activations="layer_norm"),
        lens(m, "jumprelu", "blocks.3.hook_resid_post", seed=10),
    ],
}


BARE = ("gpt2 without masks", "llama without masks and norms", "gemma2 without masks and MLPs", "gpt2 without norms and MLPs")
"""Models without what others have, for tests of what needs it."""


def fits(row: Mapping[str, Any]) -> bool:
    """Whether the model of a combination has the places that its dictionaries read."""
    return "MLPs" not in row["family"] or row["which"] in (None, "residual", "attn_out", "z")


def ours(found: list[Foreign]) -> list[Dictionary]:
    return [foreign.ours for foreign in found]


@cache
def put_in(family: Family, which: str, dtype: torch.dtype = torch.float64, policy: Policy = EXACT) -> Replacement:
    model = build(family, dtype)
    return attrib.replace(model, ours(SETS[which](model)), policy=policy)


# ---------------------------------------------------------------------------------------- the oracle


@contextmanager
def editing(model: nn.Module, edits: dict[Site, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Hooks on transformers' modules by which each site's value becomes what its edit makes of it, until the end."""
    kind = model.config.model_type
    layers = model.transformer.h if kind in ("gpt2", "gptj") else model.model.layers
    project = {"gpt2": "attn.c_proj", "gptj": "attn.out_proj"}.get(kind, "self_attn.o_proj")
    attn_out, mlp_out = ("post_attention_layernorm", "post_feedforward_layernorm") if kind == "gemma2" else (project, "mlp")
    handles = []

    def into(module: nn.Module, edit: Callable[[Tensor], Tensor]) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((edit(args[0]), *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": edit(kwargs["hidden_states"])})

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def out_of(module: nn.Module, edit: Callable[[Tensor], Tensor]) -> None:
        handles.append(module.register_forward_hook(lambda _, args, out: (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)))

    for site, edit in edits.items():
        layer = layers[site.layer]
        match site.kind:
            case "resid_pre":
                into(layer, edit)
            case "z":
                into(layer.get_submodule(project), edit)
            case "attn_out":
                out_of(layer.get_submodule(attn_out), edit)
            case "mlp_in":
                into(layer.mlp, edit)
            case "mlp_out":
                out_of(layer.get_submodule(mlp_out), edit)
            case "resid_post":
                out_of(layer, edit)
            case _:
                raise AssertionError(f"transformers has no module at {site}")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def foreign_logits(
    model: nn.Module,
    found: list[Foreign],
    tokens: Tensor,
    *,
    errors: dict[Site, Tensor] | None = None,
    written: dict[int, Callable[[Tensor], Tensor]] | None = None,
    embedded: Tensor | None = None,
    read: dict[int, Tensor] | None = None,
) -> Tensor:
    """Logits of transformers' model with dictionaries hooked in.

    Args:
        errors: added where something is written.
        written: what some dictionaries make of what they read, in place of what their modules do.
        read: takes what each reads.
    """
    edits: dict[Site, list[Callable[[Tensor], Tensor]]] = {}
    parts: dict[Site, list[Tensor]] = {}

    def reading(number: int, foreign: Foreign) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            if read is not None:
                read[number] = x[0]
            out = written[number](x[0])[None] if written and number in written else foreign.whole(x)
            for site, part in zip(foreign.writes, out.chunk(len(foreign.writes), -1), strict=True):
                parts.setdefault(site, []).append(part)
            return x

        return edit

    for number, foreign in enumerate(found):
        edits.setdefault(foreign.reads, []).append(reading(number, foreign))
    for site in {site for foreign in found for site in foreign.writes}:
        edits.setdefault(site, []).append(lambda _, site=site: sum(parts[site]) + (errors[site] if errors else 0))

    def all_of(several: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            for one in several:
                x = one(x)
            return x

        return edit

    with editing(model, {site: all_of(several) for site, several in edits.items()}):
        given = {"input_ids": tokens[None]} if embedded is None else {"inputs_embeds": embedded[None]}
        return model(**given, use_cache=False).logits[0]


def errors_of(replaced: Replacement, leaves: CutLeaves) -> dict[Site, Tensor]:
    return dict(zip(replaced.written, leaves.errors, strict=True))


Standing = Callable[[Tensor], Tensor]
"""What a dictionary whose latents stand still writes, by what it reads: only its skip connection follows that."""


def standing(foreign: Foreign, true: Tensor, latents: Tensor | None = None) -> Standing:
    """A dictionary that truly reads `true`, with its true latents or with others [positions, d_sae]."""
    latents = foreign.encode(true[None])[0] if latents is None else latents
    decoded = foreign.decode(true[None], latents[None])[0]

    def skip(x: Tensor) -> Tensor:
        return (foreign.whole(x[None]) - foreign.decode(x[None], foreign.encode(x[None])))[0]

    return lambda x: decoded + skip(x)


def moved(foreign: Foreign, true: Tensor, nodes: SparseLatents, values: Tensor) -> Standing:
    """The same when its active latents have other values."""
    latents = torch.zeros_like(foreign.encode(true[None])[0]).index_put((nodes.position, nodes.latent), values)
    return standing(foreign, true, latents)
