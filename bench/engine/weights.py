"""Models and dictionaries with random weights, in the shapes of real ones.

A matrix [n, m] has entries of deviation n^-1/2, so that every product keeps the size of its input; biases
are small and norm weights near one. A dictionary has unit decoder rows D and the encoder E = Dᵀ, and one
constant c as encoder bias,

    b = relu(x Dᵀ + c),      c = -(the threshold that  active · positions  of the numbers x Dᵀ pass),

so that on the activations x [positions, d_in] at hand its mean number of active latents is `active`.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import Site
from attrib.dictionaries.dictionary import Dictionary, DictionaryConfig, DictionaryParams
from attrib.models.transformer import MLP, Activation, Attention, Block, Model, ModelConfig, Norm, Params


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and the kinds of its parts; how many layers are built is said where it is built."""

    name: str
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    norm: Literal["layer", "rms"]
    activation: Activation
    gated: bool
    positions: Literal["learned", "rotary"]
    d_vocab: int = 1000
    n_ctx: int = 1024


GPT2 = Shape("gpt2-small", 768, 12, 12, 64, 3072, "layer", "gelu_tanh", False, "learned")
GPT2_VOCABULARY = 50257
GEMMA2_2B = Shape("gemma-2-2b", 2304, 8, 4, 256, 9216, "rms", "gelu_tanh", True, "rotary")
"""Gemma 2's sizes; its soft caps and the norms behind its components are left out."""


@lru_cache(maxsize=1)  # the cases of one shape follow each other
def random_model(shape: Shape, n_layers: int, seed: int = 0) -> Model:
    """A model of this shape with `n_layers` layers, float32, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, deviation: float) -> Tensor:
        return torch.randn(size, generator=generator).mul_(deviation)

    def matrix(rows: int, columns: int) -> Float[Tensor, "rows columns"]:
        return normal(rows, columns, deviation=rows**-0.5)

    def bias(size: int) -> Float[Tensor, " size"]:
        return normal(size, deviation=0.02)

    def norm() -> Norm:
        return Norm(1 + normal(d, deviation=0.1), bias(d) if shape.norm == "layer" else torch.zeros(d))

    d, d_q, d_kv, d_gate = shape.d_model, shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head, shape.d_mlp * shape.gated
    blocks = tuple(
        Block(
            norm(),
            Attention(matrix(d, d_q), bias(d_q), matrix(d, d_kv), bias(d_kv), matrix(d, d_kv), bias(d_kv), matrix(d_q, d), bias(d)),
            norm(),
            MLP(matrix(d, shape.d_mlp), bias(shape.d_mlp), matrix(d, d_gate), bias(d_gate), matrix(shape.d_mlp, d), bias(d)),
        )
        for _ in range(n_layers)
    )
    learned = shape.positions == "learned"
    cos, sin = rotary_tables(0 if learned else shape.n_ctx, 0 if learned else shape.d_head)
    params = Params(
        W_E=normal(shape.d_vocab, d, deviation=1.0),
        W_pos=normal(shape.n_ctx if learned else 0, d, deviation=0.1),
        rotary_cos=cos[None],
        rotary_sin=sin[None],
        blocks=blocks,
        norm_final=norm(),
        W_U=matrix(d, shape.d_vocab),
        b_U=bias(shape.d_vocab),
    )
    config = ModelConfig(
        n_layers=n_layers,
        d_model=d,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        d_head=shape.d_head,
        d_mlp=shape.d_mlp,
        d_vocab=shape.d_vocab,
        n_ctx=shape.n_ctx,
        norm=shape.norm,
        eps=1e-5,
        activation=shape.activation,
        gated=shape.gated,
        positions=shape.positions,
        attention_scale=shape.d_head**-0.5,
    )
    return Model(params, config, f"random {shape.name}")


def rotary_tables(n_ctx: int, d_rotary: int) -> tuple[Float[Tensor, "n_ctx d_rotary"], Float[Tensor, "n_ctx d_rotary"]]:
    """cos and sin of position · 10000^(-2i/d), each frequency once for either half (Su et al. 2021)."""
    frequency = 10000.0 ** -(torch.arange(0, d_rotary, 2) / max(d_rotary, 1))
    angle = torch.outer(torch.arange(n_ctx, dtype=torch.float32), frequency.repeat(2))
    return angle.cos(), angle.sin()


def random_dictionary(site: Site, d_sae: int, active: int, x: Float[Tensor, "positions d_in"], seed: int) -> Dictionary:
    """A ReLU dictionary at `site` of which about `active` latents per position are active on `x`."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, x.shape[1], generator=generator)
    W_dec /= W_dec.norm(dim=-1, keepdim=True)
    W_dec = W_dec.to(x)
    W_enc = W_dec.T.contiguous()
    b_enc = x.new_full((d_sae,), -threshold(x @ W_enc, active))
    params = DictionaryParams(W_enc, b_enc, W_dec, x.new_zeros(x.shape[1]), x.new_zeros(d_sae))
    config = DictionaryConfig(site, "relu", None, apply_b_dec_to_input=False, normalisation="none", model_name=None)
    return Dictionary(params, config, f"random {d_sae} at {site}")


def random_transcoder(
    site: Site, writes: tuple[Site, ...], d_sae: int, active: int, x: Float[Tensor, "positions d_in"], seed: int
) -> Dictionary:
    """The same with an encoder of its own, unit too, which writes unit rows at each of `writes`, as wide as what it reads."""
    generator = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(d_sae, x.shape[1], generator=generator)
    W_enc = (W_enc / W_enc.norm(dim=-1, keepdim=True)).T.contiguous().to(x)
    W_dec = torch.randn(d_sae, len(writes) * x.shape[1], generator=generator).mul_(x.shape[1] ** -0.5).to(x)
    b_enc = x.new_full((d_sae,), -threshold(x @ W_enc, active))
    return from_tensors(site=site, writes=writes, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, name=f"random {d_sae} at {site}")


def threshold(pre: Float[Tensor, "positions d_sae"], active: int) -> float:
    """A number that about `active` per position of `pre` exceed, to 2%.

    It lies in the middle of the widest gap there, so that two ways of rounding find the same latents active.
    """
    count = min(max(active * len(pre), 1), pre.numel() - 1)
    slack = min(count - 1, pre.numel() - 1 - count, math.ceil(0.02 * count))
    top = pre.flatten().topk(count + slack + 1).values[count - slack - 1 :]  # descending, at least two
    gap = int((top[:-1] - top[1:]).argmax())
    return float(top[gap] + top[gap + 1]) / 2


def with_vocabulary(shape: Shape, d_vocab: int) -> Shape:
    """The same shape with another vocabulary."""
    return replace(shape, d_vocab=d_vocab)
