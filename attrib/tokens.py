"""Token ids as tokenizers hand them over: rows of a batch, padded to one length, with a mask that says where."""

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from attrib.types import InputError


def unpadded(ids: Any, mask: Any, where: str) -> Int64[Tensor, " positions"]:
    """A prompt's ids without its padding, on either side.

    Args:
        ids: [positions] whole numbers.
        mask: [positions] of 0, a pad, and 1.
        where: what the mask is called, for errors.

    Raises:
        InputError: where the mask has another length, says something else than 0 and 1, leaves no token, or has a hole:
            attrib's prompts are the tokens that stand next to each other.
    """
    ids, mask = (torch.as_tensor(each) for each in (ids, mask))
    if mask.shape != ids.shape or ids.ndim != 1:
        raise InputError(f"{where}: has shape {list(mask.shape)} for ids of shape {list(ids.shape)}; expected one number for each token.")
    kept = mask.nonzero().flatten()
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"{where}: has numbers other than 0 and 1; expected 0 for a pad and 1 for a token.")
    if not len(kept):
        raise InputError(f"{where}: is 0 everywhere; expected 1 for each token that is none of the padding.")
    first, stop = int(kept[0]), int(kept[-1]) + 1
    if stop - first != len(kept):
        hole = first + int((mask[first:stop] == 0).nonzero()[0])
        raise InputError(f"{where}: is 0 at position {hole}, between tokens; expected pads before or behind a prompt alone.")
    return ids[first:stop].to(dtype=torch.int64)
