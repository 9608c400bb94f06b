"""A model as a torch module, for frameworks that move, hold and call modules; every function of attrib takes its `model`."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from attrib.models import transformer
from attrib.models.transformer import Model


class ModelModule(nn.Module):
    """A model whose parameters are buffers of a module: `.to`, `.double()`, `.cuda()` and what Lightning does move them.

    They are no `nn.Parameter`s, for nothing here trains, and no part of `state_dict`, for a checkpoint need not hold them.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        leaves, self._structure = pytree.tree_flatten(model.params)
        self._count = len(leaves)
        for number, leaf in enumerate(leaves):
            self.register_buffer(f"tensor_{number}", leaf, persistent=False)
        self._facts = replace(model, params=pytree.tree_unflatten([torch.empty(0)] * len(leaves), self._structure))

    @property
    def model(self) -> Model:
        """The model with these tensors, where and as they are now; it shares their memory."""
        leaves = [getattr(self, f"tensor_{number}") for number in range(self._count)]
        return replace(self._facts, params=pytree.tree_unflatten(leaves, self._structure))

    def forward(self, tokens: Int[Tensor, "*batch positions"]) -> Float[Tensor, "*batch positions d_vocab"]:
        """Logits from ids, as `attrib.forward`."""
        return transformer.forward(self.model, tokens)

    def extra_repr(self) -> str:
        """What stands in the brackets of its representation."""
        return repr(self.model)


def as_module(model: Model) -> ModelModule:
    """A model as a `torch.nn.Module`, in evaluation mode: `as_module(model).model` is the model again."""
    return ModelModule(model).eval()
