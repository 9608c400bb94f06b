"""From logits to the next token: the distribution that is drawn from, and a draw that depends on the seed and the prompt alone.

    l' = l / temperature
    l'' = l' among the top_k largest, else -∞            equals of the last of them are kept too
    p  = softmax(l'') among the fewest most probable that reach top_p together, else 0; then divided by its sum

in this order, as transformers and most others have it. Temperature 0 is its limit: the most probable token, of equals the first.

A draw is the inverse of the distribution function at a number u in [0, 1) that comes from a hash of the seed, the prompt's ids and the
number of the draw. So a prompt is continued alike alone and in any batch, on any device, and with other edits under the same u.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import InputError


@dataclass(frozen=True)
class Sampling:
    """What is drawn from. `top_k` and `top_p` of None leave nothing out."""

    temperature: int | float = 0.0
    top_k: int | None = None
    top_p: int | float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise InputError(
                f"temperature: {self.temperature!r}; expected a number of at least 0, which is the most probable token always."
            )
        if self.top_k is not None and (not _is_whole(self.top_k) or self.top_k < 1):
            raise InputError(f"top_k: {self.top_k!r}; expected a whole number of at least 1, or None for all tokens.")
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise InputError(f"top_p: {self.top_p!r}; expected a number above 0 and at most 1, or None for all tokens.")
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**64:
            raise InputError(f"seed: {self.seed!r}; expected a whole number of at least 0.")
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, None):
            name = "top_k" if self.top_p is None else "top_p"
            raise InputError(
                f"{name}: no effect at temperature 0, where the most probable token is taken; give a temperature, or leave it out."
            )

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0


def probabilities(logits: Float[Tensor, "*batch d_vocab"], sampling: Sampling) -> Float[Tensor, "*batch d_vocab"]:
    """What the next token is drawn from, in float64: rows sum to 1. At temperature 0 all of it is at one token.

    Args:
        logits: the largest of each row is finite; others may be -∞.
    """
    logits = logits.double()
    if sampling.is_greedy:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    p = logits.softmax(-1)
    if sampling.top_p is None or sampling.top_p == 1:
        return p
    down, order = p.sort(dim=-1, descending=True, stable=True)
    before = down.cumsum(-1) - down
    kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before < sampling.top_p)
    kept = kept.scatter(-1, order[..., :1], True)
    p = p.where(kept, 0.0)
    return p / p.sum(-1, keepdim=True)


def drawn(p: Float[Tensor, "rows d_vocab"], u: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The token of each row where its distribution function first exceeds u, which is in [0, 1)."""
    function = p.cumsum(-1)
    token = torch.searchsorted(function, (u * function[:, -1])[:, None], right=True)[:, 0]
    last = p.shape[-1] - 1 - (p.flip(-1) > 0).int().argmax(-1)  # rounding may bring u · total to the total itself
    return token.minimum(last)


def uniform(seed: int, prompt: bytes, repeat: int, draw: int) -> float:
    """The number in [0, 1) that decides one draw.

    Args:
        prompt: the prompt's ids, as bytes.
        repeat: how many equal prompts came before this one, so that they are continued differently.
        draw: how many tokens of this prompt were drawn before.
    """
    hashed = hashlib.blake2b(b"%d %d %d " % (seed, repeat, draw) + prompt, digest_size=8).digest()
    return (int.from_bytes(hashed, "big") >> 11) / 2**53


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
