"""The dense recipe: jacrev through transformers' own decoder blocks and sae-lens's own encode and decode.

    dense latents [positions, d_sae] -> decode (+ error) -> blocks -> dense encode -> the active targets

differentiated with respect to all dense latents at once; the columns of the active ones are then picked.
Nothing of attrib's model, dictionaries or paths is used here: only its name of a place, `Site`.

A model must first be made fit for torch.func, by `prepare`:
- scaled_dot_product_attention has no vmap rule for its backward, and transformers' eager Llama attention
  takes its softmax in float32: attention is written out here, in the model's own dtype;
- LlamaRMSNorm computes in float32 whatever it is given: its forward is written out in the model's dtype.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attrib.core.types import Site

CHUNK = 128
"""Cotangents of one vmap."""

ATTENTION = "written_out"

STATISTICS = ("ln_mu", "ln_std", "x_norm_coeff")
"""What sae-lens's encode leaves on the SAE for its decode."""


class Nodes(NamedTuple):
    """Active latents sorted by (position, latent), or tokens."""

    position: Tensor
    latent: Tensor
    activation: Tensor


class Jacobian(NamedTuple):
    """`gradient` [targets, sources] in canonical order. Targets' activations are the values along the path."""

    gradient: Tensor
    sources: Nodes
    values: Tensor
    targets: Nodes | None = None

    @property
    def attribution(self) -> Tensor:
        return self.gradient * self.sources.activation


# ------------------------------------------------------------------------------------ the model


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, dropout: float = 0.0, **_: Any
) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    key, value = (t[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for t in (key, value))
    pattern = (query @ key.transpose(-1, -2) * scaling + attention_mask).softmax(-1)
    pattern = module.__dict__.get("held_pattern", pattern)
    return (pattern @ value).transpose(1, 2), pattern


def _rms_norm(self: nn.Module, x: Tensor) -> Tensor:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def prepare(model: nn.Module) -> nn.Module:
    """The same model, a fresh GPT2LMHeadModel or LlamaForCausalLM, fit for torch.func and true to its dtype."""
    from transformers import AttentionInterface
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    AttentionInterface.register(ATTENTION, _attention)
    model.config._attn_implementation = ATTENTION
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = MethodType(_rms_norm, module)
    return model.requires_grad_(False).eval()


class Parts(NamedTuple):
    """A decoder block and its modules, by what they do."""

    block: nn.Module
    norm_1: nn.Module
    attention: nn.Module
    project: nn.Module
    norm_2: nn.Module
    mlp: nn.Module


def _parts(model: nn.Module) -> list[Parts]:
    if model.config.model_type == "gpt2":
        return [Parts(b, b.ln_1, b.attn, b.attn.c_proj, b.ln_2, b.mlp) for b in model.transformer.h]
    return [Parts(b, b.input_layernorm, b.self_attn, b.self_attn.o_proj, b.post_attention_layernorm, b.mlp) for b in model.model.layers]


def _final_norm(model: nn.Module) -> nn.Module:
    return model.transformer.ln_f if model.config.model_type == "gpt2" else model.model.norm


@torch.no_grad()
def embed(model: nn.Module, tokens: Tensor) -> Tensor:
    """The residual stream that enters the first block [positions, d_model]."""
    if model.config.model_type == "gpt2":
        return model.transformer.wte(tokens) + model.transformer.wpe(torch.arange(len(tokens)))
    return model.model.embed_tokens(tokens)


def _entering(parts: Parts, site: Site, x: Tensor, stream: Tensor) -> Any:
    """A hook that puts `x` at a site within a block whose `resid_pre` is `stream`."""
    match site.kind:
        case "z":
            return parts.project.register_forward_pre_hook(lambda *_: (x[None],))
        case "attn_out":
            return parts.project.register_forward_hook(lambda *_: x[None])
        case "resid_mid":  # no module's output: what attention must add to give it
            return parts.project.register_forward_hook(lambda *_: (x - stream)[None])
        case "mlp_in":
            return parts.mlp.register_forward_pre_hook(lambda *_: (x[None],))
        case "mlp_out":
            return parts.mlp.register_forward_hook(lambda *_: x[None])
    raise AssertionError(site)


def _reading(parts: Parts, site: Site, keep: Callable[[Tensor], None]) -> Any:
    """A hook that hands the value at a site within a block to `keep`."""
    match site.kind:
        case "z":
            return parts.project.register_forward_pre_hook(lambda _, args: keep(args[0][0]))
        case "attn_out":
            return parts.project.register_forward_hook(lambda _, args, out: keep(out[0]))
        case "resid_mid":
            return parts.norm_2.register_forward_pre_hook(lambda _, args: keep(args[0][0]))
        case "mlp_in":
            return parts.mlp.register_forward_pre_hook(lambda _, args: keep(args[0][0]))
        case "mlp_out":
            return parts.mlp.register_forward_hook(lambda _, args, out: keep(out[0]))
    raise AssertionError(site)


def run(model: nn.Module, start: Site, x: Tensor, stop: Site | None, stream: Tensor | None = None) -> Tensor:
    """From the value at `start` [positions, width] to the value at `stop`, or to the logits where that is None.

    Args:
        stream: `resid_pre` of the layer of `start`, needed where that is within a block; a constant.
    """
    parts, found = _parts(model), []
    if start == stop:
        return x
    first = start.layer + (start.kind == "resid_post")
    is_within = start.kind not in ("resid_pre", "resid_post")
    h = (stream if is_within else x)[None]
    positions = h.shape[1]
    arguments = {"attention_mask": torch.full((1, 1, positions, positions), -torch.inf, dtype=h.dtype).triu(1)}
    if model.config.model_type == "llama":
        arguments["position_embeddings"] = model.model.rotary_emb(h, torch.arange(positions)[None])
    with ExitStack() as hooks:
        if is_within:
            hooks.callback(_entering(parts[start.layer], start, x, stream).remove)
        if stop is not None and stop.kind not in ("resid_pre", "resid_post"):
            hooks.callback(_reading(parts[stop.layer], stop, found.append).remove)
        for layer in range(first, len(parts)):
            if stop == Site(layer, "resid_pre"):
                return h[0]
            h = parts[layer].block(h, **arguments)
            if found:
                return found[0]
            if stop == Site(layer, "resid_post"):
                return h[0]
    return model.lm_head(_final_norm(model)(h))[0]


@contextmanager
def held(model: nn.Module, primal: Callable[[], Tensor]) -> Iterator[None]:
    """Hold attention patterns and norm denominators, as constants, at the values that they have while `primal` runs."""
    norms = [norm for p in _parts(model) for norm in (p.norm_1, p.norm_2)] + [_final_norm(model)]
    attentions = [p.attention for p in _parts(model)]
    denominators: dict[nn.Module, Tensor] = {}
    patterns: dict[nn.Module, Tensor] = {}

    def centred(norm: nn.Module, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x

    def record(norm: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
        eps = norm.eps if isinstance(norm, nn.LayerNorm) else norm.variance_epsilon
        denominators[norm] = (centred(norm, args[0]).square().mean(-1, keepdim=True) + eps).sqrt()

    def replace(norm: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
        out = centred(norm, args[0]) / denominators[norm] * norm.weight
        return out + norm.bias if isinstance(norm, nn.LayerNorm) else out

    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_hook(record).remove)
        for attention in attentions:
            hooks.callback(attention.register_forward_hook(lambda module, _, out: patterns.__setitem__(module, out[1])).remove)
        primal()
    with ExitStack() as hooks:
        for norm in denominators:
            hooks.callback(norm.register_forward_hook(replace).remove)
        for attention, pattern in patterns.items():
            attention.__dict__["held_pattern"] = pattern
            hooks.callback(attention.__dict__.pop, "held_pattern")
        yield


# ----------------------------------------------------------------------------------- dictionaries


def site_of(sae: Any) -> Site:
    return Site.parse(sae.cfg.metadata.hook_name)


def encode(sae: Any, x: Tensor) -> Tensor:
    """All latents; what sae-lens leaves on the SAE, perhaps a tensor of a transform that is over, is taken off again."""
    dense = sae.encode(x)
    for name in STATISTICS:
        sae.__dict__.pop(name, None)
    return dense


def decoder_at(sae: Any, x: Tensor) -> Callable[[Tensor], Tensor]:
    """sae-lens's decode with the statistics of the input `x`, constants whatever its argument."""
    sae.encode(x)
    statistics = {name: sae.__dict__.pop(name) for name in STATISTICS if name in sae.__dict__}

    def decode(dense: Tensor) -> Tensor:
        for name, value in statistics.items():
            setattr(sae, name, value)
        return sae.decode(dense)

    return decode


@torch.no_grad()
def active(sae: Any, x: Tensor) -> Nodes:
    """The active latents at `x`."""
    dense = encode(sae, x)
    position, latent = dense.nonzero(as_tuple=True)
    return Nodes(position, latent, dense[position, latent])


# ------------------------------------------------------------------------------------- the recipe

Read = Callable[[Tensor], Tensor]
"""From the value at the last site, or all logits, to a vector of targets."""


@torch.no_grad()
def from_latents(
    model: nn.Module, source: Any, tokens: Tensor, stop: Site | None, read: Read, *, error: bool = True, linear: bool = False
) -> Jacobian:
    """What `read` makes of the value at `stop` (None: the logits), differentiated by the source's latents.

    Args:
        linear: attention patterns and norm denominators are constants, at their values along the path.
    """
    start = site_of(source)
    x, stream = true_value(model, tokens, start), true_value(model, tokens, Site(start.layer, "resid_pre"))
    dense, decode = encode(source, x), decoder_at(source, x)
    rest = x - decode(dense) if error else torch.zeros_like(x)

    def through(latents: Tensor) -> Tensor:
        return run(model, start, decode(latents) + rest, stop, stream)

    with held(model, lambda: through(dense)) if linear else ExitStack():
        gradient = torch.func.jacrev(lambda latents: read(through(latents)), chunk_size=CHUNK)(dense)
        values = read(through(dense))
    sources = active(source, x)
    return Jacobian(gradient[:, sources.position, sources.latent], sources, values)


@torch.no_grad()
def from_tokens(model: nn.Module, tokens: Tensor, stop: Site | None, read: Read, *, linear: bool = False) -> Jacobian:
    """What `read` makes of the value at `stop`, differentiated by one scale for each token's embedding sum."""
    embedded = embed(model, tokens)
    scales = torch.ones_like(embedded[:, 0])

    def through(scales: Tensor) -> Tensor:
        return run(model, Site(0, "resid_pre"), embedded * scales[:, None], stop)

    with held(model, lambda: through(scales)) if linear else ExitStack():
        gradient = torch.func.jacrev(lambda scales: read(through(scales)), chunk_size=CHUNK)(scales)
        values = read(through(scales))
    return Jacobian(gradient, Nodes(torch.arange(len(tokens)), tokens, scales), values)


@torch.no_grad()
def true_value(model: nn.Module, tokens: Tensor, site: Site | None) -> Tensor:
    """The value at a site, or the logits, on the true activations."""
    return run(model, Site(0, "resid_pre"), embed(model, tokens), site)


def latent_to_latent(model: nn.Module, source: Any, target: Any, tokens: Tensor, *, error: bool = True, linear: bool = False) -> Jacobian:
    """All targets that are active on the true activations, by all active sources."""
    targets = active(target, true_value(model, tokens, site_of(target)))
    found = from_latents(model, source, tokens, site_of(target), _read_active(target, targets), error=error, linear=linear)
    return found._replace(targets=targets)


def token_to_latent(model: nn.Module, target: Any, tokens: Tensor, *, linear: bool = False) -> Jacobian:
    """All active targets by all token scales."""
    targets = active(target, true_value(model, tokens, site_of(target)))
    return from_tokens(model, tokens, site_of(target), _read_active(target, targets), linear=linear)._replace(targets=targets)


def _read_active(target: Any, targets: Nodes) -> Read:
    return lambda x: encode(target, x)[targets.position, targets.latent]


def latent_to_logit(
    model: nn.Module, source: Any, tokens: Tensor, ids: Tensor, *, position: int = -1, error: bool = True, linear: bool = False
) -> Jacobian:
    """The logits of `ids` at one position, by all active sources."""
    return from_latents(model, source, tokens, None, lambda logits: logits[position, ids], error=error, linear=linear)


def latent_to_metric(
    model: nn.Module, source: Any, tokens: Tensor, metric: Callable[[Tensor], Tensor], *, error: bool = True, linear: bool = False
) -> Jacobian:
    """A scalar of all logits, by all active sources: one row."""
    return from_latents(model, source, tokens, None, lambda logits: metric(logits)[None], error=error, linear=linear)
