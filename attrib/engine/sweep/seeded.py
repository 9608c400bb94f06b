"""The MLP of one layer with its norms at its primal, for rows that live at their own position and for those of a cone."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.types import Policy
from attrib.engine.blocks.norm_mlp import (
    FoldSpace,
    Leaving,
    MLPPoint,
    MLPWeights,
    NormPoint,
    Rows,
    leave_pull,
    leave_push,
    mlp_fold,
    mlp_folds,
    mlp_pull,
    mlp_push,
    mlp_weights,
    norm_map,
    norm_pull,
    norm_push,
    with_frozen_norm,
)
from attrib.engine.sweep.cells import even
from attrib.engine.sweep.primal import Primal, Seeds
from attrib.models.transformer import ModelConfig, Norm


def fold_rows(config: ModelConfig) -> float:
    """From how many rows at one position on its MLP is cheaper as one matrix, by products counted.

    Building costs 2 d² d_mlp (a gate's two halves are added before the product), a row then 2 d² in place of
    4 d d_mlp, with a gate 6 d d_mlp.
    """
    d, f = config.d_model, config.d_mlp
    saved = (6 if config.gated else 4) * d * f - 2 * d * d
    return 2 * d * d * f / saved if saved > 0 else float("inf")


class LayerMLP(NamedTuple):
    """norm_2 and the MLP of one layer at its primal."""

    config: ModelConfig
    policy: Policy
    weights: MLPWeights
    gain: Norm | None
    """norm_2's parameters where they are not folded into the weights: that costs a pass over the matrices, this one over the rows."""
    point: MLPPoint
    norm: NormPoint
    leaving: Leaving | None

    def change(self, rows: Rows, at: slice | Tensor, up: bool) -> Rows:
        """Rows at some positions through both, without the residual; `up` pushes tangents, else cotangents are pulled."""
        point, norm = self.point.at(at), self.norm.at(at)
        if up:
            entering = rows.clone() if self.gain is None else norm_push(self.config, self.gain, norm, rows, self.policy)
            entering = norm_map(norm, entering, self.policy) if self.gain is None else entering
            return leave_push(self.config, self.leaving, mlp_push(self.weights, point, entering), at, self.policy)
        pulled = mlp_pull(self.weights, point, leave_pull(self.config, self.leaving, rows, at, self.policy))
        return norm_map(norm, pulled, self.policy) if self.gain is None else norm_pull(self.config, self.gain, norm, pulled, self.policy)

    def change_alone(self, rows: Float[Tensor, "rows d_model"], token: Tensor, up: bool) -> Float[Tensor, "rows d_model"]:
        """Rows through both without the residual, where each has a position of its own."""
        return self.change(rows[:, None], token, up)[:, 0]

    def fold(self, at: slice, space: FoldSpace) -> Float[Tensor, "d_model d_model"]:
        """The Jacobian of resid_mid → resid_post at one position; the weights are folded."""
        assert self.gain is None
        leave = None if self.leaving is None else lambda x: leave_push(self.config, self.leaving, x, at, self.policy)
        (M,) = mlp_fold(self.weights, self.point.at(at), self.norm.at(at), self.policy, space, leave)
        return M

    def fold_point(self) -> MLPPoint:
        """What `change_folded` makes its matrices of, at all positions."""
        return with_frozen_norm(self.point, self.norm, self.policy)

    def change_folded(
        self, rows: Float[Tensor, "positions rows d_model"], at: slice, point: MLPPoint, up: bool
    ) -> Float[Tensor, "positions rows d_model"]:
        """What `change` gives, by one matrix for each position, all in one product; the weights are folded.

        The residual is no part of the matrices: there it would be multiplied in the digits of the product, which may be few.

        Args:
            point: the whole layer's, by `fold_point`.
        """
        assert self.gain is None
        leave = None if self.leaving is None else lambda x: leave_push(self.config, self.leaving, x, at, self.policy)
        M = mlp_folds(self.weights, point.at(at), self.norm.at(at), self.policy, leave)
        return rows @ (M.mT if up else M)


def layer_mlp(primal: Primal, layer: int, fold: bool = True) -> LayerMLP:
    """The MLP of a layer; `fold` its norm's weight into it where many rows go through."""
    model = primal.weights
    gain = None if fold else model.params.blocks[layer].norm_2
    weights = mlp_weights(model, layer, fold=fold)
    return LayerMLP(model.config, primal.policy, weights, gain, primal.mlp(layer), primal.norm_2(layer), primal.leaving_2(layer))


def _parts(primal: Primal, rows: Tensor, token: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = even(len(rows), primal.pieces.mlp)
    yield from zip(rows.split(size), token.split(size), strict=True)


def with_mlp(primal: Primal, layer: int, sources: Seeds) -> Seeds:
    """Tangents with what the layer's norm and MLP make of them at their own position."""
    if not primal.passes_mlp(layer) or not len(sources.value):
        return sources
    mlp = layer_mlp(primal, layer, fold=len(sources.value) >= primal.model.config.d_mlp)
    changed = [mlp.change_alone(part, at, up=True) for part, at in _parts(primal, sources.value, sources.token)]
    return sources._replace(value=sources.value + torch.cat(changed))
