"""A state dict that remembers what was taken from it, so that a part that nobody reads cannot go unnoticed."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.types import InputError, UnsupportedError
from attrib.models.transformer import Block, ModelConfig, Norm, Params


class Rotary(NamedTuple):
    """Rotary tables; of no width where positions are learned."""

    cos: Float[Tensor, "tables n_ctx d_rotary"]
    sin: Float[Tensor, "tables n_ctx d_rotary"]


class Weights:
    """The tensors of one model by name. `finish` raises where some were never taken."""

    def __init__(self, state: Mapping[str, Tensor], architecture: str) -> None:
        self._state, self._architecture = state, architecture
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def __call__(self, name: str) -> Tensor:
        """One tensor. Raises InputError where it is not there."""
        if name not in self._state:
            raise InputError(
                f"model: there is no {name}, which {self._architecture} has. Adapters and wrapped layers change names: "
                "merge them into the weights first (peft: merge_and_unload)."
            )
        self._taken.add(name)
        return self._state[name]

    def linear(self, name: str) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"]]:
        """A torch.nn.Linear as [in, out] and its bias, zeros where it has none."""
        weight = self(f"{name}.weight").T
        return weight, self(f"{name}.bias") if f"{name}.bias" in self else weight.new_zeros(weight.shape[-1])

    def layer_norm(self, name: str, *, affine: bool = True, width: int = 0) -> Norm:
        """A torch.nn.LayerNorm; one that is not affine has no tensors, and its width must be said."""
        if not affine:
            like = next(iter(self._state.values()))
            return Norm(like.new_ones(width), like.new_zeros(width))
        return Norm(self(f"{name}.weight"), self(f"{name}.bias"))

    def rms_norm(self, name: str, *, one_plus: bool = False) -> Norm:
        """An RMSNorm; Gemma's multiply by one more than their weight."""
        weight = self(f"{name}.weight")
        return Norm(1 + weight if one_plus else weight, torch.zeros_like(weight))

    def unembedding(self, W_E: Float[Tensor, "d_vocab d_model"]) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"]]:
        """`lm_head` and its bias; a file that was saved with tied weights has none, and the embedding is in its place."""
        if "lm_head.weight" in self:
            return self.linear("lm_head")
        return W_E.T, W_E.new_zeros(W_E.shape[0])

    def params(
        self,
        facts: ModelConfig,
        rotary: Rotary,
        block: Callable[[int], Block],
        embedding: str,
        final: Callable[[], Norm],
        W_pos: Float[Tensor, "n_ctx d_model"] | None = None,
    ) -> Params:
        """The whole pytree from what reads a layer and the last norm, in this order; without a table of positions, they are rotary."""
        W_E = self(f"{embedding}.weight")
        blocks = tuple(block(layer) for layer in range(facts.n_layers))
        return Params(W_E, W_E[:0] if W_pos is None else W_pos, *rotary, blocks, final(), *self.unembedding(W_E))

    def finish(self, buffers: Sequence[str]) -> None:
        """Raise UnsupportedError for the first tensor that was not taken, unless its name matches one of `buffers` (patterns)."""
        left = [name for name in self._state if name not in self._taken and not is_buffer(name, buffers)]
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise UnsupportedError(
                f"{self._architecture} with {left[0]}{more}: a part that attrib does not know. Nothing was computed, for it could be wrong."
            )


def is_buffer(name: str, buffers: Sequence[str]) -> bool:
    """Whether a tensor's name matches one of the patterns."""
    return any(re.fullmatch(pattern, name) for pattern in buffers)
