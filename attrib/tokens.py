"""Text, chats, encodings and ids become prompts; ids become labels."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.types import InputError


def unpadded(
    ids: Int[Tensor, " padded"] | Sequence[int], mask: Tensor | Sequence[int] | Sequence[bool], where: str
) -> Int[Tensor, " positions"]:
    """The ids that a mask shows, int64: what a prompt is without its padding, on whichever side that lies.

    Args:
        ids: token ids with padding before or behind them.
        mask: of the same length, 1 or True where a token is real.
        where: names the prompt in errors, such as "prompt 3".

    Raises:
        InputError: where the mask has another length, other values, shows nothing, or hides a token between those that it shows:
            attrib counts positions from the first token and leaves none out.
    """
    ids, shown = torch.as_tensor(ids), torch.as_tensor(mask)
    if ids.ndim != 1 or shown.shape != ids.shape:
        raise InputError(
            f"attention_mask: {where} has ids of shape {list(ids.shape)} and a mask of {list(shown.shape)}; expected one length."
        )
    if bool(((shown != 0) & (shown != 1)).any()):
        raise InputError(f"attention_mask: that of {where} holds other values than 0 and 1; expected 1 where a token is real.")
    real = shown.nonzero().flatten()
    if not len(real):
        raise InputError(f"attention_mask: that of {where} is 0 everywhere; expected 1 at one token at least.")
    first, last = int(real[0]), int(real[-1])
    if len(real) <= last - first:
        hole = first + int((shown[first : last + 1] == 0).nonzero()[0, 0])
        raise InputError(
            f"attention_mask: that of {where} hides position {hole} between tokens that it shows; only padding at the ends is left out. "
            "Take that token out of the ids."
        )
    return ids[first : last + 1].to(torch.int64)
