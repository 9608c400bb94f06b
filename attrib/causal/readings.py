"""What is read at the end of a pass, by its nodes: latents as the dictionary encodes them anew, logits, a direction, a metric."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.causal.nudged import Change, Nudged
from attrib.core.types import Difference, Direction, InputError, Site
from attrib.dictionaries.dictionary import Dictionary, encode_sparse
from attrib.models.tokens import token_ids
from attrib.models.transformer import Model

Metric = Callable[[Float[Tensor, "positions d_vocab"]], Float[Tensor, ""]]
LogitNodes = None
"""Plain logits, whose tokens the nodes themselves say."""


class Read(NamedTuple):
    """The targets' values in each of several passes, and what became of the dictionary's latents there."""

    value: Float[Tensor, "passes targets"]
    silent: Bool[Tensor, "passes targets"]
    """Which targets, being latents, are not active."""
    activated: Int[Tensor, " passes"]
    """How many of the dictionary's latents are active that were not at the primal."""


@dataclass(frozen=True)
class Reading:
    """How targets are read.

    Args:
        what: a dictionary; a difference or a direction; a metric; None for the logits of the nodes' tokens.
    """

    model: Model
    what: Dictionary | Difference | Direction | Metric | None

    @property
    def site(self) -> Site:
        """Where."""
        if isinstance(self.what, Dictionary):
            return self.what.site
        if isinstance(self.what, Direction) and self.what.site is not None:
            return Site.parse(self.what.site)
        return self.model.config.last

    def read(
        self,
        pass_: Nudged,
        change: Change,
        position: Int[Tensor, " targets"],
        latent: Int[Tensor, " targets"],
        scaled: Float[Tensor, "passes positions d_model"] | None = None,
    ) -> Read:
        """The targets, at their positions and by their numbers, of passes that run side by side.

        Args:
            change, scaled: as `Nudged.values` takes them, with one leading dimension of passes.
        """
        value = pass_.values(change, [self.site], scaled)[self.site]
        value = value if value.ndim == 3 else value[None]
        if isinstance(self.what, Dictionary):
            return self._latents(self.what, value, pass_.primal(self.site), position, latent)
        found = self._numbers(pass_, value, position, latent)
        return Read(found, torch.zeros_like(found, dtype=torch.bool), torch.zeros(len(found), dtype=torch.int64))

    def _latents(
        self,
        what: Dictionary,
        x: Float[Tensor, "passes positions d_in"],
        primal: Float[Tensor, "positions d_in"],
        position: Int[Tensor, " targets"],
        latent: Int[Tensor, " targets"],
    ) -> Read:
        passes, length, size = x.shape[0], x.shape[1], what.d_sae
        found = encode_sparse(what, x.reshape(passes * length, -1))
        before = encode_sparse(what, primal)
        keys = found.position * size + found.latent  # ascending, for the latents are sorted
        wanted = (torch.arange(passes)[:, None] * length + position) * size + latent
        if not len(keys):
            nothing = torch.zeros(wanted.shape, dtype=x.dtype)
            return Read(nothing, torch.ones_like(nothing, dtype=torch.bool), torch.zeros(passes, dtype=torch.int64))
        at = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        is_there = keys[at] == wanted
        is_new = ~torch.isin(keys % (length * size), before.position * size + before.latent)
        activated = torch.zeros(passes, dtype=torch.int64).index_add(0, keys // (length * size), is_new.long())
        return Read(found.value[at].where(is_there, 0), ~is_there, activated)

    def _numbers(
        self,
        pass_: Nudged,
        last: Float[Tensor, "passes positions d_model"],
        position: Int[Tensor, " targets"],
        latent: Int[Tensor, " targets"],
    ) -> Float[Tensor, "passes targets"]:
        model, what = self.model, self.what
        if isinstance(what, Direction):
            return last.index_select(1, position) @ what.vector.to(last)
        at, place = position.unique(return_inverse=True)
        if what is LogitNodes:
            tokens, token = latent.unique(return_inverse=True)
            return pass_.logits(last, at, tokens)[:, place, token]
        if isinstance(what, Difference):
            sides = [token_ids(model, side, "target") for side in (what.a, what.b)]
            plus, minus = pass_.logits(last, at, torch.cat(sides)).split([len(side) for side in sides], dim=-1)
            return (plus.mean(-1) - minus.mean(-1))[:, place]
        assert callable(what)
        every = pass_.logits(last, torch.arange(last.shape[1]), torch.arange(model.config.d_vocab))
        return torch.stack([_one(what(logits)) for logits in every])[:, None]


def _one(value: Tensor) -> Float[Tensor, ""]:
    if not isinstance(value, Tensor) or value.shape != ():
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"target: the metric gave {got}; expected a scalar tensor made from the logits [positions, d_vocab].")
    return value
