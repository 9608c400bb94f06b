"""What weights say of latents, all latents of a dictionary at once: tokens read, logits moved, heads, parents and children."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from attrib.core.types import BudgetError, InputError, NotFiniteError
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import fitted
from attrib.graph.kin import joined, relatives
from attrib.graph.ov import OVNorms, ov_norms
from attrib.graph.stream import chosen_latents, read_when
from attrib.graph.vocabulary import LogitHistogram, TokenWeights, de_embeddings, logit_histogram, logit_weights
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


@dataclass(frozen=True)
class Weighed:
    """Of some latents of a dictionary, in order. What the dictionary's places do not allow is None, and `faults` says why."""

    reads: TokenWeights | None
    """The tokens whose embeddings the encoders like most and least."""
    reads_through: int | None
    """The layer whose attention the embeddings pass; None is straight."""
    writes: TokenWeights | None
    """The tokens whose logits the decoders raise and lower most."""
    spread: LogitHistogram | None
    heads_before: OVNorms | None
    """What each head lets the encoders read."""
    heads_behind: OVNorms | None
    """What each head writes of what the decoders have written."""
    kin: "pd.DataFrame"
    """As `relatives` gives it."""
    strings: Mapping[int, str]
    """How the tokens above read."""
    faults: Mapping[str, str]
    """By part, why it is not there."""


def weighed(
    model: Model,
    dictionary: Dictionary,
    latents: Sequence[int],
    others: Sequence[Dictionary],
    expected: Mapping[str, Any],
    k: int,
    budget: int,
) -> Weighed:
    """What the weights say of some latents.

    Args:
        others: whose latents may be parents or children; one that is neither is named in `faults`.
        expected: see `relatives`.
        k: how many tokens, and relatives of each other dictionary.

    Raises:
        InputError: for a dictionary that is not of this model, or a latent that it does not have.
        BudgetError: where the budget is too small for one latent.
    """
    fitted(model, dictionary, "dictionary")
    for number, other in enumerate(others):
        fitted(model, other, f"others[{number}]")
    chosen = chosen_latents(list(latents), dictionary.d_sae, "latents")
    faults: dict[str, str] = {}

    def where_possible(part: str, make: Callable[[], T]) -> T | None:
        """Which places a dictionary must have for what is said in one place, by those who compute it; their words are shown."""
        try:
            return make()
        except (BudgetError, NotFiniteError):
            raise
        except InputError as error:
            faults[part] = str(error)
            return None

    site = dictionary.site
    through = site.layer if site.kind in ("z", "attn_out") and read_when(model, site) is None else None
    tokens = min(k, model.config.d_vocab)
    reads = where_possible("reads", lambda: de_embeddings(model, dictionary, chosen, attention=through, k=tokens, budget=budget))
    writes = where_possible("writes", lambda: logit_weights(model, dictionary, chosen, k=tokens, budget=budget))
    spread = None if writes is None else logit_histogram(model, dictionary, chosen, budget=budget)
    before = where_possible("heads before", lambda: ov_norms(model, dictionary, chosen, of="encoder", budget=budget))
    behind = where_possible("heads behind", lambda: ov_norms(model, dictionary, chosen, of="decoder", budget=budget))
    kin = [
        where_possible(
            f"Parents and children in {other.name}",
            partial(relatives, model, dictionary, chosen, [other], k=k, expected=expected, budget=budget),
        )
        for other in others
    ]
    frames = [frame for frame in kin if frame is not None]
    found = [end.flatten() for part in (reads, writes) if part is not None for end in (part.highest, part.lowest)]
    numbers = torch.cat(found).unique() if found else torch.empty(0, dtype=torch.int64)
    strings = dict(zip(numbers.tolist(), token_strings(model, numbers), strict=True))
    return Weighed(reads, through, writes, spread, before, behind, joined(frames), strings, faults)
