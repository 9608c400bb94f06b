"""Which edges of a prompt are shown: the strongest, between late enough positions, with a latent or a token at either end."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attrib.core.edges import Edges, Nodes
from attrib.core.types import InputError
from attrib.view.terminal import plain

_LARGEST = torch.iinfo(torch.int64).max
"""Numbers above it are of no latent and no position."""


@dataclass(frozen=True)
class Chosen:
    """What somebody asked to see of each prompt."""

    top: int | None = None
    """How many edges; None is all."""
    first_position: int = 0
    latents: frozenset[int] = frozenset()
    """Numbers of latents, one of which is at either end; empty is any. Vocabulary ids are no latents."""
    tokens: frozenset[str] = frozenset()
    """Tokens, one of which either end stands at, or is; empty is any."""

    def order(self, one: Edges) -> Int[Tensor, " chosen"]:
        """The entries of one prompt's edges, strongest first, that `top` is not counted in yet."""
        early, wanted = (torch.zeros(len(one), dtype=torch.bool) for _ in range(2))
        of_token = torch.zeros(len(one), dtype=torch.bool)
        for nodes, at in ((one.sources, one.indices), (one.targets, one.row)):
            early |= (nodes.position < min(self.first_position, _LARGEST))[at]
            wanted |= self._is_latent(nodes)[at]
            of_token |= self._is_token(nodes, one.prompts.strings)[at]
        passes = ~early & (wanted if self.latents else True) & (of_token if self.tokens else True)
        entries = passes.nonzero().squeeze(-1)
        return entries[one.attribution[entries].abs().argsort(descending=True, stable=True)]

    def _is_latent(self, nodes: Nodes) -> Bool[Tensor, " nodes"]:
        if nodes.kind != "latent":
            return torch.zeros(len(nodes), dtype=torch.bool)
        latents = [latent for latent in sorted(self.latents) if latent <= _LARGEST]
        return torch.isin(nodes.latent, torch.tensor(latents, dtype=torch.int64))

    def _is_token(self, nodes: Nodes, strings: tuple[str, ...]) -> Bool[Tensor, " nodes"]:
        here = torch.tensor([self._matches(string) for string in strings], dtype=torch.bool)[nodes.position]
        if not nodes.labels:
            return here
        return here | torch.tensor([self._matches(label) for label in nodes.labels], dtype=torch.bool)

    def _matches(self, string: str) -> bool:
        """' of' is meant by ' of' and by 'of'."""
        return string in self.tokens or string.strip() in self.tokens

    @property
    def words(self) -> str:
        """What was asked for, to stand behind 'the strongest'."""
        found = f" from position {self.first_position} on" if self.first_position else ""
        ends = [f"latent {' or '.join(map(str, sorted(self.latents)))}"] if self.latents else []
        ends += [f"token {' or '.join(map(repr, sorted(self.tokens)))}"] if self.tokens else []
        return plain(found + (f", with {' and '.join(ends)} at an end" if ends else ""))

    def check(self, calls: Iterable[dict[str, Any]]) -> None:
        """Raises InputError for a latent that no dictionary of these calls has. An end that says no size passes."""
        ends = [call.get(end) for call in calls for end in ("source", "target")]
        sizes = [end["d_sae"] for end in ends if isinstance(end, dict) and isinstance(end.get("d_sae"), int)]
        if sizes and (outside := [latent for latent in sorted(self.latents) if latent >= max(sizes)]):
            raise InputError(f"latent: {outside[0]}; the dictionaries of this file have the latents 0 to {max(sizes) - 1}.")
