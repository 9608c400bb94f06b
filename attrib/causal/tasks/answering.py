"""What a model says behind a prompt: its logits there, as a signed difference, a prediction and a loss.

With R the tokens of the right answer, N those of all others, and l the logits at the last position,

    difference  = mean l[R] - mean l[N]                 what `attrib.Difference(R, N)` is, so its sign follows from the label
    loss        = -log Σ softmax(l)[R]                  over the whole vocabulary
    prediction  = the answer that has the largest logit of all answers' tokens; a tie is no right answer
    said        = the token of the largest logit of all: one token of greedy generation
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.causal.tasks.examples import Example, Item, encoded
from attrib.causal.tasks.spliced import ends_of, spliced
from attrib.core.finite import of_prompt, require_finite
from attrib.core.room import memory_named
from attrib.core.shown import in_one_line
from attrib.core.sparse import columns_of
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model, cap, normalise, unembed
from attrib.passes.replacement import replace


@in_one_line
class Answers(NamedTuple):
    """One row for each prompt."""

    difference: Float[Tensor, " prompts"]
    loss: Float[Tensor, " prompts"]
    """In nats."""
    probability: Float[Tensor, " prompts"]
    """Of all tokens of the right answer together."""
    prediction: Int[Tensor, " prompts"]
    """The number of an answer."""
    said: Int[Tensor, " prompts"]
    """A token of the whole vocabulary."""
    correct: Bool[Tensor, " prompts"]


@memory_named("computing logit differences")
@takes(model=as_model, dictionaries=as_dictionaries)
def logit_differences(
    model: Model, batch: Sequence[Example] | Sequence[Item], dictionaries: Sequence[Dictionary] = (), *, errors: bool = False
) -> Answers:
    """Right minus wrong at the end of each prompt, of the model or with dictionaries in it, and what follows from these logits.

    Args:
        batch: examples, or what `encoded` makes of them.
        dictionaries: put in together, each in place of what it writes, as `attrib.replace` means it; none is the model itself.
        errors: whether what dictionaries do not decode is added, as it is in the model's own pass. The logits are then the model's.

    Raises:
        InputError: as `encoded`, and where dictionaries do not fit the model or each other.
        NotFiniteError: where a logit is NaN or plus infinity.
    """
    items = items_of(model, batch)
    if not dictionaries:
        return answers_of(base_logits(model, items), items)
    replaced = replace(model, dictionaries)
    rows = [each.last for each in spliced(replaced, [item.ids for item in items], errors=errors)]
    return answers_of(unembed(model, torch.stack(rows)), items)


def items_of(model: Model, batch: Sequence[Example] | Sequence[Item]) -> list[Item]:
    """A batch as a model reads it. Raises InputError for an empty one, and as `encoded`."""
    if not batch:
        raise InputError("batch: no examples; expected at least one.")
    given: Sequence[Any] = batch
    return [one if isinstance(one, Item) else encoded(model, [one], number)[0] for number, one in enumerate(given)]


@torch.no_grad()
def base_logits(model: Model, items: Sequence[Item]) -> Float[Tensor, "prompts d_vocab"]:
    """The model's own logits at the end of each prompt."""
    return unembed(model, ends_of(model, [item.ids for item in items]))


@torch.no_grad()
def answers_of(logits: Float[Tensor, "prompts d_vocab"], items: Sequence[Item], numbers: Iterable[int] | None = None) -> Answers:
    """What logits at the ends of prompts say; `numbers` are those of the prompts, for errors, and None counts from 0.

    Raises:
        NotFiniteError: where one is NaN or plus infinity, which no comparison would show.
    """
    for number, row, item in zip(range(len(items)) if numbers is None else numbers, logits, items, strict=True):
        with of_prompt(number):
            require_finite({"the logits": row[None]}, from_below=True, position=torch.tensor([len(item.ids) - 1]))
    difference, margin = (torch.stack(each) for each in zip(*_signed(logits, items), strict=True))
    loss = torch.stack([-row.log_softmax(-1)[list(item.right)].logsumexp(-1) for row, item in zip(logits, items, strict=True)])
    correct = margin > 0
    wrong = torch.tensor([_best_wrong(row, item) for row, item in zip(logits, items, strict=True)], device=logits.device)
    label = torch.tensor([item.label for item in items], device=logits.device)
    return Answers(difference, loss, (-loss).exp(), label.where(correct, wrong), logits.argmax(-1), correct)


def _best_wrong(row: Float[Tensor, " d_vocab"], item: Item) -> int:
    others = [number for number in range(len(item.answers)) if number != item.label]
    return max(others, key=lambda number: float(row[list(item.answers[number])].max()))


def _signed(logits: Float[Tensor, "prompts d_vocab"], items: Sequence[Item]) -> Iterator[tuple[Tensor, Tensor]]:
    for row, item in zip(logits, items, strict=True):
        yield against(row[[*item.right, *item.wrong]], len(item.right))


def against(logits: Float[Tensor, "*batch tokens"], right: int) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Mean right minus mean wrong, and the largest right minus the largest wrong, of logits whose first `right` are the right answer's."""
    yes, no = logits[..., :right], logits[..., right:]
    return yes.mean(-1) - no.mean(-1), yes.amax(-1) - no.amax(-1)


def answer_logits(model: Model, last: Float[Tensor, " d_model"], item: Item) -> Float[Tensor, " tokens"]:
    """The logits of the right answer's tokens, then of the wrong ones', from the last stream's row; no others are computed."""
    tokens = torch.tensor([*item.right, *item.wrong], device=last.device)
    normed = normalise(model.config, model.params.norm_final, last[None])
    raw = (normed @ columns_of(model.params.W_U, tokens).T)[0] + model.params.b_U.index_select(0, tokens)
    return cap(raw, model.config.logit_cap)
