"""What a model says of an answer behind a prompt: token by token its rank and probability, beside the most probable tokens there.

The answer's tokens a_1 … a_n are read behind the prompt p in one pass, each at the place before its own:

    logits at p a_1 … a_{k-1}        rank of a_k = how many tokens have a larger logit there; 0 is the most probable

so the product of the probabilities is that of the whole answer. The pass is one of `intervene`: of the model itself, with
dictionaries in it, or under edits.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.causal.edits import Edit, EditsLike, as_edits, text_of
from attrib.causal.intervening import intervene
from attrib.causal.onward import is_open
from attrib.core.finite import require_finite
from attrib.core.positions import positions_in
from attrib.core.room import memory_named
from attrib.core.shown import in_one_line
from attrib.core.types import EXACT, InputError, Policy
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.tokens import TokensLike, check_ids, one_prompt, token_strings, tokenizer_of
from attrib.models.transformer import Model

if TYPE_CHECKING:
    import pandas as pd


@in_one_line
class AnswerRanks(NamedTuple):
    """One row for each token of an answer, with the most probable tokens at the place where it is read."""

    position: Int[Tensor, " tokens"]
    """Where it is read: that of the token before it."""
    token: Int[Tensor, " tokens"]
    rank: Int[Tensor, " tokens"]
    """How many tokens have a larger logit; 0 is the most probable."""
    logit: Float[Tensor, " tokens"]
    probability: Float[Tensor, " tokens"]
    top: Int[Tensor, "tokens k"]
    """The most probable tokens, by falling logit; of equal ones the first."""
    top_logit: Float[Tensor, "tokens k"]
    top_probability: Float[Tensor, "tokens k"]
    texts: tuple[str, ...]
    """The answer's tokens as they read."""
    top_texts: tuple[tuple[str, ...], ...]

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each token of the answer: position, id, token, rank, logit, probability."""
        import pandas as pd

        numbers = {name: getattr(self, name).tolist() for name in ("rank", "logit", "probability")}
        return pd.DataFrame({"position": self.position.tolist(), "id": self.token.tolist(), "token": list(self.texts), **numbers})

    def top_to_pandas(self) -> "pd.DataFrame":
        """One row for each of the most probable tokens of each place: position, rank, id, token, logit, probability."""
        import pandas as pd

        count, k = self.top.shape
        numbers = {"logit": self.top_logit.flatten().tolist(), "probability": self.top_probability.flatten().tolist()}
        where = {"position": self.position.repeat_interleave(k).tolist(), "rank": [*range(k)] * count, "id": self.top.flatten().tolist()}
        return pd.DataFrame({**where, "token": [text for texts in self.top_texts for text in texts], **numbers})


@memory_named("ranking an answer")
@takes(model=as_model, dictionaries=as_dictionaries)
@torch.no_grad()
def answer_ranks(
    model: Model,
    tokens: TokensLike,
    answer: Any,
    dictionaries: Sequence[Dictionary] = (),
    edits: EditsLike = (),
    *,
    errors: Any = False,
    effect: Any = "total",
    policy: Policy = EXACT,
    k: int = 10,
    dtype: torch.dtype | str | None = None,
) -> AnswerRanks:
    """How a model answers: the rank, logit and probability of each token of an answer, and the most probable tokens there.

    Args:
        tokens: one prompt, as the attributions take it.
        answer: text, whose leading space often matters (" Paris"), a token id, or several ids.
        dictionaries, edits, effect, policy, dtype: as `attrib.causal.intervene` takes them. Positions of edits are the prompt's; an edit
            without positions, and one whose positions are a slice that is open to the right ("-1:"), goes on over the answer's tokens.
        errors: False, dictionaries stand alone, as they do in SAELens' passes; True and "live" add what they do not decode, as
            `intervene` does it. Without edits the answer is then the model's own.
        k: how many of the most probable tokens.

    Raises:
        InputError: for more than one prompt, an answer without tokens, one that does not fit the context or the vocabulary, a `k`
            below 1, and as `intervene`.
        NotFiniteError: where a logit is NaN or plus infinity.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k: {k!r}; expected a whole number of at least 1.")
    prompt = one_prompt(model, tokens)
    wanted = _answer_ids(model, answer, prompt)
    ids = torch.cat([prompt, wanted[:-1]])  # the last token is only asked about
    check_ids(model, 0, ids)
    given = [_over_both(edit, len(prompt), len(ids)) for edit in as_edits(edits)]
    options: dict[str, Any] = {"errors": errors, "effect": effect, "policy": policy, "dtype": dtype}
    logits = intervene(model, dictionaries, ids, given, metric=lambda logits: logits[len(prompt) - 1 :], **options)
    position = torch.arange(len(prompt) - 1, len(ids), device=logits.device)
    require_finite({"the logits": logits}, from_below=True, position=position)
    logit = logits.gather(-1, wanted[:, None])
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    top, shares = order[:, :k], logits.softmax(-1)
    return AnswerRanks(
        position, wanted, (logits > logit).sum(-1), logit[:, 0], shares.gather(-1, wanted[:, None])[:, 0],
        top, ordered[:, :k], shares.gather(-1, top), token_strings(model, wanted), tuple(token_strings(model, row) for row in top),
    )  # fmt: skip


def _answer_ids(model: Model, answer: Any, prompt: Int[Tensor, " positions"]) -> Int[Tensor, " tokens"]:
    """The answer's tokens; a text is read by itself, without what a tokenizer puts before a prompt."""
    found: list[Any]
    if isinstance(answer, str):
        tokenizer = tokenizer_of(model, "answer")
        try:
            found = tokenizer.encode(answer)
        except InputError as error:
            raise InputError(f"answer: {answer!r} {error}") from error
    else:
        plain = answer.tolist() if isinstance(answer, Tensor | np.ndarray | np.generic) else answer
        if not isinstance(plain, Integral | Sequence) or isinstance(plain, bool | bytes):
            raise InputError(f"answer: a {type(answer).__name__}; expected text, a token id or several of them.")
        found = [plain] if isinstance(plain, Integral) else [*plain]
    last = model.config.d_vocab - 1
    if wrong := [one for one in found if isinstance(one, bool) or not isinstance(one, Integral) or not 0 <= int(one) <= last]:
        raise InputError(f"answer: {wrong[0]!r}; expected token ids from 0 to {last}.")
    if not found:
        raise InputError(f"answer: {answer!r} has no tokens; expected at least one.")
    if len(prompt) + len(found) - 1 > model.config.n_ctx:
        raise InputError(
            f"answer: {len(found)} tokens behind a prompt of {len(prompt)}, and the context of {model.name} is {model.config.n_ctx}; "
            "expected a shorter one."
        )
    return torch.tensor([int(one) for one in found], device=prompt.device)


def _over_both(edit: Edit, length: int, read: int) -> Edit:
    """An edit of a prompt of some length, where that and more is read: its positions are the prompt's, or go on."""
    if edit.positions is None or length == read:
        return edit
    at = positions_in(edit.positions, length, 0)
    return edit._replace(positions=[*at, *range(length, read)] if is_open(edit.positions, f"edits: {text_of(edit)}") else at)
