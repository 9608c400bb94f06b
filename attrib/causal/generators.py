"""Two tasks with known answers, as prompts of one length: subject-verb agreement, and indirect objects.

Every word that varies is one token with the space before it, so a position means the same in all prompts of a task. Words of the
held-out prompts are in none of the others: what is found on the one is tested on the other. The same seed gives the same prompts.

Linzen, Dupoux and Goldberg 2016 ask for the number of a verb behind a noun that distracts; Wang et al. 2022 for the indirect object.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from attrib.adapters.given import as_model, takes
from attrib.core.types import InputError
from attrib.models.tokens import tokenizer_of
from attrib.models.transformer import Model

NOUNS = (
    "dog dogs", "cat cats", "boy boys", "girl girls", "king kings", "car cars", "tree trees", "book books", "teacher teachers",
    "doctor doctors", "student students", "lawyer lawyers", "bird birds", "house houses", "river rivers", "ship ships", "key keys",
    "table tables", "window windows", "door doors", "farmer farmers", "driver drivers", "artist artists", "actor actors", "singer singers",
    "writer writers", "worker workers", "player players", "horse horses", "lion lions", "village villages", "bridge bridges",
)  # fmt: skip
PREPOSITIONS = ("near", "behind", "beside", "above")
VERBS = (" is", " are")

NAMES = (
    "Mary", "John", "Tom", "James", "Sarah", "David", "Anna", "Paul", "Lisa", "Mark", "Emma", "Peter", "Kate", "Robert", "Alice", "George",
    "Laura", "Simon", "Helen", "Jack", "Julia", "Adam", "Susan", "Frank",
)  # fmt: skip
PLACES = ("store", "park", "school", "office", "station", "garden", "market", "beach", "hospital", "library")
THINGS = ("book", "drink", "ball", "letter", "ring", "gift", "pen", "key", "map", "card")


W = TypeVar("W")


class Contrast(NamedTuple):
    """A prompt with the token that should come next and one that should not: what rankings and faithfulness compare.

    `attrib.causal.tasks.Example` is more: any prompt with any number of answers, each of one or several tokens, and a label.
    """

    text: str
    tokens: tuple[int, ...]
    answer: int
    distractor: int
    label: str
    """Which of the task's forms it is, as 'singular, plural between'."""


class Contrasts(NamedTuple):
    """Prompts of one length, in two parts that share no word that varies.

    `attrib.causal.tasks.generated_task` makes a task of the first part.
    """

    name: str
    roles: tuple[str, ...]
    """What stands at each position."""
    train: tuple[Contrast, ...]
    held_out: tuple[Contrast, ...]


@takes(model=as_model)
def subject_verb_agreement(model: Model, n: int = 32, held_out: int = 32, *, seed: int = 0) -> Contrasts:
    """ "The dogs near the table" goes on with " are" and not with " is": a noun of the other number stands between in half of them.

    Args:
        model: whose tokenizer decides which words are one token.
        n, held_out: how many prompts of each part.

    Raises:
        InputError: for a model without a tokenizer, or one whose tokens leave too few words.
    """
    rng, single = _draw(seed), _one_token(model)
    nouns = [pair for pair in (entry.split() for entry in NOUNS) if all(single(f" {word}") is not None for word in pair)]
    between = [word for word in PREPOSITIONS if single(f" {word}") is not None]
    verbs = [_required(single, verb) for verb in VERBS]
    parts = _halves(_enough(nouns, 8, "nouns"), rng)

    def one(words: Sequence[Sequence[str]], number: int) -> tuple[str, int, int, str]:
        subject, other = rng.sample(words, 2)
        is_plural, is_other_plural = number % 2, number // 2 % 2
        text = f"The {subject[is_plural]} {rng.choice(_enough(between, 1, 'prepositions'))} the {other[is_other_plural]}"
        kinds = ("singular", "plural")
        return text, verbs[is_plural], verbs[1 - is_plural], f"{kinds[is_plural]}, {kinds[is_other_plural]} between"

    roles = ("the", "subject", "preposition", "the between", "noun between")
    return _task(model, "subject-verb agreement", roles, parts, (n, held_out), one)


@takes(model=as_model)
def indirect_objects(model: Model, n: int = 32, held_out: int = 32, *, seed: int = 0) -> Contrasts:
    """ "When Mary and John went to the store, John gave a drink to" goes on with " Mary" and not with " John", in both orders of the names.

    The arguments and errors are those of `subject_verb_agreement`.
    """
    rng, single = _draw(seed), _one_token(model)
    names, places, things = (
        _enough([word for word in words if single(f" {word}") is not None], least, called)
        for words, least, called in ((NAMES, 8, "names"), (PLACES, 4, "places"), (THINGS, 4, "things"))
    )
    both = [_halves(words, rng) for words in (names, places, things)]
    parts = tuple(zip(*both, strict=True))

    def one(words: Sequence[Sequence[str]], number: int) -> tuple[str, int, int, str]:
        people, where, what = words
        to, by = rng.sample(people, 2)
        first, second = (to, by) if number % 2 else (by, to)
        text = f"When {first} and {second} went to the {rng.choice(where)}, {by} gave a {rng.choice(what)} to"
        return text, _required(single, f" {to}"), _required(single, f" {by}"), "the object first" if number % 2 else "the subject first"

    roles = (
        "when",
        "first name",
        "and",
        "second name",
        "went",
        "to",
        "the",
        "place",
        "comma",
        "subject",
        "gave",
        "a",
        "thing",
        "to at the end",
    )
    return _task(model, "indirect objects", roles, parts, (n, held_out), one)


TASKS: dict[str, Callable[..., Contrasts]] = {
    "subject-verb agreement": subject_verb_agreement, "indirect objects": indirect_objects,
}  # fmt: skip
"""By the name that they give themselves."""


_IN_VAIN = 2000
"""Draws in a row that bring nothing new, after which there is taken to be nothing more: were a hundredth of all prompts left, so many would
miss them once in half a billion times."""


def _task(
    model: Model,
    name: str,
    roles: tuple[str, ...],
    parts: Sequence[Any],
    counts: tuple[int, int],
    one: Callable[[Any, int], tuple[str, int, int, str]],
) -> Contrasts:
    tokenizer = tokenizer_of(model, "model")
    made = []
    for words, count, argument in zip(parts, counts, ("n", "held_out"), strict=True):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{argument}: {count!r}; expected a whole number, 1 or more.")
        examples: dict[str, Contrast] = {}
        in_vain = 0
        while len(examples) < count and in_vain < _IN_VAIN:
            text, answer, distractor, label = one(words, len(examples))
            if text in examples:
                in_vain += 1
                continue
            in_vain = 0
            tokens = tuple(int(token) for token in tokenizer.prompt(text))
            special = len(tokens) - len(roles)
            if special not in (0, 1):  # one that the tokenizer puts first
                raise InputError(f"model: its tokenizer makes {len(tokens)} tokens of {text!r}; expected {len(roles)}, one for each word.")
            examples[text] = Contrast(text, tokens, answer, distractor, label)
        if len(examples) < count:
            raise InputError(f"{argument}: {count}, but there are not so many different prompts of {name}; ask for fewer.")
        made.append(tuple(examples.values()))
    if len(made[0][0].tokens) > len(roles):
        roles = ("begin", *roles)
    return Contrasts(name, roles, *made)


def _draw(seed: int) -> random.Random:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed: {seed!r}; expected a whole number.")
    return random.Random(seed)


def _one_token(model: Model) -> Callable[[str], int | None]:
    """The token that a text is, or None where it is several."""
    tokenizer = tokenizer_of(model, "model")

    def single(text: str) -> int | None:
        with_it, without = (list(tokenizer.encode(some)) for some in (f"a{text}", "a"))
        return int(with_it[-1]) if len(with_it) == len(without) + 1 and with_it[:-1] == without else None

    return single


def _required(single: Callable[[str], int | None], text: str) -> int:
    if (token := single(text)) is None:
        raise InputError(f"model: its tokenizer has no token {text!r}, which the task asks for.")
    return token


def _enough(words: Sequence[W], least: int, called: str) -> Sequence[W]:
    if len(words) < least:
        raise InputError(f"model: of the task's {called} only {len(words)} are one token of its tokenizer; expected at least {least}.")
    return words


def _halves(words: Sequence[W], rng: random.Random) -> tuple[Sequence[W], Sequence[W]]:
    shuffled = rng.sample(words, len(words))
    return shuffled[: len(words) // 2], shuffled[len(words) // 2 :]
