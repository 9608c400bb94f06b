"""What a model adds to its stream whatever it reads: biases of attention, of norms and of MLPs, each at the place where it comes in.

With patterns and norms' denominators held, a block is linear but for its MLP, and what is left of each component when its
input is zero is a constant. An attention pattern sums to one, so that what it reads with is passed on as it is:

    z         b_V + w·b_norm W_V,  head by head         attn_out   N(z W_O + b_O) + b_post
    mlp_in    the bias of its norm                      mlp_out    mlp(x) - J x,  with J the MLP's derivative at x, or RelP's map

With a derivative the last is no bias of the model alone: it is what an MLP without a dictionary, taken as linear, does beside that. RelP's
map has the MLP's own value, so that biases are all that is left.
"""

from functools import partial

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp

from attrib.core.types import Policy
from attrib.models.transformer import Model, Norm, centres, mlp_hidden, rms


def constant_z(model: Model, layer: int) -> Float[Tensor, " d_q"]:
    """What every position's z has of its own."""
    config, block = model.config, model.params.blocks[layer]
    value = block.attention.b_V
    if config.pre_norm:
        value = value + block.norm_1.bias @ block.attention.W_V
    return repeat(value, "(kv d) -> (kv group d)", kv=config.n_kv_heads, group=config.n_heads // config.n_kv_heads)


def constant_attention(
    model: Model, layer: int, z: Float[Tensor, "positions d_q"], constant: Float[Tensor, " d_q"]
) -> Float[Tensor, "positions d_model"]:
    """What attention adds to the stream where z is a constant.

    Args:
        z: the true one, at which the norm behind attention has its denominator.
    """
    attention = model.params.blocks[layer].attention
    written = (constant @ attention.W_O + attention.b_O).expand(len(z), -1)
    true = z @ attention.W_O + attention.b_O if model.config.post_norm else written  # else nothing asks for it
    return _left(model, model.params.blocks[layer].post_1, true, written)


def constant_mlp(
    model: Model, layer: int, x: Float[Tensor, "positions d_model"], moving: Float[Tensor, "positions d_model"], policy: Policy
) -> Float[Tensor, "positions d_model"]:
    """What an MLP adds to the stream beside its derivative's share of what it reads, or under "relp" its relevance's.

    Args:
        x: what it reads, mlp_in.
        moving: the part of x that others bring there.
    """
    p, of = model.params.blocks[layer].mlp, partial(mlp_hidden, model.config, policy=policy)
    # the derivative of what is pointwise alone: through a matrix, jvp multiplies by zeros of the matrix' own size too
    entering, rising = x @ p.W_in + p.b_in, moving @ p.W_in
    if model.config.gated:
        gate, opening = x @ p.W_gate + p.b_gate, moving @ p.W_gate
        hidden, slope, *_ = jvp(of, (entering, gate), (rising, opening))
    else:
        hidden, slope, *_ = jvp(partial(of, gate=None), (entering,), (rising,))
    left = (hidden - slope) @ p.W_out + p.b_out
    true = hidden @ p.W_out + p.b_out if model.config.post_norm else left  # else nothing asks for it
    return _left(model, model.params.blocks[layer].post_2, true, left)


def _left(
    model: Model, norm: Norm, true: Float[Tensor, "positions d_model"], part: Float[Tensor, "positions d_model"]
) -> Float[Tensor, "positions d_model"]:
    """A part of what a component gives, behind the norm that the true whole of it passes, with that norm's own bias."""
    return behind_norm(model, norm, true, part) + norm.bias if model.config.post_norm else part


def behind_norm(
    model: Model, norm: Norm, true: Float[Tensor, "rows d_model"], part: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "rows d_model"]:
    """Row by row, a part of what a component gives behind the norm that the true whole of it passes; as it is where there is none."""
    config = model.config
    if not config.post_norm:
        return part
    if centres(config):
        true, part = (rows - rows.mean(-1, keepdim=True) for rows in (true, part))
    return part / rms(config, true) * norm.weight


def embeddings(model: Model, tokens: Tensor) -> tuple[Float[Tensor, "positions d_model"], Float[Tensor, "positions d_model"] | None]:
    """What the tokens bring to the stream, and what the positions do where the model has learned them."""
    token = torch.nn.functional.embedding(tokens, model.params.W_E) * model.config.embedding_scale
    return token, model.params.W_pos[: len(tokens)] if model.config.positions == "learned" else None
