"""Prompts with labels: what is asked, which answers there are, and which of them is right.

An answer is one token, or one of several tokens that say the same ("Yes" and " Yes"). `label` is the number of the right one, so the sign
of a difference follows from it: with the answers (" No", " Yes"), label 0 is logit(" No") - logit(" Yes"), and label 1 the opposite.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from attrib.core.types import FormatError, InputError
from attrib.models.tokenizer import brief
from attrib.models.tokens import TokensLike, check_ids, to_ids, token_ids
from attrib.models.transformer import Model

Answer = int | str | Sequence[int | str]
"""A token, by its text or id, or several that say the same."""


class Example(NamedTuple):
    """One prompt, its possible answers, and the number of the right one. A named tuple, which data loaders take.

    Where all prompts have one length and two answers of one token each, `attrib.causal.Contrast` says the same for rankings.
    """

    prompt: TokensLike
    """Text, a chat or token ids, as everywhere (docs/prompts.md); the answer is read behind its last token."""
    answers: Sequence[Answer]
    """At least two."""
    label: int = 0
    where: str = ""
    """Where it stands, for errors: a file and a line."""


@dataclass(frozen=True)
class Task:
    """A data set of examples under a name.

    To resume a run is to go through the examples again, so they are a list or a reader, and no iterator.
    """

    name: str
    examples: Iterable[Example]


class Item(NamedTuple):
    """An example as token ids."""

    ids: Int[Tensor, " positions"]
    """Without padding, on the model's device."""
    answers: tuple[tuple[int, ...], ...]
    label: int

    @property
    def right(self) -> tuple[int, ...]:
        """The tokens of the right answer."""
        return self.answers[self.label]

    @property
    def wrong(self) -> tuple[int, ...]:
        """Those of all other answers."""
        return tuple(token for number, answer in enumerate(self.answers) if number != self.label for token in answer)


def pairs(name: str, prompts: Iterable[TokensLike], right: Iterable[Answer], wrong: Iterable[Answer]) -> Task:
    """A task of prompts that each have a right and a wrong answer. Raises ValueError where these are not as many."""
    return Task(name, [Example(prompt, (yes, no)) for prompt, yes, no in zip(prompts, right, wrong, strict=True)])


def encoded(model: Model, examples: Iterable[Example], first: int = 0) -> list[Item]:
    """Examples as a model reads them.

    Args:
        first: the number of the first one, for errors.

    Raises:
        InputError: for what is no prompt of this model; fewer than two answers, an answer that is several tokens or unknown to the
            vocabulary, and a token that two answers share; a label that is no number of an answer.
    """
    return [_item(model, example, number) for number, example in enumerate(examples, first)]


def _item(model: Model, example: Example, number: int) -> Item:
    if not isinstance(example, Example):
        raise InputError(f"examples: example {number} is {brief.repr(example)}; expected an attrib.causal.tasks.Example.")
    where = f" ({example.where})" if example.where else ""
    named = f"examples: example {number}{where}"
    try:
        ids = to_ids(model, number, example.prompt)
        check_ids(model, number, ids)
    except InputError as error:
        raise InputError(f"{named}: {str(error).removeprefix('tokens: ')}") from error
    if isinstance(example.answers, str) or not isinstance(example.answers, Sequence) or len(example.answers) < 2:
        raise InputError(f"{named} has the answers {brief.repr(example.answers)}; expected a list of at least two.")
    answers = tuple(_tokens(model, answer, named) for answer in example.answers)
    owner: dict[int, int] = {}
    for place, answer in enumerate(answers):
        for token in answer:
            if owner.setdefault(token, place) != place:
                raise InputError(f"{named} has the token {token} in two answers, {brief.repr(example.answers)}; expected them to differ.")
    if isinstance(example.label, bool) or not isinstance(example.label, Integral) or not 0 <= example.label < len(answers):
        raise InputError(f"{named} has the label {brief.repr(example.label)}; expected the number of an answer, 0 to {len(answers) - 1}.")
    return Item(ids.to(model.device), answers, int(example.label))


def _tokens(model: Model, answer: Answer, named: str) -> tuple[int, ...]:
    several = [answer] if isinstance(answer, str | Integral) else answer
    if not isinstance(several, Sequence) or not all(isinstance(one, str | Integral) and not isinstance(one, bool) for one in several):
        raise InputError(f"{named} has the answer {brief.repr(answer)}; expected a token, by its text or id, or a list of such.")
    found = token_ids(model, [one if isinstance(one, str) else int(one) for one in several], f"{named}, answers").tolist()
    return tuple(dict.fromkeys(found))


def as_numbers(item: Item) -> tuple[int, ...]:
    """An item's label, how many answers it has, and of each how many tokens and which: what it is asked with beside its prompt."""
    return (item.label, len(item.answers), *(number for answer in item.answers for number in (len(answer), *answer)))


def of_numbers(ids: Int[Tensor, " positions"], numbers: Sequence[int], d_vocab: int) -> Item:
    """An item of its prompt and of `as_numbers`. Raises FormatError for numbers that are of no item of this vocabulary."""
    label, count, *left = numbers if len(numbers) > 1 else (0, 0)
    answers = []
    for _ in range(min(count, len(left))):
        length, *left = left or [0]
        answers.append(tuple(left[: max(length, 0)]))
        left = left[max(length, 0) :]
    item = Item(ids, tuple(answers), label)
    is_known = all(0 <= token < d_vocab for answer in answers for token in answer)
    if not 0 <= label < count or not all(answers) or not is_known or as_numbers(item) != tuple(numbers):
        raise FormatError(f"examples: {brief.repr(list(numbers))} are a label and the tokens of no answers. Make the job again.")
    return item


def digest(items: Sequence[Item]) -> str:
    """SHA-256 of what a model is asked in these: ids, answers and labels."""
    plain: list[Any] = [[item.ids.tolist(), item.answers, item.label] for item in items]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
