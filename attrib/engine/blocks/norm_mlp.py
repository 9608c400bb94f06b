"""Norms and MLPs linearised at their primal point: each one's tangent map and adjoint, written out. Attention has attention.py.

A *point* holds what a component's derivative needs of the primal. A *push* maps tangents forward, a *pull*
maps cotangents back; both are linear, and any number of rows share one point. In the block's own symbols
(attrib/models/transformer.py):

    norm       unit = x̄ / s,  s² = ⟨x̄, x̄⟩/d + eps,  x̄ = x, centred for LayerNorm
               pull = push:  N(y) = (y - unit ⟨unit, y⟩ / d) / s         frozen: y / s
    MLP        pull(g) = Σ_i ((g W_out^T) ⊙ slope_i) W_i^T               i over the gate and the input

The weight of a norm is folded into the matrix that reads it, and so is the centring of a LayerNorm: W is
replaced by diag(w) W less the mean of its rows. Then 1^T W = 0, what W^T makes is centred by itself, and
one N serves both. A norm that stands behind a component (`Leaving`) is applied to rows, weight and all. docs/engine.md
derives each.

Rows are [positions, rows, width].
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.types import EXACT, Policy
from attrib.engine.blocks import kernels as ops
from attrib.engine.blocks.product import dots, product, product_into
from attrib.models.transformer import Model, ModelConfig, Norm, affine, centres, relevance_slopes

Rows = Float[Tensor, "positions rows _"]


# ------------------------------------------------------------------------------------------ norms


class NormPoint(NamedTuple):
    """The normed stream without weight and bias, and 1 / s."""

    unit: Float[Tensor, "positions d_model"]
    inverse: Float[Tensor, "positions 1"]

    def at(self, index: slice | Tensor) -> "NormPoint":
        """The point of some positions."""
        return NormPoint(self.unit[index], self.inverse[index])


def norm_point(config: ModelConfig, x: Float[Tensor, "positions d_model"]) -> NormPoint:
    """The point of either norm of a block at the stream `x`."""
    if centres(config):
        unit, _, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, config.eps)
        return NormPoint(unit, inverse.to(x.dtype))
    inverse = (x.pow(2).mean(-1, keepdim=True) + config.eps).rsqrt()
    return NormPoint(x * inverse, inverse)


def fold_norm(config: ModelConfig, norm: Norm, *parts: Float[Tensor, "d_model _"]) -> Float[Tensor, "d_model width"]:
    """The matrix, side by side of `parts`, that reads `unit` where they read the normed stream, up to a constant."""
    if not norm.weight.numel():
        return torch.cat(parts, dim=1)
    W = parts[0].new_empty(len(parts[0]), sum(part.shape[1] for part in parts))
    for part, into in zip(parts, W.split([part.shape[1] for part in parts], dim=1), strict=True):
        torch.mul(part, norm.weight[:, None], out=into)
    return W.sub_(W.mean(0, keepdim=True)) if centres(config) else W


def norm_map(point: NormPoint, y: Rows, policy: Policy) -> Rows:
    """N(y), in place: the adjoint of x → unit after a folded matrix, and its tangent map before one."""
    if policy.norm == "exact":
        y.addcmul_(dots(y, point.unit)[..., None], point.unit[:, None], value=-1 / y.shape[-1])
    return y.mul_(point.inverse[:, None])


def norm_pull(config: ModelConfig, norm: Norm, point: NormPoint, y: Rows, policy: Policy) -> Rows:
    """The adjoint of the whole norm, weight and centring with it, for cotangents of its output; of one that is absent, nothing."""
    if not norm.weight.numel():
        return y
    y = y * norm.weight
    return norm_map(point, y - y.mean(-1, keepdim=True) if centres(config) else y, policy)


def norm_push(config: ModelConfig, norm: Norm, point: NormPoint, x: Rows, policy: Policy) -> Rows:
    """The tangent map of the whole norm."""
    if not norm.weight.numel():
        return x
    x = x - x.mean(-1, keepdim=True) if centres(config) else x.clone()
    return norm_map(point, x, policy).mul_(norm.weight)


class Leaving(NamedTuple):
    """The norm between what attention or an MLP computes and what it adds to the stream, at its primal point."""

    norm: Norm
    point: NormPoint


def leave_pull(config: ModelConfig, leaving: Leaving | None, y: Rows, at: slice | Tensor, policy: Policy) -> Rows:
    """Cotangents of what is computed from those of what is added; the same where nothing is between."""
    return y if leaving is None else norm_pull(config, leaving.norm, leaving.point.at(at), y, policy)


def leave_push(config: ModelConfig, leaving: Leaving | None, x: Rows, at: slice | Tensor, policy: Policy) -> Rows:
    """Tangents of what is added from those of what is computed."""
    return x if leaving is None else norm_push(config, leaving.norm, leaving.point.at(at), x, policy)


# -------------------------------------------------------------------------------------------- MLP


class MLPWeights(NamedTuple):
    """One layer's matrices, norm_2 folded into those that read; the gate's first where there is one."""

    W_in: tuple[Float[Tensor, "d_model d_mlp"], ...]
    W_out: Float[Tensor, "d_mlp d_model"]


class MLPPoint(NamedTuple):
    """The derivative of the hidden layer by each of its pre-activations."""

    slopes: tuple[Float[Tensor, "positions d_mlp"], ...]

    def at(self, index: slice | Tensor) -> "MLPPoint":
        """The point of some positions."""
        return MLPPoint(tuple(slope[index] for slope in self.slopes))


def mlp_weights(model: Model, layer: int, *, fold: bool = True) -> MLPWeights:
    """Without `fold`, the matrices read `mlp_in` itself."""
    block = model.params.blocks[layer]
    W_in: tuple[Tensor, ...] = (block.mlp.W_gate, block.mlp.W_in) if model.config.gated else (block.mlp.W_in,)
    if fold:
        W_in = tuple(fold_norm(model.config, block.norm_2, W) for W in W_in)
    return MLPWeights(W_in, block.mlp.W_out)


def mlp_point(model: Model, layer: int, mlp_in: Float[Tensor, "positions d_model"], policy: Policy = EXACT) -> MLPPoint:
    """hidden = act(u), with slope act'(u); gated: hidden = act(u) ⊙ w, with slopes act'(u) ⊙ w and act(u).

    Under "relp" the slopes are those of `relevance_slopes`.
    """
    p = model.params.blocks[layer].mlp
    gate, pre = affine(mlp_in, p.W_gate, p.b_gate) if model.config.gated else None, affine(mlp_in, p.W_in, p.b_in)
    if policy.mlp == "relp":
        return MLPPoint(relevance_slopes(model.config, pre, gate))
    return MLPPoint(ops.slopes(pre, gate, model.config.activation))


def mlp_pull(weights: MLPWeights, point: MLPPoint, g: Rows) -> Rows:
    """Cotangents of what the MLP's matrices read, from those of its output."""
    hidden = product(g, weights.W_out.T)
    *gate, last = (slope[:, None] for slope in point.slopes)
    *W_gate, W_in = weights.W_in
    parts = [product(hidden * slope, W.T) for slope, W in zip(gate, W_gate, strict=True)]
    return _sum([*parts, product(hidden.mul_(last), W_in.T)])


def mlp_push(weights: MLPWeights, point: MLPPoint, x: Rows) -> Rows:
    """Tangents of the MLP's output, from those of what its matrices read."""
    hidden = _sum([product(x, W).mul_(slope[:, None]) for slope, W in zip(point.slopes, weights.W_in, strict=True)])
    return product(hidden, weights.W_out)


class FoldSpace(NamedTuple):
    """Where one position's fold is made: the next overwrites it, and no memory is asked for."""

    read: Float[Tensor, "d_mlp d_model"]
    fold: Float[Tensor, "one d_model d_model"]


def fold_space(weights: MLPWeights) -> FoldSpace:
    """Space for the folds of a layer."""
    d_model = weights.W_out.shape[1]
    return FoldSpace(torch.empty_like(weights.W_in[0]).T, weights.W_out.new_empty(1, d_model, d_model))


def mlp_fold(
    weights: MLPWeights,
    point: MLPPoint,
    norm: NormPoint,
    policy: Policy,
    space: FoldSpace | None = None,
    leave: Callable[[Rows], Rows] | None = None,
) -> Float[Tensor, "positions d_model d_model"]:
    """The Jacobian of resid_mid → resid_post at each position: `g @ M` pulls, `x @ M.mT` pushes. In `space` there is room for one.

    Args:
        leave: pushes tangents of what the MLP computes to what is added to the stream, where these differ.
    """
    read, folds = fold_space(weights) if space is None else space
    if len(norm.unit) > 1:
        folds = folds.new_empty(len(norm.unit), *folds.shape[1:])
    for t, M in enumerate(folds):
        product_into(weights.W_out.T, _read(weights, [slope[t] for slope in point.slopes], read), M)
    norm_map(norm, folds, policy)
    folds = _left(folds, leave)
    folds.diagonal(dim1=1, dim2=2).add_(1)
    return folds


def with_frozen_norm(point: MLPPoint, norm: NormPoint, policy: Policy) -> MLPPoint:
    """The slopes times 1 / s where that is all of the norm's map: a number for each position, which may as well be applied here."""
    return point if policy.norm == "exact" else MLPPoint(tuple(slope * norm.inverse for slope in point.slopes))


def mlp_folds(
    weights: MLPWeights, point: MLPPoint, norm: NormPoint, policy: Policy, leave: Callable[[Rows], Rows] | None = None
) -> Float[Tensor, "positions d_model d_model"]:
    """What `mlp_fold` gives, without the residual, of all positions in one product: [positions, d_mlp, d_model] are held at once.

    Args:
        point: by `with_frozen_norm`, once for all positions of a layer.
    """
    read = _read(weights, point.slopes)
    folds = weights.W_out.T @ read
    if policy.norm == "exact":
        norm_map(norm, folds, policy)
    return _left(folds, leave)


def _read(
    weights: MLPWeights, slopes: Sequence[Float[Tensor, "*positions d_mlp"]], into: Float[Tensor, "*positions d_mlp d_model"] | None = None
) -> Float[Tensor, "*positions d_mlp d_model"]:
    """What the hidden units read of the normed stream, each by its slope."""
    read = torch.mul(slopes[0][..., None], weights.W_in[0].T, out=into)
    for slope, W in zip(slopes[1:], weights.W_in[1:], strict=True):
        read.addcmul_(slope[..., None], W.T)
    return read


def _left(folds: Rows, leave: Callable[[Rows], Rows] | None) -> Rows:
    """With what stands between the MLP and the stream, in place."""
    return folds if leave is None else folds.copy_(leave(folds.mT).mT)


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total.add_(part)
    return total
