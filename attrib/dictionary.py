"""Sparse dictionaries as pure functions: parameters as a pytree, a frozen config, encode and decode.

    x'  = (x - shift) / scale                    normalise the input (none, layer_norm, constant_norm_rescale)
    pre = (x' - b_dec) W_enc + b_enc             b_dec subtracted only with apply_b_dec_to_input
    f   = relu(pre) · [pre > threshold]          ReLU: threshold 0; JumpReLU: learned; TopK: the k largest
    x^  = (f W_dec + b_dec) · scale + shift      decode, with the scale and shift of the input

The three kinds differ in the threshold alone, so everything after it is written once. Decoder norms of
TopK dictionaries that rescale by them are folded into the weights where they are read (sources/).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.model import fingerprint
from attrib.types import Site

Rule = Literal["relu", "jumprelu", "topk"]
Normalisation = Literal["none", "layer_norm", "constant_norm_rescale"]


class DictionaryParams(NamedTuple):
    """Every tensor of a dictionary. An SAE writes where it reads: d_out is d_in."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " d_sae"]  # zero but for JumpReLU


@dataclass(frozen=True)
class DictionaryConfig:
    """The static facts of a dictionary. `k` is used by TopK alone."""

    site: Site
    rule: Rule
    k: int | None
    apply_b_dec_to_input: bool
    normalisation: Normalisation
    model_name: str | None


class InputScale(NamedTuple):
    """What normalisation took out of the input and decoding puts back, per position."""

    shift: Float[Tensor, "*batch positions 1"]
    scale: Float[Tensor, "*batch positions 1"]


@dataclass(frozen=True)
class Dictionary:
    """Parameters and config of one SAE."""

    params: DictionaryParams
    config: DictionaryConfig
    name: str

    @property
    def d_in(self) -> int:
        """Width of the vectors that it reads."""
        return self.params.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """How many latents it has."""
        return self.params.W_enc.shape[1]

    @property
    def site(self) -> Site:
        """Where it reads and writes."""
        return self.config.site

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Dictionary":
        """The same dictionary in another dtype or on another device."""
        return replace(self, params=pytree.tree_map(lambda p: p.to(dtype=dtype, device=device), self.params))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all parameters."""
        return fingerprint(self.params)


def normalise_input(
    dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]
) -> tuple[Float[Tensor, "*batch positions d_in"], InputScale]:
    """The input as the encoder wants it, and the scale that decoding undoes.

    `layer_norm` divides by the unbiased deviation plus 1e-5 and, like sae-lens, multiplies back without the 1e-5.
    """
    match dictionary.config.normalisation:
        case "layer_norm":
            shift = x.mean(-1, keepdim=True)
            scale = (x - shift).std(-1, keepdim=True)
            return (x - shift) / (scale + 1e-5), InputScale(shift, scale)
        case "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / dictionary.d_in**0.5
            return x / scale, InputScale(torch.zeros_like(scale), scale)
        case "none":
            one = torch.ones_like(x[..., :1])
            return x, InputScale(torch.zeros_like(one), one)


def pre_activations(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_sae"]:
    """Encoder output before the activation rule."""
    p = dictionary.params
    x, _ = normalise_input(dictionary, x)
    if dictionary.config.apply_b_dec_to_input:
        x = x - p.b_dec
    return x @ p.W_enc + p.b_enc


def active(dictionary: Dictionary, pre: Float[Tensor, "*batch positions d_sae"]) -> Bool[Tensor, "*batch positions d_sae"]:
    """Which latents the rule lets through."""
    above = (pre > 0) & (pre > dictionary.params.threshold)
    if dictionary.config.rule == "topk":
        assert dictionary.config.k is not None  # checked where the dictionary is read
        chosen = torch.zeros_like(above).scatter(-1, pre.topk(dictionary.config.k, dim=-1).indices, True)
        return above & chosen
    return above


def encode(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_sae"]:
    """All latents, dense. Paths use `encode_at` instead, which forms nothing of this size."""
    pre = pre_activations(dictionary, x)
    return pre.where(active(dictionary, pre), torch.zeros_like(pre))


def encode_at(
    dictionary: Dictionary,
    x: Float[Tensor, "positions d_in"],
    position: Int[Tensor, " targets"],
    latent: Int[Tensor, " targets"],
    gate: Bool[Tensor, " targets"] | None = None,
) -> Float[Tensor, " targets"]:
    """Chosen latents at chosen positions, by gathering their encoder columns alone.

    Args:
        gate: for TopK, which targets are among the k largest at the primal point: the competition with
            all other latents, which cannot be seen from the chosen ones. It does not change in a
            neighbourhood of the primal, so derivatives are exact. Ignored by the other rules.
    """
    p = dictionary.params
    x, _ = normalise_input(dictionary, x)
    if dictionary.config.apply_b_dec_to_input:
        x = x - p.b_dec
    columns = p.W_enc.index_select(1, latent).T.contiguous()  # four times as fast as taking rows of the transpose
    pre = (x.index_select(0, position) * columns).sum(-1) + p.b_enc.index_select(0, latent)
    above = (pre > 0) & (pre > p.threshold.index_select(0, latent))
    if dictionary.config.rule == "topk" and gate is not None:
        above = above & gate
    return pre.where(above, torch.zeros_like(pre))


def decode(
    dictionary: Dictionary,
    latents: Float[Tensor, "*batch positions d_sae"],
    scale: InputScale | None = None,
) -> Float[Tensor, "*batch positions d_out"]:
    """Reconstruction from dense latents.

    Args:
        scale: what `normalise_input` returned for the input; needed by dictionaries that normalise.
    """
    out = latents @ dictionary.params.W_dec + dictionary.params.b_dec
    return out if scale is None else out * scale.scale + scale.shift


def decode_at(
    dictionary: Dictionary,
    value: Float[Tensor, " active"],
    position: Int[Tensor, " active"],
    latent: Int[Tensor, " active"],
    scale: InputScale,
) -> Float[Tensor, "positions d_out"]:
    """Reconstruction from sparse latents, by gathering their decoder rows alone."""
    rows = value[:, None] * dictionary.params.W_dec.index_select(0, latent)
    out = dictionary.params.b_dec.expand(scale.shift.shape[0], -1).index_add(0, position, rows)
    return out * scale.scale + scale.shift


def reconstruct(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_out"]:
    """decode(encode(x)), with the input's own scale."""
    return decode(dictionary, encode(dictionary, x), normalise_input(dictionary, x)[1])
