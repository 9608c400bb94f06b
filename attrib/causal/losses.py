"""The loss of a model as it is, and with dictionaries and edits in it: one call for each replacement or ablation that is tried."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.causal.edits import EditsLike
from attrib.causal.intervening import intervene
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model


@takes(model=as_model, dictionaries=as_dictionaries)
def loss(
    model: Model,
    tokens: TokensLike,
    *,
    dictionaries: Sequence[Dictionary] = (),
    edits: EditsLike = (),
    errors: Any = False,
) -> float:
    """Cross-entropy of next tokens in nats, over all tokens of all prompts but the first of each.

    With transcoders as `dictionaries` it is the loss of the model with them in the place of its MLPs; with `Ablate` edits of
    MLP outputs, that of the model without those.

    Args:
        tokens: prompts of any lengths, as the attributions take them. Those of one token have nothing to predict.
        dictionaries, edits: as `attrib.causal.intervene` takes them.
        errors: False leaves out what dictionaries do not decode; True and "live" are those of `intervene`.

    Raises:
        InputError: where no prompt has two tokens, and as `intervene`.
    """
    prompts = to_prompts(model, tokens)
    if all(len(ids) < 2 for ids in prompts):
        raise InputError("tokens: no prompt has two tokens, so there is no next token to predict; give longer ones.")
    under_way = iter(prompts)  # a metric is asked of each prompt, in their order

    def summed(logits: Float[Tensor, "positions d_vocab"]) -> Float[Tensor, ""]:
        return F.cross_entropy(logits[:-1], next(under_way)[1:], reduction="none").double().sum()

    with torch.no_grad():
        found = intervene(model, dictionaries, prompts, edits, errors=errors, metric=summed)
    return float(found.sum()) / sum(len(ids) - 1 for ids in prompts)
