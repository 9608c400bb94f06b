"""Texts to contexts: all tokens in a row, cut into pieces of one length, some of which are held out."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.adapters.given import as_model, takes
from attrib.core.types import InputError
from attrib.models.tokens import check_ids, to_ids
from attrib.models.transformer import Model

RUN = 16
"""Contexts that stay together, so that held-out text is not the next sentence of training text."""
HELD_OUT_EVERY = 24
"""One run in so many is kept for measuring."""


@takes(model=as_model)
def pack(
    model: Model, texts: Iterable[Any], context: int, *, limit: int | None = None, prepend_bos: bool = False
) -> Int[Tensor, "contexts context"]:
    """Contexts of `context` tokens from texts (or token ids), one text after the next, without padding.

    What is left at the end is left out. Texts are read no further than `limit` tokens take.

    Args:
        prepend_bos: whether each context begins with the token that the model's tokenizer puts before a text, which counts as one of
            its tokens.

    Raises:
        InputError: for contexts that the model cannot read, where there is not one whole context, for a text that is none, and for
            `prepend_bos` where the tokenizer puts nothing before a text.
    """
    rows, found = packed(model, [texts] if isinstance(texts, str) else texts, context, limit=limit, prepend_bos=prepend_bos)
    if not len(rows):
        raise InputError(f"texts: {found} tokens, fewer than one context of {context}; give more text, or shorter contexts.")
    return rows


def packed(model: Model, texts: Iterable[Any], context: int, *, limit: int | None, prepend_bos: bool) -> tuple[Tensor, int]:
    """Contexts as `pack` makes them, of which there may be none, and how many tokens there were."""
    if isinstance(context, bool) or not 2 <= context <= model.config.n_ctx:
        raise InputError(f"context: {context}; expected 2 to {model.config.n_ctx} tokens, the context of {model.name}.")
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit}; expected at least 1 token.")
    first = _bos(model) if prepend_bos else []
    length = context - len(first)
    pieces, found = [], 0
    for number, text in enumerate(texts):
        ids = _ids(model, number, text)
        pieces.append(ids)
        found += len(ids)
        if limit is not None and found >= limit:
            break
    ids = (torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64))[:limit]
    rows = ids[: len(ids) // length * length].reshape(-1, length)
    return torch.cat([torch.tensor(first, dtype=torch.int64).expand(len(rows), len(first)), rows], dim=1), len(ids)


def _bos(model: Model) -> list[int]:
    before = model.tokenizer.around[0] if model.tokenizer is not None else []
    if len(before) != 1:
        raise InputError(f"prepend_bos: the tokenizer of {model.name} puts {len(before)} tokens before a text, and not one; leave it out.")
    return before


def _ids(model: Model, number: int, text: Any) -> Int[Tensor, " positions"]:
    """The tokens of a text as they stand, with nothing put around them; of ids themselves."""
    if not isinstance(text, str):
        ids = to_ids(model, number, text)
        for piece in ids.split(model.config.n_ctx):
            check_ids(model, number, piece)
        return ids
    if model.tokenizer is None:
        raise InputError(f"texts: number {number} is text, and {model.name} has no tokenizer; give token ids.")
    return torch.tensor(model.tokenizer.encode(text), dtype=torch.int64)


def hold_out(contexts: Int[Tensor, "contexts context"]) -> tuple[Int[Tensor, "_ context"], Int[Tensor, "_ context"]]:
    """Contexts for training, and others for measuring: one run of 16 in 24, shorter runs where there is little text.

    Raises:
        InputError: where there are fewer than two contexts.
    """
    if len(contexts) < 2:
        raise InputError(f"texts: {len(contexts)} contexts, of which none can be held out; give more text, or shorter contexts.")
    run = max(1, min(RUN, len(contexts) // (2 * HELD_OUT_EVERY)))
    number = torch.arange(len(contexts)) // run
    every = min(HELD_OUT_EVERY, int(number[-1]) + 1)
    held = number % every == every // 2
    return contexts[~held], contexts[held]
