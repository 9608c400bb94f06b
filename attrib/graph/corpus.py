"""The prompts of a corpus, which is gone through once and never held."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attrib.core.types import InputError
from attrib.models.tokens import TokensLike, to_prompts, token_ids
from attrib.models.transformer import Model


def one_by_one(model: Model, tokens: TokensLike | Iterable[Any]) -> Iterator[Int[Tensor, " positions"]]:
    """Prompts; those of an iterator are taken from it one at a time. Raises InputError as `to_prompts`."""
    if isinstance(tokens, Iterator):
        for one in tokens:
            yield from to_prompts(model, one)
    else:
        given: Any = tokens
        yield from to_prompts(model, given)


def counted(
    model: Model, tokens: TokensLike | Iterable[Any], ignore: int | str | Sequence[int | str] | None
) -> Iterator[tuple[Int[Tensor, " positions"], Bool[Tensor, " positions"]]]:
    """Prompts one by one, and which of their positions count.

    Args:
        ignore: tokens whose positions do not count, by id or string.

    Raises:
        InputError: where no position of any prompt is left.
    """
    left_out, is_some = None if ignore is None else token_ids(model, ignore, "ignore"), False
    for ids in one_by_one(model, tokens):
        counts = torch.ones_like(ids, dtype=torch.bool) if left_out is None else ~torch.isin(ids, left_out)
        is_some |= bool(counts.any())
        yield ids, counts
    if not is_some:
        raise InputError(f"ignore: {ignore!r} leaves no position of these prompts; expected some.")
